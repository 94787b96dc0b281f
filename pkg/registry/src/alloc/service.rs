//! The hooks of Services: what is allocated before a write, and what becomes of it.
//!
//! Behaves as `pkg/registry/core/service/storage/{alloc,storage,transaction}.go`, v1.36.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use rkube_api::StoredObject;
use rkube_api::draft::Draft;
use rkube_api::k8s::core::v1::{Service, ServiceSpec};
use rkube_apimachinery::chain::chain;
use rkube_apimachinery::field::{Error, Path};
use rkube_apimachinery::gvk::{GroupKind, GroupVersionResource};
use rkube_apimachinery::key::ObjectKey;
use rkube_apimachinery::status::ApiStatus;
use rkube_apimachinery::task;
use tracing::info_span;

use super::addresses::key_of;
use super::families::{
    Configured, Spec, init_families, keeps_preferred, needs_health_check, needs_node_port, node_ports,
    normalize_cluster_ips, patch_allocated_values,
};
use super::{Addresses, AllocationError, Ports};
use crate::hooks::{Hooks, Transaction};
use crate::options::DeleteOptions;
use crate::store::Target;
use crate::store::core::decode_status;

/// What a dry run pretends to allocate counts up from here.
const DRY_RUN_PORT: i32 = 32_768;

/// Allocates around the writes of Services.
#[derive(Clone)]
pub(crate) struct ServiceHooks {
    addresses: Addresses,
    ports: Arc<Ports>,
    configured: Configured,
}

/// What one write holds until it is done.
struct Allocation {
    hooks: ServiceHooks,
    service: ObjectKey,
    dry_run: bool,
    /// Given back unless the write happens.
    addresses: Vec<IpAddr>,
    ports: Vec<i32>,
    /// Given back when the write has happened.
    old_addresses: Vec<IpAddr>,
    old_ports: Vec<i32>,
}

impl Allocation {
    fn new(hooks: &ServiceHooks, service: &Service, dry_run: bool) -> Self {
        Self {
            hooks: hooks.clone(),
            service: key_of(service),
            dry_run,
            addresses: Vec::new(),
            ports: Vec::new(),
            old_addresses: Vec::new(),
            old_ports: Vec::new(),
        }
    }

    async fn port(&mut self, port: i32) -> Result<(), AllocationError> {
        if self.ports.contains(&port) {
            return Err(AllocationError::PortTaken);
        }
        if self.dry_run {
            self.hooks.ports.check(port).await?;
        } else {
            self.hooks.ports.allocate(port).await?;
        }
        self.ports.push(port);
        Ok(())
    }

    async fn next_port(&mut self) -> Result<i32, AllocationError> {
        let port = if self.dry_run {
            self.ports.iter().max().copied().unwrap_or(DRY_RUN_PORT) + 1
        } else {
            self.hooks.ports.allocate_next().await?
        };
        self.ports.push(port);
        Ok(port)
    }
}

impl Transaction for Allocation {
    fn commit(mut self: Box<Self>) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            self.addresses.clear();
            self.ports.clear();
            if self.dry_run {
                return;
            }
            let addresses = std::mem::take(&mut self.old_addresses);
            let ports = std::mem::take(&mut self.old_ports);
            self.hooks.release(addresses, ports).await;
        })
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        if self.dry_run || self.addresses.is_empty() && self.ports.is_empty() {
            return;
        }
        let (hooks, service) = (self.hooks.clone(), self.service.clone());
        let (addresses, ports) = (std::mem::take(&mut self.addresses), std::mem::take(&mut self.ports));
        // What a failed write held goes back in its own time; nobody waits for it.
        task::spawn(info_span!("release-service-allocation"), async move {
            hooks.release_unheld(&service, addresses, ports).await;
        });
    }
}

impl ServiceHooks {
    pub(crate) fn new(addresses: Addresses, ports: Arc<Ports>, service_cidrs: &[ipnet::IpNet]) -> Self {
        let family = |cidr: &ipnet::IpNet| if cidr.addr().is_ipv6() { "IPv6" } else { "IPv4" };
        let mut families: Vec<&'static str> = service_cidrs.iter().map(family).collect();
        families.dedup();
        Self { addresses, ports, configured: Configured(families) }
    }

    async fn release(&self, addresses: Vec<IpAddr>, ports: Vec<i32>) {
        for address in addresses {
            self.addresses.release(address).await;
        }
        if let Err(error) = self.ports.release(&ports).await {
            tracing::warn!(?ports, error = %chain(&error), "Could not release node ports; the repair loop will");
        }
    }

