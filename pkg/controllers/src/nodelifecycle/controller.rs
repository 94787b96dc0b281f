//! Looks at one node at a time.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rkube_api::k8s::coordination::v1::Lease;
use rkube_api::k8s::core::v1::{Node, Pod, PodCondition};
use rkube_api::meta::pkg::apis::meta::v1::{MicroTime, Time};
use rkube_apimachinery::clock::SharedClock;
use rkube_apimachinery::key::ObjectKey;
use rkube_client::owner::{object_key, uid_of};
use rkube_client::{Client, Delta, EventRecorder, EventType, Lister, Patch, Reconciler, Requeue, SyncError, WorkQueue};
use serde_json::{Value, json};
use tracing::info;

use super::NAME;
use super::plan::{
    NoExecute, ZoneState, missing_labels, no_execute, same_taints, silent_conditions, wanted_taints, zone_state,
};
use crate::common::nodes::{condition, index_by_node, node_reference, pods_on, ready_status, taints, zone_key};
use crate::common::pods;
use crate::config::ControllerConfig;
use crate::context::{ControllerContext, Running};
use crate::metrics::metrics;

const LEASE_NAMESPACE: &str = "kube-node-lease";
/// A node without it counts for the health of its zone.
const EXCLUDED_LABEL: &str = "node.kubernetes.io/exclude-disruption";

struct NodeController {
    client: Client,
    recorder: EventRecorder,
    clock: SharedClock,
    config: Arc<ControllerConfig>,
    nodes: Lister<Node>,
    leases: Lister<Lease>,
    pods: Lister<Pod>,
    queue: WorkQueue<ObjectKey>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    health: HashMap<String, Health>,
    /// When the next node of a zone may be tainted.
    zones: BTreeMap<String, Duration>,
    /// Whether no node at all is ready.
    all_down: bool,
    /// Whether a node has been ready since the start: before that nothing is lost that could come back.
    had_ready: bool,
    readiness: Readiness,
}

/// Ready and other nodes of each zone, counted as nodes change: looking at one node must not cost a look at all.
///
/// Invariant: `zones` sums up `members`, and has no zone without one.
#[derive(Default)]
struct Readiness {
    /// Zone and readiness of each node that counts.
    members: HashMap<String, (String, bool)>,
    zones: BTreeMap<String, (usize, usize)>,
}

impl Readiness {
    /// The node's place now; `None` if it is gone or does not count.
    fn place(&mut self, node: &str, now: Option<(String, bool)>) {
        let before = match &now {
            Some(place) => self.members.insert(node.to_owned(), place.clone()),
            None => self.members.remove(node),
        };
        let concerned: BTreeSet<String> = [&before, &now].into_iter().flatten().map(|(zone, _)| zone.clone()).collect();
        if let Some((zone, ready)) = now {
            let (ready_nodes, others) = self.zones.entry(zone).or_default();
            *(if ready { ready_nodes } else { others }) += 1;
        }
        if let Some((zone, ready)) = before
            && let Some((ready_nodes, others)) = self.zones.get_mut(&zone)
        {
            *(if ready { &mut *ready_nodes } else { &mut *others }) -= 1;
            if *ready_nodes + *others == 0 {
                self.zones.remove(&zone);
            }
        }
        for zone in concerned {
            let (ready, not_ready) = self.zones.get(&zone).copied().unwrap_or_default();
            metrics().zone(&zone, ready, not_ready);
        }
    }
}

/// Where a node counts, if it does.
fn place(node: &Node) -> Option<(String, bool)> {
    let is_excluded = node.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(EXCLUDED_LABEL));
    (!is_excluded).then(|| (zone_key(node), ready_status(node) == Some("True")))
}

/// The last sign of life of a node.
#[derive(Default)]
struct Health {
    seen_at: Duration,
    heartbeat: Option<Time>,
    renewed: Option<MicroTime>,
    /// The readiness seen last, for the event of its change.
    ready: Option<String>,
}

