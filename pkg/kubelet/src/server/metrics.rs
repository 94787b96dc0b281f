//! Prometheus text of the kubelet's metrics endpoints but cadvisor's, which is [`cadvisor`](super::cadvisor). Names and
//! labels are upstream's.
//!
//! Behaves as pkg/kubelet/metrics and pkg/kubelet/server/metrics/resource_metrics.go, v1.36.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use http::{HeaderValue, Response, header};
use rkube_cri::measured::{BUCKETS, Operation};
use rkube_http::body::Body;

use crate::kubelet::Inner;
use crate::pod::PodExt;
use crate::runtime::state::State;
use crate::server::Answer;
use crate::server::stats::{Usage, container_cgroup, node_usage, running, usage};
use crate::worker::Phase;

/// Name, type, help, and how a sample's value comes out of a row.
pub(super) type Family<R> = (&'static str, &'static str, &'static str, fn(&R) -> f64);

/// Text under construction.
#[derive(Default)]
pub(super) struct Text(String);

impl Text {
    pub(super) fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    pub(super) fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        self.0.push_str(name);
        if !labels.is_empty() {
            let pairs: Vec<String> = labels.iter().map(|(key, value)| format!("{key}=\"{}\"", escape(value))).collect();
            let _ = write!(self.0, "{{{}}}", pairs.join(","));
        }
        let _ = writeln!(self.0, " {value}");
    }

    pub(super) fn answer(self) -> Answer {
        let mut answer = Response::new(Body::from(self.0));
        let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
        answer.headers_mut().insert(header::CONTENT_TYPE, kind);
        answer
    }
}

fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

pub(super) fn kubelet(inner: &Inner) -> Answer {
    let mut text = Text::default();
    let pods = inner.cache.all();
    text.head("kubelet_running_pods", "gauge", "[ALPHA] Number of pods that have a running pod sandbox");
    let running = pods.iter().filter(|pod| pod.sandboxes.iter().any(|sandbox| sandbox.ready)).count();
    text.sample("kubelet_running_pods", &[], running as f64);
    text.head("kubelet_running_containers", "gauge", "[ALPHA] Number of containers currently running");
    for (state, name) in [
        (State::Created, "created"),
        (State::Running, "running"),
        (State::Exited, "exited"),
        (State::Unknown, "unknown"),
    ] {
        let count = pods.iter().flat_map(|pod| &pod.containers).filter(|container| container.state == state).count();
        text.sample("kubelet_running_containers", &[("container_state", name)], count as f64);
    }
    text.head("kubelet_desired_pods", "gauge", "[ALPHA] The number of pods the kubelet is being instructed to run. static is true if the pod is not from the apiserver.");
    for (is_static, label) in [(false, ""), (true, "true")] {
        let count = inner.pods.all().iter().filter(|pod| pod.is_static() == is_static).count();
        text.sample("kubelet_desired_pods", &[("static", label)], count as f64);
    }
    text.head("kubelet_active_pods", "gauge", "[ALPHA] The number of pods the kubelet considers active and which are being considered when admitting new pods. static is true if the pod is not from the apiserver.");
    for (is_static, label) in [(false, ""), (true, "true")] {
        let active = inner
            .workers
            .all()
            .into_iter()
            .filter(|worker| worker.is_static == is_static && worker.phase() != Phase::Finished);
        text.sample("kubelet_active_pods", &[("static", label)], active.count() as f64);
    }
    text.head("kubelet_node_name", "gauge", "[ALPHA] The node's name. The count is always 1.");
    text.sample("kubelet_node_name", &[("node", &inner.config.node_name)], 1.0);
    runtime_operations(&mut text, &inner.operations.all());
    text.answer()
}

fn runtime_operations(text: &mut Text, operations: &BTreeMap<&'static str, Operation>) {
    let total = "kubelet_runtime_operations_total";
    text.head(total, "counter", "[ALPHA] Cumulative number of runtime operations by operation type.");
    for (name, operation) in operations {
        text.sample(total, &[("operation_type", name)], operation.count as f64);
    }
    let errors = "kubelet_runtime_operations_errors_total";
    text.head(errors, "counter", "[ALPHA] Cumulative number of runtime operation errors by operation type.");
    for (name, operation) in operations.iter().filter(|(_, operation)| operation.errors > 0) {
        text.sample(errors, &[("operation_type", name)], operation.errors as f64);
    }
    let duration = "kubelet_runtime_operations_duration_seconds";
    let help = "[ALPHA] Duration in seconds of runtime operations. Broken down by operation type.";
    text.head(duration, "histogram", help);
    for (name, operation) in operations {
        let bounds = BUCKETS.iter().map(f64::to_string).chain(["+Inf".to_owned()]);
        for (bound, count) in bounds.zip(operation.buckets.iter().chain([&operation.count])) {
            let labels = [("operation_type", *name), ("le", &bound)];
            text.sample(&format!("{duration}_bucket"), &labels, *count as f64);
        }
        text.sample(&format!("{duration}_sum"), &[("operation_type", name)], operation.seconds);
        text.sample(&format!("{duration}_count"), &[("operation_type", name)], operation.count as f64);
    }
}

