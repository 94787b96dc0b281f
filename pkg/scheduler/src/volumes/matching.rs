//! Volumes for claims that wait for their first consumer: existing ones, or new ones made on the node.
//!
//! Behaves as component-helpers/storage/volume/pv_helpers.go (`FindMatchingVolume`), v1.36.

use std::sync::Arc;

use rkube_api::k8s::core::v1::{PersistentVolume, PersistentVolumeClaim, TopologySelectorTerm};
use rkube_api::k8s::storage::v1::StorageClass;
use rkube_api::pod_resources;
use rkube_apimachinery::quantity::Quantity;

use crate::cluster::NodeState;
use crate::model::selector::{LabelsOf, compile};
use crate::volumes::claims::{class_of, class_of_volume, size_of};
use crate::volumes::{Bindings, Plan, Storage, claim_key, reaches};

const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";
pub(super) const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";

/// Why the claims cannot be bound on a node.
#[derive(Debug)]
pub(super) enum Misfit {
    NoVolume,
    NoSpace,
}

fn key_of(claim: &PersistentVolumeClaim) -> String {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    claim_key(&text(&claim.metadata.namespace), &text(&claim.metadata.name))
}

fn uid_of(claim: &PersistentVolumeClaim) -> &str {
    claim.metadata.uid.as_deref().unwrap_or_default()
}

impl Storage {
    /// What is to be written if the pod goes to the node.
    pub(super) fn bindings_for(&self, plan: &Plan, node: &NodeState) -> Result<Bindings, Misfit> {
        let mut bindings = Bindings::default();
        for claim in &plan.delayed {
            let annotated = claim.metadata.annotations.as_ref().and_then(|annotations| annotations.get(SELECTED_NODE));
            let selected = self.chosen.get(&key_of(claim)).map(|node| &**node).or(annotated.map(String::as_str));
            match selected {
                Some(selected) if selected != &*node.name => return Err(Misfit::NoVolume),
                Some(_) => {
                    self.check_provision(claim, node)?;
                    bindings.provisioned.push(Arc::clone(claim));
                }
                None => match self.find_volume(claim, node, &bindings) {
                    Some(volume) => bindings.volumes.push((volume, Arc::clone(claim))),
                    None => {
                        self.check_provision(claim, node)?;
                        bindings.provisioned.push(Arc::clone(claim));
                    }
                },
            }
        }
        Ok(bindings)
    }

    /// The smallest free volume that meets the claim and reaches the node.
    fn find_volume(
        &self,
        claim: &PersistentVolumeClaim,
        node: &NodeState,
        others: &Bindings,
    ) -> Option<Arc<PersistentVolume>> {
        let wanted = size_of(claim);
        let mut best: Option<(Quantity, Arc<PersistentVolume>)> = None;
        for volume in self.volumes.list_all("") {
            let name = volume.metadata.name.as_deref().unwrap_or_default();
            let taken = others.volumes.iter().any(|(other, _)| other.metadata.name == volume.metadata.name);
            if taken || self.taken.get(name).is_some_and(|uid| uid != uid_of(claim)) {
                continue;
            }
            let Some(spec) = &volume.spec else { continue };
            let reserved = spec.claim_ref.as_ref();
            let for_this = reserved.is_some_and(|reference| {
                reference.name == claim.metadata.name
                    && reference.namespace == claim.metadata.namespace
                    && reference.uid.as_deref().is_none_or(|uid| uid.is_empty() || uid == uid_of(claim))
            });
            if reserved.is_some() && !for_this {
                continue;
            }
            let capacity = pod_resources::parse(spec.capacity.as_ref()).remove("storage").unwrap_or_default();
            if capacity < wanted || volume.metadata.deletion_timestamp.is_some() || !alike(claim, &volume) {
                continue;
            }
            if for_this {
                return reaches(&volume, node).then_some(volume);
            }
            let available = volume.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Available");
            if !available
                || class_of_volume(&volume) != class_of(claim)
                || !selected(claim, &volume)
                || !has_modes(claim, &volume)
                || !reaches(&volume, node)
            {
                continue;
            }
            if best.as_ref().is_none_or(|(smallest, _)| capacity < *smallest) {
                best = Some((capacity, volume));
            }
        }
        best.map(|(_, volume)| volume)
    }