pub(super) fn start(context: &ControllerContext) -> Running {
    let nodes = context.informers.informer::<Node>();
    let leases = context.informers.scoped::<Lease>(LEASE_NAMESPACE, "", "");
    let pods = context.informers.informer::<Pod>();
    index_by_node(&pods);
    let queue: WorkQueue<ObjectKey> = context.queue("node_lifecycle_controller");
    let controller = Arc::new(NodeController {
        client: context.client_for(NAME),
        recorder: context.recorder.for_component("node-controller"),
        clock: context.clock().clone(),
        config: Arc::clone(&context.config),
        nodes: nodes.lister(),
        leases: leases.lister(),
        pods: pods.lister(),
        queue: queue.clone(),
        state: Mutex::default(),
    });
    let observer = Arc::clone(&controller);
    nodes.add_handler(move |delta| observer.node_changed(&delta));
    let observer = Arc::clone(&controller);
    leases.add_handler(move |delta| observer.lease_changed(&delta));
    let observer = Arc::clone(&controller);
    pods.add_handler(move |delta| observer.pod_changed(&delta));
    context.run(NAME, &queue, &controller, 8)
}

impl NodeController {
    fn node_changed(&self, delta: &Delta<Arc<Node>>) {
        let node = delta.object();
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let reference = || node_reference(name, uid_of(&**node));
        let now = if matches!(delta, Delta::Deleted(_)) { None } else { place(node) };
        self.state.lock().readiness.place(name, now);
        match delta {
            Delta::Deleted(_) => {
                self.state.lock().health.remove(name);
                let text = format!("Node {name} event: Removing Node {name} from Controller");
                self.recorder.event_about(reference(), EventType::Normal, "RemovingNode", text);
            }
            Delta::Added(_) => {
                let text = format!("Node {name} event: Registered Node {name} in Controller");
                self.recorder.event_about(reference(), EventType::Normal, "RegisteredNode", text);
                self.see_node(node);
            }
            Delta::Updated { .. } => self.see_node(node),
        }
        // Also for a node that is gone: what it was may have been all that was ready.
        self.queue.add(object_key(&**node));
    }

    /// A heartbeat that differs from the last is a sign of life.
    fn see_node(&self, node: &Node) {
        let ready = condition(node, "Ready");
        let heartbeat = ready.and_then(|ready| ready.last_heartbeat_time.clone());
        let now = self.clock.monotonic();
        let mut state = self.state.lock();
        let fresh = || Health { seen_at: now, ..Health::default() };
        let health = state.health.entry(node.metadata.name.clone().unwrap_or_default()).or_insert_with(fresh);
        if health.heartbeat != heartbeat {
            health.seen_at = now;
            health.heartbeat = heartbeat;
        }
    }

    fn lease_changed(&self, delta: &Delta<Arc<Lease>>) {
        if !matches!(delta, Delta::Deleted(_)) {
            self.see_lease(delta.object());
        }
    }

    fn see_lease(&self, lease: &Lease) {
        let renewed = lease.spec.as_ref().and_then(|spec| spec.renew_time.clone());
        let now = self.clock.monotonic();
        let mut state = self.state.lock();
        let Some(health) = state.health.get_mut(lease.metadata.name.as_deref().unwrap_or_default()) else { return };
        let newer = match (&health.renewed, &renewed) {
            (Some(known), Some(renewed)) => renewed.0 > known.0,
            (None, Some(_)) => true,
            (_, None) => false,
        };
        if newer {
            health.seen_at = now;
            health.renewed = renewed;
        }
    }

    /// A pod that is, or becomes, ready on a node that is not.
    fn pod_changed(&self, delta: &Delta<Arc<Pod>>) {
        let pod = delta.object();
        if matches!(delta, Delta::Deleted(_)) || !pods::is_ready(pod) {
            return;
        }
        let name = pods::node_name(pod);
        let down = self.state.lock().health.get(name).is_some_and(|health| health.ready.as_deref() != Some("True"));
        if down {
            self.queue.add(ObjectKey::cluster(name));
        }
    }

