//! The resources pods were given, which are those of their specs until a spec asks for others while they run. Pure.
//!
//! ```text
//! spec ──(there is room: allocated)──► allocation ──(runtime and cgroups follow: actuated)──► what containers have
//! ```
//! Everything on the node goes by the allocation: a resize that has to wait changes nothing. [`store`] keeps both over
//! restarts, [`conditions`] tells of what is between them.
//! Behaves as pkg/kubelet/allocation and pkg/kubelet/events/resize.go, v1.36.
//!
//! Upstream's resizes that are infeasible need swap or static policies of CPU and memory, which this node has not: here
//! each that finds no room is deferred.

pub mod conditions;
pub mod store;

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use rkube_api::k8s::core::v1::{Container, Pod, ResourceRequirements};
use rkube_api::pod_resources::{self, Side};
use serde::{Deserialize, Serialize};

use crate::pod::{PodExt, PodUid, QosClass, init_containers};

/// What one pod was given: for itself and for each container.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Allocation {
    containers: BTreeMap<String, ResourceRequirements>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pod: Option<ResourceRequirements>,
}

impl Allocation {
    /// What the spec asks for.
    pub fn of(pod: &Pod) -> Self {
        let spec = pod.pod_spec();
        let containers = init_containers(spec).iter().chain(&spec.containers);
        Self {
            containers: containers
                .map(|container| (container.name.clone(), container.resources.clone().unwrap_or_default()))
                .collect(),
            pod: spec.resources.clone(),
        }
    }

    /// Whether the spec asks for something else.
    pub fn differs(&self, pod: &Pod) -> bool {
        let spec = pod.pod_spec();
        let mut containers = init_containers(spec).iter().chain(&spec.containers);
        let differs = |name: &str, asked: Option<&ResourceRequirements>| {
            self.containers.get(name).is_some_and(|given| !pod_resources::is_same(Some(given), asked))
        };
        !pod_resources::is_same(self.pod.as_ref(), spec.resources.as_ref())
            || containers.any(|container| differs(&container.name, container.resources.as_ref()))
    }

    /// The pod as far as its resources were given to it.
    pub fn apply(&self, pod: &Arc<Pod>) -> Arc<Pod> {
        if !self.differs(pod) {
            return pod.clone();
        }
        let mut pod = Pod::clone(pod);
        if let Some(spec) = &mut pod.spec {
            spec.resources.clone_from(&self.pod);
            for container in spec.init_containers.iter_mut().flatten().chain(&mut spec.containers) {
                if let Some(given) = self.containers.get(&container.name) {
                    container.resources = Some(given.clone());
                }
            }
        }
        Arc::new(pod)
    }
}

/// Whether `asked` needs more of the node than `given`, two states of one pod.
pub fn grows(given: &Pod, asked: &Pod) -> bool {
    let (given, asked) = (
        pod_resources::of_pod(given.pod_spec(), Side::Requests),
        pod_resources::of_pod(asked.pod_spec(), Side::Requests),
    );
    ["cpu", "memory"].iter().any(|name| match (given.get(*name), asked.get(*name)) {
        (Some(given), Some(asked)) => asked > given,
        (None, Some(asked)) => !asked.is_zero(),
        (_, None) => false,
    })
}

/// A resize that waits, as far as its turn depends on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    pub uid: PodUid,
    pub grows: bool,
    pub priority: i32,
    pub qos: QosClass,
    /// Since when it was deferred.
    pub since: Option<Timestamp>,
}

/// Brings resizes in the order in which they are tried: those that need no room, then by priority, by quality of
/// service, and by how long they have waited.
pub fn order(pending: &mut [Pending]) {
    pending.sort_by_key(|one| {
        (one.grows, Reverse(one.priority), one.qos != QosClass::Guaranteed, one.since.is_none(), one.since)
    });
}

#[derive(Serialize)]
struct Given<'a> {
    name: &'a str,
    resources: ResourceRequirements,
}

impl<'a> Given<'a> {
    fn of(container: &'a Container) -> Self {
        Self { name: &container.name, resources: container.resources.clone().unwrap_or_default() }
    }
}

/// What events of resizes hold.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Summary<'a> {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    init_containers: Vec<Given<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    containers: Vec<Given<'a>>,
    generation: i64,
    #[serde(skip_serializing_if = "str::is_empty")]
    error: &'a str,
}

/// `Pod resize <what>: ` and what the pod asks for.
pub fn event_message(what: &str, pod: &Pod, generation: Option<i64>, error: &str) -> String {
    let spec = pod.pod_spec();
    let summary = Summary {
        init_containers: init_containers(spec).iter().map(Given::of).collect(),
        containers: spec.containers.iter().map(Given::of).collect(),
        generation: generation.unwrap_or_default(),
        error,
    };
    match serde_json::to_string(&summary) {
        Ok(summary) => format!("Pod resize {what}: {summary}"),
        Err(_) => format!("Pod resize {what}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(resources: serde_json::Value) -> Arc<Pod> {
        let containers = serde_json::json!([{"name": "a", "resources": resources}]);
        let pod = serde_json::json!({"metadata": {"generation": 2}, "spec": {"containers": containers}});
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    #[test]
    fn what_was_given_stands_in_for_what_is_asked() {
        let given = Allocation::of(&pod(serde_json::json!({"requests": {"cpu": "1"}})));
        assert!(!given.differs(&pod(serde_json::json!({"requests": {"cpu": "1000m"}, "limits": {}}))));
        let asked = pod(serde_json::json!({"requests": {"cpu": "2"}}));
        assert!(given.differs(&asked) && grows(&given.apply(&asked), &asked));
        assert!(!grows(&asked, &given.apply(&asked)));
        assert_eq!(Allocation::of(&given.apply(&asked)), given);
        assert_eq!(given.apply(&asked).generation(), Some(2));
        let text = serde_json::to_string(&given).unwrap();
        assert_eq!(serde_json::from_str::<Allocation>(&text).unwrap(), given);
    }

    #[test]
    fn events_say_what_is_asked() {
        let pod = pod(serde_json::json!({"requests": {"cpu": "5"}, "limits": {"memory": "1Gi"}}));
        assert_eq!(
            event_message("OutOfcpu", &pod, pod.generation(), "no room"),
            r#"Pod resize OutOfcpu: {"containers":[{"name":"a","resources":{"limits":{"memory":"1Gi"},"requests":{"cpu":"5"}}}],"generation":2,"error":"no room"}"#
        );
    }

    #[test]
    fn resizes_wait_in_order() {
        let one = |name: &str, grows, priority, qos, since: Option<i64>| Pending {
            uid: PodUid::from(name),
            grows,
            priority,
            qos,
            since: since.map(|second| Timestamp::from_second(second).unwrap()),
        };
        use QosClass::{Burstable, Guaranteed};
        let mut pending = [
            one("new", true, 0, Burstable, None),
            one("late", true, 0, Burstable, Some(9)),
            one("early", true, 0, Burstable, Some(3)),
            one("guaranteed", true, 0, Guaranteed, None),
            one("important", true, 7, Burstable, None),
            one("shrinks", false, -1, Burstable, None),
        ];
        order(&mut pending);
        let names = pending.map(|one| one.uid.to_string());
        assert_eq!(names, ["shrinks", "important", "guaranteed", "early", "late", "new"]);
    }
}
