//! Rows that take more than one field a cell: nodes, jobs and bindings.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::cells::*;

pub(super) fn node(o: &Value, now: Timestamp) -> Vec<Value> {
    let mut status = match condition(o, "/status/conditions", "Ready").map(|ready| str_of(&ready["status"])) {
        None => "Unknown",
        Some("True") => "Ready",
        Some(_) => "NotReady",
    }
    .to_owned();
    if o["spec"]["unschedulable"] == true {
        status.push_str(",SchedulingDisabled");
    }
    let info = |field: &str| or(o, &format!("/status/nodeInfo/{field}"), "<unknown>");
    let mut kernel = str_of(&info("kernelVersion")).to_owned();
    let architecture = str_at(o, "/status/nodeInfo/architecture");
    if !architecture.is_empty() {
        kernel = format!("{kernel} ({architecture})");
    }
    vec![
        name(o),
        json!(status),
        json!(none_if_empty(node_roles(o))),
        age(o, now),
        string(o, "/status/nodeInfo/kubeletVersion"),
        json!(node_address(o, "InternalIP")),
        json!(node_address(o, "ExternalIP")),
        info("osImage"),
        json!(kernel),
        info("containerRuntimeVersion"),
    ]
}

pub(super) fn job(o: &Value, now: Timestamp) -> Vec<Value> {
    let is = |kind: &str| condition(o, "/status/conditions", kind).is_some_and(|found| found["status"] == "True");
    let status = match () {
        () if is("Complete") => "Complete",
        () if is("Failed") => "Failed",
        () if !o["metadata"]["deletionTimestamp"].is_null() => "Terminating",
        () if is("Suspended") => "Suspended",
        () if is("FailureTarget") => "FailureTarget",
        () if is("SuccessCriteriaMet") => "SuccessCriteriaMet",
        () => "Running",
    };
    let succeeded = o["status"]["succeeded"].as_i64().unwrap_or(0);
    let parallelism = o["spec"]["parallelism"].as_i64().unwrap_or(0);
    let completions = match o["spec"]["completions"].as_i64() {
        Some(wanted) => format!("{succeeded}/{wanted}"),
        None if parallelism > 1 => format!("{succeeded}/1 of {parallelism}"),
        None => format!("{succeeded}/1"),
    };
    let duration = match (str_at(o, "/status/startTime"), str_at(o, "/status/completionTime")) {
        ("", _) => String::new(),
        (start, "") => since(start, now),
        (start, end) => between(start, end),
    };
    let [names, images] = containers(&o["spec"]["template"]["spec"]);
    let chosen = selector(&o["spec"]["selector"]);
    vec![name(o), json!(status), json!(completions), json!(duration), age(o, now), names, images, chosen]
}

pub(super) fn binding(o: &Value, now: Timestamp) -> Vec<Value> {
    let role = format!("{}/{}", str_at(o, "/roleRef/kind"), str_at(o, "/roleRef/name"));
    let subjects = |kind: &str| {
        let of_kind = items(&o["subjects"]).filter(|subject| subject["kind"] == kind);
        let names = of_kind.map(|subject| match (kind, str_of(&subject["namespace"])) {
            ("ServiceAccount", namespace) if !namespace.is_empty() => {
                format!("{namespace}/{}", str_of(&subject["name"]))
            }
            _ => str_of(&subject["name"]).to_owned(),
        });
        json!(names.collect::<Vec<_>>().join(", "))
    };
    vec![name(o), json!(role), age(o, now), subjects("User"), subjects("Group"), subjects("ServiceAccount")]
}
