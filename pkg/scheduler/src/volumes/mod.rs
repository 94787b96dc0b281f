//! VolumeBinding, VolumeZone, VolumeRestrictions, NodeVolumeLimits: whether a pod's volumes can be where it goes.
//!
//! In: caches of claims, volumes and classes, and what earlier decisions took and the API does not show yet.
//! Out: a no before any node is looked at, a no to one node, or the bindings that go with a node.
//! Behaves as the plugins of these names in pkg/scheduler/framework/plugins, v1.36. In-tree volume types are not
//! translated to CSI: their drivers are gone.

mod bind;
mod claims;
mod limits;
mod matching;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use rkube_api::k8s::core::v1::{PersistentVolume, PersistentVolumeClaim};
use rkube_api::k8s::storage::v1::{CSIDriver, CSINode, CSIStorageCapacity, StorageClass};
use rkube_client::{InformerFactory, Lister};
use tokio::sync::Notify;

pub(crate) use bind::Bindings;

use crate::cluster::{Cluster, NodeState};
use crate::config::Profile;
use crate::decide::diagnosis::Rejection;
use crate::model::node_affinity::selector_matches;
use crate::model::pod::{PodInfo, claim_names};
use crate::plugins::Plugin;

const ZONE_LABELS: [&str; 4] = [
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
];

/// All that is known of storage.
pub(crate) struct Storage {
    claims: Lister<PersistentVolumeClaim>,
    volumes: Lister<PersistentVolume>,
    classes: Lister<StorageClass>,
    csi_nodes: Lister<CSINode>,
    csi_drivers: Lister<CSIDriver>,
    capacities: Lister<CSIStorageCapacity>,
    /// Volumes given to claims, by uid, by decisions whose writes are under way.
    taken: HashMap<String, String>,
    /// Nodes chosen for claims (`namespace/name`) to be provisioned for, likewise.
    chosen: HashMap<String, Arc<str>>,
    /// Told whenever a claim or volume changed.
    pub(crate) changed: Arc<Notify>,
}

/// A pod's volumes, resolved before any node is looked at.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// Bound claims' volumes; `None` for one that does not exist.
    bound: Vec<Option<Arc<PersistentVolume>>>,
    /// Claims that wait for their first consumer, the smallest first.
    delayed: Vec<Arc<PersistentVolumeClaim>>,
    /// Zones and regions that volumes are bound to.
    zones: Vec<(&'static str, BTreeSet<String>)>,
    /// Claims that one pod only may use, as `namespace/name`, and how many pods on nodes do.
    exclusive: Vec<String>,
    exclusive_users: i64,
    restricted: bool,
    /// New CSI volumes by unique name, with their driver.
    csi: Vec<(String, String)>,
}

/// A no before any node was looked at.
pub(crate) type Refusal = (Plugin, String);

impl Storage {
    pub(crate) fn new(informers: &InformerFactory) -> Self {
        Self {
            claims: informers.informer().lister(),
            volumes: informers.informer().lister(),
            classes: informers.informer().lister(),
            csi_nodes: informers.informer().lister(),
            csi_drivers: informers.informer().lister(),
            capacities: informers.informer().lister(),
            taken: HashMap::new(),
            chosen: HashMap::new(),
            changed: Arc::default(),
        }
    }

    /// `None` for a pod whose volumes are of no concern here.
    pub(crate) fn plan(&self, cluster: &Cluster, profile: &Profile, pod: &PodInfo) -> Result<Option<Plan>, Refusal> {
        if pod.spec().volumes.as_ref().is_none_or(Vec::is_empty) {
            return Ok(None);
        }
        let mut plan = Plan { restricted: limits::is_restricted(pod), ..Plan::default() };
        if claim_names(&pod.pod).next().is_some() {
            self.plan_claims(cluster, profile, pod, &mut plan)?;
        }
        self.plan_csi(pod, &mut plan);
        let idle = plan.bound.is_empty()
            && plan.delayed.is_empty()
            && plan.exclusive.is_empty()
            && plan.csi.is_empty()
            && !plan.restricted;
        Ok((!idle).then_some(plan))
    }