    /// Whether a volume can be made for the claim on the node.
    fn check_provision(&self, claim: &PersistentVolumeClaim, node: &NodeState) -> Result<(), Misfit> {
        let class = self.classes.get_named("", class_of(claim)).ok_or(Misfit::NoVolume)?;
        if class.provisioner.is_empty() || class.provisioner == NO_PROVISIONER {
            return Err(Misfit::NoVolume);
        }
        let terms = class.allowed_topologies.as_deref().unwrap_or_default();
        if !terms.is_empty() && !terms.iter().any(|term| topology_matches(term, node)) {
            return Err(Misfit::NoVolume);
        }
        if self.has_capacity(claim, &class, node) { Ok(()) } else { Err(Misfit::NoSpace) }
    }

    fn has_capacity(&self, claim: &PersistentVolumeClaim, class: &StorageClass, node: &NodeState) -> bool {
        let driver = self.csi_drivers.get_named("", &class.provisioner);
        let wanted = size_of(claim);
        if wanted.is_zero() || driver.is_none_or(|driver| driver.spec.storage_capacity != Some(true)) {
            return true;
        }
        let parse = |text: &rkube_api::meta::pkg::api::resource::Quantity| Quantity::parse(&text.0).ok();
        self.capacities.list_all("").iter().any(|capacity| {
            let limit = capacity.maximum_volume_size.as_ref().or(capacity.capacity.as_ref()).and_then(parse);
            Some(capacity.storage_class_name.as_str()) == class.metadata.name.as_deref()
                && limit.is_some_and(|limit| limit >= wanted)
                && capacity.node_topology.is_some()
                && compile(capacity.node_topology.as_ref()).matches(&LabelsOf(node.labels().labels))
        })
    }

    /// Remembers bindings until the API shows them.
    pub(crate) fn reserve(&mut self, plan: &Plan, node: &NodeState) -> Option<Bindings> {
        if plan.delayed.is_empty() {
            return None;
        }
        let bindings = self.bindings_for(plan, node).ok()?;
        for (volume, claim) in &bindings.volumes {
            self.taken.insert(volume.metadata.name.clone().unwrap_or_default(), uid_of(claim).to_owned());
        }
        for claim in &bindings.provisioned {
            self.chosen.insert(key_of(claim), Arc::clone(&node.name));
        }
        Some(bindings)
    }

    /// Forgets bindings: the API shows them, or they are given up.
    pub(crate) fn release(&mut self, bindings: &Bindings) {
        for (volume, _) in &bindings.volumes {
            self.taken.remove(volume.metadata.name.as_deref().unwrap_or_default());
        }
        for claim in &bindings.provisioned {
            self.chosen.remove(&key_of(claim));
        }
    }
}

/// Same mode and attributes class.
fn alike(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> bool {
    let (Some(claim), Some(volume)) = (&claim.spec, &volume.spec) else { return false };
    let mode = |mode: &Option<String>| mode.clone().unwrap_or_else(|| "Filesystem".to_owned());
    let class = |class: &Option<String>| class.clone().unwrap_or_default();
    mode(&claim.volume_mode) == mode(&volume.volume_mode)
        && class(&claim.volume_attributes_class_name) == class(&volume.volume_attributes_class_name)
}

fn selected(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> bool {
    let selector = claim.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    selector.is_none_or(|selector| compile(Some(selector)).matches(&LabelsOf(volume.metadata.labels.as_ref())))
}

fn has_modes(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> bool {
    let wanted = claim.spec.as_ref().and_then(|spec| spec.access_modes.as_deref()).unwrap_or_default();
    let offered = volume.spec.as_ref().and_then(|spec| spec.access_modes.as_deref()).unwrap_or_default();
    wanted.iter().all(|mode| offered.contains(mode))
}

fn topology_matches(term: &TopologySelectorTerm, node: &NodeState) -> bool {
    let expressions = term.match_label_expressions.as_deref().unwrap_or_default();
    let labels = node.labels().labels;
    !expressions.is_empty()
        && expressions.iter().all(|expression| {
            let value = labels.and_then(|labels| labels.get(&expression.key));
            value.is_some_and(|value| expression.values.contains(value))
        })
}
