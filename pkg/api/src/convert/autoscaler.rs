//! `HorizontalPodAutoscaler` autoscaling/v2 and v1. v1 has one CPU target; other metrics, their current values, the
//! behavior and the conditions travel in annotations, as JSON in v1's form.
//!
//! Behaves as pkg/apis/autoscaling/v1/conversion.go, v1.36.
//! Differs from upstream: members of the JSON in annotations are sorted by name, not in the order of Go's structs.

use serde_json::{Map, Value, json};

const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const CURRENT_METRICS: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";
const ROUND_TRIP: [&str; 6] = [
    METRICS,
    CURRENT_METRICS,
    CONDITIONS,
    BEHAVIOR,
    "autoscaling.alpha.kubernetes.io/scale-down-tolerance",
    "autoscaling.alpha.kubernetes.io/scale-up-tolerance",
];

/// What a v1 object without any metric means.
const DEFAULT_CPU_UTILIZATION: i32 = 80;

type Members = Map<String, Value>;

pub(super) fn to_v1(object: &mut Members) {
    drop_annotations(object);
    let mut annotations: Vec<(&str, Value)> = Vec::new();
    if let Some(Value::Object(spec)) = object.get_mut("spec") {
        let metrics = take_list(spec, "metrics");
        let mut others = Vec::new();
        for metric in metrics {
            match cpu_utilization(&metric, "target") {
                Some(percent) => {
                    // The first one counts, and none of them is kept among the others.
                    spec.entry("targetCPUUtilizationPercentage").or_insert(percent);
                }
                None => others.push(metric_to_v1(metric, "target")),
            }
        }
        if !others.is_empty() {
            annotations.push((METRICS, Value::Array(others)));
        }
        if let Some(behavior) = spec.remove("behavior").filter(|behavior| !behavior.is_null()) {
            annotations.push((BEHAVIOR, behavior_to_internal(behavior)));
        }
    }
    if let Some(Value::Object(status)) = object.get_mut("status") {
        let current = take_list(status, "currentMetrics");
        if let Some(percent) = current.iter().rev().find_map(|metric| cpu_utilization(metric, "current")) {
            status.insert("currentCPUUtilizationPercentage".to_owned(), percent);
        }
        if !current.is_empty() {
            let current = current.into_iter().map(|metric| metric_to_v1(metric, "current")).collect();
            annotations.push((CURRENT_METRICS, Value::Array(current)));
        }
        status.entry("currentReplicas").or_insert(Value::from(0));
        let conditions = take_list(status, "conditions");
        if !conditions.is_empty() {
            annotations.push((CONDITIONS, Value::Array(conditions)));
        }
    }
    if annotations.is_empty() {
        return;
    }
    if let Some(target) = annotations_of(object) {
        for (name, value) in annotations {
            target.insert(name.to_owned(), Value::String(value.to_string()));
        }
    }
}

pub(super) fn to_v2(object: &mut Members) {
    let read = |object: &Members, name: &str| {
        let text = object.get("metadata")?.get("annotations")?.get(name)?.as_str()?;
        serde_json::from_str::<Value>(text).ok()
    };
    let metrics = read(object, METRICS);
    let current = read(object, CURRENT_METRICS);
    let conditions = read(object, CONDITIONS);
    let behavior = read(object, BEHAVIOR);
    if let Some(Value::Object(spec)) = object.get_mut("spec") {
        let mut all: Vec<Value> = match metrics {
            Some(Value::Array(metrics)) => metrics.into_iter().map(|metric| metric_to_v2(metric, "target")).collect(),
            _ => Vec::new(),
        };
        match spec.remove("targetCPUUtilizationPercentage") {
            Some(percent) if !percent.is_null() => all.push(cpu_metric(percent)),
            // v1 without metrics has an implicit target, which v2 writes out.
            _ if all.is_empty() => all.push(cpu_metric(Value::from(DEFAULT_CPU_UTILIZATION))),
            _ => {}
        }
        spec.insert("metrics".to_owned(), Value::Array(all));
        if let Some(behavior) = behavior.and_then(behavior_from_internal) {
            spec.insert("behavior".to_owned(), behavior);
        }
    }
    if let Some(Value::Object(status)) = object.get_mut("status") {
        let percent = status.remove("currentCPUUtilizationPercentage").filter(|percent| !percent.is_null());
        let current = match (current, percent) {
            // The annotation has more information than the field.
            (Some(Value::Array(current)), _) => {
                Value::Array(current.into_iter().map(|metric| metric_to_v2(metric, "current")).collect())
            }
            (_, Some(percent)) => json!([
                {"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": percent}}}
            ]),
            _ => Value::Null,
        };
        status.insert("currentMetrics".to_owned(), current);
        if status.get("currentReplicas").and_then(Value::as_i64) == Some(0) {
            status.remove("currentReplicas");
        }
        if let Some(Value::Array(conditions)) = conditions {
            status.insert("conditions".to_owned(), Value::Array(conditions));
        }
    }
    drop_annotations(object);
}