    /// How long the node may still be silent.
    fn silence_left(&self, node: &Node) -> Duration {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        if !self.state.lock().health.contains_key(name) {
            self.see_node(node);
        }
        if let Some(lease) = self.leases.get_named(LEASE_NAMESPACE, name) {
            // A lease may have come before its node did.
            self.see_lease(&lease);
        }
        let never_ready = condition(node, "Ready").is_none();
        let grace =
            if never_ready { self.config.node_startup_grace_period } else { self.config.node_monitor_grace_period };
        let seen = self.state.lock().health.get(name).map_or(Duration::ZERO, |health| health.seen_at);
        (seen + grace).saturating_sub(self.clock.monotonic())
    }

    fn zones(&self) -> BTreeMap<String, (usize, usize)> {
        self.state.lock().readiness.zones.clone()
    }

    /// Whether no node is ready. When that changes all nodes are looked at again, and given time.
    fn all_down(&self, zones: &BTreeMap<String, (usize, usize)>) -> bool {
        let all_down = !zones.is_empty() && zones.values().all(|(ready, _)| *ready == 0);
        let mut state = self.state.lock();
        let had_ready = state.had_ready;
        state.had_ready |= !all_down && !zones.is_empty();
        if state.all_down != all_down {
            state.all_down = all_down;
            let now = self.clock.monotonic();
            match all_down {
                true if had_ready => info!("No node is ready, nothing is evicted"),
                false if had_ready => info!("Some nodes are ready again, evictions go on"),
                // The first node of a cluster was not ready yet.
                _ => {}
            }
            if !all_down {
                state.health.values_mut().for_each(|health| health.seen_at = now);
            }
            drop(state);
            self.nodes.list_all("").iter().for_each(|node| self.queue.add(object_key(&**node)));
        }
        all_down
    }

    /// How long to wait before another node of the zone is tainted; `None` while none may be.
    fn eviction_wait(&self, zone: &str, zones: &BTreeMap<String, (usize, usize)>) -> Option<Duration> {
        let (ready, not_ready) = zones.get(zone).copied().unwrap_or_default();
        let rate = match zone_state(ready, not_ready, self.config.unhealthy_zone_threshold) {
            ZoneState::Partial if ready + not_ready > self.config.large_cluster_size_threshold => {
                self.config.secondary_node_eviction_rate
            }
            ZoneState::Partial => 0.0,
            // A zone that is down while others are not is really down.
            ZoneState::Normal | ZoneState::Full => self.config.node_eviction_rate,
        };
        if rate <= 0.0 {
            return None;
        }
        let now = self.clock.monotonic();
        let mut state = self.state.lock();
        let next = state.zones.entry(zone.to_owned()).or_insert(now);
        if *next > now {
            return Some(*next - now);
        }
        *next = now + Duration::from_secs_f32(1.0 / rate);
        Some(Duration::ZERO)
    }

    async fn mark_silent(&self, node: &Node) -> Result<Option<Node>, SyncError> {
        let conditions = silent_conditions(node, self.clock.now());
        if node.status.as_ref().and_then(|status| status.conditions.as_ref()) == Some(&conditions) {
            return Ok(None);
        }
        let mut updated = node.clone();
        updated.status.get_or_insert_default().conditions = Some(conditions);
        let api = self.client.all::<Node>();
        Ok(Some(api.update_status(&updated).await.map_err(SyncError::during("updating node conditions"))?))
    }

    /// Writes taints and labels in one patch, if they change.
    async fn patch(&self, node: &Node, execute: Option<NoExecute>) -> Result<(), SyncError> {
        let wanted = wanted_taints(node, execute, self.clock.now());
        let labels = missing_labels(node);
        let same = same_taints(&wanted, taints(node));
        if same && labels.is_empty() {
            return Ok(());
        }
        let mut patch = json!({"metadata": {"resourceVersion": node.metadata.resource_version}});
        for (name, value) in labels {
            patch["metadata"]["labels"][name] = value.into();
        }
        if !same {
            let list: Vec<Value> = wanted.iter().map(taint_value).collect();
            patch["spec"]["taints"] = list.into();
        }
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let api = self.client.all::<Node>();
        api.patch(name, &Patch::Merge(patch)).await.map_err(SyncError::during("tainting a node"))?;
        Ok(())
    }

