//! Job controller: runs pods until enough of them have succeeded, and counts each of them exactly once.
//!
//! Watches  batch/v1 Job (primary); v1 Pod (by controllerRef, and those that hold the tracking finalizer)
//! Writes   v1 Pod (create, delete, adopt, release, tracking finalizer); batch/v1 Job status
//! Behaves as  pkg/controller/job, v1.36
//!
//! Invariant: a pod's end is counted once, whatever happens in between. A pod keeps the tracking finalizer, and with
//! it its object, until `status.uncountedTerminatedPods` (or `completedIndexes`) names it; it is added to the
//! counters when the finalizer is gone, in the same write that takes its name off the list.
//!
//! Invariant: while expectations for a key are unmet, `sync` neither creates pods nor declares the job finished.

mod backoff;
mod conditions;
mod controller;
mod indexes;
mod memory;
mod orphans;
mod plan;
#[cfg(test)]
mod plan_tests;
mod pods;
mod policy;
mod spec;
#[cfg(test)]
mod tests;
mod tracking;

use crate::context::Descriptor;

pub(crate) use conditions::finished_condition;

pub(crate) const NAME: &str = "job-controller";

pub(crate) const JOB: Descriptor = Descriptor::new(NAME, "job", controller::start);
