//! A pod's row: what its containers are doing, in a word.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::cells::{age, condition, items, name, or, since, str_at, str_of};

/// What the walk over the containers has found.
#[derive(Default)]
struct Summary {
    reason: String,
    ready: usize,
    restarts: i64,
    /// When a container last ended and was restarted.
    last_restart: String,
}

impl Summary {
    fn count(&mut self, status: &Value) {
        self.restarts += status["restartCount"].as_i64().unwrap_or(0);
        let finished = str_at(status, "/lastState/terminated/finishedAt");
        // RFC 3339 in UTC sorts as text.
        if finished > self.last_restart.as_str() {
            self.last_restart = finished.to_owned();
        }
    }
}

pub(super) fn cells(pod: &Value, now: Timestamp) -> Vec<Value> {
    let (status, spec) = (&pod["status"], &pod["spec"]);
    let sidecars: Vec<&str> = items(&spec["initContainers"])
        .filter(|container| container["restartPolicy"] == "Always")
        .map(|container| str_of(&container["name"]))
        .collect();
    let total = items(&spec["containers"]).count() + sidecars.len();
    let summary = summarize(pod, &sidecars);
    let restarts = match (summary.restarts, summary.last_restart.as_str()) {
        (count, "") => count.to_string(),
        (0, _) => "0".to_owned(),
        (count, last) => format!("{count} ({} ago)", since(last, now)),
    };
    let gates: Vec<&Value> = items(&spec["readinessGates"]).collect();
    let passed = gates.iter().filter(|gate| {
        let found = condition(pod, "/status/conditions", str_of(&gate["conditionType"]));
        found.is_some_and(|condition| condition["status"] == "True")
    });
    let gates = if gates.is_empty() { "<none>".to_owned() } else { format!("{}/{}", passed.count(), gates.len()) };
    let address = str_at(status, "/podIPs/0/ip");
    vec![
        name(pod),
        json!(format!("{}/{total}", summary.ready)),
        json!(summary.reason),
        json!(restarts),
        age(pod, now),
        json!(if address.is_empty() { "<none>" } else { address }),
        or(pod, "/spec/nodeName", "<none>"),
        or(pod, "/status/nominatedNodeName", "<none>"),
        json!(gates),
    ]
}

fn summarize(pod: &Value, sidecars: &[&str]) -> Summary {
    let status = &pod["status"];
    let mut summary = Summary { reason: str_of(&status["phase"]).to_owned(), ..Summary::default() };
    if !str_of(&status["reason"]).is_empty() {
        summary.reason = str_of(&status["reason"]).to_owned();
    }
    let scheduled = condition(pod, "/status/conditions", "PodScheduled");
    if scheduled.is_some_and(|condition| condition["reason"] == "SchedulingGated") {
        summary.reason = "SchedulingGated".to_owned();
    }
    let initializing = init_containers(pod, sidecars, &mut summary);
    let initialized =
        condition(pod, "/status/conditions", "Initialized").is_some_and(|found| found["status"] == "True");
    if !initializing || initialized {
        containers(pod, sidecars, &mut summary);
    }
    let is_going = !pod["metadata"]["deletionTimestamp"].is_null();
    if is_going && status["reason"] == "NodeLost" {
        summary.reason = "Unknown".to_owned();
    } else if is_going && status["phase"] != "Succeeded" && status["phase"] != "Failed" {
        summary.reason = "Terminating".to_owned();
    }
    summary
}

/// Whether an init container still runs or failed; the first such one gives the reason.
fn init_containers(pod: &Value, sidecars: &[&str], summary: &mut Summary) -> bool {
    let total = items(&pod["spec"]["initContainers"]).count();
    for (index, container) in items(&pod["status"]["initContainerStatuses"]).enumerate() {
        summary.count(container);
        let state = &container["state"];
        let terminated = &state["terminated"];
        if !terminated.is_null() && terminated["exitCode"].as_i64().unwrap_or(0) == 0 {
            continue;
        }
        if sidecars.contains(&str_of(&container["name"])) && container["started"] == true {
            summary.ready += usize::from(container["ready"] == true);
            continue;
        }
        let waiting = str_at(state, "/waiting/reason");
        summary.reason = if !terminated.is_null() {
            format!("Init:{}", ended(terminated))
        } else if !waiting.is_empty() && waiting != "PodInitializing" {
            format!("Init:{waiting}")
        } else {
            format!("Init:{index}/{total}")
        };
        return true;
    }
    false
}