fn cores(usage: &Usage) -> f64 {
    usage.cpu_nanos as f64 / 1e9
}

pub(super) fn resource(inner: &Inner) -> Answer {
    let mut text = Text::default();
    let node = node_usage();
    text.head(
        "node_cpu_usage_seconds_total",
        "counter",
        "[STABLE] Cumulative cpu time consumed by the node in core-seconds",
    );
    text.sample("node_cpu_usage_seconds_total", &[], cores(&node));
    text.head("node_memory_working_set_bytes", "gauge", "[STABLE] Current working set of the node in bytes");
    text.sample("node_memory_working_set_bytes", &[], node.memory_working_set as f64);
    let pods = running(inner);
    type Row = (String, String, String, Usage, f64);
    let mut containers: Vec<Row> = Vec::new();
    for (pod, held) in &pods {
        for container in held {
            let started = container.started_at.unwrap_or(container.created_at).as_millisecond() as f64 / 1e3;
            let measured = usage(inner, &container_cgroup(inner, pod, container));
            containers.push((
                container.name.clone(),
                pod.namespace().to_owned(),
                pod.name().to_owned(),
                measured,
                started,
            ));
        }
    }
    let of_containers: [Family<Row>; 3] = [
        (
            "container_cpu_usage_seconds_total",
            "counter",
            "[STABLE] Cumulative cpu time consumed by the container in core-seconds",
            |row| cores(&row.3),
        ),
        (
            "container_memory_working_set_bytes",
            "gauge",
            "[STABLE] Current working set of the container in bytes",
            |row| row.3.memory_working_set as f64,
        ),
        (
            "container_start_time_seconds",
            "gauge",
            "[STABLE] Start time of the container since unix epoch in seconds",
            |row| row.4,
        ),
    ];
    for (name, kind, help, figure) in of_containers {
        text.head(name, kind, help);
        for row in &containers {
            text.sample(name, &[("container", &row.0), ("namespace", &row.1), ("pod", &row.2)], figure(row));
        }
    }
    let measured: Vec<Usage> = pods.iter().map(|(pod, _)| usage(inner, &inner.cgroups.parent_of(pod))).collect();
    let of_pods: [Family<Usage>; 2] = [
        (
            "pod_cpu_usage_seconds_total",
            "counter",
            "[STABLE] Cumulative cpu time consumed by the pod in core-seconds",
            cores,
        ),
        ("pod_memory_working_set_bytes", "gauge", "[STABLE] Current working set of the pod in bytes", |usage| {
            usage.memory_working_set as f64
        }),
    ];
    for (name, kind, help, figure) in of_pods {
        text.head(name, kind, help);
        for ((pod, _), usage) in pods.iter().zip(&measured) {
            text.sample(name, &[("namespace", pod.namespace()), ("pod", pod.name())], figure(usage));
        }
    }
    text.head(
        "resource_scrape_error",
        "gauge",
        "[STABLE] 1 if there was an error while getting container metrics, 0 otherwise",
    );
    text.sample("resource_scrape_error", &[], 0.0);
    text.answer()
}

pub(super) fn probes(inner: &Inner) -> Answer {
    let mut text = Text::default();
    text.head(
        "prober_probe_total",
        "counter",
        "[BETA] Cumulative number of a liveness, readiness or startup probe for a container by result.",
    );
    for (key, count) in inner.probes.counts() {
        let labels = [
            ("container", key.container.as_str()),
            ("namespace", &key.namespace),
            ("pod", &key.pod),
            ("pod_uid", key.uid.as_str()),
            ("probe_type", key.kind.as_str()),
            ("result", key.result),
        ];
        text.sample("prober_probe_total", &labels, count as f64);
    }
    text.answer()
}
