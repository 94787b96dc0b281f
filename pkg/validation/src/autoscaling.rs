//! autoscaling HorizontalPodAutoscaler, in its storage version v2, and Scale.
//!
//! Behaves as pkg/apis/autoscaling/validation/validation.go and pkg/apis/autoscaling/v2/defaults.go, v1.36.

use rkube_api::k8s::autoscaling::v1::Scale;
use rkube_api::k8s::autoscaling::v2::{
    ContainerResourceMetricSource, CrossVersionObjectReference, ExternalMetricSource, HPAScalingPolicy,
    HPAScalingRules, HorizontalPodAutoscaler, HorizontalPodAutoscalerSpec, MetricIdentifier, MetricSpec, MetricTarget,
    ObjectMetricSource, PodsMetricSource, ResourceMetricSource,
};
use rkube_apimachinery::field::{ErrorList, Path};

use crate::common::defaults::default_to;
use crate::common::meta::{validate_object_meta, validate_object_meta_update};
use crate::common::names::{dns_subdomain, validate_dns1123_label};
use crate::common::quantity::{canonical, is_negative, is_positive};
use crate::common::report::{MUST_NOT_BE_NEGATIVE, OptList, OptText, Report};
use crate::core::resources::validate_container_resource_name;
use crate::networking::ingress::validate_required_segment;

const PERIOD_SECONDS_MAX: i32 = 1800;
const STABILIZATION_SECONDS_MAX: i32 = 3600;
const CPU_UTILIZATION_PERCENT: i32 = 80;
const SOURCES: [&str; 5] = ["ContainerResource", "External", "Object", "Pods", "Resource"];

pub fn set_defaults(autoscaler: &mut HorizontalPodAutoscaler) {
    let spec = &mut autoscaler.spec;
    default_to(&mut spec.min_replicas, 1);
    if spec.metrics.items().is_empty() {
        let target = MetricTarget {
            type_: "Utilization".to_owned(),
            average_utilization: Some(CPU_UTILIZATION_PERCENT),
            ..MetricTarget::default()
        };
        spec.metrics = Some(vec![MetricSpec {
            type_: "Resource".to_owned(),
            resource: Some(ResourceMetricSource { name: "cpu".to_owned(), target }),
            ..MetricSpec::default()
        }]);
    }
    if let Some(behavior) = &mut spec.behavior {
        let up = behavior.scale_up.get_or_insert_default();
        default_to(&mut up.stabilization_window_seconds, 0);
        set_rule_defaults(up, &[("Pods", 4), ("Percent", 100)]);
        set_rule_defaults(behavior.scale_down.get_or_insert_default(), &[("Percent", 100)]);
    }
    autoscaler.status.get_or_insert_default();
}

fn set_rule_defaults(rules: &mut HPAScalingRules, policies: &[(&str, i32)]) {
    default_to(&mut rules.select_policy, "Max".to_owned());
    if rules.policies.is_none() {
        let policy = |(kind, value): &(&str, i32)| HPAScalingPolicy {
            type_: (*kind).to_owned(),
            value: *value,
            period_seconds: 15,
        };
        rules.policies = Some(policies.iter().map(policy).collect());
    }
}

/// How loosely the API version of a reference is read.
#[derive(Clone, Copy, Default)]
struct ReferenceOptions {
    allow_empty_group: bool,
    allow_invalid: bool,
}

pub fn validate(autoscaler: &HorizontalPodAutoscaler) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta(&autoscaler.metadata, true, dns_subdomain, &Path::new("metadata"), &mut errors);
    validate_spec(autoscaler, None, &mut errors);
    errors
}

pub fn validate_update(new: &HorizontalPodAutoscaler, old: &HorizontalPodAutoscaler) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta_update(&new.metadata, &old.metadata, &Path::new("metadata"), &mut errors);
    validate_spec(new, Some(old), &mut errors);
    errors
}

pub fn validate_status_update(new: &HorizontalPodAutoscaler, old: &HorizontalPodAutoscaler) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta_update(&new.metadata, &old.metadata, &Path::new("metadata"), &mut errors);
    let status = new.status.clone().unwrap_or_default();
    let path = Path::new("status");
    errors.not_negative(path.child("currentReplicas"), status.current_replicas.unwrap_or(0));
    errors.not_negative(path.child("desiredReplicas"), status.desired_replicas);
    errors
}