fn take_list(members: &mut Members, name: &str) -> Vec<Value> {
    match members.remove(name) {
        Some(Value::Array(items)) => items,
        _ => Vec::new(),
    }
}

fn annotations_of(object: &mut Members) -> Option<&mut Members> {
    let metadata = object.entry("metadata").or_insert_with(|| json!({})).as_object_mut()?;
    metadata.entry("annotations").or_insert_with(|| json!({})).as_object_mut()
}

fn drop_annotations(object: &mut Members) {
    let Some(Value::Object(metadata)) = object.get_mut("metadata") else { return };
    let Some(Value::Object(annotations)) = metadata.get_mut("annotations") else { return };
    let before = annotations.len();
    annotations.retain(|name, _| !ROUND_TRIP.contains(&name.as_str()));
    if annotations.is_empty() && before > 0 {
        metadata.remove("annotations");
    }
}

fn cpu_metric(percent: Value) -> Value {
    json!({
        "type": "Resource",
        "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": percent}},
    })
}

/// The utilization of a resource metric for CPU that has one.
fn cpu_utilization(metric: &Value, side: &str) -> Option<Value> {
    let resource = metric.get("resource")?;
    let is_cpu = metric.get("type")? == "Resource" && resource.get("name")? == "cpu";
    resource.get(side)?.get("averageUtilization").filter(|percent| is_cpu && !percent.is_null()).cloned()
}

/// The source's members per type: v2's metric, v1's name of the metric, the selector, the value and its average.
/// Names begin with `target` in a spec and with `current` in a status.
fn capitalized(side: &str, rest: &str) -> String {
    format!("{side}{rest}")
}

fn metric_to_v1(mut metric: Value, side: &str) -> Value {
    let Some(members) = metric.as_object_mut() else { return metric };
    for (source, value) in members.iter_mut() {
        let Some(fields) = value.as_object_mut() else { continue };
        let values = match fields.remove(side) {
            Some(Value::Object(values)) => values,
            _ => Map::new(),
        };
        let identifier = match fields.remove("metric") {
            Some(Value::Object(identifier)) => identifier,
            _ => Map::new(),
        };
        let value = values.get("value").cloned();
        let average = values.get("averageValue").cloned();
        let mut put = |name: String, value: Option<Value>| {
            if let Some(value) = value {
                fields.insert(name, value);
            }
        };
        let zero = || Some(Value::from("0"));
        match source.as_str() {
            "object" => {
                put("metricName".to_owned(), identifier.get("name").cloned());
                put("selector".to_owned(), identifier.get("selector").cloned());
                put(capitalized(side, "Value"), value.or_else(zero));
                put("averageValue".to_owned(), average);
                if let Some(described) = fields.remove("describedObject") {
                    fields.insert("target".to_owned(), described);
                }
            }
            "pods" => {
                put("metricName".to_owned(), identifier.get("name").cloned());
                put("selector".to_owned(), identifier.get("selector").cloned());
                put(capitalized(side, "AverageValue"), average.or_else(zero));
            }
            "external" => {
                put("metricName".to_owned(), identifier.get("name").cloned());
                put("metricSelector".to_owned(), identifier.get("selector").cloned());
                let value = if side == "current" { value.or_else(zero) } else { value };
                put(capitalized(side, "Value"), value);
                put(capitalized(side, "AverageValue"), average);
            }
            "resource" | "containerResource" => {
                let average = if side == "current" { average.or_else(zero) } else { average };
                put(capitalized(side, "AverageValue"), average);
                put(capitalized(side, "AverageUtilization"), values.get("averageUtilization").cloned());
            }
            _ => {}
        }
    }
    metric
}

