//! What nodes and pods say of themselves. Pure: facts in, JSON out.

use serde::Deserialize;
use serde_json::{Value, json};

use super::rules::Phase;

/// Kubelets patch statuses by merge keys, so that conditions of others stay.
pub(crate) const STRATEGIC: &str = "application/strategic-merge-patch+json";

/// An address of node or pod `number` in a range of a hundred thousand and more.
fn address(range: u8, number: usize) -> String {
    let number = number % (1 << 24);
    format!("{range}.{}.{}.{}", number >> 16, (number >> 8) & 255, number & 255)
}

pub(super) fn node_address(index: usize) -> String {
    address(100, index + 1)
}

pub(super) fn node(index: usize, resources: &Value, now: &str) -> Value {
    let condition = |kind: &str, status: &str, reason: &str, message: &str| {
        json!({
            "type": kind, "status": status, "reason": reason, "message": message,
            "lastHeartbeatTime": now, "lastTransitionTime": now,
        })
    };
    json!({
        "capacity": resources,
        "allocatable": resources,
        "conditions": [
            condition("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
            condition("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
            condition("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
            condition("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
        ],
        "addresses": [{"type": "InternalIP", "address": node_address(index)}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
        "nodeInfo": {
            "machineID": "", "systemUUID": "", "bootID": "", "kernelVersion": "fake", "osImage": "fake",
            "containerRuntimeVersion": "fake://1", "kubeletVersion": "v1.36.2", "kubeProxyVersion": "",
            "operatingSystem": "linux", "architecture": "amd64",
        },
    })
}

/// Only the signs of life of [`node`]'s conditions.
pub(super) fn node_heartbeat(now: &str) -> Value {
    let conditions: Vec<_> = ["MemoryPressure", "DiskPressure", "PIDPressure", "Ready"]
        .iter()
        .map(|kind| json!({"type": kind, "lastHeartbeatTime": now}))
        .collect();
    json!({"status": {"conditions": conditions}})
}

/// As much of a pod as is needed to run it.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Pod {
    pub(super) metadata: Metadata,
    pub(super) spec: Spec,
    pub(super) status: Status,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Metadata {
    pub(super) uid: String,
    pub(super) deletion_timestamp: Option<String>,
    pub(super) deletion_grace_period_seconds: Option<u64>,
    pub(super) annotations: std::collections::BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Spec {
    pub(super) node_name: String,
    pub(super) restart_policy: String,
    init_containers: Vec<Container>,
    containers: Vec<Container>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Container {
    name: String,
    image: String,
    restart_policy: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Status {
    pub(super) phase: String,
    /// When the kubelet took the pod on.
    pub(super) start_time: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
}

/// The pod's status at `phase`. `address` is a number not used by another pod; one the pod has is kept.
pub(super) fn pod(pod: &Pod, phase: Phase, node_index: usize, address_number: usize, now: &str) -> Value {
    let pod_ip = pod.status.pod_ip.clone().unwrap_or_else(|| address(10, address_number));
    let started = pod.status.start_time.as_deref().unwrap_or(now);
    let running = phase == Phase::Running;
    let ready = if running { "True" } else { "False" };
    let reason = match phase {
        Phase::Running => None,
        Phase::Succeeded => Some("PodCompleted"),
        Phase::Failed => Some("PodFailed"),
    };
    let condition = |kind: &str, status: &str, reason: Option<&str>| match reason {
        Some(reason) => json!({"type": kind, "status": status, "reason": reason, "lastTransitionTime": now}),
        None => json!({"type": kind, "status": status, "lastTransitionTime": now}),
    };
    let containers = |list: &[Container], is_init: bool| -> Vec<Value> {
        list.iter().map(|container| container_status(pod, container, is_init, phase, started, now)).collect()
    };
    let mut status = json!({
        "phase": match phase { Phase::Running => "Running", Phase::Succeeded => "Succeeded", Phase::Failed => "Failed" },
        "startTime": started,
        "hostIP": node_address(node_index),
        "hostIPs": [{"ip": node_address(node_index)}],
        "podIP": pod_ip,
        "podIPs": [{"ip": pod_ip}],
        "conditions": [
            condition("PodReadyToStartContainers", ready, None),
            condition("Initialized", "True", reason.filter(|_| phase == Phase::Succeeded)),
            condition("Ready", ready, reason),
            condition("ContainersReady", ready, reason),
        ],
        "containerStatuses": containers(&pod.spec.containers, false),
    });
    if !pod.spec.init_containers.is_empty() {
        status["initContainerStatuses"] = containers(&pod.spec.init_containers, true).into();
    }
    json!({"metadata": {"uid": pod.metadata.uid}, "status": status})
}

fn container_status(pod: &Pod, container: &Container, is_init: bool, phase: Phase, started: &str, now: &str) -> Value {
    let id = format!("fake://{}/{}", pod.metadata.uid, container.name);
    let is_sidecar = is_init && container.restart_policy == "Always";
    let ended = |code: i32, reason: &str| {
        json!({"terminated": {
            "exitCode": code, "reason": reason, "startedAt": started, "finishedAt": now, "containerID": id,
        }})
    };
    let runs = phase == Phase::Running && (is_sidecar || !is_init);
    let state = if runs {
        json!({"running": {"startedAt": started}})
    } else if phase == Phase::Failed && !is_init {
        ended(1, "Error")
    } else {
        ended(0, "Completed")
    };
    json!({
        "name": container.name, "image": container.image, "imageID": format!("fake://{}", container.image),
        "containerID": id, "ready": runs || (is_init && !is_sidecar), "started": runs, "restartCount": 0,
        "state": state, "lastState": {},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(extra: Value) -> Pod {
        let mut pod = json!({
            "metadata": {"uid": "u"},
            "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "i"}],
                     "initContainers": [{"name": "init", "image": "i"}, {"name": "side", "image": "i", "restartPolicy": "Always"}]},
        });
        pod["status"] = extra;
        serde_json::from_value(pod).unwrap()
    }

    /// Name, readiness and state of every container.
    fn containers(status: &Value) -> String {
        let line = |container: &Value| {
            let state = container["state"].as_object().unwrap().keys().next().unwrap().clone();
            format!("{}:{}:{state}", container["name"].as_str().unwrap(), container["ready"])
        };
        let lists = ["initContainerStatuses", "containerStatuses"];
        let all = lists.iter().flat_map(|list| status["status"][list].as_array().unwrap());
        all.map(line).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_running_pod_is_ready_with_its_sidecars() {
        let status = pod(&sample(json!({})), Phase::Running, 0, 258, "T1");
        assert_eq!(status["status"]["podIP"], "10.0.1.2");
        assert_eq!(status["status"]["startTime"], "T1");
        assert_eq!(containers(&status), "init:true:terminated side:true:running c:true:running");
    }

    #[test]
    fn a_pod_that_ends_keeps_its_address_and_start() {
        let before = json!({"phase": "Running", "podIP": "10.9.9.9", "startTime": "T0"});
        let failed = pod(&sample(before.clone()), Phase::Failed, 0, 1, "T1");
        assert_eq!((&failed["status"]["podIP"], &failed["status"]["startTime"]), (&json!("10.9.9.9"), &json!("T0")));
        assert_eq!(failed["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"], 1);
        let done = pod(&sample(before), Phase::Succeeded, 0, 1, "T1");
        assert_eq!(containers(&done), "init:true:terminated side:false:terminated c:false:terminated");
    }
}
