//! The API server's metrics, under upstream's names, and the process's.
//!
//! Behaves as `k8s.io/apiserver/pkg/endpoints/metrics`, v1.36.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::request_info::RequestInfo;

/// The metrics of all components of a process, registered by each at its start.
pub type SharedRegistry = Arc<Mutex<Registry>>;

/// Label values come from the catalog and from fixed sets, never from what clients write.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    verb: String,
    dry_run: String,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    scope: String,
    component: &'static str,
    code: u16,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DurationLabels {
    verb: String,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    scope: String,
    component: &'static str,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InflightLabels {
    request_kind: &'static str,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EventLabels {
    group: String,
    version: String,
    resource: String,
}

/// Upstream's buckets for request durations, in seconds.
const DURATION_BUCKETS: [f64; 22] = [
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0,
    45.0,
];

fn durations() -> Histogram {
    Histogram::new(DURATION_BUCKETS)
}

/// The API server's own.
#[derive(Clone)]
pub struct Metrics {
    requests: Family<RequestLabels, Counter>,
    durations: Family<DurationLabels, Histogram, fn() -> Histogram>,
    inflight: Family<InflightLabels, Gauge>,
    long_running: Family<DurationLabels, Gauge>,
    terminations: Family<RequestLabels, Counter>,
    watch_events: Family<EventLabels, Counter>,
    panics: Counter,
}

/// Counts a request from its beginning to its end.
pub(crate) struct Tracked {
    labels: DurationLabels,
    gauge: Option<Gauge>,
    is_long_running: bool,
}

impl Metrics {
    /// Registers everything; `process` metrics too.
    pub fn register(registry: &SharedRegistry) -> Self {
        let metrics = Self {
            requests: Family::default(),
            durations: Family::new_with_constructor(durations),
            inflight: Family::default(),
            long_running: Family::default(),
            terminations: Family::default(),
            watch_events: Family::default(),
            panics: Counter::default(),
        };
        let mut registry = registry.lock();
        registry.register(
            "apiserver_request",
            "Requests answered, by verb, resource and code",
            metrics.requests.clone(),
        );
        let help = "Time from the arrival of a request to its answer";
        registry.register("apiserver_request_duration_seconds", help, metrics.durations.clone());
        registry.register("apiserver_current_inflight_requests", "Requests under way", metrics.inflight.clone());
        registry.register(
            "apiserver_longrunning_requests",
            "Watches and streams under way",
            metrics.long_running.clone(),
        );
        registry.register("apiserver_request_terminations", "Requests cut off", metrics.terminations.clone());
        registry.register("apiserver_watch_events", "Watch events sent", metrics.watch_events.clone());
        registry.register("apiserver_panics", "Requests whose handler panicked", metrics.panics.clone());
        process::register(&mut registry);
        drop(registry);
        metrics
    }

    /// `known` is whether the resource is in the catalog; names that clients made up are no label values.
    pub(crate) fn begin(&self, info: &RequestInfo, known: bool) -> Tracked {
        let labels = labels(info, known);
        let is_long_running = info.is_long_running();
        let gauge = if is_long_running {
            self.long_running.get_or_create(&labels).clone()
        } else {
            let request_kind = if info.is_read_only() { "readOnly" } else { "mutating" };
            self.inflight.get_or_create(&InflightLabels { request_kind }).clone()
        };
        gauge.inc();
        Tracked { labels, gauge: Some(gauge), is_long_running }
    }

    pub(crate) fn answered(&self, tracked: &Tracked, code: u16, dry_run: bool, elapsed: Duration) {
        self.requests.get_or_create(&request_labels(&tracked.labels, code, dry_run)).inc();
        if !tracked.is_long_running {
            self.durations.get_or_create(&tracked.labels).observe(elapsed.as_secs_f64());
        }
    }

    pub(crate) fn terminated(&self, tracked: &Tracked, code: u16) {
        self.terminations.get_or_create(&request_labels(&tracked.labels, code, false)).inc();
    }

    pub(crate) fn panicked(&self) {
        self.panics.inc();
    }

    pub(crate) fn watch_events(&self, group: &str, version: &str, resource: &str) -> Counter {
        let labels =
            EventLabels { group: group.to_owned(), version: version.to_owned(), resource: resource.to_owned() };
        self.watch_events.get_or_create(&labels).clone()
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        if let Some(gauge) = self.gauge.take() {
            gauge.dec();
        }
    }
}

