//! The node network on a real kernel, in network namespaces that vanish with the test.
//!
//! These tests need root.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "test code, outside of test functions")]

mod host;

mod cni;
mod nodes;
