//! What the Job controller counts.

use std::time::Duration;

use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use rkube_client::metrics::{Counters, Declarations, Histograms, histograms};

use super::labels;

pub(crate) struct JobMetrics {
    syncs: Counters<3>,
    sync_duration: Histograms<3>,
    finished: Counters<3>,
    external: Counters<1>,
    pods_finished: Counters<2>,
    failures_by_policy: Counters<1>,
    tracked: Counters<1>,
    indexes: Counters<2>,
    creations: Counters<2>,
}

fn durations() -> Histogram {
    Histogram::new(exponential_buckets(0.004, 2.0, 15))
}

impl Default for JobMetrics {
    fn default() -> Self {
        Self {
            syncs: Counters::default(),
            sync_duration: histograms(durations),
            finished: Counters::default(),
            external: Counters::default(),
            pods_finished: Counters::default(),
            failures_by_policy: Counters::default(),
            tracked: Counters::default(),
            indexes: Counters::default(),
            creations: Counters::default(),
        }
    }
}

fn completion_mode(indexed: bool) -> &'static str {
    if indexed { "Indexed" } else { "NonIndexed" }
}

impl JobMetrics {
    pub(crate) fn synced(&self, indexed: bool, succeeded: bool, action: &str, took: Duration) {
        let result = if succeeded { "success" } else { "error" };
        let names = ["completion_mode", "result", "action"];
        let labels = labels(names, [completion_mode(indexed), result, action]);
        self.syncs.get_or_create(&labels).inc();
        self.sync_duration.get_or_create(&labels).observe(took.as_secs_f64());
    }

    pub(crate) fn finished(&self, indexed: bool, succeeded: bool, reason: &str) {
        let result = if succeeded { "succeeded" } else { "failed" };
        let names = ["completion_mode", "result", "reason"];
        self.finished.get_or_create(&labels(names, [completion_mode(indexed), result, reason])).inc();
    }

    /// A Job came that another controller manages.
    pub(crate) fn external(&self, controller: &str) {
        self.external.get_or_create(&labels(["controller_name"], [controller])).inc();
    }

    pub(crate) fn pods_finished(&self, indexed: bool, result: &str, pods: u64) {
        if pods > 0 {
            let names = ["completion_mode", "result"];
            self.pods_finished.get_or_create(&labels(names, [completion_mode(indexed), result])).inc_by(pods);
        }
    }

    pub(crate) fn failure_handled(&self, action: &str) {
        self.failures_by_policy.get_or_create(&labels(["action"], [action])).inc();
    }

    /// A pod that has ended has the tracking finalizer now, or has lost it.
    pub(crate) fn tracked(&self, event: &str) {
        self.tracked.get_or_create(&labels(["event"], [event])).inc();
    }

    pub(crate) fn indexes_finished(&self, status: &str, per_index: bool, indexes: u64) {
        if indexes > 0 {
            let limit = if per_index { "perIndex" } else { "global" };
            self.indexes.get_or_create(&labels(["status", "backoffLimit"], [status, limit])).inc_by(indexes);
        }
    }

    pub(crate) fn created(&self, reason: &str, succeeded: u64, failed: u64) {
        for (status, pods) in [("succeeded", succeeded), ("failed", failed)] {
            if pods > 0 {
                self.creations.get_or_create(&labels(["reason", "status"], [reason, status])).inc_by(pods);
            }
        }
    }

    pub(super) fn register(&self, declare: &mut Declarations<'_>) {
        declare
            .stable("job_sync_duration_seconds", "The time it took to sync a job", &self.sync_duration)
            .stable("job_syncs", "The number of job syncs", &self.syncs)
            .stable("jobs_finished", "The number of finished jobs", &self.finished)
            .alpha(
                "jobs_by_external_controller",
                "The number of Jobs managed by an external controller",
                &self.external,
            )
            .stable("job_pods_finished", "The number of finished Pods that are fully tracked", &self.pods_finished)
            .beta(
                "pod_failures_handled_by_failure_policy",
                "The number of failed Pods handled by failure policy with respect to the failure policy action applied based on the matched rule. Possible values of the action label correspond to the possible values for the failure policy rule action, which are: \"FailJob\", \"Ignore\" and \"Count\"",
                &self.failures_by_policy,
            )
            .beta(
                "terminated_pods_tracking_finalizer",
                "The number of terminated pods (phase=Failed|Succeeded) that have the finalizer batch.kubernetes.io/job-tracking. The event label can be \"add\" or \"delete\"",
                &self.tracked,
            )
            .alpha(
                "job_finished_indexes",
                "The number of finished indexes. Possible values for the status label are: \"succeeded\", \"failed\". Possible values for the backoffLimit label are: \"perIndex\" and \"global\"",
                &self.indexes,
            )
            .alpha(
                "job_pods_creation",
                "The number of Pods created by the Job controller labelled with a reason for the Pod creation. This metric also distinguishes between Pods created using different PodReplacementPolicy settings. Possible values of the \"reason\" label are: \"new\", \"recreate_terminating_or_failed\", \"recreate_failed\". Possible values of the \"status\" label are: \"succeeded\", \"failed\"",
                &self.creations,
            );
    }
}