fn request_labels(labels: &DurationLabels, code: u16, dry_run: bool) -> RequestLabels {
    let labels = labels.clone();
    RequestLabels {
        verb: labels.verb,
        dry_run: if dry_run { "All".to_owned() } else { String::new() },
        group: labels.group,
        version: labels.version,
        resource: labels.resource,
        subresource: labels.subresource,
        scope: labels.scope,
        component: labels.component,
        code,
    }
}

fn labels(info: &RequestInfo, known: bool) -> DurationLabels {
    let verb = match info.verb {
        "create" => "POST",
        "update" => "PUT",
        "patch" => "PATCH",
        "delete" | "deletecollection" => "DELETE",
        "list" => "LIST",
        "watch" => "WATCH",
        "proxy" => "CONNECT",
        "get" | "head" => "GET",
        "post" => "POST",
        "put" => "PUT",
        _ => "other",
    };
    if !info.is_resource || !known {
        return DurationLabels { verb: verb.to_owned(), component: "apiserver", ..DurationLabels::default() };
    }
    let connects = matches!(info.subresource.as_str(), "exec" | "attach" | "portforward" | "proxy");
    let verb = if connects { "CONNECT" } else { verb };
    let scope = if !info.name.is_empty() || info.verb == "create" {
        "resource"
    } else if info.namespace.is_empty() {
        "cluster"
    } else {
        "namespace"
    };
    DurationLabels {
        verb: verb.to_owned(),
        group: info.group.clone(),
        version: info.version.clone(),
        resource: info.resource.clone(),
        subresource: info.subresource.clone(),
        scope: scope.to_owned(),
        component: "apiserver",
    }
}

/// The registry as text for scrapers.
pub fn encode(registry: &SharedRegistry) -> String {
    process::refresh();
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = prometheus_client::encoding::text::encode(&mut out, &registry.lock());
    out
}

/// `process_*`, read from /proc when somebody scrapes.
mod process {
    use super::{AtomicU64, Gauge, Registry};

    type FloatGauge = Gauge<f64, AtomicU64>;

    #[derive(Default)]
    struct Process {
        cpu_seconds: FloatGauge,
        resident_bytes: Gauge,
        virtual_bytes: Gauge,
        open_files: Gauge,
        start_time: FloatGauge,
    }

    fn process() -> &'static Process {
        static PROCESS: std::sync::OnceLock<Process> = std::sync::OnceLock::new();
        PROCESS.get_or_init(Process::default)
    }

    /// Kernel ticks per second, which Linux fixes at 100 for user space.
    const TICKS_PER_SECOND: f64 = 100.0;
    const PAGE_BYTES: i64 = 4096;

    pub(super) fn register(registry: &mut Registry) {
        let process = process();
        registry.register("process_cpu_seconds_total", "CPU time used", process.cpu_seconds.clone());
        registry.register("process_resident_memory_bytes", "Resident memory", process.resident_bytes.clone());
        registry.register("process_virtual_memory_bytes", "Virtual memory", process.virtual_bytes.clone());
        registry.register("process_open_fds", "Open file descriptors", process.open_files.clone());
        registry.register("process_start_time_seconds", "Start of the process since 1970", process.start_time.clone());
    }

    /// What cannot be read keeps its last value.
    pub(super) fn refresh() {
        let process = process();
        if let Ok(files) = std::fs::read_dir("/proc/self/fd") {
            process.open_files.set(i64::try_from(files.count()).unwrap_or_default());
        }
        if let Ok(pages) = std::fs::read_to_string("/proc/self/statm") {
            let mut pages = pages.split_ascii_whitespace().map_while(|text| text.parse::<i64>().ok());
            process.virtual_bytes.set(pages.next().unwrap_or_default() * PAGE_BYTES);
            process.resident_bytes.set(pages.next().unwrap_or_default() * PAGE_BYTES);
        }
        let Ok(stat) = std::fs::read_to_string("/proc/self/stat") else { return };
        // Fields are counted after the command's closing parenthesis: the state is the third.
        let Some((_, fields)) = stat.rsplit_once(')') else { return };
        let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
        let field =
            |number: usize| fields.get(number - 3).and_then(|text| text.parse::<f64>().ok()).unwrap_or_default();
        process.cpu_seconds.set((field(14) + field(15)) / TICKS_PER_SECOND);
        let boot = std::fs::read_to_string("/proc/stat").unwrap_or_default();
        let boot = boot.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse::<f64>().ok());
        if let Some(boot) = boot {
            process.start_time.set(boot + field(22) / TICKS_PER_SECOND);
        }
    }
}
