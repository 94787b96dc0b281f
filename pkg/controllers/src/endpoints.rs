//! Endpoints controller: one v1 Endpoints object per Service with a selector, for clients older than EndpointSlices.
//!
//! Watches  v1 Service (primary); v1 Pod (by the Services that select it); v1 Endpoints (deletions)
//! Writes   v1 Endpoints (create, update, delete)
//! Behaves as  pkg/controller/endpoint/endpoints_controller.go and pkg/api/v1/endpoints, v1.36

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use rkube_api::k8s::core::v1::{
    EndpointAddress, EndpointPort, EndpointSubset, Endpoints, ObjectReference, Pod, Service,
};
use rkube_api::meta::pkg::apis::meta::v1::ObjectMeta;
use rkube_apimachinery::key::ObjectKey;
use rkube_apimachinery::labels::Selector;
use rkube_client::{
    Client, DeleteOptions, Delta, EventRecorder, Lister, Reconciler, Requeue, Runner, SyncError, WorkQueue,
};

use crate::common::enqueue::enqueue_all;
use crate::common::errors::{ignore_not_found, namespace_terminating};
use crate::common::numbers::nonempty;
use crate::common::pods;
use crate::common::service_pods::{
    addresses, affected_services, find_port, hostname, is_headless, publishes_not_ready, should_be_in_endpoints,
    wants_endpoints,
};
use crate::common::trigger_time::{LAST_CHANGE_TRIGGER_TIME, TriggerTimes};
use crate::context::{ControllerContext, Descriptor, Running};

const NAME: &str = "endpoints-controller";
/// The value of the managed-by label.
const MANAGED_BY: &str = "endpoint-controller";
const MANAGED_BY_LABEL: &str = "endpoints.kubernetes.io/managed-by";
const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
/// Endpoints that once served as election locks are not ours.
const LEADER_ANNOTATION: &str = "control-plane.alpha.kubernetes.io/leader";
/// Addresses in one object; the rest is in EndpointSlices only.
const CAPACITY_MAX: usize = 1000;
const RETRIES_MAX: u32 = 15;

pub(crate) const ENDPOINTS: Descriptor = Descriptor::new(NAME, "endpoint", start);

struct EndpointsController {
    client: Client,
    recorder: EventRecorder,
    services: Lister<Service>,
    pods: Lister<Pod>,
    endpoints: Lister<Endpoints>,
    trigger_times: TriggerTimes,
}

fn start(context: &ControllerContext) -> Running {
    let services = context.informers.informer::<Service>();
    let pods = context.informers.informer::<Pod>();
    let endpoints = context.informers.informer::<Endpoints>();
    let queue: WorkQueue<ObjectKey> = context.queue("endpoint");
    let controller = Arc::new(EndpointsController {
        client: context.client_for(NAME),
        recorder: context.recorder.for_component("endpoint-controller"),
        services: services.lister(),
        pods: pods.lister(),
        endpoints: endpoints.lister(),
        trigger_times: TriggerTimes::default(),
    });
    enqueue_all(&services, &queue);
    let (lister, keys) = (services.lister(), queue.clone());
    pods.add_handler(move |delta| affected_services(&lister, &delta).into_iter().for_each(|key| keys.add(key)));
    let keys = queue.clone();
    endpoints.add_handler(move |delta| {
        if let Delta::Deleted(endpoints) = delta {
            keys.add(rkube_client::owner::object_key(&*endpoints));
        }
    });
    let leftovers = Arc::clone(&controller);
    let runner = Runner::new(NAME, queue.clone(), controller).workers(context.config.concurrent_syncs);
    let run = runner.retries_max(RETRIES_MAX).run(context.shutdown.clone());
    Box::pin(async move {
        // Services deleted while nobody watched left their Endpoints behind.
        for endpoints in leftovers.endpoints.list_all("") {
            let annotations = endpoints.metadata.annotations.as_ref();
            if annotations.is_none_or(|annotations| !annotations.contains_key(LEADER_ANNOTATION)) {
                queue.add(rkube_client::owner::object_key(&*endpoints));
            }
        }
        run.await;
    })
}

/// An address with the ports it is ready, and not ready, on.
type Address = (IpAddr, Option<String>);