    /// The no of a volume plugin to one node.
    pub(crate) fn check(&self, profile: &Profile, plan: &Plan, pod: &PodInfo, node: &NodeState) -> Option<Rejection> {
        if profile.filters(Plugin::VolumeRestrictions) {
            if plan.restricted && limits::has_conflict(pod, node) {
                return Some(Rejection::resolvable(Plugin::VolumeRestrictions, "node(s) had no available disk"));
            }
            if plan.exclusive_users > 0 {
                let reason = "node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod access mode already in-use by another pod";
                return Some(Rejection::resolvable(Plugin::VolumeRestrictions, reason));
            }
        }
        if profile.filters(Plugin::NodeVolumeLimits) && !plan.csi.is_empty() && self.exceeds_limits(plan, node) {
            return Some(Rejection::resolvable(Plugin::NodeVolumeLimits, "node(s) exceed max volume count"));
        }
        if profile.filters(Plugin::VolumeBinding) {
            let reasons = self.conflicts(plan, node);
            if !reasons.is_empty() {
                let reasons = reasons.into_iter().map(Into::into).collect();
                return Some(Rejection { plugin: Plugin::VolumeBinding, resolvable: false, reasons });
            }
        }
        if profile.filters(Plugin::VolumeZone) && !in_zones(plan, node) {
            return Some(Rejection::unresolvable(Plugin::VolumeZone, "node(s) had no available volume zone"));
        }
        None
    }

    fn conflicts(&self, plan: &Plan, node: &NodeState) -> Vec<&'static str> {
        let mut reasons = Vec::new();
        let reachable = |volume: &Arc<PersistentVolume>| reaches(volume, node);
        if plan.bound.iter().flatten().any(|volume| !reachable(volume)) {
            reasons.push("node(s) didn't match PersistentVolume's node affinity");
        }
        match self.bindings_for(plan, node) {
            Ok(_) => {}
            Err(matching::Misfit::NoVolume) => {
                reasons.push("node(s) didn't find available persistent volumes to bind");
            }
            Err(matching::Misfit::NoSpace) => reasons.push("node(s) did not have enough free storage"),
        }
        if plan.bound.iter().any(Option::is_none) {
            reasons.push("node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)");
        }
        reasons
    }
}

impl Plan {
    /// Pretends that a pod comes or, with -1, goes.
    pub(crate) fn apply(&mut self, pod: &PodInfo, delta: i64) {
        if self.exclusive.is_empty() {
            return;
        }
        for name in claim_names(&pod.pod) {
            let key = claim_key(pod.namespace(), &name);
            if self.exclusive.contains(&key) {
                self.exclusive_users += delta;
            }
        }
    }
}

pub(crate) fn claim_key(namespace: &str, name: &str) -> String {
    format!("{namespace}/{name}")
}

/// Whether the volume can be used on the node.
fn reaches(volume: &PersistentVolume, node: &NodeState) -> bool {
    let affinity = volume.spec.as_ref().and_then(|spec| spec.node_affinity.as_ref());
    let required = affinity.and_then(|affinity| affinity.required.as_ref());
    required.is_none_or(|selector| selector_matches(selector, node.labels()))
}

fn in_zones(plan: &Plan, node: &NodeState) -> bool {
    let Some(labels) = node.labels().labels else { return true };
    if plan.zones.is_empty() || !ZONE_LABELS.iter().any(|label| labels.contains_key(*label)) {
        return true;
    }
    plan.zones.iter().all(|(label, values)| {
        let current = match *label {
            "failure-domain.beta.kubernetes.io/zone" => "topology.kubernetes.io/zone",
            "failure-domain.beta.kubernetes.io/region" => "topology.kubernetes.io/region",
            label => label,
        };
        labels.get(*label).or_else(|| labels.get(current)).is_some_and(|value| values.contains(value))
    })
}