/// `PUT x/scale`.
pub fn validate_scale(scale: &Scale) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta(&scale.metadata, true, dns_subdomain, &Path::new("metadata"), &mut errors);
    let replicas = scale.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(0);
    errors.not_negative(Path::new("spec").child("replicas"), replicas);
    errors
}

fn validate_spec(new: &HorizontalPodAutoscaler, old: Option<&HorizontalPodAutoscaler>, errors: &mut ErrorList) {
    let spec = &new.spec;
    let old = old.map(|old| &old.spec);
    let path = Path::new("spec");
    // Scaling to zero is behind a gate that is off; who has it keeps it.
    let lowest = if old.is_some_and(|old| old.min_replicas == Some(0)) { 0 } else { 1 };
    if let Some(minimum) = spec.min_replicas.filter(|minimum| *minimum < lowest) {
        errors.invalid(path.child("minReplicas"), minimum, format!("must be greater than or equal to {lowest}"));
    }
    let maximum_path = path.child("maxReplicas");
    if spec.max_replicas == 0 {
        errors.required(&maximum_path, "must be set and greater than 0");
    } else if spec.max_replicas < 0 {
        errors.invalid(&maximum_path, spec.max_replicas, "must be greater than or equal to 1");
    }
    if spec.min_replicas.is_some_and(|minimum| spec.max_replicas < minimum) {
        errors.invalid(&maximum_path, spec.max_replicas, "must be greater than or equal to `minReplicas`");
    }
    let (target, metrics) = options(spec, old);
    validate_reference(&spec.scale_target_ref, target, &path.child("scaleTargetRef"), errors);
    validate_metrics(spec, metrics, &path.child("metrics"), errors);
    if let Some(behavior) = &spec.behavior {
        let path = path.child("behavior");
        validate_rules(behavior.scale_up.as_ref(), &path.child("scaleUp"), errors);
        validate_rules(behavior.scale_down.as_ref(), &path.child("scaleDown"), errors);
    }
}

/// For the target and for objects of metrics.
fn options(
    spec: &HorizontalPodAutoscalerSpec,
    old: Option<&HorizontalPodAutoscalerSpec>,
) -> (ReferenceOptions, ReferenceOptions) {
    let reference = &spec.scale_target_ref;
    let same = old.is_some_and(|old| {
        let old = &old.scale_target_ref;
        old.api_version.text() == reference.api_version.text() && old.kind == reference.kind
    });
    let target = ReferenceOptions {
        allow_invalid: same,
        // The only scalable kind of the core group.
        allow_empty_group: !same && reference.kind == "ReplicationController",
    };
    let metrics = ReferenceOptions { allow_empty_group: true, allow_invalid: false };
    let objects = old.into_iter().flat_map(|old| old.metrics.items()).filter_map(|metric| metric.object.as_ref());
    let invalid = objects.into_iter().any(|object| api_version_error(&object.described_object, metrics).is_some());
    (target, ReferenceOptions { allow_invalid: invalid, ..metrics })
}

fn api_version_error(reference: &CrossVersionObjectReference, options: ReferenceOptions) -> Option<String> {
    let version = reference.api_version.text();
    if options.allow_invalid {
        return None;
    }
    match version.matches('/').count() {
        0 | 1 => {
            let grouped = version.split_once('/').is_some_and(|(group, _)| !group.is_empty());
            (!options.allow_empty_group && !grouped).then(|| "apiVersion must specify API group".to_owned())
        }
        _ => Some(format!("unexpected GroupVersion string: {version}")),
    }
}

fn validate_reference(
    reference: &CrossVersionObjectReference,
    options: ReferenceOptions,
    path: &Path,
    errors: &mut ErrorList,
) {
    validate_required_segment(&reference.kind, &path.child("kind"), errors);
    validate_required_segment(&reference.name, &path.child("name"), errors);
    if let Some(reason) = api_version_error(reference, options) {
        errors.invalid(path.child("apiVersion"), reference.api_version.text(), reason);
    }
}

