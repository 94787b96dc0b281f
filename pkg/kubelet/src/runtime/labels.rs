//! What the kubelet writes on sandboxes and containers so that it can read it back after a restart.
//!
//! Behaves as pkg/kubelet/kuberuntime/labels.go, v1.36.

use std::collections::HashMap;

use rkube_api::k8s::core::v1::{Container, Pod};

use crate::pod::{PodExt, container_hash};

pub const POD_NAME: &str = "io.kubernetes.pod.name";
pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
pub const POD_UID: &str = "io.kubernetes.pod.uid";
pub const CONTAINER_NAME: &str = "io.kubernetes.container.name";

const POD_DELETION_GRACE_PERIOD: &str = "io.kubernetes.pod.deletionGracePeriod";
const POD_TERMINATION_GRACE_PERIOD: &str = "io.kubernetes.pod.terminationGracePeriod";
const CONTAINER_HASH: &str = "io.kubernetes.container.hash";
const CONTAINER_RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
const CONTAINER_TERMINATION_MESSAGE_PATH: &str = "io.kubernetes.container.terminationMessagePath";
const CONTAINER_TERMINATION_MESSAGE_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
const CONTAINER_PORTS: &str = "io.kubernetes.container.ports";

type Map = HashMap<String, String>;

pub(crate) fn pod_labels(pod: &Pod) -> Map {
    let mut labels: Map = pod.metadata.labels.clone().unwrap_or_default().into_iter().collect();
    labels.insert(POD_NAME.to_owned(), pod.name().to_owned());
    labels.insert(POD_NAMESPACE.to_owned(), pod.namespace().to_owned());
    labels.insert(POD_UID.to_owned(), pod.uid().to_string());
    labels
}

pub(crate) fn pod_annotations(pod: &Pod) -> Map {
    pod.metadata.annotations.clone().unwrap_or_default().into_iter().collect()
}

pub(crate) fn container_labels(pod: &Pod, container: &Container) -> Map {
    Map::from([
        (POD_NAME.to_owned(), pod.name().to_owned()),
        (POD_NAMESPACE.to_owned(), pod.namespace().to_owned()),
        (POD_UID.to_owned(), pod.uid().to_string()),
        (CONTAINER_NAME.to_owned(), container.name.clone()),
    ])
}

pub(crate) fn container_annotations(pod: &Pod, container: &Container, restart_count: i32) -> Map {
    let mut annotations = Map::from([
        (CONTAINER_HASH.to_owned(), container_hash(container)),
        (CONTAINER_RESTART_COUNT.to_owned(), restart_count.to_string()),
        (CONTAINER_TERMINATION_MESSAGE_PATH.to_owned(), container.termination_message_path.clone().unwrap_or_default()),
        (
            CONTAINER_TERMINATION_MESSAGE_POLICY.to_owned(),
            container.termination_message_policy.clone().unwrap_or_default(),
        ),
    ]);
    if let Some(seconds) = pod.metadata.deletion_grace_period_seconds {
        annotations.insert(POD_DELETION_GRACE_PERIOD.to_owned(), seconds.to_string());
    }
    if let Some(seconds) = pod.pod_spec().termination_grace_period_seconds {
        annotations.insert(POD_TERMINATION_GRACE_PERIOD.to_owned(), seconds.to_string());
    }
    if let Some(ports) = container.ports.as_ref().filter(|ports| !ports.is_empty())
        && let Ok(text) = serde_json::to_string(ports)
    {
        annotations.insert(CONTAINER_PORTS.to_owned(), text);
    }
    annotations
}

/// What is read back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ContainerLabels {
    pub(crate) hash: String,
    pub(crate) restart_count: Option<i32>,
    pub(crate) termination_message_path: String,
    pub(crate) termination_message_policy: String,
    /// Of the pod, for containers whose pod is gone from the API.
    pub(crate) grace_period_seconds: Option<i64>,
}

impl ContainerLabels {
    pub(crate) fn read(annotations: &Map) -> Self {
        let text = |key: &str| annotations.get(key).cloned().unwrap_or_default();
        let number = |key: &str| annotations.get(key).and_then(|value| value.parse().ok());
        Self {
            hash: text(CONTAINER_HASH),
            restart_count: annotations.get(CONTAINER_RESTART_COUNT).and_then(|value| value.parse().ok()),
            termination_message_path: text(CONTAINER_TERMINATION_MESSAGE_PATH),
            termination_message_policy: text(CONTAINER_TERMINATION_MESSAGE_POLICY),
            grace_period_seconds: number(POD_DELETION_GRACE_PERIOD).or_else(|| number(POD_TERMINATION_GRACE_PERIOD)),
        }
    }
}