/// The subsets a Service is to have: addresses with equal ports together, everything in order.
fn subsets(service: &Service, pods: &[Arc<Pod>]) -> Vec<EndpointSubset> {
    let spec = service.spec.as_ref();
    let unready_too = publishes_not_ready(service);
    let mut by_address: BTreeMap<Address, (EndpointAddress, BTreeMap<PortKey, bool>)> = BTreeMap::new();
    let mut ports_by_key: BTreeMap<PortKey, EndpointPort> = BTreeMap::new();
    for pod in pods.iter().filter(|pod| should_be_in_endpoints(pod, unready_too)) {
        let Some((ip, address)) = endpoint_address(service, pod) else { continue };
        let ready = unready_too || pods::is_ready(pod);
        let service_ports = spec.and_then(|spec| spec.ports.as_deref()).unwrap_or_default();
        let ports = service_ports.iter().filter_map(|port| {
            Some(EndpointPort {
                name: port.name.clone().filter(|name| !name.is_empty()),
                port: find_port(pod, port)?,
                protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
                app_protocol: port.app_protocol.clone(),
            })
        });
        let portless = service_ports.is_empty() && spec.and_then(|spec| spec.cluster_ip.as_deref()) == Some("None");
        let ports: Vec<_> = ports.collect();
        if ports.is_empty() && !portless {
            continue;
        }
        let entry = by_address.entry((ip, pod.metadata.uid.clone())).or_insert_with(|| (address, BTreeMap::new()));
        if portless {
            entry.1.insert(PortKey::default(), ready);
        }
        for port in ports {
            let key = port_key(&port);
            ports_by_key.insert(key.clone(), port);
            *entry.1.entry(key).or_insert(false) |= ready;
        }
    }
    let mut groups: BTreeMap<BTreeSet<PortKey>, EndpointSubset> = BTreeMap::new();
    for (address, ports) in by_address.into_values() {
        let ready = ports.values().all(|ready| *ready);
        let keys: BTreeSet<PortKey> = ports.into_keys().collect();
        let known = keys.iter().filter_map(|key| ports_by_key.get(key).cloned()).collect();
        let subset =
            groups.entry(keys).or_insert_with(|| EndpointSubset { ports: nonempty(known), ..Default::default() });
        let list = if ready { &mut subset.addresses } else { &mut subset.not_ready_addresses };
        list.get_or_insert_default().push(address);
    }
    groups.into_values().collect()
}

/// Name, protocol, number, application protocol.
type PortKey = (String, String, i32, Option<String>);

fn port_key(port: &EndpointPort) -> PortKey {
    let name = port.name.clone().unwrap_or_default();
    (name, port.protocol.clone().unwrap_or_default(), port.port, port.app_protocol.clone())
}

/// The pod's address in the Service's first family.
fn endpoint_address(service: &Service, pod: &Pod) -> Option<(IpAddr, EndpointAddress)> {
    let spec = service.spec.as_ref()?;
    let family = spec.ip_families.as_ref().and_then(|families| families.first());
    let ipv6 = match family {
        Some(family) => family == "IPv6",
        None => spec.cluster_ip.as_deref().unwrap_or_default().contains(':'),
    };
    let ip = addresses(pod).into_iter().find(|address| address.is_ipv6() == ipv6)?;
    let address = EndpointAddress {
        ip: ip.to_string(),
        hostname: hostname(pod, service),
        node_name: Some(pods::node_name(pod).to_owned()).filter(|node| !node.is_empty()),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".to_owned()),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            ..ObjectReference::default()
        }),
    };
    Some((ip, address))
}

fn length(list: Option<&Vec<EndpointAddress>>) -> usize {
    list.map_or(0, Vec::len)
}

/// Cuts addresses to the capacity, ready ones last, each subset in proportion. Whether anything was cut.
fn truncate(subsets: &mut [EndpointSubset]) -> bool {
    let ready: usize = subsets.iter().map(|subset| length(subset.addresses.as_ref())).sum();
    let not_ready: usize = subsets.iter().map(|subset| length(subset.not_ready_addresses.as_ref())).sum();
    if ready + not_ready <= CAPACITY_MAX {
        return false;
    }
    let cut_ready = ready > CAPACITY_MAX;
    let (total, room) = if cut_ready { (ready, CAPACITY_MAX) } else { (not_ready, CAPACITY_MAX - ready) };
    let mut left = room;
    for subset in subsets {
        if cut_ready {
            subset.not_ready_addresses = None;
        }
        let list = if cut_ready { &mut subset.addresses } else { &mut subset.not_ready_addresses };
        if let Some(addresses) = list {
            let share = (addresses.len() * room).div_ceil(total.max(1)).min(left);
            addresses.truncate(share);
            left -= addresses.len();
        }
        *list = list.take().and_then(nonempty);
    }
    true
}

