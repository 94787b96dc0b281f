//! What the names of the cluster mean: Services, endpoints and their addresses, kept current by informers.
//!
//! Inputs: v1 Service, discovery.k8s.io/v1 EndpointSlice, v1 Namespace.
//!
//! Invariant: a Service is replaced as a whole when it or one of its slices changes, so an answer never
//! mixes two states of it.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::RwLock;
use rkube_api::k8s::core::v1::{Namespace, Service};
use rkube_api::k8s::discovery::v1::EndpointSlice;
use rkube_apimachinery::key::ObjectKey;
use rkube_client::{Delta, InformerFactory};

/// The label by which slices name their Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// A Service as DNS sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceRecord {
    pub kind: ServiceKind,
    pub ports: Vec<Port>,
    /// Ready endpoints (all of them where not-ready ones are published), sorted.
    pub endpoints: Vec<Endpoint>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServiceKind {
    /// Reached by its own addresses.
    Cluster(Vec<IpAddr>),
    /// Reached by the addresses of its endpoints.
    Headless,
    /// An alias of a name outside.
    External(String),
}

impl Default for ServiceKind {
    fn default() -> Self {
        Self::Cluster(Vec::new())
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port {
    /// Empty for a single unnamed port.
    pub name: String,
    /// `tcp`, `udp` or `sctp`
    pub protocol: String,
    pub port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    /// The pod's host name, or its address with dashes.
    pub hostname: String,
    pub address: IpAddr,
    pub ports: Vec<Port>,
}

/// What an address stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    Service(ObjectKey),
    Endpoint { service: ObjectKey, hostname: String },
}

/// All names. Reads take a short shared lock and copy an `Arc`.
#[derive(Debug, Default)]
pub struct Zone {
    state: RwLock<State>,
}

#[derive(Debug, Default)]
struct State {
    namespaces: HashSet<String>,
    /// By namespace, then name: the parts of a name arrive as two strings.
    services: HashMap<String, HashMap<String, Arc<ServiceRecord>>>,
    addresses: HashMap<IpAddr, Vec<Owner>>,
}

impl Zone {
    pub fn has_namespace(&self, namespace: &str) -> bool {
        self.state.read().namespaces.contains(namespace)
    }

    pub fn service(&self, namespace: &str, name: &str) -> Option<Arc<ServiceRecord>> {
        self.state.read().services.get(namespace)?.get(name).cloned()
    }

    pub fn owners(&self, address: IpAddr) -> Vec<Owner> {
        self.state.read().addresses.get(&address).cloned().unwrap_or_default()
    }

    pub fn set_namespace(&self, name: &str, exists: bool) {
        let mut state = self.state.write();
        if exists {
            state.namespaces.insert(name.to_owned());
        } else {
            state.namespaces.remove(name);
        }
    }

    /// Replaces a Service by what it is now; `None` removes it.
    pub fn set_service(&self, key: &ObjectKey, record: Option<ServiceRecord>) {
        let mut state = self.state.write();
        let (namespace, name) = (key.namespace.as_ref(), key.name.as_ref());
        let before = state.services.get_mut(namespace).and_then(|services| services.remove(name));
        if let Some(before) = before {
            for (address, _) in owned(key, &before) {
                if let Some(owners) = state.addresses.get_mut(&address) {
                    owners.retain(|owner| !is_of(owner, key));
                    if owners.is_empty() {
                        state.addresses.remove(&address);
                    }
                }
            }
            if state.services.get(namespace).is_some_and(HashMap::is_empty) {
                state.services.remove(namespace);
            }
        }
        if let Some(record) = record {
            for (address, owner) in owned(key, &record) {
                state.addresses.entry(address).or_default().push(owner);
            }
            state.services.entry(namespace.to_owned()).or_default().insert(name.to_owned(), Arc::new(record));
        }
    }

