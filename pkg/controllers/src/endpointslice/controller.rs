//! Carries out the plan for one Service at a time.

use std::sync::Arc;
use std::time::Duration;

use rkube_api::k8s::core::v1::{Node, Pod, Service};
use rkube_api::k8s::discovery::v1::EndpointSlice;
use rkube_apimachinery::key::ObjectKey;
use rkube_apimachinery::labels::Selector;
use rkube_client::owner::object_key;
use rkube_client::workqueue::RateLimits;
use rkube_client::{Client, Delta, EventRecorder, Lister, Reconciler, Requeue, Runner, SyncError, WorkQueue};

use super::endpoints::ZonedPod;
use super::plan::{Hinting, Inputs, Style, plan};
use super::topology;
use super::{MANAGED_BY, NAME};
use crate::common::enqueue::enqueue_all;
use crate::common::nodes::{index_by_node, pods_on};
use crate::common::service_pods::{
    affected_services, publishes_not_ready, selects, should_be_in_endpoints, wants_endpoints,
};
use crate::common::trigger_time::{LAST_CHANGE_TRIGGER_TIME, TriggerTimes};
use crate::common::written::Written;
use crate::common::{pods, slices};
use crate::context::{ControllerContext, Running};
use crate::metrics::{Outlook, metrics};

/// Failures in a row before a Service waits for its next event.
const RETRIES_MAX: u32 = 15;

struct EndpointSliceController {
    client: Client,
    recorder: EventRecorder,
    services: Lister<Service>,
    pods: Lister<Pod>,
    nodes: Lister<Node>,
    slices: Lister<EndpointSlice>,
    written: Written,
    trigger_times: TriggerTimes,
    style: Style,
}

pub(super) fn start(context: &ControllerContext) -> Running {
    let services = context.informers.informer::<Service>();
    let pods = context.informers.informer::<Pod>();
    index_by_node(&pods);
    let nodes = context.informers.informer::<Node>();
    let slices = context.informers.informer::<EndpointSlice>();
    let limits = RateLimits { base_delay: Duration::from_secs(1), ..RateLimits::default() };
    let queue: WorkQueue<ObjectKey> = WorkQueue::with_limits("endpoint_slice", context.clock().clone(), limits);
    let controller = Arc::new(EndpointSliceController {
        client: context.client_for(NAME),
        recorder: context.recorder.for_component("endpoint-slice-controller"),
        services: services.lister(),
        pods: pods.lister(),
        nodes: nodes.lister(),
        slices: slices.lister(),
        written: Written::new(context.clock().clone(), Arc::clone(slices.core())),
        trigger_times: TriggerTimes::default(),
        style: Style { managed_by: MANAGED_BY, endpoints_max: context.config.endpoints_per_slice_max },
    });

    enqueue_all(&services, &queue);
    let (lister, keys) = (services.lister(), queue.clone());
    pods.add_handler(move |delta| affected_services(&lister, &delta).into_iter().for_each(|key| keys.add(key)));
    let (observer, keys) = (Arc::clone(&controller), queue.clone());
    slices.add_handler(move |delta| observer.slice_changed(&delta, &keys));
    let (observer, keys) = (Arc::clone(&controller), queue.clone());
    nodes.add_handler(move |delta| observer.node_changed(&delta, &keys));
    let runner = Runner::new(NAME, queue, controller).workers(context.config.concurrent_syncs);
    Box::pin(runner.retries_max(RETRIES_MAX).run(context.shutdown.clone()))
}

impl EndpointSliceController {
    /// A slice that another changed or deleted is put right. Our own writes only clear what we wait for.
    fn slice_changed(&self, delta: &Delta<Arc<EndpointSlice>>, queue: &WorkQueue<ObjectKey>) {
        let slice = delta.object();
        self.written.observe(&slice.metadata, matches!(delta, Delta::Deleted(_)));
        for slice in delta.old().into_iter().chain([slice]) {
            let label = |name: &str| slice.metadata.labels.as_ref().and_then(|labels| labels.get(name));
            if label("endpointslice.kubernetes.io/managed-by").is_some_and(|by| by == MANAGED_BY)
                && let Some(service) = label("kubernetes.io/service-name")
            {
                let namespace = slice.metadata.namespace.as_deref().unwrap_or_default();
                queue.add(ObjectKey::new(namespace, service.as_str()));
            }
        }
    }

    /// A node that appears or moves gives the pods on it their zone. What its zone can bear decides about hints.
    fn node_changed(&self, delta: &Delta<Arc<Node>>, queue: &WorkQueue<ObjectKey>) {
        let node = delta.object();
        let old = delta.old().map(|old| topology::capacity(old));
        if matches!(delta, Delta::Deleted(_)) || old != Some(topology::capacity(node)) {
            let services = self.services.list_all("");
            let concerned = services.iter().filter(|service| topology::is_wanted(service));
            concerned.for_each(|service| queue.add(object_key(&**service)));
        }
        if matches!(delta, Delta::Deleted(_)) || delta.old().is_some_and(|old| zone(old) == zone(node)) {
            return;
        }
        if matches!(delta, Delta::Added(_)) && zone(node).is_none() && self.services.is_empty() {
            return;
        }
        let name = node.metadata.name.as_deref().unwrap_or_default();
        for pod in pods_on(&self.pods, name) {
            affected_services(&self.services, &Delta::Added(pod)).into_iter().for_each(|key| queue.add(key));
        }
    }

