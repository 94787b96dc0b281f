//! Tests of the crate as others see it.

mod containerd;
mod generated;
