//! Defaulting, validation and warnings of every built-in kind: pure functions of one object and its predecessor.
