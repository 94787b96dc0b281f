//! Brings what is allocated in line with what Services hold.
//!
//! A crash between an allocation and the write it was for leaves an address or a port that nobody holds; a
//! restored backup may lack some that are held. Faults that only a person can mend are logged.
//!
//! Differs from upstream: problems are logged, not told as events on the Services.
//!
//! Behaves as `pkg/registry/core/service/ipallocator/controller/repairip.go`, `portallocator/controller/repair.go`
//! and `pkg/controlplane/controller/defaultservicecidr`, v1.36.

use std::collections::HashMap;
use std::net::IpAddr;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use jiff::SignedDuration;
use rkube_api::StoredObject;
use rkube_api::k8s::core::v1::Service;
use rkube_apimachinery::chain::chain;
use rkube_apimachinery::gvk::GroupVersionResource;
use rkube_apimachinery::key::ObjectKey;
use rkube_apimachinery::meta::Meta;
use rkube_apimachinery::status::ApiStatus;
use serde_json::{Value, json};

use super::addresses::{LABEL_MANAGED_BY, MANAGER, has_labels, held_addresses, parent_of, read};
use super::families::{needs_health_check, node_ports};
use super::{Addresses, AllocationError, Ports};
use crate::options::{CreateOptions, DeleteOptions, GetOptions, Preconditions};
use crate::store::{Patch, Store, Target};

/// As often as kube-apiserver.
pub(crate) const INTERVAL: Duration = Duration::from_secs(180);

/// An address whose Service is not there yet: the request that makes it may still be running.
const GRACE: SignedDuration = SignedDuration::from_secs(60);

/// Runs after which a port that no Service holds is given back.
const RUNS_BEFORE_LEAK: u32 = 3;

const DEFAULT_CIDR: &str = "kubernetes";

/// The state of the loop: ports that seem leaked, and in how many runs yet they will be.
pub(crate) struct Repair {
    addresses: Addresses,
    ports: Arc<Ports>,
    leaks: HashMap<i32, u32>,
}

struct Holder {
    key: ObjectKey,
    service: Arc<Service>,
}

impl Repair {
    pub(crate) fn new(addresses: Addresses, ports: Arc<Ports>) -> Self {
        Self { addresses, ports, leaks: HashMap::new() }
    }

    /// Makes the ServiceCIDR of the configured ranges, and says that it is ready.
    pub(crate) async fn ensure_default_cidr(&self, cidrs: &[IpNet]) -> Result<(), ApiStatus> {
        let Ok(store) = self.addresses.store("servicecidrs") else {
            return Ok(());
        };
        let context = self.addresses.context();
        let wanted: Vec<String> = cidrs.iter().map(IpNet::to_string).collect();
        let target = Target::new("", DEFAULT_CIDR);
        let found = match store.get(context, &target, &GetOptions::default()).await {
            Err(status) if status.is_not_found() => {
                let body = json!({
                    "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
                    "metadata": {"name": DEFAULT_CIDR}, "spec": {"cidrs": wanted},
                });
                match store.create(context, &Target::new("", ""), body, &CreateOptions::default()).await {
                    Err(status) if !status.is_already_exists() => return Err(status),
                    _ => {}
                }
                store.get(context, &target, &GetOptions::default()).await?
            }
            other => other?,
        };
        let value = read(&found)?;
        let known: Vec<&str> = value
            .pointer("/spec/cidrs")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        if known.len() == 1 && wanted.len() == 2 && known.first().copied() == wanted.first().map(String::as_str) {
            let patch = Patch::Merge(json!({"spec": {"cidrs": wanted}}).to_string().into());
            store.patch(context, &target, patch, &Default::default()).await?;
        } else if known != wanted {
            tracing::warn!(?known, ?wanted, "The default ServiceCIDR is not the configured one; it stays as it is");
            return Ok(());
        }
        let conditions = value.pointer("/status/conditions").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        if value.is_terminating() || rkube_apimachinery::meta::find_condition(conditions, "Ready").is_some() {
            return Ok(());
        }
        let now = rkube_apimachinery::time::format(self.addresses.shared().clock.now());
        let ready = json!({"status": {"conditions": [{
            "type": "Ready", "status": "True", "reason": "", "lastTransitionTime": now,
            "message": "Kubernetes default Service CIDR is ready",
        }]}});
        let patch = Patch::Merge(ready.to_string().into());
        store.patch(context, &target.subresource("status"), patch, &Default::default()).await?;
        // Allocation reads the cache as it is.
        store.wait_consistent(context).await
    }

    pub(crate) async fn run_once(&mut self) {
        let Some(store) = self.services() else {
            return;
        };
        // Both allocators and Services must be seen no older than what was allocated.
        if let Err(status) = store.wait_consistent(self.addresses.context()).await {
            tracing::warn!(error = %status, "Could not read the Services to repair their allocations");
            return;
        }
        let services = holders(&store);
        if let Err(error) = self.repair_ports(&services).await {
            tracing::warn!(error = %chain(&error), "Could not repair the node ports");
        }
        if let Err(error) = self.repair_addresses(&services).await {
            tracing::warn!(error = %chain(&error), "Could not repair the cluster IPs");
        }
    }

    fn services(&self) -> Option<Store> {
        self.addresses.shared().store(&GroupVersionResource::new("", "v1", "services"))
    }