fn metric_to_v2(mut metric: Value, side: &str) -> Value {
    let Some(members) = metric.as_object_mut() else { return metric };
    for (source, value) in members.iter_mut() {
        let Some(fields) = value.as_object_mut() else { continue };
        let mut take = |name: &str| fields.remove(name).filter(|value| !value.is_null());
        let value = take(&capitalized(side, "Value"));
        let mut average = take(&capitalized(side, "AverageValue"));
        let utilization = take(&capitalized(side, "AverageUtilization"));
        if source == "object" {
            average = take("averageValue");
        }
        let name = take("metricName");
        let selector = take(if source == "external" { "metricSelector" } else { "selector" });
        if source == "object"
            && let Some(described) = take("target")
        {
            fields.insert("describedObject".to_owned(), described);
        }
        let mut values = Map::new();
        let is_zero = value.as_ref().is_some_and(|value| value == "0" || value == &Value::from(0));
        let value = match source.as_str() {
            // v1 cannot leave the value out, so a zero beside an average means none.
            "object" if side == "target" && average.is_some() && is_zero => None,
            _ => value,
        };
        if side == "target" {
            let kind = match source.as_str() {
                "resource" | "containerResource" if utilization.is_some() => "Utilization",
                "external" if value.is_some() => "Value",
                "object" if average.is_none() => "Value",
                _ => "AverageValue",
            };
            values.insert("type".to_owned(), kind.into());
        }
        let parts = [("value", value), ("averageValue", average), ("averageUtilization", utilization)];
        for (name, part) in parts {
            if let Some(part) = part {
                values.insert(name.to_owned(), part);
            }
        }
        fields.insert(side.to_owned(), Value::Object(values));
        if matches!(source.as_str(), "object" | "pods" | "external") {
            let mut identifier = Map::new();
            identifier.insert("name".to_owned(), name.unwrap_or_else(|| "".into()));
            if let Some(selector) = selector {
                identifier.insert("selector".to_owned(), selector);
            }
            fields.insert("metric".to_owned(), Value::Object(identifier));
        }
    }
    metric
}

/// Fields of the behavior in the API and in the annotation, which holds Go's internal type: its names are
/// those of the Go fields and absent pointers are `null`.
const RULES: [(&str, &str); 4] = [
    ("stabilizationWindowSeconds", "StabilizationWindowSeconds"),
    ("selectPolicy", "SelectPolicy"),
    ("policies", "Policies"),
    ("tolerance", "Tolerance"),
];
const POLICY: [(&str, &str); 3] = [("type", "Type"), ("value", "Value"), ("periodSeconds", "PeriodSeconds")];

fn behavior_to_internal(mut behavior: Value) -> Value {
    let mut side = |name: &str| match behavior.get_mut(name).map(Value::take) {
        Some(Value::Object(mut rules)) => {
            let mut out = Map::new();
            for (api, internal) in RULES {
                let value = match rules.remove(api) {
                    Some(Value::Array(policies)) => {
                        Value::Array(policies.into_iter().map(|policy| renamed(policy, &POLICY, false)).collect())
                    }
                    other => other.unwrap_or_default(),
                };
                out.insert(internal.to_owned(), value);
            }
            Value::Object(out)
        }
        _ => Value::Null,
    };
    json!({"ScaleUp": side("scaleUp"), "ScaleDown": side("scaleDown")})
}

