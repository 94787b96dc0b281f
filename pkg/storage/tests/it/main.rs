//! The stores from outside: the conformance suite over every backend, and the embedded store under `kill -9`.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod backends;
mod conformance;
mod crash;
mod etcd;
