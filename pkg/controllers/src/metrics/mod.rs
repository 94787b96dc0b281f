//! What controllers count, under upstream's names.
//!
//! In: what controllers report of what they did. Out: metrics of the process, made visible by `register`.
//! Differs from upstream: nothing waits for a stale cache, so there is no count of syncs skipped for one.
//! Behaves as the `metrics` packages of pkg/controller/* and of k8s.io/endpointslice, v1.36.

use std::borrow::Cow;
use std::sync::LazyLock;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use rkube_client::metrics::{
    Counters, Declarations, FloatGauges, Gauges, Histograms, Labels, Stability, declare, histograms,
};

mod jobs;
mod slices;
mod volumes;

use jobs::JobMetrics;
pub(crate) use slices::Outlook;
use slices::SliceMetrics;
use volumes::Volumes;

/// Of all controllers.
pub(crate) struct Metrics {
    pub(crate) job: JobMetrics,
    pub(crate) slices: SliceMetrics,
    pub(crate) mirroring: SliceMetrics,
    pub(crate) volumes: Volumes,
    running: Gauges<2>,
    default_classes: Counter,
    default_class_errors: Counter,
    cronjob_skew: Histogram,
    ttl_deletion: Histogram,
    pub(crate) gc_errors: Counter,
    pod_gc: Counters<2>,
    pod_gc_errors: Counters<2>,
    zone_health: FloatGauges<1>,
    zone_size: Gauges<1>,
    zone_unhealthy: Gauges<1>,
    evictions: Counters<1>,
    pub(crate) node_health: Histogram,
    pub(crate) taint_deletions: Counter,
    taint_deletion: Histogram,
    root_ca_syncs: Counters<1>,
    root_ca_duration: Histograms<1>,
    cidr_allocations: Counters<1>,
    cidr_releases: Counters<1>,
    cidr_max: Gauges<1>,
    cidr_usage: FloatGauges<1>,
    cidr_tries: Histograms<1>,
    pub(crate) ephemeral_creates: Counter,
    pub(crate) ephemeral_failures: Counter,
    set_max_unavailable: Gauges<3>,
    set_unavailable: Gauges<3>,
    pub(crate) deletion_age_ratio: Histogram,
    hpa_rounds: Counters<2>,
    hpa_round_duration: Histograms<2>,
    hpa_metrics: Counters<3>,
    hpa_metric_duration: Histograms<3>,
    pub(crate) hpa_count: Gauge,
    hpa_desired: Gauges<2>,
}

/// From 1 ms doubling.
fn milliseconds() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 15))
}

fn tries() -> Histogram {
    Histogram::new(exponential_buckets(1.0, 5.0, 5))
}

pub(crate) fn metrics() -> &'static Metrics {
    static METRICS: LazyLock<Metrics> = LazyLock::new(|| Metrics {
        job: JobMetrics::default(),
        slices: SliceMetrics::default(),
        mirroring: SliceMetrics::default(),
        volumes: Volumes::default(),
        running: Gauges::default(),
        default_classes: Counter::default(),
        default_class_errors: Counter::default(),
        cronjob_skew: Histogram::new(exponential_buckets(1.0, 2.0, 10)),
        ttl_deletion: Histogram::new(exponential_buckets(0.1, 2.0, 14)),
        gc_errors: Counter::default(),
        pod_gc: Counters::default(),
        pod_gc_errors: Counters::default(),
        zone_health: FloatGauges::default(),
        zone_size: Gauges::default(),
        zone_unhealthy: Gauges::default(),
        evictions: Counters::default(),
        node_health: Histogram::new(exponential_buckets(0.001, 4.0, 8)),
        taint_deletions: Counter::default(),
        taint_deletion: Histogram::new([0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 10.0, 30.0, 60.0, 120.0, 180.0, 240.0]),
        root_ca_syncs: Counters::default(),
        root_ca_duration: histograms(milliseconds),
        cidr_allocations: Counters::default(),
        cidr_releases: Counters::default(),
        cidr_max: Gauges::default(),
        cidr_usage: FloatGauges::default(),
        cidr_tries: histograms(tries),
        ephemeral_creates: Counter::default(),
        ephemeral_failures: Counter::default(),
        set_max_unavailable: Gauges::default(),
        set_unavailable: Gauges::default(),
        deletion_age_ratio: Histogram::new(exponential_buckets(0.25, 2.0, 6)),
        hpa_rounds: Counters::default(),
        hpa_round_duration: histograms(milliseconds),
        hpa_metrics: Counters::default(),
        hpa_metric_duration: histograms(milliseconds),
        hpa_count: Gauge::default(),
        hpa_desired: Gauges::default(),
    });
    &METRICS
}

