//! `/metrics/cadvisor`: what containers, pods and the classes of pods use, by cgroup. Names and labels are cadvisor's.
//!
//! Behaves as vendored cadvisor's metrics/prometheus.go with the sets the kubelet turns on, v1.36.

use std::collections::HashMap;
use std::sync::Arc;

use rkube_cri::v1::ListContainerStatsRequest;

use crate::kubelet::Inner;
use crate::pod::PodExt;
use crate::server::Answer;
use crate::server::figures::{Figures, device_name, figures};
use crate::server::metrics::{Family, Text};
use crate::server::stats::{Interface, container_cgroup, interfaces_of, node_usage, running};

/// The labels that say what a row is about: container, id, image, name, namespace, pod.
type Identity = [String; 6];
const IDENTITY: [&str; 6] = ["container", "id", "image", "name", "namespace", "pod"];

struct Row {
    identity: Identity,
    figures: Figures,
    /// Seconds since the epoch.
    started: Option<f64>,
    /// Bytes of the writable layer.
    layer: Option<u64>,
}

const NANO: f64 = 1e-9;

const FAMILIES: [Family<Row>; 24] = [
    ("container_cpu_cfs_periods_total", "counter", "Number of elapsed enforcement period intervals.", |row| {
        row.figures.periods as f64
    }),
    ("container_cpu_cfs_throttled_periods_total", "counter", "Number of throttled period intervals.", |row| {
        row.figures.throttled_periods as f64
    }),
    (
        "container_cpu_cfs_throttled_seconds_total",
        "counter",
        "Total time duration the container has been throttled.",
        |row| row.figures.throttled_nanos as f64 * NANO,
    ),
    ("container_cpu_system_seconds_total", "counter", "Cumulative system cpu time consumed in seconds.", |row| {
        row.figures.cpu_system_nanos as f64 * NANO
    }),
    ("container_cpu_user_seconds_total", "counter", "Cumulative user cpu time consumed in seconds.", |row| {
        row.figures.cpu_user_nanos as f64 * NANO
    }),
    ("container_memory_cache", "gauge", "Number of bytes of page cache memory.", |row| row.figures.memory_cache as f64),
    ("container_memory_failcnt", "counter", "Number of memory usage hits limits", |row| {
        row.figures.memory_failures as f64
    }),
    ("container_memory_mapped_file", "gauge", "Size of memory mapped files in bytes.", |row| {
        row.figures.memory_mapped as f64
    }),
    ("container_memory_max_usage_bytes", "gauge", "Maximum memory usage recorded in bytes", |row| {
        row.figures.memory_peak as f64
    }),
    ("container_memory_rss", "gauge", "Size of RSS in bytes.", |row| row.figures.usage.memory_rss as f64),
    ("container_memory_swap", "gauge", "Container swap usage in bytes.", |row| row.figures.memory_swap as f64),
    (
        "container_memory_usage_bytes",
        "gauge",
        "Current memory usage in bytes, including all memory regardless of when it was accessed",
        |row| row.figures.usage.memory_usage as f64,
    ),
    ("container_memory_working_set_bytes", "gauge", "Current working set in bytes.", |row| {
        row.figures.usage.memory_working_set as f64
    }),
    ("container_oom_events_total", "counter", "Count of out of memory events observed for the container", |row| {
        row.figures.oom_kills as f64
    }),
    ("container_processes", "gauge", "Number of processes running inside the container.", |row| {
        row.figures.usage.processes as f64
    }),
    ("container_spec_cpu_period", "gauge", "CPU period of the container.", |row| row.figures.spec.cpu_period as f64),
    ("container_spec_cpu_shares", "gauge", "CPU share of the container.", |row| row.figures.spec.cpu_shares as f64),
    ("container_spec_memory_limit_bytes", "gauge", "Memory limit for the container.", |row| {
        row.figures.spec.memory_limit as f64
    }),
    ("container_spec_memory_reservation_limit_bytes", "gauge", "Memory reservation limit for the container.", |row| {
        row.figures.spec.memory_reservation as f64
    }),
    ("container_spec_memory_swap_limit_bytes", "gauge", "Memory swap limit for the container.", |row| {
        row.figures.spec.swap_limit as f64
    }),
    (
        "container_threads_max",
        "gauge",
        "Maximum number of threads allowed inside the container, infinity if value is zero",
        |row| row.figures.spec.processes_max as f64,
    ),
    ("container_threads", "gauge", "Number of threads running inside the container", |row| {
        // What `pids` counts are tasks, and those are threads.
        row.figures.usage.processes as f64
    }),
    ("container_blkio_device_usage_read_bytes_total", "counter", "Bytes read from all devices", |row| {
        row.figures.io.iter().map(|io| io.read_bytes).sum::<u64>() as f64
    }),
    ("container_blkio_device_usage_write_bytes_total", "counter", "Bytes written to all devices", |row| {
        row.figures.io.iter().map(|io| io.write_bytes).sum::<u64>() as f64
    }),
];

