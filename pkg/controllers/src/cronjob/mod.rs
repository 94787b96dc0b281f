//! CronJob controller: makes a Job whenever a schedule says so.
//!
//! Watches  batch/v1 CronJob (primary); batch/v1 Job (by controllerRef)
//! Writes   batch/v1 Job (create, delete); batch/v1 CronJob status
//! Behaves as  pkg/controller/cronjob, v1.36
//!
//! Invariant: one Job per scheduled time. Its name tells the time, so that a second try after a crash finds the first.

mod active;
mod controller;
mod plan;
#[cfg(test)]
mod tests;
mod timing;

use crate::context::Descriptor;

pub(crate) const NAME: &str = "cronjob-controller";

pub(crate) const CRONJOB: Descriptor = Descriptor::new(NAME, "cronjob", controller::start);
