//! A node with the pods on it.

use std::collections::HashMap;
use std::sync::Arc;

use rkube_api::k8s::core::v1::{Node, Taint};
use rkube_api::pod_resources;

use crate::model::node_affinity::NodeLabels;
use crate::model::pod::PodInfo;
use crate::model::resources::Resources;

/// What filters and scores look at. Cloned by preemption, which tries what a node would be without some pods.
#[derive(Clone, Debug)]
pub(crate) struct NodeState {
    pub(crate) name: Arc<str>,
    /// Absent while only pods speak of it, and after it was deleted.
    pub(crate) node: Option<Arc<Node>>,
    pub(crate) allocatable: Resources,
    pub(crate) pods_max: i64,
    pub(crate) requested: Resources,
    pub(crate) non_zero: (i64, i64),
    pub(crate) pods: Vec<Arc<PodInfo>>,
    /// How many of `pods` want host ports.
    ports_held: usize,
    /// Bytes by name.
    pub(crate) images: Arc<HashMap<String, i64>>,
}

impl NodeState {
    pub(crate) fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            node: None,
            allocatable: Resources::default(),
            pods_max: 0,
            requested: Resources::default(),
            non_zero: (0, 0),
            pods: Vec::new(),
            ports_held: 0,
            images: Arc::default(),
        }
    }

    /// Takes over the object. Whether the images on the node changed.
    pub(crate) fn set(&mut self, node: Option<Arc<Node>>) -> bool {
        let status = node.as_ref().and_then(|node| node.status.as_ref());
        let allocatable = pod_resources::parse(status.and_then(|status| status.allocatable.as_ref()));
        self.pods_max = allocatable.get("pods").map_or(0, rkube_apimachinery::quantity::Quantity::value);
        self.allocatable = Resources::from_list(&allocatable);
        let images = status.into_iter().flat_map(|status| status.images.iter().flatten());
        let images: HashMap<String, i64> = images
            .flat_map(|image| {
                let size = image.size_bytes.unwrap_or(0);
                image.names.iter().flatten().map(move |name| (name.clone(), size))
            })
            .collect();
        self.node = node;
        let changed = images != *self.images;
        if changed {
            self.images = Arc::new(images);
        }
        changed
    }

    pub(crate) fn taints(&self) -> &[Taint] {
        let spec = self.node.as_ref().and_then(|node| node.spec.as_ref());
        spec.and_then(|spec| spec.taints.as_deref()).unwrap_or_default()
    }

    pub(crate) fn is_unschedulable(&self) -> bool {
        let spec = self.node.as_ref().and_then(|node| node.spec.as_ref());
        spec.and_then(|spec| spec.unschedulable).unwrap_or(false)
    }

    pub(crate) fn labels(&self) -> NodeLabels<'_> {
        let labels = self.node.as_ref().and_then(|node| node.metadata.labels.as_ref());
        NodeLabels { name: &self.name, labels }
    }

    pub(crate) fn add(&mut self, pod: Arc<PodInfo>) {
        self.requested.add(&pod.requests);
        self.non_zero.0 = self.non_zero.0.saturating_add(pod.non_zero.0);
        self.non_zero.1 = self.non_zero.1.saturating_add(pod.non_zero.1);
        self.ports_held += usize::from(!pod.ports.is_empty());
        self.pods.push(pod);
    }

    /// What the pods on the node take of it.
    pub(crate) fn taken(&self) -> Taken {
        Taken { requested: self.requested.clone(), pods: self.pods.len() }
    }

    /// Takes a pod's share back.
    fn forget(&mut self, pod: &PodInfo) {
        self.requested.sub(&pod.requests);
        self.non_zero.0 = self.non_zero.0.saturating_sub(pod.non_zero.0);
        self.non_zero.1 = self.non_zero.1.saturating_sub(pod.non_zero.1);
        self.ports_held -= usize::from(!pod.ports.is_empty());
    }

    pub(crate) fn remove(&mut self, uid: &str) -> Option<Arc<PodInfo>> {
        let index = self.pods.iter().position(|pod| &*pod.uid == uid)?;
        let pod = self.pods.swap_remove(index);
        self.forget(&pod);
        Some(pod)
    }

    /// Whether a pod on the node has one of the host ports that `pod` wants.
    pub(crate) fn port_conflict(&self, pod: &PodInfo) -> bool {
        if pod.ports.is_empty() || self.ports_held == 0 {
            return false;
        }
        let held = self.pods.iter().flat_map(|other| &other.ports);
        held.into_iter().any(|held| pod.ports.iter().any(|wanted| wanted.conflicts(held)))
    }
}

/// What pods take of a node, apart from who they are.
#[derive(Clone, Debug)]
pub(crate) struct Taken {
    pub(crate) requested: Resources,
    pub(crate) pods: usize,
}

impl Taken {
    pub(crate) fn add(&mut self, pod: &PodInfo) {
        self.requested.add(&pod.requests);
        self.pods += 1;
    }

    pub(crate) fn sub(&mut self, pod: &PodInfo) {
        self.requested.sub(&pod.requests);
        self.pods -= 1;
    }
}