/// Name, help, and its place in a line of `/proc/net/dev`.
const NETWORK: [(&str, &str, usize); 8] = [
    ("container_network_receive_bytes_total", "Cumulative count of bytes received", 0),
    ("container_network_receive_errors_total", "Cumulative count of errors encountered while receiving", 2),
    ("container_network_receive_packets_dropped_total", "Cumulative count of packets dropped while receiving", 3),
    ("container_network_receive_packets_total", "Cumulative count of packets received", 1),
    ("container_network_transmit_bytes_total", "Cumulative count of bytes transmitted", 8),
    ("container_network_transmit_errors_total", "Cumulative count of errors encountered while transmitting", 10),
    ("container_network_transmit_packets_dropped_total", "Cumulative count of packets dropped while transmitting", 11),
    ("container_network_transmit_packets_total", "Cumulative count of packets transmitted", 9),
];

pub(super) async fn answer(inner: &Arc<Inner>) -> Answer {
    let layers = writable_layers(inner).await;
    let reading = inner.clone();
    let text = tokio::task::spawn_blocking(move || write(&reading, &layers)).await;
    text.unwrap_or_default().answer()
}

/// Bytes of each container's own layer, which only the runtime knows.
async fn writable_layers(inner: &Inner) -> HashMap<String, u64> {
    let answer = inner.runtime.service.list_container_stats(ListContainerStatsRequest::default()).await;
    let stats = answer.map(|answer| answer.stats).unwrap_or_default();
    stats.into_iter().filter_map(|one| Some((one.attributes?.id, one.writable_layer?.used_bytes?.value))).collect()
}

fn write(inner: &Inner, layers: &HashMap<String, u64>) -> Text {
    let rows = rows(inner, layers);
    let mut text = Text::default();
    let (name, now) = ("container_last_seen", inner.clock.now().as_second() as f64);
    text.head(name, "gauge", "Last time a container was seen by the exporter");
    rows.iter().for_each(|row| text.sample(name, &labels(&row.identity, &[]), now));
    for (name, kind, help, figure) in FAMILIES {
        text.head(name, kind, help);
        rows.iter().for_each(|row| text.sample(name, &labels(&row.identity, &[]), figure(row)));
    }
    let name = "container_cpu_usage_seconds_total";
    text.head(name, "counter", "Cumulative cpu time consumed in seconds.");
    for row in &rows {
        text.sample(name, &labels(&row.identity, &[("cpu", "total")]), row.figures.usage.cpu_nanos as f64 * NANO);
    }
    let name = "container_memory_failures_total";
    text.head(name, "counter", "Cumulative count of memory allocation failures.");
    for row in &rows {
        let usage = &row.figures.usage;
        for (kind, count) in [("pgfault", usage.page_faults), ("pgmajfault", usage.major_page_faults)] {
            let more = [("failure_type", kind), ("scope", "hierarchy")];
            text.sample(name, &labels(&row.identity, &more), count as f64);
        }
    }
    let name = "container_spec_cpu_quota";
    text.head(name, "gauge", "CPU quota of the container.");
    for (row, quota) in rows.iter().filter_map(|row| Some((row, row.figures.spec.cpu_quota?))) {
        text.sample(name, &labels(&row.identity, &[]), quota as f64);
    }
    let name = "container_start_time_seconds";
    text.head(name, "gauge", "Start time of the container since unix epoch in seconds.");
    for (row, started) in rows.iter().filter_map(|row| Some((row, row.started?))) {
        text.sample(name, &labels(&row.identity, &[]), started);
    }
    write_disks(inner, &rows, &mut text);
    write_network(inner, &mut text);
    let capacity = inner.node.capacity();
    text.head("machine_cpu_cores", "gauge", "Number of logical CPU cores.");
    text.sample("machine_cpu_cores", &[], capacity.cpu_milli as f64 / 1e3);
    text.head("machine_memory_bytes", "gauge", "Amount of memory installed on the machine.");
    text.sample("machine_memory_bytes", &[], capacity.memory as f64);
    text.head("machine_swap_bytes", "gauge", "Amount of swap memory available on the machine.");
    text.sample("machine_swap_bytes", &[], capacity.swap as f64);
    text
}

fn labels<'a>(identity: &'a Identity, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let own = IDENTITY.iter().zip(identity).map(|(name, value)| (*name, value.as_str()));
    let mut all: Vec<_> = own.chain(more.iter().copied()).collect();
    all.sort_by_key(|(name, _)| *name);
    all
}

