//! The Node's contents. Pure.
//!
//! Behaves as pkg/kubelet/nodestatus/setters.go and initialNode, v1.36.

use std::collections::BTreeMap;

use jiff::Timestamp;
use rkube_api::k8s::core::v1::{
    ContainerImage, DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeSpec, NodeStatus,
};
use rkube_api::meta::pkg::api::resource::Quantity as ApiQuantity;
use rkube_api::meta::pkg::apis::meta::v1::Time;
use rkube_apimachinery::quantity::{Format, Quantity};
use rkube_cri::v1::Image;

use crate::config::KubeletConfig;
use crate::node::Health;
use crate::node::capacity::{Capacity, architecture, system_info};
use crate::runtime::resources::page_name;

/// Names kept per image, as many as upstream.
const IMAGE_NAMES_MAX: usize = 5;

/// What not every node of v1.36 can and this one does. A cluster asks its nodes for them before it takes objects that
/// need them.
const DECLARED_FEATURES: [&str; 3] =
    ["ExtendWebSocketsToKubelet", "InPlacePodLevelResourcesVerticalScaling", "InPlacePodVerticalScalingInitContainers"];

pub(super) struct Observed<'a> {
    pub(super) config: &'a KubeletConfig,
    pub(super) capacity: &'a Capacity,
    pub(super) allocatable: &'a Capacity,
    pub(super) health: &'a Health,
    pub(super) images: &'a [ContainerImage],
    pub(super) runtime_version: &'a str,
    pub(super) now: Timestamp,
}

/// A new node.
pub(super) fn node(config: &KubeletConfig, status: NodeStatus) -> Node {
    let mut node = Node::default();
    node.metadata.name = Some(config.node_name.clone());
    let arch = architecture();
    let mut labels: BTreeMap<String, String> = [
        ("kubernetes.io/hostname", config.node_name.as_str()),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", arch),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", arch),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into();
    labels.extend(config.labels.clone());
    node.metadata.labels = Some(labels);
    let annotation = "volumes.kubernetes.io/controller-managed-attach-detach";
    node.metadata.annotations = Some([(annotation.to_owned(), "true".to_owned())].into());
    let taints = (!config.taints.is_empty()).then(|| config.taints.clone());
    node.spec = Some(NodeSpec { taints, ..NodeSpec::default() });
    node.status = Some(status);
    node
}

pub(super) fn image(image: Image) -> ContainerImage {
    let mut names = image.repo_digests;
    names.extend(image.repo_tags);
    names.truncate(IMAGE_NAMES_MAX);
    ContainerImage { names: Some(names), size_bytes: i64::try_from(image.size).ok() }
}

/// Whether two statuses say the same, heartbeats aside.
pub(super) fn same(a: &NodeStatus, b: &NodeStatus) -> bool {
    let strip = |status: &NodeStatus| {
        let mut status = status.clone();
        for condition in status.conditions.iter_mut().flatten() {
            condition.last_heartbeat_time = None;
        }
        if let Some(conditions) = &mut status.conditions {
            conditions.sort_by(|a, b| a.type_.cmp(&b.type_));
        }
        status
    };
    strip(a) == strip(b)
}