/// What the Service's Endpoints are to be; `current` is what is there.
fn plan(
    service: &Service,
    pods: &[Arc<Pod>],
    current: Option<&Endpoints>,
    trigger: Option<String>,
) -> Option<Endpoints> {
    let mut subsets = subsets(service, pods);
    let over_capacity = truncate(&mut subsets);
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS_LABEL);
    if is_headless(service) {
        labels.insert(HEADLESS_LABEL.to_owned(), String::new());
    }
    labels.insert(MANAGED_BY_LABEL.to_owned(), MANAGED_BY.to_owned());

    let mut wanted = current.cloned().unwrap_or_else(|| Endpoints {
        metadata: ObjectMeta {
            name: service.metadata.name.clone(),
            namespace: service.metadata.namespace.clone(),
            ..ObjectMeta::default()
        },
        ..Endpoints::default()
    });
    wanted.subsets = nonempty(subsets);
    wanted.metadata.labels = Some(labels);
    let annotations = wanted.metadata.annotations.get_or_insert_default();
    if over_capacity {
        annotations.insert(OVER_CAPACITY.to_owned(), "truncated".to_owned());
    } else {
        annotations.remove(OVER_CAPACITY);
    }
    // The trigger time says when a change happened; by itself it is none.
    let without_trigger = |endpoints: &Endpoints| {
        let mut annotations = endpoints.metadata.annotations.clone().unwrap_or_default();
        annotations.remove(LAST_CHANGE_TRIGGER_TIME);
        annotations
    };
    if let Some(current) = current
        && current.subsets.clone().and_then(nonempty) == wanted.subsets
        && current.metadata.labels == wanted.metadata.labels
        && without_trigger(current) == without_trigger(&wanted)
    {
        return None;
    }
    let annotations = wanted.metadata.annotations.get_or_insert_default();
    match trigger {
        Some(time) => drop(annotations.insert(LAST_CHANGE_TRIGGER_TIME.to_owned(), time)),
        None => drop(annotations.remove(LAST_CHANGE_TRIGGER_TIME)),
    }
    Some(wanted)
}

