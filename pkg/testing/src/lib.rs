//! Builders, fakes and helpers for tests.

pub mod containerd;
pub mod fuzz;
pub mod registry;
