//! networking.k8s.io/v1 Ingress and IngressClass.
//!
//! Behaves as ValidateIngressCreate and ValidateIngressClass of pkg/apis/networking/validation/validation.go, v1.36.

use rkube_api::k8s::core::v1::TypedLocalObjectReference;
use rkube_api::k8s::networking::v1::{
    HTTPIngressPath, Ingress, IngressBackend, IngressClass, IngressClassParametersReference, IngressRule, IngressSpec,
    IngressTLS,
};
use rkube_apimachinery::field::{ErrorList, Path};
use rkube_apimachinery::names::{self, ip};
use serde_json::Value;

use crate::common::defaults::default_to;
use crate::common::meta::{validate_object_meta, validate_object_meta_update};
use crate::common::names::{dns_label, dns_subdomain, validate_ip, validate_port};
use crate::common::report::{FIELD_IMMUTABLE, OptList, OptMap, OptText, Report};
use crate::core::service::validate_ingress_hostname;

const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";
const CONTROLLER_LENGTH_MAX: usize = 250;

/// What an old object may keep.
#[derive(Clone, Copy, Default)]
struct Options {
    allow_invalid_secret_name: bool,
    allow_invalid_wildcard_host_rule: bool,
}

pub fn set_defaults(ingress: &mut Ingress) {
    ingress.spec.get_or_insert_default();
    ingress.status.get_or_insert_default().load_balancer.get_or_insert_default();
}

pub fn validate(ingress: &Ingress) -> ErrorList {
    let mut errors = ErrorList::new();
    let spec = validate_ingress(ingress, Options::default(), &mut errors);
    if let (Some(annotation), Some(class)) =
        (ingress.metadata.annotations.value(CLASS_ANNOTATION), &spec.ingress_class_name)
        && annotation != class
    {
        let detail = "must match `ingressClassName` when both are specified";
        errors.invalid(Path::new("annotations").child(CLASS_ANNOTATION), annotation.as_str(), detail);
    }
    errors
}

pub fn validate_update(new: &Ingress, old: &Ingress) -> ErrorList {
    let mut errors = ErrorList::new();
    let old_spec = old.spec.clone().unwrap_or_default();
    let options = Options {
        allow_invalid_secret_name: old_spec.tls.items().iter().any(|tls| !secret_name_errors(tls).is_empty()),
        allow_invalid_wildcard_host_rule: old_spec.rules.items().iter().any(|rule| {
            let mut errors = ErrorList::new();
            validate_rule_value(rule, &Path::root(), &mut errors);
            rule.host.text().contains('*') && !errors.is_empty()
        }),
    };
    validate_object_meta_update(&new.metadata, &old.metadata, &Path::new("metadata"), &mut errors);
    validate_ingress(new, options, &mut errors);
    errors
}

fn validate_ingress(ingress: &Ingress, options: Options, errors: &mut ErrorList) -> IngressSpec {
    validate_object_meta(&ingress.metadata, true, dns_subdomain, &Path::new("metadata"), errors);
    let spec = ingress.spec.clone().unwrap_or_default();
    let path = Path::new("spec");
    let rules = spec.rules.items();
    if rules.is_empty() && spec.default_backend.is_none() {
        errors.invalid(&path, Value::Null, "either `defaultBackend` or `rules` must be specified");
    }
    if let Some(backend) = &spec.default_backend {
        validate_backend(backend, &path.child("defaultBackend"), errors);
    }
    for (index, rule) in rules.iter().enumerate() {
        let path = path.child("rules").index(index);
        let host = rule.host.text();
        let wildcard = host.contains('*');
        if !host.is_empty() {
            if ip::parse_ip_sloppy(host).is_some() {
                errors.invalid(path.child("host"), host, "must be a DNS name, not an IP address");
            }
            errors.invalid_each(path.child("host"), host, host_errors(host));
        }
        if !wildcard || !options.allow_invalid_wildcard_host_rule {
            validate_rule_value(rule, &path, errors);
        }
    }
    for (index, tls) in spec.tls.items().iter().enumerate() {
        let path = path.child("tls").index(index);
        for (index, host) in tls.hosts.items().iter().enumerate() {
            errors.invalid_each(path.child("hosts").index(index), host, host_errors(host));
        }
        if !options.allow_invalid_secret_name {
            errors.invalid_each(path.child("secretName"), tls.secret_name.text(), secret_name_errors(tls));
        }
    }
    if let Some(class) = &spec.ingress_class_name {
        errors.invalid_each(path.child("ingressClassName"), class, dns_subdomain(class, false));
    }
    spec
}