impl Reconciler for EndpointsController {
    async fn sync(&self, key: &ObjectKey) -> Result<Requeue, SyncError> {
        let api = self.client.namespaced::<Endpoints>(&key.namespace);
        let current = self.endpoints.get(key);
        let Some(service) = self.services.get(key) else {
            self.trigger_times.forget(key);
            if let Some(current) = current {
                let options = DeleteOptions::uid(current.metadata.uid.as_deref().unwrap_or_default());
                ignore_not_found(api.delete(&key.name, &options).await)?;
            }
            return Ok(Requeue::Never);
        };
        if !wants_endpoints(&service) {
            return Ok(Requeue::Never);
        }
        let selector = service.spec.as_ref().and_then(|spec| spec.selector.clone()).unwrap_or_default();
        let selector = Selector::from_set(selector.iter().map(|(key, value)| (key.as_str(), value.as_str())));
        let pods = self.pods.list(&key.namespace, &selector);
        let trigger = self.trigger_times.last_change(key, &service, &pods);
        let Some(wanted) = plan(&service, &pods, current.as_deref(), trigger) else { return Ok(Requeue::Never) };
        let creates = current.is_none();
        let result = if creates { api.create(&wanted).await } else { api.update(&wanted).await };
        match result {
            Ok(_) => Ok(Requeue::Never),
            Err(error) if creates && namespace_terminating(&error) => Ok(Requeue::Never),
            // The cache does not show yet what an earlier sync made; its event queues the Service again.
            Err(error) if error.is_conflict() || error.is_already_exists() => Err(error.into()),
            Err(error) => {
                let (reason, verb) = if creates {
                    ("FailedToCreateEndpoint", "create endpoint for service")
                } else {
                    ("FailedToUpdateEndpoint", "update endpoint")
                };
                self.recorder.warning(&wanted, reason, format!("Failed to {verb} {key}: {error}"));
                Err(error.into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use expect_test::expect;
    use rkube_api::k8s::core::v1::{PodIP, ServicePort, ServiceSpec};

    use super::*;
    use crate::testing::{World, labels, metadata, run_pod, survives_any_crash, template};

    fn service(name: &str) -> Service {
        Service {
            metadata: metadata("ns", name),
            spec: Some(ServiceSpec {
                cluster_ip: Some("10.43.0.9".to_owned()),
                ip_families: Some(vec!["IPv4".to_owned()]),
                selector: Some(labels(&[("app", name)])),
                ports: Some(vec![ServicePort { port: 80, ..ServicePort::default() }]),
                ..ServiceSpec::default()
            }),
            status: None,
        }
    }

    fn pod(world: &World, name: &str, address: &str, ready: bool) -> Pod {
        let template = template("web", "image:1");
        let mut metadata = metadata("ns", name);
        metadata.labels = template.metadata.and_then(|metadata| metadata.labels);
        let mut pod = Pod { metadata, spec: template.spec, status: None };
        run_pod(&mut pod, "node-1", world.now());
        let status = pod.status.get_or_insert_default();
        status.pod_ip = Some(address.to_owned());
        status.pod_ips = Some(vec![PodIP { ip: address.to_owned() }]);
        if !ready {
            status.conditions = None;
        }
        pod
    }

    fn outcome(world: &World) -> String {
        let list = |addresses: &Option<Vec<EndpointAddress>>| {
            addresses.iter().flatten().map(|address| address.ip.clone()).collect::<Vec<_>>().join(" ")
        };
        let describe = |endpoints: &Endpoints| {
            let subsets = endpoints.subsets.iter().flatten().map(|subset| {
                let ports: Vec<_> = subset.ports.iter().flatten().map(|port| port.port).collect();
                format!(
                    "{ports:?} ready [{}] not ready [{}]",
                    list(&subset.addresses),
                    list(&subset.not_ready_addresses)
                )
            });
            let subsets: Vec<_> = subsets.collect();
            format!("{}: {}", endpoints.metadata.name.as_deref().unwrap_or_default(), subsets.join(", "))
        };
        world.api.list::<Endpoints>("ns").iter().map(|endpoints| describe(endpoints)).collect::<Vec<_>>().join("\n")
    }

    #[tokio::test]
    async fn follows_pods_and_goes_with_the_service() {
        let mut world = World::new(&[ENDPOINTS]);
        world.api.put(&service("web"));
        world.api.put(&pod(&world, "a", "10.42.0.10", true));
        world.api.put(&pod(&world, "b", "10.42.0.9", true));
        world.api.put(&pod(&world, "c", "10.42.0.11", false));
        world.start();
        world.settle().await;
        expect!["web: [80] ready [10.42.0.9 10.42.0.10] not ready [10.42.0.11]"].assert_eq(&outcome(&world));
        world.api.take_actions();
        world.run_for(Duration::from_secs(3600)).await;
        assert!(world.api.take_actions().is_empty());
        world.api.remove::<Service>("ns", "web");
        world.settle().await;
        expect![""].assert_eq(&outcome(&world));
    }

    #[tokio::test]
    async fn endpoints_without_a_service_go_at_start_and_not_later() {
        let mut world = World::new(&[ENDPOINTS]);
        world.api.put(&Endpoints { metadata: metadata("ns", "leftover"), ..Endpoints::default() });
        world.start();
        world.settle().await;
        world.api.put(&Endpoints { metadata: metadata("ns", "by-hand"), ..Endpoints::default() });
        world.settle().await;
        expect!["by-hand: "].assert_eq(&outcome(&world));
    }

    #[tokio::test]
    async fn more_than_a_thousand_are_cut() {
        let mut subsets = vec![EndpointSubset::default(), EndpointSubset::default()];
        for (index, subset) in subsets.iter_mut().enumerate() {
            subset.addresses = Some(vec![EndpointAddress::default(); 300 * (index + 1)]);
            subset.not_ready_addresses = Some(vec![EndpointAddress::default(); 100]);
        }
        assert!(truncate(&mut subsets));
        let sizes: Vec<_> =
            subsets.iter().map(|s| (length(s.addresses.as_ref()), length(s.not_ready_addresses.as_ref()))).collect();
        assert_eq!(sizes, [(300, 50), (600, 50)]);
    }

    #[tokio::test]
    async fn converges_after_a_crash_at_any_write() {
        let world = || {
            let world = World::new(&[ENDPOINTS]);
            world.api.put(&service("web"));
            world.api.put(&service("gone"));
            world.api.put(&pod(&world, "a", "10.42.0.1", true));
            world
        };
        let drive = async |world: &mut World| {
            world.run_for(Duration::from_secs(5)).await;
            world.api.remove::<Service>("ns", "gone");
            world.api.put(&pod(world, "b", "10.42.0.2", true));
            world.run_for(Duration::from_secs(5)).await;
        };
        survives_any_crash(world, drive, outcome).await;
    }
}
