//! Builders, fakes and helpers for tests.

pub mod containerd;
pub mod etcd;
pub mod fuzz;
pub mod golden;
pub mod registry;