    async fn repair_ports(&mut self, services: &[Holder]) -> Result<(), AllocationError> {
        let taken = self.ports.taken().await?;
        let mut held: HashMap<i32, (i32, &ObjectKey)> = HashMap::new();
        for holder in services {
            let Some(spec) = &holder.service.spec else {
                continue;
            };
            let mut ports = node_ports(spec);
            if needs_health_check(spec) {
                ports.extend(spec.health_check_node_port.filter(|port| *port > 0));
            }
            // One Service may use a number for TCP and for UDP.
            ports.sort_unstable();
            ports.dedup();
            for port in ports {
                if let Some((_, other)) = held.insert(port, (port, &holder.key)) {
                    tracing::error!(port, service = %holder.key, %other, "A node port is held by two Services; recreate one");
                }
            }
        }
        let ports: Vec<i32> = held.keys().copied().collect();
        for port in self.ports.ensure(&ports).await? {
            tracing::warn!(port, "A node port that is held was not allocated; repaired");
        }
        let unheld: Vec<i32> = taken.into_iter().filter(|port| !held.contains_key(port)).collect();
        self.leaks.retain(|port, _| unheld.contains(port));
        let mut leaked = Vec::new();
        for port in unheld {
            let runs = self.leaks.entry(port).or_insert(RUNS_BEFORE_LEAK);
            *runs -= 1;
            if *runs == 0 {
                self.leaks.remove(&port);
                leaked.push(port);
            }
        }
        if !leaked.is_empty() {
            tracing::warn!(ports = ?leaked, "Released node ports that leaked");
        }
        self.ports.release(&leaked).await
    }

    async fn repair_addresses(&self, services: &[Holder]) -> Result<(), AllocationError> {
        let objects = self.addresses.objects()?;
        let ranges = self.addresses.ranges();
        let by_key: HashMap<&ObjectKey, &Holder> = services.iter().map(|holder| (&holder.key, holder)).collect();
        for holder in services {
            for address in held_addresses(&holder.service) {
                if !ranges.iter().any(|(range, _)| range.network.contains(&address)) {
                    tracing::error!(%address, service = %holder.key, "A cluster IP is in no ServiceCIDR; recreate the Service");
                    continue;
                }
                let found = objects.core().cache.get(&ObjectKey::cluster(address.to_string()));
                self.repair_holder(address, holder, found.as_deref(), &by_key).await?;
            }
        }
        for object in all(&objects) {
            self.repair_object(&objects, &object, &by_key).await?;
        }
        Ok(())
    }

    /// The address a Service holds must be allocated to it.
    async fn repair_holder(
        &self,
        address: IpAddr,
        holder: &Holder,
        found: Option<&StoredObject>,
        services: &HashMap<&ObjectKey, &Holder>,
    ) -> Result<(), AllocationError> {
        let Some(found) = found else {
            tracing::warn!(%address, service = %holder.key, "A cluster IP that is held was not allocated; repaired");
            return self.addresses.create(address, &holder.service).await;
        };
        let value = read(found).map_err(AllocationError::Status)?;
        let parent = parent_of(&value);
        if parent.as_ref() == Some(&holder.key) && has_labels(&value, address) {
            return Ok(());
        }
        let other = parent.as_ref().filter(|parent| **parent != holder.key).and_then(|parent| services.get(parent));
        if let Some(other) = other
            && held_addresses(&other.service).contains(&address)
        {
            tracing::error!(%address, service = %holder.key, other = %other.key, "A cluster IP is held by two Services; recreate one");
            return Ok(());
        }
        tracing::warn!(%address, service = %holder.key, "A cluster IP was allocated to another; repaired");
        self.addresses.release(address).await;
        self.addresses.create(address, &holder.service).await
    }

    /// An allocated address must be held by its Service.
    async fn repair_object(
        &self,
        objects: &Store,
        object: &StoredObject,
        services: &HashMap<&ObjectKey, &Holder>,
    ) -> Result<(), AllocationError> {
        let value = read(object).map_err(AllocationError::Status)?;
        if value.label(LABEL_MANAGED_BY) != Some(MANAGER) {
            return Ok(());
        }
        let parent = parent_of(&value);
        let address: Option<IpAddr> = object.key.name.parse().ok();
        let holder = parent.as_ref().and_then(|parent| services.get(parent));
        let held =
            holder.zip(address).is_some_and(|(holder, address)| held_addresses(&holder.service).contains(&address));
        let now = self.addresses.shared().clock.now();
        let young = value.creation_timestamp().is_some_and(|created| now.duration_since(created) < GRACE);
        if held || young && parent.is_some() {
            return Ok(());
        }
        tracing::warn!(address = %object.key, "Released a cluster IP that leaked");
        let preconditions = Preconditions {
            uid: Some(object.selection.uid.clone()),
            resource_version: Some(object.revision.to_string()),
        };
        let options = DeleteOptions { preconditions: Some(preconditions), ..DeleteOptions::default() };
        let target = Target::new("", object.key.name.clone());
        match objects.delete(self.addresses.context(), &target, options).await {
            // Somebody took it meanwhile, or gave it back: either way it is no longer the one that leaked.
            Err(status) if !status.is_not_found() && !status.is_conflict() => Err(AllocationError::Status(status)),
            _ => Ok(()),
        }
    }
}

fn all(store: &Store) -> Vec<Arc<StoredObject>> {
    let mut objects = Vec::new();
    store.core().cache.snapshot(0).tree.walk(&[], &mut |object| {
        objects.push(object.clone());
        ControlFlow::Continue(())
    });
    objects
}

fn holders(store: &Store) -> Vec<Holder> {
    let typed = |object: Arc<StoredObject>| match object.typed::<Service>() {
        Ok(service) => Some(Holder { key: object.key.clone(), service }),
        Err(error) => {
            tracing::error!(service = %object.key, error = %chain(&error), "Ignored a Service");
            None
        }
    };
    all(store).into_iter().filter_map(typed).collect()
}
