//! Distributes endpoints over slices with few writes.
//!
//! Existing slices keep what still belongs to them; room in slices that change anyway is used first, then the
//! unchanged slice that all of the rest just fits in, then new slices.

use std::collections::BTreeMap;
use std::sync::Arc;

use rkube_api::k8s::core::v1::Service;
use rkube_api::k8s::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};
use rkube_api::meta::pkg::apis::meta::v1::ObjectMeta;
use rkube_client::owner::{new_controller_ref, uid_of};

use super::endpoints::{
    EndpointKey, ZonedPod, address_types, desired, endpoint_key, hints, port_key, same_state, slice_labels,
};
use super::topology::{self, Family, Refusal, Shares};
use crate::common::slices::{Changes, name_prefix};

/// How slices are made: who manages them and how large they get.
pub(super) struct Style {
    pub(super) managed_by: &'static str,
    pub(super) endpoints_max: usize,
}

/// What became of the hints that `topology-mode: Auto` asks for, for one address type.
#[derive(Debug)]
pub(super) struct Hinting {
    pub(super) address_type: &'static str,
    /// None of the slices had hints before.
    pub(super) is_new: bool,
    pub(super) outcome: Result<(), Refusal>,
}

/// What a Service's slices are made from. `pods` come with the zones of their nodes.
#[derive(Clone, Copy)]
pub(super) struct Inputs<'a> {
    pub(super) service: &'a Service,
    pub(super) pods: &'a [ZonedPod],
    pub(super) existing: &'a [Arc<EndpointSlice>],
    pub(super) shares: Option<&'a Shares>,
    pub(super) style: &'a Style,
}

/// Deterministic: equal inputs give equal changes.
pub(super) fn plan(inputs: Inputs<'_>) -> (Changes, Vec<Hinting>) {
    let Inputs { service, existing, .. } = inputs;
    let (mut changes, mut hintings) = (Changes::default(), Vec::new());
    let types = address_types(service);
    for slice in existing.iter().filter(|slice| !types.contains(slice.address_type.as_str())) {
        changes.delete.push(Arc::clone(slice));
    }
    for address_type in types {
        let own: Vec<_> = existing.iter().filter(|slice| slice.address_type == address_type).cloned().collect();
        hintings.extend(plan_family(inputs, &own, address_type, &mut changes));
    }
    reuse_deleted(service, &mut changes);
    (changes, hintings)
}

fn plan_family(
    inputs: Inputs<'_>,
    existing: &[Arc<EndpointSlice>],
    address_type: &'static str,
    changes: &mut Changes,
) -> Option<Hinting> {
    let Inputs { service, pods, style, .. } = inputs;
    let mut by_ports: BTreeMap<_, Vec<Arc<EndpointSlice>>> = BTreeMap::new();
    let mut family = Changes::default();
    for slice in existing {
        if owned_by(slice, service) {
            by_ports.entry(port_key(slice.ports.as_deref().unwrap_or_default())).or_default().push(Arc::clone(slice));
        } else {
            family.delete.push(Arc::clone(slice));
        }
    }
    let mut unchanged = Vec::new();
    for (key, (ports, endpoints)) in desired(service, pods, address_type) {
        let slices = by_ports.remove(&key).unwrap_or_default();
        let mut filling = Filling { service, style, address_type, ports, endpoints };
        filling.fill(&slices, &mut family, &mut unchanged);
    }
    family.delete.extend(by_ports.into_values().flatten());

    // A Service always has a slice, so that consumers can tell "no endpoints" from "not synced yet".
    if existing.len() == family.delete.len() && family.create.is_empty() {
        let placeholder = new_slice(service, address_type, Vec::new(), style);
        match family.delete.as_slice() {
            [only] if is_placeholder(only, &placeholder) => family.delete.clear(),
            _ => family.create.push(placeholder),
        }
    }

    let mut slices = Family { create: family.create, update: family.update, unchanged };
    let hinting = if topology::is_wanted(service) {
        let outcome = slices.deal_out(inputs.shares);
        let is_new = !existing.iter().any(|slice| topology::has_hints(slice));
        Some(Hinting { address_type, is_new, outcome })
    } else {
        distribute(service, &mut slices);
        None
    };
    changes.create.extend(slices.create);
    changes.update.extend(slices.update);
    changes.delete.extend(family.delete);
    hinting
}

/// Endpoints of one family and set of ports on their way into slices.
struct Filling<'a> {
    service: &'a Service,
    style: &'a Style,
    address_type: &'a str,
    ports: Vec<EndpointPort>,
    endpoints: BTreeMap<EndpointKey, Endpoint>,
}