fn rows(inner: &Inner, layers: &HashMap<String, u64>) -> Vec<Row> {
    let plain = |id: String, figures| {
        let identity = [String::new(), id, String::new(), String::new(), String::new(), String::new()];
        Row { identity, figures, started: None, layer: None }
    };
    let mut rows = vec![plain("/".to_owned(), Figures { usage: node_usage(), ..figures(inner, "/") })];
    rows.extend(inner.cgroups.classes().map(|id| {
        let figures = figures(inner, &id);
        plain(id, figures)
    }));
    for (pod, containers) in running(inner) {
        let (namespace, name) = (pod.namespace().to_owned(), pod.name().to_owned());
        let id = inner.cgroups.parent_of(&pod);
        let figures_of_pod = figures(inner, &id);
        rows.push(Row {
            identity: [String::new(), id, String::new(), String::new(), namespace.clone(), name.clone()],
            figures: figures_of_pod,
            started: containers.iter().map(|container| container.created_at).min().map(seconds),
            layer: None,
        });
        for container in containers {
            let id = container_cgroup(inner, &pod, &container);
            rows.push(Row {
                figures: figures(inner, &id),
                started: Some(seconds(container.started_at.unwrap_or(container.created_at))),
                layer: layers.get(&container.id).copied(),
                identity: [container.name, id, container.image, container.id, namespace.clone(), name.clone()],
            });
        }
    }
    rows
}

fn seconds(time: jiff::Timestamp) -> f64 {
    time.as_millisecond() as f64 / 1e3
}

fn write_disks(inner: &Inner, rows: &[Row], text: &mut Text) {
    type Figure = fn(&super::figures::Io) -> u64;
    let families: [(&str, &str, Figure); 4] = [
        ("container_fs_reads_total", "Cumulative count of reads completed", |io| io.reads),
        ("container_fs_writes_total", "Cumulative count of writes completed", |io| io.writes),
        ("container_fs_reads_bytes_total", "Cumulative count of bytes read", |io| io.read_bytes),
        ("container_fs_writes_bytes_total", "Cumulative count of bytes written", |io| io.write_bytes),
    ];
    let devices = rows.iter().flat_map(|row| &row.figures.io).map(|io| io.device.clone());
    let names: HashMap<String, String> = devices.map(|device| (device.clone(), device_name(&device))).collect();
    for (name, help, figure) in families {
        text.head(name, "counter", help);
        for (row, io) in rows.iter().flat_map(|row| row.figures.io.iter().map(move |io| (row, io))) {
            let device = names.get(&io.device).map_or(io.device.as_str(), String::as_str);
            text.sample(name, &labels(&row.identity, &[("device", device)]), figure(io) as f64);
        }
    }
    let whole = crate::node::capacity::file_system(&inner.config.root_dir).unwrap_or_default();
    let name = "container_fs_usage_bytes";
    text.head(name, "gauge", "Number of bytes that are consumed by the container on this filesystem.");
    for row in rows {
        let used = match (row.layer, row.identity[1].as_str()) {
            (Some(layer), _) => layer as f64,
            (None, "/") => whole.total.saturating_sub(whole.available) as f64,
            _ => continue,
        };
        text.sample(name, &labels(&row.identity, &[("device", "")]), used);
    }
    let name = "container_fs_limit_bytes";
    text.head(name, "gauge", "Number of bytes that can be consumed by the container on this filesystem.");
    for row in rows.iter().filter(|row| row.layer.is_some() || row.identity[1] == "/") {
        text.sample(name, &labels(&row.identity, &[("device", "")]), whole.total as f64);
    }
}

/// A pod's interfaces belong to its sandbox.
fn write_network(inner: &Inner, text: &mut Text) {
    let mut all: Vec<(Identity, Vec<Interface>)> = Vec::new();
    let host = [String::new(), "/".to_owned(), String::new(), String::new(), String::new(), String::new()];
    all.push((host, interfaces_of(&std::fs::read_to_string("/proc/net/dev").unwrap_or_default())));
    for (pod, _) in running(inner).into_iter().filter(|(pod, _)| !pod.is_host_network()) {
        let Some(runtime) = inner.cache.get(&pod.uid()) else { continue };
        let Some(sandbox) = runtime.sandboxes.iter().find(|sandbox| sandbox.ready) else { continue };
        let identity = [
            String::new(),
            inner.cgroups.of_container(&pod, &sandbox.id),
            inner.config.pause_image.clone(),
            sandbox.id.clone(),
            pod.namespace().to_owned(),
            pod.name().to_owned(),
        ];
        let interfaces = super::stats::pod_network(inner, &pod).map(|text| interfaces_of(&text)).unwrap_or_default();
        all.push((identity, interfaces));
    }
    for (name, help, at) in NETWORK {
        text.head(name, "counter", help);
        for (identity, interfaces) in &all {
            for (interface, counters) in interfaces {
                let Some(count) = counters.get(at) else { continue };
                text.sample(name, &labels(identity, &[("interface", interface)]), *count as f64);
            }
        }
    }
}
