//! Reading a Job's spec, with the API's defaults for what is absent.

use rkube_api::k8s::batch::v1::{Job, JobSpec};

/// `spec.managedBy` of Jobs that are this controller's.
const OWN_NAME: &str = "kubernetes.io/job-controller";

pub(super) fn is_indexed(spec: &JobSpec) -> bool {
    spec.completion_mode.as_deref() == Some("Indexed")
}

/// Whether this version knows the mode. An unknown one is of a newer API, and its job is left alone.
pub(super) fn has_known_mode(spec: &JobSpec) -> bool {
    matches!(spec.completion_mode.as_deref(), None | Some("NonIndexed" | "Indexed"))
}

pub(super) fn parallelism(spec: &JobSpec) -> i32 {
    spec.parallelism.unwrap_or(1)
}

/// How many indexes an indexed job has.
pub(super) fn index_count(spec: &JobSpec) -> i32 {
    spec.completions.unwrap_or(0)
}

pub(super) fn backoff_limit(spec: &JobSpec) -> i32 {
    spec.backoff_limit.unwrap_or(if spec.backoff_limit_per_index.is_some() { i32::MAX } else { 6 })
}

pub(super) fn is_suspended(spec: &JobSpec) -> bool {
    spec.suspend == Some(true)
}

/// Whether a terminating pod is replaced only when it has ended.
pub(super) fn replaces_only_failed(spec: &JobSpec) -> bool {
    spec.pod_replacement_policy.as_deref() == Some("Failed") || spec.pod_failure_policy.is_some()
}

/// The controller outside of this program that runs the job, if there is one.
pub(super) fn external_manager(job: &Job) -> Option<&str> {
    job.spec.as_ref()?.managed_by.as_deref().filter(|manager| *manager != OWN_NAME)
}
