//! Kinds of the batch group.

pub mod cron_job;
pub mod job;
pub mod job_status;

mod indexes;
