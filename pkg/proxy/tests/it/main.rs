//! Packets through the rules on a real kernel, in network namespaces that vanish with the test.
//!
//! These tests need root.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "test code, outside of test functions")]

#[path = "../../../network/tests/it/host.rs"]
mod host;

mod cluster;
mod health;
mod packets;
mod policies;
mod world;