    /// What a write took that failed. Another request may have made the Service meanwhile with the same addresses, which
    /// it found taken for it.
    async fn release_unheld(&self, service: &ObjectKey, mut addresses: Vec<IpAddr>, ports: Vec<i32>) {
        if !addresses.is_empty() {
            match self.addresses.held_by(service).await {
                Ok(held) => addresses.retain(|address| !held.contains(address)),
                Err(error) => {
                    let error = chain(&error);
                    tracing::warn!(?addresses, %error, "Could not release cluster IPs; the repair loop will");
                    addresses.clear();
                }
            }
        }
        self.release(addresses, ports).await;
    }

    async fn create(&self, service: &mut Service, dry_run: bool) -> Result<Allocation, ApiStatus> {
        let mut held = Allocation::new(self, service, dry_run);
        normalize_cluster_ips(service.spec.get_or_insert_default(), None);
        self.init_families(service, None)?;
        self.allocate_addresses(service, &mut held).await?;
        let spec = service.spec.get_or_insert_default();
        if matches!(spec.kind(), "NodePort" | "LoadBalancer") {
            init_node_ports(service, &mut held).await?;
        }
        if needs_health_check(service.spec.get_or_insert_default()) {
            allocate_health_check(service, &mut held).await?;
        }
        Ok(held)
    }

    async fn update(&self, service: &mut Service, old: &Service, dry_run: bool) -> Result<Allocation, ApiStatus> {
        let mut held = Allocation::new(self, service, dry_run);
        let empty = ServiceSpec::default();
        let before = old.spec.as_ref().unwrap_or(&empty);
        let spec = service.spec.get_or_insert_default();
        patch_allocated_values(spec, before);
        normalize_cluster_ips(spec, Some(before));
        self.init_families(service, Some(old))?;
        self.update_addresses(service, before, &mut held).await?;
        self.update_ports(service, before, &mut held).await?;
        Ok(held)
    }

    fn init_families(&self, service: &mut Service, old: Option<&Service>) -> Result<(), ApiStatus> {
        init_families(service, old, &self.configured).map_err(|errors| invalid(service, &errors))
    }

    async fn allocate_addresses(&self, service: &mut Service, held: &mut Allocation) -> Result<(), ApiStatus> {
        let spec = service.spec.get_or_insert_default();
        if spec.is_external() || spec.is_headless() {
            return Ok(());
        }
        let families = spec.families().to_vec();
        let addresses = spec.cluster_ips.get_or_insert_default();
        addresses.resize(families.len().max(addresses.len()), String::new());
        for (index, family) in families.iter().enumerate() {
            self.allocate_address(service, index, family, held).await?;
        }
        Ok(())
    }

    /// Allocates the address at `index`: the one that is there, or any of the family.
    async fn allocate_address(
        &self,
        service: &mut Service,
        index: usize,
        family: &str,
        held: &mut Allocation,
    ) -> Result<(), ApiStatus> {
        let dry_run = held.dry_run;
        let wanted = service.spec.as_ref().and_then(|spec| spec.addresses().get(index)).cloned().unwrap_or_default();
        let fault = |service: &Service, detail: String| {
            let path = Path::new("spec").child("clusterIPs");
            let given = service.spec.as_ref().map(|spec| spec.addresses().to_vec()).unwrap_or_default();
            invalid(service, &[Error::invalid(&path, given, detail)])
        };
        let address = if wanted.is_empty() {
            let address = match self.addresses.allocate_next(family == "IPv6", service, dry_run).await {
                Ok(address) => address,
                Err(error @ AllocationError::Full) => {
                    let name = service.metadata.name.as_deref().unwrap_or_default();
                    let text = format!("failed to allocate a serviceIP for Service {name:?}: {}", chain(&error));
                    return Err(ApiStatus::internal(text));
                }
                Err(error) => return Err(fault(service, format!("failed to allocate IP: {}", chain(&error)))),
            };
            held.addresses.push(address);
            address
        } else {
            let address: IpAddr =
                wanted.parse().map_err(|_| ApiStatus::internal(format!("failed to parse service IP {wanted:?}")))?;
            match self.addresses.allocate(address, service, dry_run).await {
                Ok(true) => held.addresses.push(address),
                Ok(false) => {}
                Err(error) => return Err(fault(service, format!("failed to allocate IP {wanted}: {}", chain(&error)))),
            }
            address
        };
        let spec = service.spec.get_or_insert_default();
        if wanted.is_empty()
            && let Some(slot) = spec.cluster_ips.get_or_insert_default().get_mut(index)
        {
            *slot = address.to_string();
        }
        if index == 0 {
            spec.cluster_ip = spec.addresses().first().cloned();
        }
        Ok(())
    }

