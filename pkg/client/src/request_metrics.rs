//! What clients ask of API servers and who leads, under upstream's names.
//!
//! In: what `Client` and `LeaderElector` report. Out: metrics of the process, made visible by `metrics::register`.
//! A client in the server's own process has no host. There is no limit on rates, so nothing waits for one.
//! Behaves as `k8s.io/component-base/metrics/prometheus/{restclient,clientgo/leaderelection}`, v1.36.

use std::borrow::Cow;
use std::sync::LazyLock;
use std::time::Duration;

use http::Method;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::metrics::{Counters, Declarations, Gauges, Histograms, histograms};
use crate::transport::ClientError;

/// Stands for the code where there was no answer.
const NO_CODE: &str = "<error>";

pub(crate) struct RequestMetrics {
    requests: Counters<3>,
    retries: Counters<3>,
    duration: Histograms<2>,
    leads: Gauges<1>,
}

fn duration() -> Histogram {
    Histogram::new([0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0])
}

pub(crate) fn requests() -> &'static RequestMetrics {
    static METRICS: LazyLock<RequestMetrics> = LazyLock::new(|| RequestMetrics {
        requests: Counters::default(),
        retries: Counters::default(),
        duration: histograms(duration),
        leads: Gauges::default(),
    });
    &METRICS
}

/// The code as a label. Codes are few, and a server's.
fn label(code: Option<u16>) -> Cow<'static, str> {
    match code {
        Some(200) => Cow::Borrowed("200"),
        Some(201) => Cow::Borrowed("201"),
        Some(code) => Cow::Owned(code.to_string()),
        None => Cow::Borrowed(NO_CODE),
    }
}

fn verb(method: &Method) -> Cow<'static, str> {
    Cow::Borrowed(match *method {
        Method::GET => "GET",
        Method::PATCH => "PATCH",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        _ => return Cow::Owned(method.to_string()),
    })
}

/// The code of a failure, if the server answered.
fn code_of(error: &ClientError) -> Option<u16> {
    error.status().map(|status| status.code())
}

impl RequestMetrics {
    /// One try ended: with this code, or without an answer.
    pub(crate) fn answered(&self, method: &Method, host: &str, outcome: Result<u16, &ClientError>, took: Duration) {
        let code = match outcome {
            Ok(code) => Some(code),
            Err(error) => code_of(error),
        };
        let host = || Cow::Owned(host.to_owned());
        let labels = [("code", label(code)), ("method", verb(method)), ("host", host())];
        self.requests.get_or_create(&labels).inc();
        self.duration.get_or_create(&[("verb", verb(method)), ("host", host())]).observe(took.as_secs_f64());
    }

    /// A request is sent again after this failure.
    pub(crate) fn retried(&self, method: &Method, host: &str, error: &ClientError) {
        let labels = [("code", label(code_of(error))), ("verb", verb(method)), ("host", Cow::Owned(host.to_owned()))];
        self.retries.get_or_create(&labels).inc();
    }

    pub(crate) fn leads(&self, lease: &str, leads: bool) {
        self.leads.get_or_create(&[("name", Cow::Owned(lease.to_owned()))]).set(leads.into());
    }
}

pub(crate) fn register(registry: &mut Registry) {
    let all = requests();
    Declarations::new(registry, "rest_client")
        .alpha("requests", "Number of HTTP requests, partitioned by status code, method, and host", &all.requests)
        .alpha("request_retries", "Number of request retries, partitioned by status code, verb, and host", &all.retries)
        .alpha("request_duration_seconds", "Request latency in seconds. Broken down by verb, and host", &all.duration);
    Declarations::new(registry, "leader_election").alpha(
        "master_status",
        "Gauge of if the reporting system is master of the relevant lease, 0 indicates backup, 1 indicates master. 'name' is the string used to identify the lease. Please make sure to group by name",
        &all.leads,
    );
}
