//! Cluster IPs: IPAddress objects in the ranges of the ServiceCIDRs that are ready.
//!
//! Behaves as `pkg/registry/core/service/ipallocator/{cidrallocator,ipallocator}.go`, v1.36.

use std::collections::HashSet;
use std::net::IpAddr;
use std::ops::ControlFlow;
use std::sync::Arc;

use rkube_api::StoredObject;
use rkube_api::k8s::core::v1::Service;
use rkube_api::k8s::networking::v1::ServiceCIDR;
use rkube_apimachinery::chain::chain;
use rkube_apimachinery::gvk::GroupVersionResource;
use rkube_apimachinery::key::ObjectKey;
use rkube_apimachinery::meta::Meta;
use rkube_apimachinery::status::ApiStatus;
use serde_json::{Value, json};

use super::AllocationError;
use super::families::Spec;
use super::range::AddressRange;
use crate::context::RequestContext;
use crate::options::{CreateOptions, DeleteOptions, GetOptions};
use crate::registry::Shared;
use crate::store::core::decode_status;
use crate::store::{Store, Target};

/// Who manages the IPAddress objects of Services.
pub(crate) const MANAGER: &str = "ipallocator.k8s.io";
pub(crate) const LABEL_FAMILY: &str = "ipaddress.kubernetes.io/ip-family";
pub(crate) const LABEL_MANAGED_BY: &str = "ipaddress.kubernetes.io/managed-by";
const GROUP: &str = "networking.k8s.io";

/// The cluster IPs of the cluster.
#[derive(Clone)]
pub(crate) struct Addresses {
    shared: Arc<Shared>,
    context: Arc<RequestContext>,
}

impl Addresses {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, context: Arc::new(RequestContext::internal()) }
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub(crate) fn context(&self) -> &Arc<RequestContext> {
        &self.context
    }

    pub(crate) fn objects(&self) -> Result<Store, AllocationError> {
        self.store("ipaddresses")
    }

    pub(crate) fn store(&self, plural: &str) -> Result<Store, AllocationError> {
        let store = self.shared.store(&GroupVersionResource::new(GROUP, "v1", plural));
        store.ok_or(AllocationError::NotReady)
    }

    /// Ranges of every ServiceCIDR, with whether addresses may be allocated from it now.
    pub(crate) fn ranges(&self) -> Vec<(AddressRange, bool)> {
        let Ok(store) = self.store("servicecidrs") else {
            return Vec::new();
        };
        let mut ranges: Vec<(AddressRange, bool)> = Vec::new();
        let snapshot = store.core().cache.snapshot(0);
        snapshot.tree.walk(&[], &mut |object| {
            match object.typed::<ServiceCIDR>() {
                Ok(cidr) => add_ranges(&mut ranges, &cidr),
                Err(error) => tracing::error!(cidr = %object.key, error = %chain(&error), "Ignored a ServiceCIDR"),
            }
            ControlFlow::Continue(())
        });
        ranges
    }

    fn ready(&self, ipv6: bool) -> impl Iterator<Item = AddressRange> {
        let ranges = self.ranges().into_iter();
        ranges.filter(move |(range, ready)| *ready && range.is_ipv6() == ipv6).map(|(range, _)| range)
    }

    /// Takes this address for a Service. False: it is taken for this very Service, which does not hold it. A crash cut the
    /// request off that took it, or that request still runs; it is not the caller's to give back.
    pub(crate) async fn allocate(
        &self,
        address: IpAddr,
        service: &Service,
        dry_run: bool,
    ) -> Result<bool, AllocationError> {
        let mut ranges = self.ready(address.is_ipv6()).filter(|range| range.network.contains(&address));
        let range = ranges.next().ok_or(AllocationError::NoSuchRange)?;
        if !range.contains(address) {
            return Err(AllocationError::AddressOutOfRange { address, range: range.network.to_string() });
        }
        if dry_run {
            return Ok(true);
        }
        match self.create(address, service).await {
            Err(AllocationError::AddressTaken) if self.is_left_for(address, service).await? => Ok(false),
            other => other.map(|()| true),
        }
    }

    /// Whether the address is taken for the Service of this name, and there is none or it does not hold it.
    async fn is_left_for(&self, address: IpAddr, service: &Service) -> Result<bool, AllocationError> {
        let (objects, target) = (self.objects()?, Target::new("", address.to_string()));
        let key = key_of(service);
        let taken = match objects.get_object(&self.context, &target, &GetOptions::default()).await {
            Err(status) if status.is_not_found() => return Ok(false),
            other => other.map_err(AllocationError::Status)?,
        };
        let taken = read(&taken).map_err(AllocationError::Status)?;
        Ok(parent_of(&taken).as_ref() == Some(&key)
            && taken.label(LABEL_MANAGED_BY) == Some(MANAGER)
            && !self.held_by(&key).await?.contains(&address))
    }

    /// The addresses that the Service of this name holds now.
    pub(crate) async fn held_by(&self, key: &ObjectKey) -> Result<HashSet<IpAddr>, AllocationError> {
        let services = self.shared.store(&GroupVersionResource::new("", "v1", "services"));
        let services = services.ok_or(AllocationError::NotReady)?;
        let target = Target::new(key.namespace.clone(), key.name.clone());
        match services.get_object(&self.context, &target, &GetOptions::default()).await {
            Err(status) if status.is_not_found() => Ok(HashSet::new()),
            Err(status) => Err(AllocationError::Status(status)),
            Ok(object) => {
                let service =
                    object.typed::<Service>().map_err(|error| AllocationError::Status(decode_status(&error)))?;
                Ok(held_addresses(&service))
            }
        }
    }

    /// Takes any address for a Service. A dry run answers with the network's own address, which none can have.
    pub(crate) async fn allocate_next(
        &self,
        ipv6: bool,
        service: &Service,
        dry_run: bool,
    ) -> Result<IpAddr, AllocationError> {
        let objects = self.objects()?;
        let mut ranges = self.ready(ipv6);
        if dry_run {
            return ranges.next().map(|range| range.network.addr()).ok_or(AllocationError::NotReady);
        }
        for range in ranges {
            // The order is drawn before anything is awaited: a generator of numbers is shared.
            let taken = objects.core().cache.snapshot(0);
            for address in range.addresses(self.shared.random.as_ref()) {
                if taken.tree.get(&ObjectKey::cluster(address.to_string())).is_some() {
                    continue;
                }
                match self.create(address, service).await {
                    // Another server, or a moment ago: the cache did not know.
                    Err(AllocationError::AddressTaken) => {}
                    other => return other.map(|()| address),
                }
            }
        }
        Err(AllocationError::Full)
    }

    pub(crate) async fn create(&self, address: IpAddr, service: &Service) -> Result<(), AllocationError> {
        let body = ip_address(address, service);
        let (objects, target) = (self.objects()?, Target::new("", ""));
        match objects.create_object(&self.context, &target, body, &CreateOptions::default()).await {
            Ok(_) => Ok(()),
            Err(status) if status.is_already_exists() => Err(AllocationError::AddressTaken),
            Err(status) => Err(AllocationError::Status(status)),
        }
    }

    /// Gives an address back. One that is not taken is passed over.
    pub(crate) async fn release(&self, address: IpAddr) {
        let Ok(objects) = self.objects() else {
            return;
        };
        let target = Target::new("", address.to_string());
        match objects.delete_object(&self.context, &target, DeleteOptions::default()).await {
            Err(status) if !status.is_not_found() => {
                tracing::warn!(%address, error = %status, "Could not release a cluster IP; the repair loop will");
            }
            _ => {}
        }
    }
}