fn validate_rules(rules: Option<&HPAScalingRules>, path: &Path, errors: &mut ErrorList) {
    let Some(rules) = rules else { return };
    if let Some(seconds) = rules.stabilization_window_seconds {
        let path = path.child("stabilizationWindowSeconds");
        if seconds < 0 {
            errors.invalid(path, seconds, "must be greater than or equal to zero");
        } else if seconds > STABILIZATION_SECONDS_MAX {
            let detail = format!("must be less than or equal to {STABILIZATION_SECONDS_MAX}");
            errors.invalid(path, seconds, detail);
        }
    }
    if let Some(policy) = &rules.select_policy {
        errors.one_of(path.child("selectPolicy"), policy, &["Disabled", "Max", "Min"]);
    }
    let policies_path = path.child("policies");
    if rules.policies.items().is_empty() {
        errors.required(&policies_path, "must specify at least one Policy");
    }
    for (index, policy) in rules.policies.items().iter().enumerate() {
        let path = policies_path.index(index);
        errors.one_of(path.child("type"), &policy.type_, &["Percent", "Pods"]);
        errors.positive(path.child("value"), policy.value);
        let period_path = path.child("periodSeconds");
        errors.positive(&period_path, policy.period_seconds);
        if policy.period_seconds > PERIOD_SECONDS_MAX {
            let detail = format!("must be less than or equal to {PERIOD_SECONDS_MAX}");
            errors.invalid(period_path, policy.period_seconds, detail);
        }
    }
    if let Some(tolerance) = rules.tolerance.as_ref().filter(|tolerance| is_negative(tolerance)) {
        errors.invalid(path.child("tolerance"), canonical(tolerance), MUST_NOT_BE_NEGATIVE);
    }
}

fn validate_metrics(
    spec: &HorizontalPodAutoscalerSpec,
    options: ReferenceOptions,
    path: &Path,
    errors: &mut ErrorList,
) {
    let metrics = spec.metrics.items();
    for (index, metric) in metrics.iter().enumerate() {
        validate_metric(metric, options, &path.index(index), errors);
    }
    let to_zero = metrics.iter().any(|metric| matches!(metric.type_.as_str(), "Object" | "External"));
    if spec.min_replicas == Some(0) && !to_zero {
        let detail = "must specify at least one Object or External metric to support scaling to zero replicas";
        errors.forbidden(path, detail);
    }
}

fn validate_metric(metric: &MetricSpec, options: ReferenceOptions, path: &Path, errors: &mut ErrorList) {
    let type_path = path.child("type");
    if metric.type_.is_empty() {
        errors.required(&type_path, "must specify a metric source type");
    }
    errors.one_of(&type_path, &metric.type_, &SOURCES);
    let mut present = Vec::new();
    if let Some(source) = &metric.object {
        present.push("object");
        validate_object(source, options, &path.child("object"), errors);
    }
    if let Some(source) = &metric.external {
        present.push("external");
        if present.len() == 1 {
            validate_external(source, &path.child("external"), errors);
        }
    }
    if let Some(source) = &metric.pods {
        present.push("pods");
        if present.len() == 1 {
            validate_pods(source, &path.child("pods"), errors);
        }
    }
    if let Some(source) = &metric.resource {
        present.push("resource");
        if present.len() == 1 {
            validate_resource(source, &path.child("resource"), errors);
        }
    }
    if let Some(source) = &metric.container_resource {
        present.push("containerResource");
        if present.len() == 1 {
            validate_container_resource(source, &path.child("containerResource"), errors);
        }
    }
    let expected = match metric.type_.as_str() {
        "Object" => "object",
        "Pods" => "pods",
        "Resource" => "resource",
        "External" => "external",
        "ContainerResource" => "containerResource",
        other => {
            errors.not_supported(type_path, other, &SOURCES);
            ""
        }
    };
    if !expected.is_empty() && !present.contains(&expected) {
        errors.required(path.child(expected), "must populate information for the given metric source");
    }
    if present.len() != 1 {
        for source in present.into_iter().filter(|source| *source != expected) {
            errors.forbidden(path.child(source), "must populate the given metric source only");
        }
    }
}