impl Filling<'_> {
    fn fill(&mut self, slices: &[Arc<EndpointSlice>], changes: &mut Changes, unchanged: &mut Vec<Arc<EndpointSlice>>) {
        let (mut updated, mut kept) = (Vec::new(), Vec::new());
        for slice in slices {
            match self.retain(slice) {
                Retained::Unchanged => kept.push(Arc::clone(slice)),
                Retained::Empty => changes.delete.push(Arc::clone(slice)),
                Retained::Changed(slice) => updated.push(*slice),
            }
        }
        // The fullest first, so that fewer slices are partly filled.
        updated.sort_by_key(|slice| std::cmp::Reverse(size(slice)));
        for slice in &mut updated {
            self.pour_into(slice);
        }
        while !self.endpoints.is_empty() {
            let mut slice = match self.best_fit(&kept) {
                Some(index) => (*kept.remove(index)).clone(),
                None => new_slice(self.service, self.address_type, self.ports.clone(), self.style),
            };
            self.pour_into(&mut slice);
            if slice.metadata.name.is_some() {
                updated.push(slice);
            } else {
                changes.create.push(slice);
            }
        }
        changes.update.extend(updated);
        unchanged.extend(kept);
    }

    /// Takes from a slice what no longer belongs to it.
    fn retain(&mut self, slice: &EndpointSlice) -> Retained {
        let mut endpoints = Vec::with_capacity(size(slice));
        let mut changed = false;
        for endpoint in slice.endpoints.iter().flatten() {
            if let Some(mut wanted) = self.endpoints.remove(&endpoint_key(endpoint)) {
                changed |= !same_state(&wanted, endpoint);
                wanted.hints.clone_from(&endpoint.hints);
                endpoints.push(wanted);
            }
        }
        changed |= endpoints.len() != size(slice);
        let labels = slice_labels(self.service, self.style.managed_by);
        if changed && endpoints.is_empty() {
            return Retained::Empty;
        }
        if !changed && slice.metadata.labels.as_ref() == Some(&labels) {
            return Retained::Unchanged;
        }
        let mut updated = slice.clone();
        updated.endpoints = Some(endpoints);
        updated.metadata.labels = Some(labels);
        Retained::Changed(Box::new(updated))
    }

    fn pour_into(&mut self, slice: &mut EndpointSlice) {
        while size(slice) < self.style.endpoints_max {
            let Some((_, endpoint)) = self.endpoints.pop_first() else { return };
            slice.endpoints.get_or_insert_default().push(endpoint);
        }
    }

    /// The unchanged slice that all remaining endpoints fit in with the least room left.
    fn best_fit(&self, slices: &[Arc<EndpointSlice>]) -> Option<usize> {
        let waiting = self.endpoints.len();
        if waiting >= self.style.endpoints_max {
            return None;
        }
        let room = |slice: &EndpointSlice| self.style.endpoints_max.checked_sub(size(slice) + waiting);
        let fits = slices.iter().enumerate().filter_map(|(index, slice)| Some((room(slice)?, index)));
        fits.min().map(|(_, index)| index)
    }
}

enum Retained {
    Unchanged,
    Changed(Box<EndpointSlice>),
    Empty,
}

fn size(slice: &EndpointSlice) -> usize {
    slice.endpoints.as_ref().map_or(0, Vec::len)
}

fn owned_by(slice: &EndpointSlice, service: &Service) -> bool {
    slice.metadata.owner_references.iter().flatten().any(|reference| {
        reference.uid == uid_of(service) && reference.kind == "Service" && reference.api_version == "v1"
    })
}

fn is_placeholder(slice: &EndpointSlice, placeholder: &EndpointSlice) -> bool {
    size(slice) == 0
        && slice.ports.as_deref().unwrap_or_default().is_empty()
        && slice.address_type == placeholder.address_type
        && slice.metadata.labels == placeholder.metadata.labels
        && slice.metadata.owner_references == placeholder.metadata.owner_references
}

fn new_slice(service: &Service, address_type: &str, ports: Vec<EndpointPort>, style: &Style) -> EndpointSlice {
    EndpointSlice {
        metadata: ObjectMeta {
            generate_name: Some(name_prefix(service.metadata.name.as_deref().unwrap_or_default())),
            namespace: service.metadata.namespace.clone(),
            labels: Some(slice_labels(service, style.managed_by)),
            owner_references: Some(vec![new_controller_ref(service)]),
            ..ObjectMeta::default()
        },
        address_type: address_type.to_owned(),
        endpoints: Some(Vec::new()),
        ports: Some(ports),
    }
}

/// Hints by the Service's `trafficDistribution`.
fn distribute(service: &Service, slices: &mut Family) {
    let hint = |slice: &mut EndpointSlice| {
        slice.endpoints.iter_mut().flatten().for_each(|endpoint| endpoint.hints = hints(service, endpoint));
    };
    for slice in std::mem::take(&mut slices.unchanged) {
        let mut hinted = (*slice).clone();
        hint(&mut hinted);
        if hinted != *slice {
            slices.update.push(hinted);
        }
    }
    slices.create.iter_mut().chain(&mut slices.update).for_each(hint);
}

/// A slice to be deleted becomes one to be created: one write instead of two.
fn reuse_deleted(service: &Service, changes: &mut Changes) {
    let mut kept = Vec::new();
    for slice in std::mem::take(&mut changes.delete) {
        let reusable = owned_by(&slice, service) && slice.metadata.deletion_timestamp.is_none();
        let fits = changes.create.iter().rposition(|new| reusable && new.address_type == slice.address_type);
        match fits {
            Some(index) => {
                let mut new = changes.create.remove(index);
                let ObjectMeta { labels, owner_references, .. } = new.metadata;
                new.metadata = ObjectMeta { labels, owner_references, ..slice.metadata.clone() };
                changes.update.push(new);
            }
            None => kept.push(slice),
        }
    }
    changes.delete = kept;
}