/// The object that stands for an allocated address.
pub(crate) fn ip_address(address: IpAddr, service: &Service) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "IPAddress",
        "metadata": {
            "name": address.to_string(),
            "labels": {
                LABEL_FAMILY: if address.is_ipv6() { "IPv6" } else { "IPv4" },
                LABEL_MANAGED_BY: MANAGER,
            },
        },
        "spec": {"parentRef": {
            "resource": "services",
            "namespace": service.metadata.namespace.as_deref().unwrap_or_default(),
            "name": service.metadata.name.as_deref().unwrap_or_default(),
        }},
    })
}

/// The Service an IPAddress refers to, if it is one.
pub(crate) fn parent_of(value: &Value) -> Option<ObjectKey> {
    let text =
        |field: &str| value.pointer(&format!("/spec/parentRef/{field}")).and_then(Value::as_str).unwrap_or_default();
    (text("group").is_empty() && text("resource") == "services")
        .then(|| ObjectKey::new(text("namespace"), text("name")))
}

pub(crate) fn key_of(service: &Service) -> ObjectKey {
    let metadata = &service.metadata;
    ObjectKey::new(metadata.namespace.as_deref().unwrap_or_default(), metadata.name.as_deref().unwrap_or_default())
}

pub(crate) fn held_addresses(service: &Service) -> HashSet<IpAddr> {
    let spec = service.spec.as_ref().filter(|spec| !spec.is_external() && !spec.is_headless());
    spec.iter().flat_map(|spec| spec.addresses()).filter_map(|address| address.parse().ok()).collect()
}

pub(crate) fn read(object: &StoredObject) -> Result<Value, ApiStatus> {
    object.value().map_err(|error| ApiStatus::internal(format!("reading {}: {error}", object.key)))
}

fn add_ranges(ranges: &mut Vec<(AddressRange, bool)>, cidr: &ServiceCIDR) {
    let conditions = cidr.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let ready = cidr.metadata.deletion_timestamp.is_none()
        && conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True");
    for text in cidr.spec.iter().flat_map(|spec| spec.cidrs.iter().flatten()) {
        let Ok(network) = text.parse() else {
            continue;
        };
        let range = AddressRange::new(network);
        // Of two objects with one range either may make it usable.
        match ranges.iter_mut().find(|(known, _)| *known == range) {
            Some((_, known)) => *known |= ready,
            None => ranges.push((range, ready)),
        }
    }
}

/// Whether an IPAddress object has the labels that say it is the allocator's.
pub(crate) fn has_labels(object: &Value, address: IpAddr) -> bool {
    let family = if address.is_ipv6() { "IPv6" } else { "IPv4" };
    object.label(LABEL_FAMILY) == Some(family) && object.label(LABEL_MANAGED_BY) == Some(MANAGER)
}