fn labels<const N: usize>(names: [&'static str; N], values: [&str; N]) -> Labels<N> {
    let mut values = values.into_iter();
    names.map(|name| (name, Cow::Owned(values.next().unwrap_or_default().to_owned())))
}

/// Which way an autoscaler went, and whether it was held up.
#[derive(Clone, Copy)]
pub(crate) struct Scaling {
    pub(crate) from: i32,
    pub(crate) to: i32,
    pub(crate) error: &'static str,
}

impl Scaling {
    fn values(self) -> [&'static str; 2] {
        let action = match self.to.cmp(&self.from) {
            _ if self.error != "none" => "none",
            std::cmp::Ordering::Greater => "scale_up",
            std::cmp::Ordering::Less => "scale_down",
            std::cmp::Ordering::Equal => "none",
        };
        [action, self.error]
    }
}

impl Metrics {
    /// Whether this process works as the controller.
    pub(crate) fn runs(&self, controller: &str, runs: bool) {
        let names = ["name", "manager"];
        self.running.get_or_create(&labels(names, [controller, "kube-controller-manager"])).set(runs.into());
    }

    /// A claim without a class was given the default one, or could not be.
    pub(crate) fn default_class_assigned(&self, succeeded: bool) {
        self.default_classes.inc();
        if !succeeded {
            self.default_class_errors.inc();
        }
    }

    /// A CronJob's Job was created so long after its time.
    pub(crate) fn cron_job_started(&self, late: Duration) {
        self.cronjob_skew.observe(late.as_secs_f64());
    }

    /// A finished Job was deleted so long after its time was up.
    pub(crate) fn finished_job_deleted(&self, late: Duration) {
        self.ttl_deletion.observe(late.as_secs_f64());
    }

    pub(crate) fn pod_collected(&self, namespace: &str, reason: &str, failed: bool) {
        let labels = labels(["namespace", "reason"], [namespace, reason]);
        let counter = if failed { &self.pod_gc_errors } else { &self.pod_gc };
        counter.get_or_create(&labels).inc();
    }

    /// How many nodes of a zone are ready, and how many are not. A zone without nodes is healthy.
    pub(crate) fn zone(&self, zone: &str, ready: usize, not_ready: usize) {
        let labels = labels(["zone"], [zone]);
        let size = ready + not_ready;
        let health = if size == 0 { 100.0 } else { 100.0 * ready as f64 / size as f64 };
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.zone_health.get_or_create(&labels).set(health);
        self.zone_size.get_or_create(&labels).set(number(size));
        self.zone_unhealthy.get_or_create(&labels).set(number(not_ready));
        // So that the zone is there before its first eviction.
        drop(self.evictions.get_or_create(&labels));
    }

    pub(crate) fn evicted(&self, zone: &str) {
        self.evictions.get_or_create(&labels(["zone"], [zone])).inc();
    }

    /// A pod that does not tolerate its node's taints was deleted so long after its time was up.
    pub(crate) fn taint_evicted(&self, late: Duration) {
        self.taint_deletions.inc();
        self.taint_deletion.observe(late.as_secs_f64());
    }

    pub(crate) fn root_ca_synced(&self, code: u16, took: Duration) {
        let labels = labels(["code"], [&code.to_string()]);
        self.root_ca_syncs.get_or_create(&labels).inc();
        self.root_ca_duration.get_or_create(&labels).observe(took.as_secs_f64());
    }

    pub(crate) fn range_allocated(&self, pool: &str, tries: u64) {
        let labels = labels(["clusterCIDR"], [pool]);
        self.cidr_allocations.get_or_create(&labels).inc();
        self.cidr_tries.get_or_create(&labels).observe(tries as f64);
    }

    pub(crate) fn range_released(&self, pool: &str) {
        self.cidr_releases.get_or_create(&labels(["clusterCIDR"], [pool])).inc();
    }

    pub(crate) fn ranges(&self, pool: &str, used: u64, size: u64) {
        let labels = labels(["clusterCIDR"], [pool]);
        self.cidr_max.get_or_create(&labels).set(i64::try_from(size).unwrap_or(i64::MAX));
        self.cidr_usage.get_or_create(&labels).set(used as f64 / size.max(1) as f64);
    }

    /// How many pods of a StatefulSet are not available, and how many may be. `None` when it is gone.
    pub(crate) fn stateful_set(&self, namespace: &str, name: &str, policy: &str, counts: Option<(i32, i32)>) {
        let names = ["statefulset_namespace", "statefulset_name", "pod_management_policy"];
        let labels = labels(names, [namespace, name, policy]);
        match counts {
            Some((unavailable, max)) => {
                self.set_unavailable.get_or_create(&labels).set(unavailable.into());
                self.set_max_unavailable.get_or_create(&labels).set(max.into());
            }
            None => {
                self.set_unavailable.remove(&labels);
                self.set_max_unavailable.remove(&labels);
            }
        }
    }

    pub(crate) fn autoscaled(&self, scaling: Scaling, took: Duration) {
        let labels = labels(["action", "error"], scaling.values());
        self.hpa_rounds.get_or_create(&labels).inc();
        self.hpa_round_duration.get_or_create(&labels).observe(took.as_secs_f64());
    }

    pub(crate) fn metric_computed(&self, scaling: Scaling, metric: &str, took: Duration) {
        let [action, error] = scaling.values();
        let labels = labels(["action", "error", "metric_type"], [action, error, metric]);
        self.hpa_metrics.get_or_create(&labels).inc();
        self.hpa_metric_duration.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// What an autoscaler wants; `None` when it is gone.
    pub(crate) fn autoscaler(&self, namespace: &str, name: &str, desired: Option<i32>) {
        let labels = labels(["namespace", "hpa_name"], [namespace, name]);
        match desired {
            Some(desired) => drop(self.hpa_desired.get_or_create(&labels).set(desired.into())),
            None => drop(self.hpa_desired.remove(&labels)),
        }
    }
}

/// Makes the metrics of this crate visible in `registry`.
pub fn register(registry: &mut Registry) {
    let all = metrics();
    all.job.register(&mut Declarations::new(registry, "job_controller"));
    all.slices.register(&mut Declarations::new(registry, "endpoint_slice_controller"));
    all.mirroring.register_mirroring(&mut Declarations::new(registry, "endpoint_slice_mirroring_controller"));
    Declarations::new(registry, "cronjob_controller").stable(
        "job_creation_skew_duration_seconds",
        "Time between when a cronjob is scheduled to be run, and when the corresponding job is created",
        &all.cronjob_skew,
    );
    Declarations::new(registry, "ttl_after_finished_controller").alpha(
        "job_deletion_duration_seconds",
        "The time it took to delete the job since it became eligible for deletion",
        &all.ttl_deletion,
    );
    Declarations::new(registry, "garbagecollector_controller").alpha(
        "resources_sync_error",
        "Number of garbage collector resources sync errors",
        &all.gc_errors,
    );
    Declarations::new(registry, "pod_gc_collector")
        .alpha(
            "force_delete_pods",
            "Number of pods that are being forcefully deleted since the Pod GC Controller started",
            &all.pod_gc,
        )
        .alpha(
            "force_delete_pod_errors",
            "Number of errors encountered when forcefully deleting the pods since the Pod GC Controller started",
            &all.pod_gc_errors,
        );
    Declarations::new(registry, "node_collector")
        .alpha("zone_health", "Gauge measuring percentage of healthy nodes per zone", &all.zone_health)
        .alpha("zone_size", "Gauge measuring number of registered Nodes per zones", &all.zone_size)
        .alpha("unhealthy_nodes_in_zone", "Gauge measuring number of not Ready Nodes per zones", &all.zone_unhealthy)
        .stable(
            "evictions",
            "Number of Node evictions that happened since current instance of NodeController started",
            &all.evictions,
        )
        .alpha(
            "update_node_health_duration_seconds",
            "Duration in seconds for NodeController to update the health of a single node",
            &all.node_health,
        );
    Declarations::new(registry, "taint_eviction_controller")
        .alpha(
            "pod_deletions",
            "Total number of Pods deleted by TaintEvictionController since its start",
            &all.taint_deletions,
        )
        .alpha(
            "pod_deletion_duration_seconds",
            "Latency, in seconds, between the time when a taint effect has been activated for the Pod and its deletion via TaintEvictionController",
            &all.taint_deletion,
        );
    let help = "Number of namespace syncs happened in root ca cert publisher";
    Declarations::new(registry, "root_ca_cert_publisher").alpha("sync", help, &all.root_ca_syncs).alpha(
        "sync_duration_seconds",
        help,
        &all.root_ca_duration,
    );
    Declarations::new(registry, "node_ipam_controller")
        .alpha("cidrset_cidrs_allocations", "Counter measuring total number of CIDR allocations", &all.cidr_allocations)
        .alpha("cidrset_cidrs_releases", "Counter measuring total number of CIDR releases", &all.cidr_releases)
        // Upstream's spelling.
        .alpha("cirdset_max_cidrs", "Maximum number of CIDRs that can be allocated", &all.cidr_max)
        .alpha("cidrset_usage_cidrs", "Gauge measuring percentage of allocated CIDRs", &all.cidr_usage)
        .alpha(
            "cidrset_allocation_tries_per_request",
            "Number of endpoints added on each Service sync",
            &all.cidr_tries,
        );
    let help = "Number of PersistentVolumeClaim creation requests";
    Declarations::new(registry, "ephemeral_volume_controller").alpha("create", help, &all.ephemeral_creates).alpha(
        "create_failures",
        help,
        &all.ephemeral_failures,
    );
    Declarations::new(registry, "statefulset_controller")
        .alpha(
            "statefulset_max_unavailable",
            "Maximum number of unavailable pods allowed during StatefulSet rolling updates",
            &all.set_max_unavailable,
        )
        .alpha(
            "statefulset_unavailable_replicas",
            "Current number of unavailable pods in StatefulSet",
            &all.set_unavailable,
        );
    Declarations::new(registry, "replicaset_controller").alpha(
        "sorting_deletion_age_ratio",
        "The ratio of chosen deleted pod's ages to the current youngest pod's age (at the time). Should be <2. The intent of this metric is to measure the rough efficacy of the LogarithmicScaleDown feature gate's effect on the sorting (and deletion) of pods when a replicaset scales down. This only considers Ready pods when calculating and reporting",
        &all.deletion_age_ratio,
    );
    let help = "Indicates where instances of a controller are currently running";
    declare(registry, "running_managed_controllers", Stability::Beta, help, all.running.clone());
    Declarations::new(registry, "retroactive")
        .alpha(
            "storageclass",
            "Total number of retroactive StorageClass assignments to persistent volume claim",
            &all.default_classes,
        )
        .alpha(
            "storageclass_errors",
            "Total number of failed retroactive StorageClass assignments to persistent volume claim",
            &all.default_class_errors,
        );
    volumes::register(registry);
    register_autoscaler(registry, all);
}

fn register_autoscaler(registry: &mut Registry, all: &Metrics) {
    Declarations::new(registry, "horizontal_pod_autoscaler_controller")
        .beta(
            "reconciliations",
            "Number of reconciliations of HPA controller. The label 'action' should be either 'scale_down', 'scale_up', or 'none'. Also, the label 'error' should be either 'spec', 'internal', or 'none'. Note that if both spec and internal errors happen during a reconciliation, the first one to occur is reported in `error` label",
            &all.hpa_rounds,
        )
        .beta(
            "reconciliation_duration_seconds",
            "The time(seconds) that the HPA controller takes to reconcile once. The label 'action' should be either 'scale_down', 'scale_up', or 'none'. Also, the label 'error' should be either 'spec', 'internal', or 'none'. Note that if both spec and internal errors happen during a reconciliation, the first one to occur is reported in `error` label",
            &all.hpa_round_duration,
        )
        .beta(
            "metric_computation",
            "Number of metric computations. The label 'action' should be either 'scale_down', 'scale_up', or 'none'. Also, the label 'error' should be either 'spec', 'internal', or 'none'. The label 'metric_type' corresponds to HPA.spec.metrics[*].type",
            &all.hpa_metrics,
        )
        .beta(
            "metric_computation_duration_seconds",
            "The time(seconds) that the HPA controller takes to calculate one metric. The label 'action' should be either 'scale_down', 'scale_up', or 'none'. The label 'error' should be either 'spec', 'internal', or 'none'. The label 'metric_type' corresponds to HPA.spec.metrics[*].type",
            &all.hpa_metric_duration,
        )
        .alpha("num_horizontal_pod_autoscalers", "Current number of controlled HPA objects", &all.hpa_count)
        .alpha("desired_replicas", "Current desired replica count for HPA objects", &all.hpa_desired);
}
