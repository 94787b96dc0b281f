//! The scheduler: queue, snapshot, filters, scores, preemption, binding.
//!
//! **Invariant:** nothing in `decide`, `cluster` and `model` performs I/O or reads a clock.
//! Behaves as `pkg/scheduler` of v1.36.

pub mod config;
pub mod context;
pub mod plugins;

mod bind;
mod preempt;
mod scheduler;
mod state;
mod status;

mod queue;

mod cluster;
mod decide;
mod model;
mod volumes;

pub mod metrics;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use config::{ConfigError, Profile, SchedulerConfig};
pub use context::SchedulerContext;
pub use scheduler::run;
