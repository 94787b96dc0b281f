//! The whole scheduler against an API in memory.

mod flow;
mod preemption;
mod volumes;
