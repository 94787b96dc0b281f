//! Builders, fakes and helpers for tests.
