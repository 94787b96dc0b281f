//! The stores from outside: the conformance suite over every backend, and the embedded store under `kill -9`.

mod backends;
mod conformance;
mod crash;
