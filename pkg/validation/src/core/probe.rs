//! Probes and lifecycle handlers of a container.
//!
//! Behaves as validateProbe, validateHandler and validateLifecycle of
//! pkg/apis/core/validation/validation.go, v1.36.

use rkube_api::k8s::core::v1::{
    ExecAction, GRPCAction, HTTPGetAction, Lifecycle, LifecycleHandler, Probe, SleepAction, TCPSocketAction,
};
use rkube_apimachinery::field::{ErrorList, Path};
use rkube_apimachinery::names;

use crate::common::names::{validate_port, validate_port_num_or_name};
use crate::common::report::{OptList, OptText, Report, Sources};

#[derive(Default)]
struct Handler<'a> {
    exec: Option<&'a ExecAction>,
    http_get: Option<&'a HTTPGetAction>,
    tcp_socket: Option<&'a TCPSocketAction>,
    grpc: Option<&'a GRPCAction>,
    sleep: Option<&'a SleepAction>,
}

/// Liveness and startup probes succeed or fail; they have no way to succeed twice.
pub(crate) fn validate_liveness_probe(probe: Option<&Probe>, grace: Option<i64>, path: &Path, errors: &mut ErrorList) {
    let Some(probe) = probe else { return };
    validate_probe(probe, grace, path, errors);
    let threshold = probe.success_threshold.unwrap_or(0);
    if threshold != 1 {
        errors.invalid(path.child("successThreshold"), threshold, "must be 1");
    }
}

pub(crate) fn validate_readiness_probe(probe: Option<&Probe>, grace: Option<i64>, path: &Path, errors: &mut ErrorList) {
    let Some(probe) = probe else { return };
    validate_probe(probe, grace, path, errors);
    if let Some(seconds) = probe.termination_grace_period_seconds {
        errors.invalid(path.child("terminationGracePeriodSeconds"), seconds, "must not be set for readinessProbes");
    }
}

fn validate_probe(probe: &Probe, grace: Option<i64>, path: &Path, errors: &mut ErrorList) {
    let handler = Handler {
        exec: probe.exec.as_ref(),
        http_get: probe.http_get.as_ref(),
        tcp_socket: probe.tcp_socket.as_ref(),
        grpc: probe.grpc.as_ref(),
        sleep: None,
    };
    validate_handler(&handler, grace, path, errors);
    for (field, value) in [
        ("initialDelaySeconds", probe.initial_delay_seconds),
        ("timeoutSeconds", probe.timeout_seconds),
        ("periodSeconds", probe.period_seconds),
        ("successThreshold", probe.success_threshold),
        ("failureThreshold", probe.failure_threshold),
    ] {
        errors.not_negative(path.child(field), value.unwrap_or(0));
    }
    if let Some(seconds) = probe.termination_grace_period_seconds.filter(|seconds| *seconds <= 0) {
        errors.invalid(path.child("terminationGracePeriodSeconds"), seconds, "must be greater than 0");
    }
}

/// Stop signals are off by default and dropped before this runs.
pub(crate) fn validate_lifecycle(lifecycle: &Lifecycle, grace: Option<i64>, path: &Path, errors: &mut ErrorList) {
    let handlers = [("postStart", lifecycle.post_start.as_ref()), ("preStop", lifecycle.pre_stop.as_ref())];
    for (field, handler) in handlers {
        if let Some(handler) = handler {
            validate_handler(&from_lifecycle(handler), grace, &path.child(field), errors);
        }
    }
}

fn from_lifecycle(handler: &LifecycleHandler) -> Handler<'_> {
    Handler {
        exec: handler.exec.as_ref(),
        http_get: handler.http_get.as_ref(),
        tcp_socket: handler.tcp_socket.as_ref(),
        grpc: None,
        sleep: handler.sleep.as_ref(),
    }
}

fn validate_handler(handler: &Handler<'_>, grace: Option<i64>, path: &Path, errors: &mut ErrorList) {
    let mut sources = Sources::new(path, "may not specify more than 1 handler type");
    sources.take(errors, handler.exec, "exec", |exec, path, errors| {
        if exec.command.items().is_empty() {
            errors.required(path.child("command"), "");
        }
    });
    sources.take(errors, handler.http_get, "httpGet", validate_http_get);
    sources.take(errors, handler.tcp_socket, "tcpSocket", |tcp, path, errors| {
        validate_port_num_or_name(&tcp.port, path.child("port"), errors);
    });
    sources.take(errors, handler.grpc, "grpc", |grpc, path, errors| {
        validate_port(grpc.port, path.child("port"), errors);
    });
    sources.take(errors, handler.sleep, "sleep", |sleep, path, errors| {
        if let Some(grace) = grace.filter(|grace| sleep.seconds < 0 || sleep.seconds > *grace) {
            let detail = format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})");
            errors.invalid(path, sleep.seconds, detail);
        }
    });
    if sources.found == 0 {
        errors.required(path, "must specify a handler type");
    }
}

fn validate_http_get(http: &HTTPGetAction, path: &Path, errors: &mut ErrorList) {
    errors.not_empty(path.child("path"), http.path.text());
    validate_port_num_or_name(&http.port, path.child("port"), errors);
    errors.one_of(path.child("scheme"), http.scheme.text(), &["HTTP", "HTTPS"]);
    for header in http.http_headers.items() {
        errors.invalid_each(path.child("httpHeaders"), &header.name, names::is_http_header_name(&header.name));
    }
}
