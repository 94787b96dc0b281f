//! Kinds of the apps group.

pub mod daemon_set;
pub mod deployment;
pub mod stateful_set;

mod workload;
