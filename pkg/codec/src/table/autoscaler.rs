//! A horizontal pod autoscaler's row. Both versions are printed from `autoscaling/v2`'s fields, or from
//! v1's where only those are there.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::cells::{age, items, name, str_at, str_of};

const METRICS_MAX: usize = 2;

pub(super) fn cells(o: &Value, now: Timestamp) -> Vec<Value> {
    let target = &o["spec"]["scaleTargetRef"];
    let reference = format!("{}/{}", str_of(&target["kind"]), str_of(&target["name"]));
    let minimum = o["spec"]["minReplicas"].as_i64();
    vec![
        name(o),
        json!(reference),
        json!(targets(o)),
        json!(minimum.map_or_else(|| "<unset>".to_owned(), |minimum| minimum.to_string())),
        json!(o["spec"]["maxReplicas"].as_i64().unwrap_or(0)),
        json!(o["status"]["currentReplicas"].as_i64().unwrap_or(0)),
        age(o, now),
    ]
}

fn targets(o: &Value) -> String {
    if let Some(wanted) = o["spec"]["targetCPUUtilizationPercentage"].as_i64() {
        let current = o["status"]["currentCPUUtilizationPercentage"].as_i64();
        return format!(
            "cpu: {}/{wanted}%",
            current.map_or_else(|| "<unknown>".to_owned(), |current| format!("{current}%"))
        );
    }
    let specs: Vec<&Value> = items(&o["spec"]["metrics"]).collect();
    if specs.is_empty() {
        return "<none>".to_owned();
    }
    let current: Vec<&Value> = items(&o["status"]["currentMetrics"]).collect();
    let shown: Vec<String> = specs
        .iter()
        .take(METRICS_MAX)
        .enumerate()
        .map(|(index, spec)| metric(spec, current.get(index).copied().unwrap_or(&Value::Null)))
        .collect();
    match specs.len() {
        count if count > METRICS_MAX => format!("{} + {} more...", shown.join(", "), count - METRICS_MAX),
        _ => shown.join(", "),
    }
}

fn metric(spec: &Value, status: &Value) -> String {
    let kind = str_of(&spec["type"]);
    let field = match kind {
        "Resource" => "resource",
        "ContainerResource" => "containerResource",
        "Pods" => "pods",
        "Object" => "object",
        "External" => "external",
        _ => return "<unknown type>".to_owned(),
    };
    let (wanted, current) = (&spec[field]["target"], &status[field]["current"]);
    let value = |name: &str| match str_at(current, &format!("/{name}")) {
        "" => "<unknown>".to_owned(),
        text => text.to_owned(),
    };
    let text = match wanted["averageUtilization"].as_i64() {
        Some(percent) => {
            let now = current["averageUtilization"].as_i64();
            format!("{}/{percent}%", now.map_or_else(|| "<unknown>".to_owned(), |now| format!("{now}%")))
        }
        None if !wanted["averageValue"].is_null() => {
            let average = if matches!(kind, "Object" | "External") { " (avg)" } else { "" };
            format!("{}/{}{average}", value("averageValue"), str_of(&wanted["averageValue"]))
        }
        None => format!("{}/{}", value("value"), str_of(&wanted["value"])),
    };
    match kind {
        "Resource" | "ContainerResource" => format!("{}: {text}", str_of(&spec[field]["name"])),
        _ => text,
    }
}