    fn tell(&self, service: &Service, hinting: &Hinting) {
        let family = hinting.address_type;
        match &hinting.outcome {
            Ok(()) if hinting.is_new => {
                let text = format!("Topology Aware Hints has been enabled, addressType: {family}");
                self.recorder.normal(service, "TopologyAwareHintsEnabled", text);
            }
            Ok(()) => {}
            Err(refusal) => {
                let text = format!("{refusal}, addressType: {family}");
                self.recorder.warning(service, "TopologyAwareHintsDisabled", text);
            }
        }
    }

    /// The pods behind a Service with their zones, and those left out because their node is unknown.
    fn endpoints_of(&self, service: &Service) -> (Vec<ZonedPod>, Vec<String>) {
        let namespace = service.metadata.namespace.as_deref().unwrap_or_default();
        let wanted = service.spec.as_ref().and_then(|spec| spec.selector.clone()).unwrap_or_default();
        let selector = Selector::from_set(wanted.iter().map(|(key, value)| (key.as_str(), value.as_str())));
        let (mut endpoints, mut left_out) = (Vec::new(), Vec::new());
        for pod in self.pods.list(namespace, &selector) {
            if !should_be_in_endpoints(&pod, true) || !selects(service, pod.metadata.labels.as_ref()) {
                continue;
            }
            match self.nodes.get_named("", pods::node_name(&pod)) {
                Some(node) => endpoints.push((pod, zone(&node))),
                None if publishes_not_ready(service) => endpoints.push((pod, None)),
                None => left_out.push(pod.metadata.name.clone().unwrap_or_default()),
            }
        }
        (endpoints, left_out)
    }
}

impl Reconciler for EndpointSliceController {
    async fn sync(&self, key: &ObjectKey) -> Result<Requeue, SyncError> {
        let Some(service) = self.services.get(key) else {
            self.trigger_times.forget(key);
            metrics().slices.forget(key);
            return Ok(Requeue::Never);
        };
        if !wants_endpoints(&service) {
            return Ok(Requeue::Never);
        }
        if let Some(wait) = self.written.unsettled(key) {
            // The event that settles it queues the key; the wait is for one that never comes.
            metrics().slices.synced("stale");
            return Ok(Requeue::After(wait));
        }
        let labels =
            [("kubernetes.io/service-name", &*key.name), ("endpointslice.kubernetes.io/managed-by", MANAGED_BY)];
        let existing = self.slices.list(&key.namespace, &Selector::from_set(labels));
        let existing: Vec<_> =
            existing.into_iter().filter(|slice| slice.metadata.deletion_timestamp.is_none()).collect();
        let (endpoints, left_out) = self.endpoints_of(&service);
        let pods: Vec<_> = endpoints.iter().map(|(pod, _)| Arc::clone(pod)).collect();
        let trigger = self.trigger_times.last_change(key, &service, &pods);
        let nodes = if topology::is_wanted(&service) { self.nodes.list_all("") } else { Vec::new() };
        let shares = topology::shares(nodes.iter().map(|node| &**node));
        let (mut changes, hintings) = plan(Inputs {
            service: &service,
            pods: &endpoints,
            existing: &existing,
            shares: shares.as_ref(),
            style: &self.style,
        });
        hintings.iter().for_each(|hinting| self.tell(&service, hinting));
        changes.create.iter_mut().chain(&mut changes.update).for_each(|slice| annotate(slice, trigger.as_deref()));
        if service.metadata.deletion_timestamp.is_some() {
            changes.create.clear();
        }
        let distribution = service.spec.as_ref().and_then(|spec| spec.traffic_distribution.as_deref());
        let outlook = Outlook::new(&existing, &changes, self.style.endpoints_max).distributed(distribution);
        let topology = if topology::is_wanted(&service) { "Auto" } else { "Disabled" };
        let result = slices::carry_out(&self.client, &self.written, key, changes).await;
        if result.is_ok() {
            metrics().slices.written(key, outlook, topology);
        }
        let result = result.and_then(|()| match left_out.first() {
            None => Ok(()),
            Some(pod) => Err(SyncError::other(format!("skipping Pod {pod} for Service {key}: Node Not Found"))),
        });
        metrics().slices.synced(if result.is_ok() { "success" } else { "error" });
        match result {
            Ok(()) => Ok(Requeue::Never),
            Err(error) => {
                let text = format!("Error updating Endpoint Slices for Service {key}: {error}");
                self.recorder.warning(&*service, "FailedToUpdateEndpointSlices", text);
                Err(error)
            }
        }
    }
}

fn zone(node: &Node) -> Option<String> {
    node.metadata.labels.as_ref()?.get("topology.kubernetes.io/zone").filter(|zone| !zone.is_empty()).cloned()
}

fn annotate(slice: &mut EndpointSlice, trigger: Option<&str>) {
    let annotations = slice.metadata.annotations.get_or_insert_default();
    match trigger {
        Some(time) => drop(annotations.insert(LAST_CHANGE_TRIGGER_TIME.to_owned(), time.to_owned())),
        None => drop(annotations.remove(LAST_CHANGE_TRIGGER_TIME)),
    }
}
