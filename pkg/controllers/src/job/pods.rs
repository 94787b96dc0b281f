//! The pods of a Job: their index, their failures, and making them.
//!
//! Behaves as pkg/controller/job/indexed_job_utils.go, v1.36.

use std::collections::BTreeMap;
use std::sync::Arc;

use rkube_api::k8s::batch::v1::{Job, JobSpec};
use rkube_api::k8s::core::v1::{Container, EnvVar, EnvVarSource, ObjectFieldSelector, Pod};

use super::policy::judge;
use super::spec::{index_count, is_indexed, replaces_only_failed};
use crate::common::pod_control::pod_from_template;
use crate::common::pods;

pub(super) const TRACKING_FINALIZER: &str = "batch.kubernetes.io/job-tracking";
/// Annotation and label of the pods of indexed jobs.
const INDEX: &str = "batch.kubernetes.io/job-completion-index";
/// How often the index failed before this pod, for the limit per index and not for it.
const INDEX_FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
const INDEX_IGNORED_FAILURES: &str = "batch.kubernetes.io/job-index-ignored-failure-count";
const INDEX_VARIABLE: &str = "JOB_COMPLETION_INDEX";
/// A name has 63 characters, of which the API server generates five.
const GENERATE_NAME_MAX: usize = 58;

pub(super) fn is_tracked(pod: &Pod) -> bool {
    pod.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == TRACKING_FINALIZER)
}

/// The pod as it is when it has the finalizer that its adoption gave it.
pub(super) fn tracked(pod: &Pod) -> Arc<Pod> {
    let mut pod = pod.clone();
    pod.metadata.finalizers.get_or_insert_default().push(TRACKING_FINALIZER.to_owned());
    Arc::new(pod)
}

fn annotated<T: std::str::FromStr>(pod: &Pod, annotation: &str) -> Option<T> {
    pod.metadata.annotations.as_ref()?.get(annotation)?.parse().ok()
}

/// The pod's completion index, if it has one that could be an index.
pub(super) fn index_of(pod: &Pod) -> Option<i32> {
    annotated(pod, INDEX).filter(|index| *index >= 0)
}

/// The pod's index, if its job has such an index.
pub(super) fn valid_index(spec: &JobSpec, pod: &Pod) -> Option<i32> {
    index_of(pod).filter(|index| *index < index_count(spec))
}

/// Whether the pod's end can be counted: pods of indexed jobs need an index for that.
pub(super) fn is_countable(spec: &JobSpec, pod: &Pod) -> bool {
    !is_indexed(spec) || valid_index(spec, pod).is_some()
}

/// Failed, or deleted before it could end: nobody may be left who would make it fail.
pub(super) fn is_failed(spec: &JobSpec, pod: &Pod) -> bool {
    let given_up = pods::is_terminating(pod) && !replaces_only_failed(spec);
    pods::phase(pod) == "Failed" || (given_up && pods::phase(pod) != "Succeeded")
}

/// Deleted and not ended yet.
pub(super) fn is_stopping(pod: &Pod) -> bool {
    pods::is_terminating(pod) && !pods::is_terminal(pod)
}

/// The failures of the index before this pod: counted, and ignored by the failure policy. What a hand wrote and is
/// no count is none.
pub(super) fn index_failures(pod: &Pod) -> (i32, i32) {
    let count = |annotation| annotated(pod, annotation).filter(|count| *count >= 0).unwrap_or(0);
    (count(INDEX_FAILURES), count(INDEX_IGNORED_FAILURES))
}

/// A pod for the job; `index` is its place in an indexed job, `replaced` the failed pod that had it before.
pub(super) fn new_pod(job: &Job, spec: &JobSpec, index: Option<i32>, replaced: Option<&Pod>) -> Pod {
    let mut pod = pod_from_template(job, &spec.template);
    let finalizers = pod.metadata.finalizers.get_or_insert_default();
    if !finalizers.iter().any(|finalizer| finalizer == TRACKING_FINALIZER) {
        finalizers.push(TRACKING_FINALIZER.to_owned());
    }
    let Some(index) = index else { return pod };
    let name = job.metadata.name.as_deref().unwrap_or_default();
    let annotations: &mut BTreeMap<String, String> = pod.metadata.annotations.get_or_insert_default();
    annotations.insert(INDEX.to_owned(), index.to_string());
    if spec.backoff_limit_per_index.is_some() {
        let (counted, ignored) = replaced.map_or((0, 0), |replaced| {
            let (counted, ignored) = index_failures(replaced);
            if judge(spec, replaced).counts() {
                (counted.saturating_add(1), ignored)
            } else {
                (counted, ignored.saturating_add(1))
            }
        });
        annotations.insert(INDEX_FAILURES.to_owned(), counted.to_string());
        if ignored > 0 {
            annotations.insert(INDEX_IGNORED_FAILURES.to_owned(), ignored.to_string());
        }
    }
    pod.metadata.labels.get_or_insert_default().insert(INDEX.to_owned(), index.to_string());
    pod.metadata.generate_name = Some(prefix_with_index(name, index));
    let spec = pod.spec.get_or_insert_default();
    spec.hostname = Some(format!("{name}-{index}"));
    spec.init_containers.iter_mut().flatten().chain(&mut spec.containers).for_each(add_index_variable);
    pod
}

/// `name-index-`, the name cut so that the index stays.
fn prefix_with_index(name: &str, index: i32) -> String {
    let ending = format!("-{index}-");
    let kept = name.get(..GENERATE_NAME_MAX.saturating_sub(ending.len())).unwrap_or(name);
    format!("{kept}{ending}")
}

fn add_index_variable(container: &mut Container) {
    let variables = container.env.get_or_insert_default();
    if variables.iter().any(|variable| variable.name == INDEX_VARIABLE) {
        return;
    }
    let field =
        ObjectFieldSelector { field_path: format!("metadata.labels['{INDEX}']"), ..ObjectFieldSelector::default() };
    variables.push(EnvVar {
        name: INDEX_VARIABLE.to_owned(),
        value_from: Some(EnvVarSource { field_ref: Some(field), ..EnvVarSource::default() }),
        ..EnvVar::default()
    });
}