/// Why a container ended: its reason, or the signal or code it ended with.
fn ended(terminated: &Value) -> String {
    match (str_of(&terminated["reason"]), terminated["signal"].as_i64().unwrap_or(0)) {
        ("", 0) => format!("ExitCode:{}", terminated["exitCode"].as_i64().unwrap_or(0)),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

fn containers(pod: &Value, sidecars: &[&str], summary: &mut Summary) {
    // Restarts of init containers are over once they are; those of sidecars go on.
    summary.restarts = 0;
    summary.last_restart = String::new();
    for container in items(&pod["status"]["initContainerStatuses"]) {
        if sidecars.contains(&str_of(&container["name"])) {
            summary.count(container);
        }
    }
    let mut has_running = false;
    let mut error = String::new();
    let all: Vec<&Value> = items(&pod["status"]["containerStatuses"]).collect();
    for container in all.into_iter().rev() {
        summary.count(container);
        let state = &container["state"];
        let waiting = str_at(state, "/waiting/reason");
        let terminated = &state["terminated"];
        if !waiting.is_empty() {
            summary.reason = waiting.to_owned();
        } else if !terminated.is_null() {
            summary.reason = ended(terminated);
            if terminated["exitCode"].as_i64().unwrap_or(0) != 0 {
                error = summary.reason.clone();
            }
        } else if container["ready"] == true && !state["running"].is_null() {
            has_running = true;
            summary.ready += 1;
        }
    }
    if summary.reason == "Completed" {
        let ready = condition(pod, "/status/conditions", "Ready").is_some_and(|found| found["status"] == "True");
        if has_running && ready {
            summary.reason = "Running".to_owned();
        } else if !error.is_empty() {
            summary.reason = error;
        } else if has_running {
            summary.reason = "NotReady".to_owned();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(spec: Value, status: Value) -> String {
        let metadata = json!({ "name": "p", "creationTimestamp": "2026-01-01T00:00:00Z" });
        let pod = json!({ "metadata": metadata, "spec": spec, "status": status });
        let row = cells(&pod, "2026-01-01T00:05:00Z".parse().unwrap());
        row[1..5].iter().map(str_of).collect::<Vec<_>>().join(" | ")
    }

    #[test]
    fn the_word_tells_what_the_containers_do() {
        let one = json!({ "containers": [{ "name": "a" }] });
        let running = json!({ "name": "a", "ready": true, "restartCount": 0, "state": { "running": {} } });
        let cases = [
            (json!({ "phase": "Pending" }), "0/1 | Pending | 0 | 5m"),
            (json!({ "phase": "Running", "containerStatuses": [running] }), "1/1 | Running | 0 | 5m"),
            (
                json!({ "phase": "Running", "containerStatuses": [{
                    "name": "a", "restartCount": 3, "state": { "waiting": { "reason": "CrashLoopBackOff" } },
                    "lastState": { "terminated": { "finishedAt": "2026-01-01T00:04:00Z" } }
                }] }),
                "0/1 | CrashLoopBackOff | 3 (60s ago) | 5m",
            ),
            (
                json!({ "phase": "Failed", "containerStatuses": [{
                    "name": "a", "restartCount": 0, "state": { "terminated": { "exitCode": 137, "signal": 9 } }
                }] }),
                "0/1 | Signal:9 | 0 | 5m",
            ),
            (json!({ "phase": "Failed", "reason": "Evicted" }), "0/1 | Evicted | 0 | 5m"),
            (
                json!({ "phase": "Succeeded", "containerStatuses": [{
                    "name": "a", "restartCount": 0, "state": { "terminated": { "exitCode": 0, "reason": "Completed" } }
                }] }),
                "0/1 | Completed | 0 | 5m",
            ),
        ];
        for (status, expected) in cases {
            assert_eq!(row(one.clone(), status.clone()), expected, "{status}");
        }
    }

    #[test]
    fn init_containers_and_sidecars_show_how_far_they_are() {
        let spec = json!({
            "initContainers": [{ "name": "i" }, { "name": "s", "restartPolicy": "Always" }], "containers": [{ "name": "a" }]
        });
        let status =
            json!({ "phase": "Pending", "initContainerStatuses": [{ "name": "i", "state": { "running": {} } }] });
        assert_eq!(row(spec.clone(), status), "0/2 | Init:0/2 | 0 | 5m");
        let status = json!({ "phase": "Pending", "initContainerStatuses": [
            { "name": "i", "state": { "terminated": { "exitCode": 0 } } },
            { "name": "s", "started": true, "ready": true, "state": { "running": {} } }
        ] });
        assert_eq!(row(spec, status), "1/2 | Pending | 0 | 5m");
    }
}