fn host_errors(host: &str) -> Vec<String> {
    if host.contains('*') { names::is_wildcard_dns1123_subdomain(host) } else { names::is_dns1123_subdomain(host) }
}

fn secret_name_errors(tls: &IngressTLS) -> Vec<String> {
    match tls.secret_name.text() {
        "" => Vec::new(),
        name => dns_subdomain(name, false),
    }
}

fn validate_rule_value(rule: &IngressRule, path: &Path, errors: &mut ErrorList) {
    let Some(http) = &rule.http else { return };
    let path = path.child("http").child("paths");
    if http.paths.is_empty() {
        errors.required(&path, "");
    }
    for (index, rule) in http.paths.iter().enumerate() {
        validate_http_path(rule, &path.index(index), errors);
    }
}

fn validate_http_path(rule: &HTTPIngressPath, path: &Path, errors: &mut ErrorList) {
    const SEQUENCES: [&str; 5] = ["//", "/./", "/../", "%2f", "%2F"];
    let value = rule.path.text();
    let value_path = path.child("path");
    match rule.path_type.as_str() {
        "" => {
            errors.required(path.child("pathType"), "pathType must be specified");
            return;
        }
        "Exact" | "Prefix" => {
            if !value.starts_with('/') {
                errors.invalid(&value_path, value, "must be an absolute path");
            }
            for sequence in SEQUENCES.into_iter().filter(|sequence| value.contains(sequence)) {
                errors.invalid(&value_path, value, format!("must not contain '{sequence}'"));
            }
            for suffix in ["/..", "/."].into_iter().filter(|suffix| value.ends_with(suffix)) {
                errors.invalid(&value_path, value, format!("cannot end with '{suffix}'"));
            }
        }
        "ImplementationSpecific" => {
            if !value.is_empty() && !value.starts_with('/') {
                errors.invalid(&value_path, value, "must be an absolute path");
            }
        }
        other => {
            errors.not_supported(path.child("pathType"), other, &["Exact", "ImplementationSpecific", "Prefix"]);
        }
    }
    validate_backend(&rule.backend, &path.child("backend"), errors);
}

fn validate_backend(backend: &IngressBackend, path: &Path, errors: &mut ErrorList) {
    match (&backend.resource, &backend.service) {
        (Some(_), Some(_)) => errors.invalid(path, "", "cannot set both resource and service backends"),
        (Some(resource), None) => validate_reference(resource, &path.child("resource"), errors),
        (None, Some(service)) => {
            let service_path = path.child("service");
            if service.name.is_empty() {
                errors.required(service_path.child("name"), "");
            } else {
                errors.invalid_each(service_path.child("name"), &service.name, dns_label(&service.name, false));
            }
            let port = service.port.clone().unwrap_or_default();
            let port_path = service_path.child("port");
            match (port.name.text(), port.number.unwrap_or(0)) {
                ("", 0) => errors.required(path, "port name or number is required"),
                ("", number) => validate_port(number, port_path.child("number"), errors),
                (name, 0) => errors.invalid_each(port_path.child("name"), name, names::is_valid_port_name(name)),
                _ => errors.invalid(path, "", "cannot set both port name & port number"),
            }
        }
        (None, None) => errors.invalid(path, "", "resource or service backend is required"),
    }
}

fn validate_reference(reference: &TypedLocalObjectReference, path: &Path, errors: &mut ErrorList) {
    validate_reference_parts(reference.api_group.as_deref(), &reference.kind, &reference.name, path, errors);
}

fn validate_reference_parts(group: Option<&str>, kind: &str, name: &str, path: &Path, errors: &mut ErrorList) {
    if let Some(group) = group {
        errors.invalid_each(path.child("apiGroup"), group, names::is_dns1123_subdomain(group));
    }
    for (field, value) in [("kind", kind), ("name", name)] {
        validate_required_segment(value, &path.child(field), errors);
    }
}

/// A name that can be one segment of a URL path.
pub(crate) fn validate_required_segment(value: &str, path: &Path, errors: &mut ErrorList) {
    if value.is_empty() {
        errors.required(path, "");
    } else {
        errors.invalid_each(path, value, names::is_path_segment_name(value));
    }
}

