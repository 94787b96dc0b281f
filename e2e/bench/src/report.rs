//! What a run found: a table for people, JSON for programs.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::process::Usage;
use crate::stats::Histogram;

/// One number and what it counts.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Figure {
    name: String,
    value: f64,
    unit: &'static str,
}

/// The result of one workload.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    workload: &'static str,
    /// `gitVersion` of the server.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) server: String,
    parameters: Map<String, Value>,
    figures: Vec<Figure>,
    /// Failed operations by kind.
    errors: BTreeMap<String, u64>,
}

impl Report {
    pub(crate) fn new(workload: &'static str) -> Self {
        Self { workload, server: String::new(), parameters: Map::new(), figures: Vec::new(), errors: BTreeMap::new() }
    }

    pub(crate) fn parameter(&mut self, name: &str, value: impl Into<Value>) -> &mut Self {
        self.parameters.insert(name.to_owned(), value.into());
        self
    }

    pub(crate) fn figure(&mut self, name: impl Into<String>, value: f64, unit: &'static str) -> &mut Self {
        self.figures.push(Figure { name: name.into(), value, unit });
        self
    }

    pub(crate) fn millis(&mut self, name: impl Into<String>, duration: Duration) -> &mut Self {
        self.figure(name, duration.as_secs_f64() * 1e3, "ms")
    }

    /// Median, p99 and maximum.
    pub(crate) fn latencies(&mut self, name: &str, histogram: &Histogram) -> &mut Self {
        self.millis(format!("{name} p50"), histogram.quantile(0.5))
            .millis(format!("{name} p99"), histogram.quantile(0.99))
            .millis(format!("{name} max"), histogram.max())
    }

    /// What the server's processes used for `operations`.
    pub(crate) fn usage(&mut self, used: Option<Usage>, operations: u64) -> &mut Self {
        let Some(used) = used else { return self };
        let each = used.cpu.as_secs_f64() * 1e6 / (operations.max(1) as f64);
        self.figure("server CPU per operation", each, "µs").figure("server memory after", mib(used.memory), "MiB")
    }

    pub(crate) fn errors(&mut self, errors: &BTreeMap<String, u64>) -> &mut Self {
        for (kind, count) in errors {
            *self.errors.entry(kind.clone()).or_default() += count;
        }
        self
    }

    /// Aligned lines of name, value and unit; parameters first, errors last.
    pub(crate) fn table(&self) -> String {
        let mut out = self.workload.to_owned();
        if !self.server.is_empty() {
            let _ = write!(out, " against {}", self.server);
        }
        for (name, value) in &self.parameters {
            let _ = write!(out, ", {name} {}", value.as_str().map_or_else(|| value.to_string(), str::to_owned));
        }
        out.push('\n');
        let width = self.figures.iter().map(|figure| figure.name.chars().count()).max().unwrap_or(0);
        for Figure { name, value, unit } in &self.figures {
            let value = number(*value);
            let _ = writeln!(out, "  {name:width$}  {value:>12} {unit}");
        }
        for (kind, count) in &self.errors {
            let _ = writeln!(out, "  errors: {count} × {kind}");
        }
        out
    }

    pub(crate) fn json(&self) -> String {
        // Strings and finite numbers; a figure that is not finite becomes null.
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }
}

pub(crate) fn mib(bytes: u64) -> f64 {
    bytes as f64 / (1 << 20) as f64
}

/// Three digits that matter, and no more decimals than they need.
fn number(value: f64) -> String {
    let decimals = match value.abs() {
        small if small < 10.0 => 2,
        medium if medium < 100.0 => 1,
        _ => 0,
    };
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Report {
        let mut report = Report::new("create");
        report.server = "v1.36.2".to_owned();
        report
            .parameter("concurrency", 8)
            .parameter("http", "2")
            .figure("throughput", 12_345.678, "/s")
            .figure("latency p50", 1.234, "ms")
            .errors(&BTreeMap::from([("409 AlreadyExists".to_owned(), 3)]));
        report
    }

    #[test]
    fn the_table_is_aligned_and_shows_what_matters() {
        assert_eq!(
            sample().table(),
            "create against v1.36.2, concurrency 8, http 2\n  \
               throughput          12346 /s\n  \
               latency p50          1.23 ms\n  \
               errors: 3 × 409 AlreadyExists\n"
        );
    }

    #[test]
    fn the_json_keeps_every_digit() {
        let json: Value = serde_json::from_str(&sample().json()).unwrap();
        assert_eq!(json["figures"][0], serde_json::json!({"name": "throughput", "value": 12_345.678, "unit": "/s"}));
        assert_eq!(json["errors"]["409 AlreadyExists"], 3);
    }
}
