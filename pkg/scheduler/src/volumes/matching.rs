//! Volumes for claims that wait for their first consumer: existing ones, or new ones made on the node.
//!
//! Behaves as component-helpers/storage/volume/pv_helpers.go (`FindMatchingVolume`), v1.36.

use std::sync::Arc;

use rkube_api::k8s::core::v1::{PersistentVolume, PersistentVolumeClaim, TopologySelectorTerm};
use rkube_api::k8s::storage::v1::StorageClass;
use rkube_api::volumes::{
    SELECTED_NODE, capacity, claim_class, has_access_modes, is_reserved_for, requested_size, same_attributes_class,
    same_mode, volume_class,
};
use rkube_apimachinery::quantity::Quantity;

use crate::cluster::NodeState;
use crate::model::selector::{LabelsOf, compile};
use crate::volumes::{Bindings, Plan, Storage, claim_key, reaches};

const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";

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
        let wanted = requested_size(claim);
        let mut best: Option<(Quantity, Arc<PersistentVolume>)> = None;
        for volume in self.volumes.list_all("") {
            let name = volume.metadata.name.as_deref().unwrap_or_default();
            let taken = others.volumes.iter().any(|(other, _)| other.metadata.name == volume.metadata.name);
            if taken || self.taken.get(name).is_some_and(|uid| uid != uid_of(claim)) {
                continue;
            }
            let for_this = is_reserved_for(&volume, claim);
            if !for_this && volume.spec.as_ref().is_none_or(|spec| spec.claim_ref.is_some()) {
                continue;
            }
            let capacity = capacity(&volume);
            let alike = same_mode(claim, &volume) && same_attributes_class(claim, &volume);
            if capacity < wanted || volume.metadata.deletion_timestamp.is_some() || !alike {
                continue;
            }
            if for_this {
                return reaches(&volume, node).then_some(volume);
            }
            let available = volume.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Available");
            if !available
                || volume_class(&volume) != claim_class(claim)
                || !selected(claim, &volume)
                || !has_access_modes(claim, &volume)
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
        let class = self.classes.get_named("", claim_class(claim)).ok_or(Misfit::NoVolume)?;
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
        let wanted = requested_size(claim);
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

fn selected(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> bool {
    let selector = claim.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    selector.is_none_or(|selector| compile(Some(selector)).matches(&LabelsOf(volume.metadata.labels.as_ref())))
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