fn validate_object(source: &ObjectMetricSource, options: ReferenceOptions, path: &Path, errors: &mut ErrorList) {
    validate_reference(&source.described_object, options, &path.child("describedObject"), errors);
    validate_identifier(&source.metric, &path.child("metric"), errors);
    let path = path.child("target");
    validate_target(&source.target, &path, errors);
    if source.target.value.is_none() && source.target.average_value.is_none() {
        errors.required(path.child("averageValue"), "must set either a target value or averageValue");
    }
}

fn validate_external(source: &ExternalMetricSource, path: &Path, errors: &mut ErrorList) {
    validate_identifier(&source.metric, &path.child("metric"), errors);
    let path = path.child("target");
    validate_target(&source.target, &path, errors);
    match (&source.target.value, &source.target.average_value) {
        (None, None) => {
            let detail = "must set either a target value for metric or a per-pod target";
            errors.required(path.child("averageValue"), detail);
        }
        (Some(_), Some(_)) => {
            let detail = "may not set both a target value for metric and a per-pod target";
            errors.forbidden(path.child("value"), detail);
        }
        _ => {}
    }
}

fn validate_pods(source: &PodsMetricSource, path: &Path, errors: &mut ErrorList) {
    validate_identifier(&source.metric, &path.child("metric"), errors);
    let path = path.child("target");
    validate_target(&source.target, &path, errors);
    if source.target.average_value.is_none() {
        errors.required(path.child("averageValue"), "must specify a positive target averageValue");
    }
}

fn validate_resource(source: &ResourceMetricSource, path: &Path, errors: &mut ErrorList) {
    if source.name.is_empty() {
        errors.required(path.child("name"), "must specify a resource name");
    }
    validate_resource_target(&source.target, &path.child("target"), errors);
}

fn validate_container_resource(source: &ContainerResourceMetricSource, path: &Path, errors: &mut ErrorList) {
    if source.name.is_empty() {
        errors.required(path.child("name"), "must specify a resource name");
    } else {
        validate_container_resource_name(&source.name, &path.child("name"), errors);
    }
    if source.container.is_empty() {
        errors.required(path.child("container"), "must specify a container");
    } else {
        validate_dns1123_label(&source.container, path.child("container"), errors);
    }
    validate_resource_target(&source.target, &path.child("target"), errors);
}

fn validate_resource_target(target: &MetricTarget, path: &Path, errors: &mut ErrorList) {
    validate_target(target, path, errors);
    match (target.average_utilization, &target.average_value) {
        (None, None) => {
            let detail = "must set either a target raw value or a target utilization";
            errors.required(path.child("averageUtilization"), detail);
        }
        (Some(_), Some(_)) => {
            let detail = "may not set both a target raw value and a target utilization";
            errors.forbidden(path.child("averageValue"), detail);
        }
        _ => {}
    }
}

fn validate_target(target: &MetricTarget, path: &Path, errors: &mut ErrorList) {
    let type_path = path.child("type");
    if target.type_.is_empty() {
        errors.required(&type_path, "must specify a metric target type");
    }
    if !matches!(target.type_.as_str(), "Utilization" | "Value" | "AverageValue") {
        errors.invalid(type_path, target.type_.as_str(), "must be either Utilization, Value, or AverageValue");
    }
    for (field, value) in [("value", &target.value), ("averageValue", &target.average_value)] {
        if let Some(value) = value.as_ref().filter(|value| !is_positive(value)) {
            errors.invalid(path.child(field), canonical(value), "must be positive");
        }
    }
    if let Some(percent) = target.average_utilization.filter(|percent| *percent < 1) {
        errors.invalid(path.child("averageUtilization"), percent, "must be greater than 0");
    }
}

fn validate_identifier(identifier: &MetricIdentifier, path: &Path, errors: &mut ErrorList) {
    if identifier.name.is_empty() {
        errors.required(path.child("name"), "must specify a metric name");
    } else {
        validate_required_segment(&identifier.name, &path.child("name"), errors);
    }
}
