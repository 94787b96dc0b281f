//! Packets through the rules on a real kernel, in network namespaces that vanish with the test.
//!
//! These tests need root.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "test code, outside of test functions")]

#[path = "../../../network/tests/it/host.rs"]
#[allow(dead_code, reason = "shared with the tests of the network, which use more of it")]
mod host;

mod cluster;
mod health;
mod packets;
mod policies;
mod world;