/// `PUT ingresses/x/status`.
pub fn validate_status_update(new: &Ingress, old: &Ingress) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta_update(&new.metadata, &old.metadata, &Path::new("metadata"), &mut errors);
    let points = |ingress: &Ingress| {
        let status = ingress.status.clone().unwrap_or_default();
        status.load_balancer.unwrap_or_default().ingress.unwrap_or_default()
    };
    let old_points = points(old);
    let known: Vec<&str> = old_points.iter().map(|point| point.ip.text()).collect();
    for (index, point) in points(new).iter().enumerate() {
        let path = Path::new("status").child("loadBalancer").child("ingress").index(index);
        if !point.ip.is_blank() {
            validate_ip(point.ip.text(), &known, path.child("ip"), &mut errors);
        }
        validate_ingress_hostname(point.hostname.text(), &path.child("hostname"), &mut errors);
    }
    errors
}

/// Of a new ingress.
pub fn warnings(ingress: &Ingress) -> Vec<String> {
    let class = ingress.spec.as_ref().and_then(|spec| spec.ingress_class_name.as_ref());
    if class.is_none() && ingress.metadata.annotations.value(CLASS_ANNOTATION).is_some() {
        vec![format!("annotation \"{CLASS_ANNOTATION}\" is deprecated, please use 'spec.ingressClassName' instead")]
    } else {
        Vec::new()
    }
}

/// Of a status update.
pub fn status_warnings(ingress: &Ingress) -> Vec<String> {
    let points = ingress.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let points = points.and_then(|balancer| balancer.ingress.as_deref()).unwrap_or_default();
    let path = Path::new("status").child("loadBalancer").child("ingress");
    let addressed = points.iter().enumerate().filter(|(_, point)| !point.ip.is_blank());
    addressed.flat_map(|(index, point)| ip::warnings_for_ip(&path.index(index), point.ip.text())).collect()
}

pub fn set_class_defaults(class: &mut IngressClass) {
    if let Some(parameters) = &mut class.spec.get_or_insert_default().parameters {
        default_to(&mut parameters.scope, "Cluster".to_owned());
    }
}

pub fn validate_class(class: &IngressClass) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta(&class.metadata, false, dns_subdomain, &Path::new("metadata"), &mut errors);
    let spec = class.spec.clone().unwrap_or_default();
    let path = Path::new("spec").child("controller");
    let controller = spec.controller.text();
    if controller.len() > CONTROLLER_LENGTH_MAX {
        errors.too_long(&path, CONTROLLER_LENGTH_MAX);
    }
    errors.extend(names::is_domain_prefixed_path(&path, controller));
    if let Some(parameters) = &spec.parameters {
        validate_parameters(parameters, &Path::new("spec").child("parameters"), &mut errors);
    }
    errors
}

fn validate_parameters(parameters: &IngressClassParametersReference, path: &Path, errors: &mut ErrorList) {
    let group = parameters.api_group.as_deref();
    validate_reference_parts(group, &parameters.kind, &parameters.name, path, errors);
    let namespace_path = path.child("namespace");
    match (parameters.scope.as_deref(), &parameters.namespace) {
        (None, _) => errors.required(path.child("scope"), ""),
        (Some("Namespace"), None) => errors.required(namespace_path, "`parameters.scope` is set to 'Namespace'"),
        (Some("Namespace"), Some(namespace)) => {
            errors.invalid_each(namespace_path, namespace, dns_label(namespace, false));
        }
        (Some("Cluster"), Some(_)) => errors.forbidden(namespace_path, "`parameters.scope` is set to 'Cluster'"),
        (Some("Cluster"), None) => {}
        (Some(other), _) => errors.not_supported(path.child("scope"), other, &["Cluster", "Namespace"]),
    }
}

pub fn validate_class_update(new: &IngressClass, old: &IngressClass) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta_update(&new.metadata, &old.metadata, &Path::new("metadata"), &mut errors);
    let controller = |class: &IngressClass| class.spec.clone().unwrap_or_default().controller;
    if controller(new).text() != controller(old).text() {
        let path = Path::new("spec").child("controller");
        errors.invalid(path, controller(new).text(), FIELD_IMMUTABLE);
    }
    errors.extend(validate_class(new));
    errors
}
