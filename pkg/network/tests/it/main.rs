//! The node network on a real kernel, in network namespaces that vanish with the test.
//!
//! These tests need root; without it they say so and pass.

mod host;

mod cni;
mod nodes;