impl Observed<'_> {
    /// The whole status. Conditions and extended resources of others stay.
    pub(super) fn status(&self, old: &NodeStatus) -> NodeStatus {
        let mut addresses: Vec<NodeAddress> = self
            .config
            .node_ips
            .iter()
            .map(|ip| NodeAddress { type_: "InternalIP".to_owned(), address: ip.clone() })
            .collect();
        addresses.push(NodeAddress { type_: "Hostname".to_owned(), address: self.config.node_name.clone() });
        let kubelet_endpoint = Some(DaemonEndpoint { port: i32::from(self.config.port) });
        let (mut capacity, mut allocatable) = (self.list(self.capacity), self.list(self.allocatable));
        // Extended resources are an administrator's: what the node has of them may be used up.
        let is_own = |name: &str| capacity.contains_key(name) || name.starts_with("hugepages-");
        let extended = old.capacity.iter().flatten().filter(|(name, _)| !is_own(name));
        let extended: Vec<_> = extended.map(|(name, quantity)| (name.clone(), quantity.clone())).collect();
        capacity.extend(extended.iter().cloned());
        allocatable.extend(extended);
        NodeStatus {
            addresses: Some(addresses),
            capacity: Some(capacity),
            allocatable: Some(allocatable),
            conditions: Some(self.conditions(old)),
            declared_features: Some(DECLARED_FEATURES.map(str::to_owned).into()),
            daemon_endpoints: Some(NodeDaemonEndpoints { kubelet_endpoint }),
            images: (!self.images.is_empty()).then(|| self.images.to_vec()),
            node_info: Some(system_info(&self.config.version, self.runtime_version)),
            ..old.clone()
        }
    }

    fn list(&self, capacity: &Capacity) -> BTreeMap<String, ApiQuantity> {
        let text = |quantity: Quantity| ApiQuantity(quantity.to_string());
        let mut list = BTreeMap::from([
            ("cpu".to_owned(), text(Quantity::milli(capacity.cpu_milli, Format::DecimalSi))),
            // In KiB, as upstream's figures come from /proc/meminfo.
            ("memory".to_owned(), ApiQuantity(format!("{}Ki", capacity.memory / 1024))),
            ("ephemeral-storage".to_owned(), ApiQuantity(format!("{}Ki", capacity.ephemeral_storage / 1024))),
            ("pods".to_owned(), ApiQuantity(self.config.pods_max.to_string())),
        ]);
        for (size, bytes) in &capacity.hugepages {
            let name = page_name(*size).replace('B', "i");
            list.insert(format!("hugepages-{name}"), text(Quantity::new(*bytes, Format::BinarySi)));
        }
        list
    }

    fn conditions(&self, old: &NodeStatus) -> Vec<NodeCondition> {
        let pressure = |kind: &str| self.health.pressure.contains(&kind);
        let mut conditions = vec![
            self.pressure(
                old,
                "MemoryPressure",
                pressure("MemoryPressure"),
                "InsufficientMemory",
                "SufficientMemory",
                "insufficient memory",
                "sufficient memory",
            ),
            self.pressure(
                old,
                "DiskPressure",
                pressure("DiskPressure"),
                "DiskPressure",
                "NoDiskPressure",
                "disk pressure",
                "no disk pressure",
            ),
            self.pressure(
                old,
                "PIDPressure",
                pressure("PIDPressure"),
                "InsufficientPID",
                "SufficientPID",
                "insufficient PID",
                "sufficient PID",
            ),
        ];
        let mut problems: Vec<String> = [&self.health.runtime.0, &self.health.network.0, &self.health.pleg.0]
            .into_iter()
            .filter_map(|state| state.as_ref().err().cloned())
            .collect();
        if self.health.shutting_down {
            problems.push("node is shutting down".to_owned());
        }
        problems.dedup();
        let ready = problems.is_empty();
        let (reason, message) = match problems.as_slice() {
            [] => ("KubeletReady", "kubelet is posting ready status".to_owned()),
            [one] => ("KubeletNotReady", one.clone()),
            many => ("KubeletNotReady", format!("[{}]", many.join(", "))),
        };
        conditions.push(self.condition(old, "Ready", ready, reason, &message));
        let ours: Vec<String> = conditions.iter().map(|condition| condition.type_.clone()).collect();
        let others = old.conditions.iter().flatten().filter(|condition| !ours.contains(&condition.type_));
        others.cloned().chain(conditions.clone()).collect()
    }

    #[expect(clippy::too_many_arguments, reason = "one row of a table of texts")]
    fn pressure(
        &self,
        old: &NodeStatus,
        kind: &str,
        under: bool,
        reason_under: &str,
        reason_not: &str,
        text_under: &str,
        text_not: &str,
    ) -> NodeCondition {
        let (reason, text) = if under { (reason_under, text_under) } else { (reason_not, text_not) };
        // `KubeletHasSufficientMemory` and `kubelet has sufficient memory available`; disk has no second half.
        let available = if kind == "DiskPressure" { "" } else { " available" };
        self.condition(old, kind, under, &format!("KubeletHas{reason}"), &format!("kubelet has {text}{available}"))
    }

    fn condition(&self, old: &NodeStatus, kind: &str, status: bool, reason: &str, message: &str) -> NodeCondition {
        let status = if status { "True" } else { "False" };
        let now = Time(rkube_apimachinery::time::whole_seconds(self.now));
        let before = old.conditions.iter().flatten().find(|condition| condition.type_ == kind);
        let unchanged = before.filter(|before| before.status == status);
        NodeCondition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message.to_owned()),
            last_heartbeat_time: Some(now.clone()),
            last_transition_time: unchanged.and_then(|before| before.last_transition_time.clone()).or(Some(now)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extended_resources_of_others_stay() {
        let config = KubeletConfig::new("n", vec!["192.0.2.1".to_owned()], "v1.36.2");
        let capacity = Capacity { cpu_milli: 2000, hugepages: [(1 << 30, 0)].into(), ..Capacity::default() };
        let observed = Observed {
            config: &config,
            capacity: &capacity,
            allocatable: &Capacity { cpu_milli: 1500, ..capacity.clone() },
            health: &Health::default(),
            images: &[],
            runtime_version: "containerd://2",
            now: Timestamp::UNIX_EPOCH,
        };
        let list = |entries: &[(&str, &str)]| {
            entries.iter().map(|(name, value)| ((*name).to_owned(), ApiQuantity((*value).to_owned()))).collect()
        };
        // What was given to the node by hand, and what the machine no longer has.
        let old = NodeStatus {
            capacity: Some(list(&[("cpu", "7"), ("example.com/dongle", "3"), ("hugepages-2Mi", "4Mi")])),
            allocatable: Some(list(&[("example.com/dongle", "1")])),
            ..NodeStatus::default()
        };
        let status = observed.status(&old);
        let text = |list: Option<BTreeMap<String, ApiQuantity>>| {
            let list = list.unwrap_or_default();
            ["cpu", "example.com/dongle", "hugepages-1Gi", "hugepages-2Mi"]
                .map(|name| list.get(name).map(|quantity| quantity.0.clone()).unwrap_or_default())
        };
        assert_eq!(text(status.capacity), ["2", "3", "0", ""]);
        assert_eq!(text(status.allocatable), ["1500m", "3", "0", ""]);
    }
}