    /// Keeps the zone current from informers. Call before the factory starts.
    pub fn follow(self: &Arc<Self>, factory: &InformerFactory) {
        let namespaces = factory.informer::<Namespace>();
        let zone = Arc::clone(self);
        namespaces.add_handler(move |delta| {
            let exists = !matches!(delta, Delta::Deleted(_));
            zone.set_namespace(delta.object().metadata.name.as_deref().unwrap_or_default(), exists);
        });

        let services = factory.informer::<Service>();
        let slices = factory.informer::<EndpointSlice>();
        slices.add_index(SERVICE_NAME, |slice| service_of(slice).map(|key| key.to_string()).into_iter().collect());
        let (service_lister, slice_lister) = (services.lister(), slices.lister());
        let zone = Arc::clone(self);
        let refresh = Arc::new(move |key: &ObjectKey| {
            let slices = slice_lister.by_index(SERVICE_NAME, &key.to_string());
            let service = service_lister.get(key);
            zone.set_service(key, service.and_then(|service| record(&service, &slices)));
        });
        let on_service = Arc::clone(&refresh);
        services.add_handler(move |delta| {
            let metadata = &delta.object().metadata;
            on_service(&ObjectKey::new(
                metadata.namespace.as_deref().unwrap_or_default(),
                metadata.name.as_deref().unwrap_or_default(),
            ));
        });
        slices.add_handler(move |delta| {
            let keys = delta.old().into_iter().chain([delta.object()]).filter_map(|slice| service_of(slice));
            keys.collect::<BTreeSet<_>>().iter().for_each(|key| refresh(key));
        });
    }
}

fn owned(key: &ObjectKey, record: &ServiceRecord) -> Vec<(IpAddr, Owner)> {
    let mut all = Vec::new();
    if let ServiceKind::Cluster(addresses) = &record.kind {
        all.extend(addresses.iter().map(|address| (*address, Owner::Service(key.clone()))));
    }
    all.extend(record.endpoints.iter().map(|endpoint| {
        (endpoint.address, Owner::Endpoint { service: key.clone(), hostname: endpoint.hostname.clone() })
    }));
    all
}

fn is_of(owner: &Owner, key: &ObjectKey) -> bool {
    match owner {
        Owner::Service(service) | Owner::Endpoint { service, .. } => service == key,
    }
}

fn service_of(slice: &EndpointSlice) -> Option<ObjectKey> {
    let name = slice.metadata.labels.as_ref()?.get(SERVICE_NAME)?;
    Some(ObjectKey::new(slice.metadata.namespace.as_deref().unwrap_or_default(), name.as_str()))
}

/// A Service and its slices as DNS sees them; `None` for one that has no name in DNS yet.
pub fn record<S: AsRef<EndpointSlice>>(service: &Service, slices: &[S]) -> Option<ServiceRecord> {
    let spec = service.spec.as_ref()?;
    let kind = match (spec.type_.as_deref(), spec.cluster_ip.as_deref()) {
        (Some("ExternalName"), _) => ServiceKind::External(spec.external_name.clone()?),
        (_, Some("None")) => ServiceKind::Headless,
        // No address is allocated yet.
        (_, None | Some("")) => return None,
        (_, Some(first)) => {
            let listed = spec.cluster_ips.as_deref().unwrap_or_default();
            let texts = if listed.is_empty() { vec![first] } else { listed.iter().map(String::as_str).collect() };
            ServiceKind::Cluster(texts.into_iter().filter_map(|text| text.parse().ok()).collect())
        }
    };
    let ports = spec.ports.iter().flatten().filter_map(|port| {
        Some(Port {
            name: port.name.clone().unwrap_or_default(),
            protocol: port.protocol.as_deref().unwrap_or("TCP").to_ascii_lowercase(),
            port: u16::try_from(port.port).ok()?,
        })
    });
    let publishes_all = spec.publish_not_ready_addresses == Some(true);
    let endpoints = slices.iter().flat_map(|slice| endpoints(slice.as_ref(), publishes_all)).collect::<BTreeSet<_>>();
    Some(ServiceRecord { kind, ports: ports.collect(), endpoints: endpoints.into_iter().collect() })
}

fn endpoints(slice: &EndpointSlice, publishes_all: bool) -> Vec<Endpoint> {
    let ports: Vec<Port> = slice
        .ports
        .iter()
        .flatten()
        .filter_map(|port| {
            Some(Port {
                name: port.name.clone().unwrap_or_default(),
                protocol: port.protocol.as_deref().unwrap_or("TCP").to_ascii_lowercase(),
                port: u16::try_from(port.port?).ok()?,
            })
        })
        .collect();
    let mut all = Vec::new();
    for endpoint in slice.endpoints.iter().flatten() {
        // Unknown readiness counts as ready.
        let ready = endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true);
        if !ready && !publishes_all {
            continue;
        }
        for address in endpoint.addresses.iter().filter_map(|text| text.parse::<IpAddr>().ok()) {
            let hostname = endpoint.hostname.clone().filter(|name| !name.is_empty());
            let hostname = hostname.unwrap_or_else(|| dashed(address));
            all.push(Endpoint { hostname, address, ports: ports.clone() });
        }
    }
    all
}

/// `10-0-0-1`
fn dashed(address: IpAddr) -> String {
    address.to_string().replace(['.', ':'], "-")
}

/// The address in a pod's name, `10-0-0-1`.
pub fn undashed(label: &str) -> Option<IpAddr> {
    let dots = label.replace('-', ".");
    dots.parse().ok().or_else(|| label.replace('-', ":").parse().ok())
}