    async fn mark_pods_unready(&self, node: &str) -> Result<(), SyncError> {
        let mut errors = Vec::new();
        for pod in pods_on(&self.pods, node).into_iter().filter(|pod| pods::is_ready(pod)) {
            let wanted =
                PodCondition { type_: "Ready".to_owned(), status: "False".to_owned(), ..PodCondition::default() };
            match pods::patch_condition(&self.client, &pod, wanted, self.clock.now()).await {
                Ok(true) => self.recorder.warning(&*pod, "NodeNotReady", "Node is not ready"),
                Ok(false) => {}
                Err(error) if error.is_not_found() => {}
                Err(error) => errors.push(error.into()),
            }
        }
        SyncError::all(errors)
    }

    /// Remembers readiness and says so when a node stops being ready.
    fn note_ready(&self, node: &Node) {
        let name = node.metadata.name.clone().unwrap_or_default();
        let ready = ready_status(node).map(str::to_owned);
        let mut state = self.state.lock();
        let Some(health) = state.health.get_mut(&name) else { return };
        let was_ready = health.ready.as_deref() == Some("True");
        health.ready.clone_from(&ready);
        if was_ready && ready.as_deref() != Some("True") {
            let text = format!("Node {name} status is now: NodeNotReady");
            self.recorder.event_about(node_reference(&name, uid_of(node)), EventType::Normal, "NodeNotReady", text);
        }
    }
}

/// A taint as JSON; the typed form is serialized in `api` only.
fn taint_value(taint: &rkube_api::k8s::core::v1::Taint) -> Value {
    let mut value = json!({"key": taint.key, "effect": taint.effect});
    if let Some(text) = &taint.value {
        value["value"] = text.clone().into();
    }
    if let Some(time) = &taint.time_added {
        value["timeAdded"] = rkube_apimachinery::time::format(time.0).into();
    }
    value
}

impl Reconciler for NodeController {
    async fn sync(&self, key: &ObjectKey) -> Result<Requeue, SyncError> {
        let start = self.clock.monotonic();
        let result = self.look_after(key).await;
        metrics().node_health.observe(self.clock.monotonic().saturating_sub(start).as_secs_f64());
        result
    }
}

impl NodeController {
    async fn look_after(&self, key: &ObjectKey) -> Result<Requeue, SyncError> {
        let Some(node) = self.nodes.get(key) else {
            self.all_down(&self.zones());
            return Ok(Requeue::Never);
        };
        let left = self.silence_left(&node);
        if left.is_zero()
            && let Some(updated) = self.mark_silent(&node).await?
        {
            self.note_ready(&updated);
            // Taints follow with the event of this write.
            return Ok(Requeue::Never);
        }
        self.note_ready(&node);
        let zones = self.zones();
        let all_down = self.all_down(&zones);
        let mut requeue = if left.is_zero() { Requeue::Never } else { Requeue::After(left) };
        let execute = match no_execute(&node) {
            NoExecute::Add(_) | NoExecute::Swap(_) | NoExecute::Keep if all_down => Some(NoExecute::Remove),
            NoExecute::Add(key) => match self.eviction_wait(&zone_key(&node), &zones) {
                Some(Duration::ZERO) => {
                    metrics().evicted(&zone_key(&node));
                    Some(NoExecute::Add(key))
                }
                Some(wait) => {
                    requeue = requeue.or_sooner(Requeue::After(wait));
                    None
                }
                None => {
                    requeue = requeue.or_sooner(Requeue::After(self.config.node_monitor_grace_period));
                    None
                }
            },
            other => Some(other),
        };
        self.patch(&node, execute).await?;
        if ready_status(&node).is_some_and(|ready| ready != "True") {
            self.mark_pods_unready(&key.name).await?;
        }
        Ok(requeue)
    }
}