fn behavior_from_internal(behavior: Value) -> Option<Value> {
    let behavior = renamed(behavior, &[("scaleUp", "ScaleUp"), ("scaleDown", "ScaleDown")], true);
    let Value::Object(mut sides) = behavior else { return None };
    for rules in sides.values_mut() {
        *rules = renamed(rules.take(), &RULES, true);
        if let Some(Value::Array(policies)) = rules.get_mut("policies") {
            for policy in policies {
                *policy = renamed(policy.take(), &POLICY, true);
            }
        }
    }
    (!sides.is_empty()).then_some(Value::Object(sides))
}

/// The members of `names` under their other name; `null` is left out on the way to the API.
fn renamed(value: Value, names: &[(&str, &str)], to_api: bool) -> Value {
    let Value::Object(mut members) = value else { return value };
    let mut out = Map::new();
    for (api, internal) in names {
        let (from, to) = if to_api { (internal, api) } else { (api, internal) };
        if let Some(value) = members.remove(*from)
            && !(to_api && value.is_null())
        {
            out.insert((*to).to_owned(), value);
        }
    }
    Value::Object(out)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::convert::convert;

    #[test]
    fn everything_v1_has_no_field_for_comes_back() {
        let v2 = json!({
            "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": "a", "annotations": {"mine": "1"}},
            "spec": {
                "maxReplicas": 3, "scaleTargetRef": {"kind": "Deployment", "name": "d"},
                "metrics": [
                    {"type": "Pods", "pods": {"metric": {"name": "m"}, "target": {"type": "AverageValue", "averageValue": "5"}}},
                    {"type": "External", "external": {"metric": {"name": "q", "selector": {"matchLabels": {"a": "b"}}}, "target": {"type": "Value", "value": "30"}}},
                    {"type": "Object", "object": {"describedObject": {"kind": "Service", "name": "s"}, "metric": {"name": "r"}, "target": {"type": "AverageValue", "averageValue": "2"}}},
                    {"type": "Resource", "resource": {"name": "memory", "target": {"type": "AverageValue", "averageValue": "1Gi"}}},
                    {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 70}}},
                ],
                "behavior": {"scaleDown": {"policies": [{"type": "Pods", "value": 4, "periodSeconds": 60}], "stabilizationWindowSeconds": 300}},
            },
            "status": {
                "desiredReplicas": 2, "currentReplicas": 1,
                "currentMetrics": [{"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": 50, "averageValue": "100m"}}}],
                "conditions": [{"type": "AbleToScale", "status": "True", "lastTransitionTime": null}],
            },
        });
        let v1 = convert(v2.clone(), "autoscaling", "v1");
        assert_eq!(v1["spec"]["targetCPUUtilizationPercentage"], 70);
        assert_eq!(v1["status"]["currentCPUUtilizationPercentage"], 50);
        assert!(v1["spec"].get("metrics").is_none() && v1["spec"].get("behavior").is_none());
        assert_eq!(
            v1["metadata"]["annotations"]["autoscaling.alpha.kubernetes.io/behavior"],
            r#"{"ScaleDown":{"Policies":[{"PeriodSeconds":60,"Type":"Pods","Value":4}],"SelectPolicy":null,"StabilizationWindowSeconds":300,"Tolerance":null},"ScaleUp":null}"#
        );
        assert_eq!(convert(v1, "autoscaling", "v2"), v2);
    }

    #[test]
    fn v1_without_metrics_means_80_percent_of_cpu() {
        let v1 = json!({
            "apiVersion": "autoscaling/v1", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "a"},
            "spec": {"maxReplicas": 3},
        });
        let v2 = convert(v1, "autoscaling", "v2");
        assert_eq!(
            v2["spec"]["metrics"],
            json!([{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}}])
        );
    }
}