    async fn update_addresses(
        &self,
        service: &mut Service,
        before: &ServiceSpec,
        held: &mut Allocation,
    ) -> Result<(), ApiStatus> {
        let spec = service.spec.get_or_insert_default();
        if keeps_preferred(spec, Some(before)) {
            return Ok(());
        }
        if before.is_external() && !spec.is_external() {
            return self.allocate_addresses(service, held).await;
        }
        if before.is_headless() {
            return Ok(());
        }
        if !before.is_external() && spec.is_external() {
            held.old_addresses = parse(before.addresses());
            return Ok(());
        }
        match (before.families().len(), spec.families().len()) {
            (1, 2) => {
                let family = spec.families().get(1).cloned().unwrap_or_default();
                let addresses = spec.cluster_ips.get_or_insert_default();
                addresses.resize(addresses.len().max(2), String::new());
                self.allocate_address(service, 1, &family, held).await
            }
            (2, 1) => {
                held.old_addresses = parse(before.addresses().get(1..).unwrap_or_default());
                Ok(())
            }
            _ => Ok(()),
        }
    }

    async fn update_ports(
        &self,
        service: &mut Service,
        before: &ServiceSpec,
        held: &mut Allocation,
    ) -> Result<(), ApiStatus> {
        let kind = service.spec.get_or_insert_default().kind().to_owned();
        let exposed = |kind: &str| matches!(kind, "NodePort" | "LoadBalancer");
        if exposed(before.kind()) && !exposed(&kind) {
            held.old_ports.extend(node_ports(before));
        }
        if exposed(&kind) {
            update_node_ports(service, before, held).await?;
        }
        let needs = needs_health_check(service.spec.get_or_insert_default());
        match (needs_health_check(before), needs) {
            (false, true) => allocate_health_check(service, held).await?,
            (true, false) => held.old_ports.extend(before.health_check_node_port.filter(|port| *port > 0)),
            _ => {}
        }
        Ok(())
    }
}

async fn init_node_ports(service: &mut Service, held: &mut Allocation) -> Result<(), ApiStatus> {
    let spec = service.spec.get_or_insert_default();
    let needed = needs_node_port(spec);
    let mut ports = spec.ports.take().unwrap_or_default();
    // Ports of one number (TCP and UDP) share their node port where they can.
    let mut by_port: BTreeMap<i32, i32> = BTreeMap::new();
    let mut result = Ok(());
    for index in 0..ports.len() {
        let (number, wanted) = ports.get(index).map_or((0, 0), |port| (port.port, port.node_port.unwrap_or(0)));
        if wanted == 0 && !needed {
            continue;
        }
        let requested = ports
            .iter()
            .filter(|other| other.port == number)
            .find_map(|other| other.node_port.filter(|port| *port != 0));
        let allocated = by_port.get(&number).copied();
        let step = match allocated {
            None => match requested {
                Some(port) => held.port(port).await.map(|()| port).map_err(|error| port_fault(index, port, &error)),
                None => held.next_port().await.map_err(|error| PortFault::Internal(next_port_text(&error))),
            },
            Some(port) if wanted == 0 || wanted == port => Ok(port),
            Some(_) => held.port(wanted).await.map(|()| wanted).map_err(|error| port_fault(index, wanted, &error)),
        };
        match step {
            Ok(port) => {
                by_port.entry(number).or_insert(port);
                if let Some(slot) = ports.get_mut(index) {
                    slot.node_port = Some(port);
                }
            }
            Err(fault) => {
                result = Err(fault);
                break;
            }
        }
    }
    service.spec.get_or_insert_default().ports = Some(ports).filter(|ports| !ports.is_empty());
    result.map_err(|fault| fault.into_status(service))
}

async fn update_node_ports(
    service: &mut Service,
    before: &ServiceSpec,
    held: &mut Allocation,
) -> Result<(), ApiStatus> {
    let old = node_ports(before);
    let spec = service.spec.get_or_insert_default();
    let needed = needs_node_port(spec);
    let mut ports = spec.ports.take().unwrap_or_default();
    let mut result = Ok(());
    let mut seen: Vec<(Option<String>, i32)> = Vec::new();
    for (index, port) in ports.iter_mut().enumerate() {
        let wanted = port.node_port.unwrap_or(0);
        if wanted == 0 && !needed {
            continue;
        }
        let step = if wanted == 0 {
            held.next_port().await.map_err(|error| PortFault::Internal(next_port_text(&error)))
        } else if old.contains(&wanted) || held.ports.contains(&wanted) {
            Ok(wanted)
        } else {
            held.port(wanted).await.map(|()| wanted).map_err(|error| port_fault(index, wanted, &error))
        };
        let step = step.and_then(|number| {
            let pair = (port.protocol.clone(), number);
            if seen.contains(&pair) {
                return Err(PortFault::Internal(format!("duplicate nodePort: {number}")));
            }
            seen.push(pair);
            port.node_port = Some(number);
            Ok(())
        });
        if let Err(fault) = step {
            result = Err(fault);
            break;
        }
    }
    let spec = service.spec.get_or_insert_default();
    spec.ports = Some(ports).filter(|ports| !ports.is_empty());
    let new = node_ports(spec);
    held.old_ports.extend(old.into_iter().filter(|port| !new.contains(port)));
    result.map_err(|fault| fault.into_status(service))
}

