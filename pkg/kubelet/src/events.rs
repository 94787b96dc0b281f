//! Events about pods and their containers.
//!
//! Behaves as pkg/kubelet/events/event.go and pkg/kubelet/container/ref.go, v1.36.

use rkube_api::Kind;
use rkube_api::k8s::core::v1::{Container, Node, ObjectReference, Pod};
use rkube_client::events::{EventRecorder, EventType};

use crate::pod::{ContainerKind, PodExt};

pub use rkube_client::events::EventType as Type;

/// The kubelet's recorder.
#[derive(Clone)]
pub struct Events {
    recorder: EventRecorder,
    node: std::sync::Arc<str>,
}

impl Events {
    pub fn new(recorder: &EventRecorder, node: &str) -> Self {
        Self { recorder: recorder.for_component("kubelet").on_host(node), node: node.into() }
    }

    pub fn pod(&self, pod: &Pod, kind: EventType, reason: &str, message: impl Into<String>) {
        self.recorder.event(pod, kind, reason, message);
    }

    pub fn container(
        &self,
        pod: &Pod,
        container: &Container,
        kind: EventType,
        reason: &str,
        message: impl Into<String>,
    ) {
        let list = match pod.container(&container.name) {
            Some((ContainerKind::Init, _)) => "initContainers",
            Some((ContainerKind::Ephemeral, _)) => "ephemeralContainers",
            _ => "containers",
        };
        let mut reference = rkube_client::events::reference_to(pod);
        reference.field_path = Some(format!("spec.{list}{{{}}}", container.name));
        self.recorder.event_about(reference, kind, reason, message);
    }

    /// About this node. Nodes are referred to by name in place of a UID, as tools expect.
    pub fn node(&self, kind: EventType, reason: &str, message: impl Into<String>) {
        let reference = ObjectReference {
            api_version: Some(Node::VERSION.to_owned()),
            kind: Some(Node::KIND.to_owned()),
            name: Some(self.node.to_string()),
            uid: Some(self.node.to_string()),
            ..ObjectReference::default()
        };
        self.recorder.event_about(reference, kind, reason, message);
    }
}