async fn allocate_health_check(service: &mut Service, held: &mut Allocation) -> Result<(), ApiStatus> {
    let wanted = service.spec.as_ref().and_then(|spec| spec.health_check_node_port).unwrap_or(0);
    let allocated = if wanted != 0 {
        held.port(wanted)
            .await
            .map(|()| wanted)
            .map_err(|error| format!("failed to allocate requested HealthCheck NodePort {wanted}: {}", chain(&error)))
    } else {
        held.next_port()
            .await
            .map_err(|error| format!("failed to allocate a HealthCheck NodePort 0: {}", chain(&error)))
    };
    service.spec.get_or_insert_default().health_check_node_port = Some(allocated.map_err(ApiStatus::internal)?);
    Ok(())
}

enum PortFault {
    Field(Error),
    Internal(String),
}

impl PortFault {
    fn into_status(self, service: &Service) -> ApiStatus {
        match self {
            Self::Field(error) => invalid(service, &[error]),
            Self::Internal(text) => ApiStatus::internal(text),
        }
    }
}

fn port_fault(index: usize, port: i32, error: &AllocationError) -> PortFault {
    let path = Path::new("spec").child("ports").index(index).child("nodePort");
    PortFault::Field(Error::invalid(&path, port, chain(error).to_string()))
}

fn next_port_text(error: &AllocationError) -> String {
    format!("failed to allocate a nodePort: {}", chain(error))
}

fn invalid(service: &Service, errors: &[Error]) -> ApiStatus {
    let name = service.metadata.name.as_deref().unwrap_or_default();
    ApiStatus::invalid(&GroupKind::new("", "Service"), name, errors)
}

fn parse(addresses: &[String]) -> Vec<IpAddr> {
    addresses.iter().filter_map(|address| address.parse().ok()).collect()
}

impl Hooks for ServiceHooks {
    fn begin_create<'a>(
        &'a self,
        object: &'a mut Draft,
        dry_run: bool,
    ) -> BoxFuture<'a, Result<Option<Box<dyn Transaction>>, ApiStatus>> {
        Box::pin(async move {
            let service = object.typed::<Service>().map_err(|error| decode_status(&error))?;
            let held = self.create(service, dry_run).await?;
            Ok(Some(Box::new(held) as Box<dyn Transaction>))
        })
    }

    fn begin_update<'a>(
        &'a self,
        new: &'a mut Draft,
        old: &'a Arc<StoredObject>,
        dry_run: bool,
    ) -> BoxFuture<'a, Result<Option<Box<dyn Transaction>>, ApiStatus>> {
        Box::pin(async move {
            let old = old.typed::<Service>().map_err(|error| decode_status(&error))?;
            let service = new.typed::<Service>().map_err(|error| decode_status(&error))?;
            let held = self.update(service, &old, dry_run).await?;
            Ok(Some(Box::new(held) as Box<dyn Transaction>))
        })
    }

    /// Endpoints of the same name go with the Service, so that a new one does not begin with old endpoints.
    fn after_delete<'a>(&'a self, object: &'a Arc<StoredObject>) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let endpoints = GroupVersionResource::new("", "v1", "endpoints");
            if let Some(store) = self.addresses.shared().store(&endpoints) {
                let target = Target::new(object.key.namespace.clone(), object.key.name.clone());
                let deleted = store.delete_object(self.addresses.context(), &target, DeleteOptions::default()).await;
                if let Err(status) = deleted
                    && !status.is_not_found()
                {
                    tracing::warn!(service = %object.key, error = %status, "Could not delete the Endpoints of a Service");
                }
            }
            let Ok(service) = object.typed::<Service>() else {
                return;
            };
            let Some(spec) = &service.spec else {
                return;
            };
            let holds = !spec.is_external() && !spec.is_headless();
            let addresses = if holds { parse(spec.addresses()) } else { Vec::new() };
            let mut ports = node_ports(spec);
            if needs_health_check(spec) {
                ports.extend(spec.health_check_node_port.filter(|port| *port > 0));
            }
            self.release(addresses, ports).await;
        })
    }
}
