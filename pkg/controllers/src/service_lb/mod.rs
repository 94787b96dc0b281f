//! Load balancer addresses without a load balancer: Services of type `LoadBalancer` get the nodes' addresses.
//!
//! Watches  v1 Service (primary), v1 Node, discovery.k8s.io/v1 EndpointSlice
//! Writes   v1 Service status (patch), events
//! Behaves as  k3s' ServiceLB does for users, without its pods: the proxy of each node already takes what comes
//! for these addresses. Under upstream's name for the controller that does it with a cloud.
//!
//! One key stands for all Services, since the addresses of each may depend on all.

mod plan;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use parking_lot::Mutex;
use rkube_api::k8s::core::v1::{Node, Service};
use rkube_api::k8s::discovery::v1::EndpointSlice;
use rkube_apimachinery::key::ObjectKey;
use rkube_client::owner::object_key;
use rkube_client::{Client, Delta, EventRecorder, Lister, Patch, Reconciler, Requeue, SyncError, WorkQueue};
use serde_json::json;

use crate::config::ControllerConfig;
use crate::context::{ControllerContext, Descriptor, Running};
use plan::{is_local, is_ours, share_out, shown, taker};

const NAME: &str = "service-lb-controller";
const SERVICE_NAME: &str = "kubernetes.io/service-name";
const KUBELET_PORT: i32 = 10250;

pub(crate) const SERVICE_LB: Descriptor = Descriptor::new(NAME, "service", start);

struct Balancer {
    client: Client,
    recorder: EventRecorder,
    config: Arc<ControllerConfig>,
    services: Lister<Service>,
    nodes: Lister<Node>,
    slices: Lister<EndpointSlice>,
    /// Services whose want of an address was told, so that it is told once.
    told: Mutex<HashSet<ObjectKey>>,
}

fn start(context: &ControllerContext) -> Running {
    let services = context.informers.informer::<Service>();
    let nodes = context.informers.informer::<Node>();
    let slices = context.informers.informer::<EndpointSlice>();
    let queue: WorkQueue<()> = context.queue("service_lb");
    let keys = queue.clone();
    services.add_handler(move |delta| {
        let concerns = |service: &Arc<Service>| is_ours(service) || !shown(service).is_empty();
        if concerns(delta.object()) || delta.old().is_some_and(concerns) {
            keys.add(());
        }
    });
    let keys = queue.clone();
    nodes.add_handler(move |delta| {
        let old = delta.old().and_then(|old| taker(old));
        if matches!(delta, Delta::Deleted(_)) || old != taker(delta.object()) {
            keys.add(());
        }
    });
    let (keys, owners) = (queue.clone(), services.lister());
    slices.add_handler(move |delta| {
        let slice = delta.object();
        let owner = service_of(slice).and_then(|name| owners.get_named(namespace_of(slice), name));
        if owner.is_some_and(|service| is_ours(&service) && is_local(&service)) {
            keys.add(());
        }
    });
    let balancer = Arc::new(Balancer {
        client: context.client_for(NAME),
        recorder: context.recorder.for_component("service-controller"),
        config: Arc::clone(&context.config),
        services: services.lister(),
        nodes: nodes.lister(),
        slices: slices.lister(),
        told: Mutex::default(),
    });
    context.run(NAME, &queue, &balancer, 1)
}

fn service_of(slice: &EndpointSlice) -> Option<&str> {
    slice.metadata.labels.as_ref()?.get(SERVICE_NAME).map(String::as_str)
}

fn namespace_of(slice: &EndpointSlice) -> &str {
    slice.metadata.namespace.as_deref().unwrap_or_default()
}

impl Balancer {
    /// Nodes with ready endpoints of a Service.
    fn near(&self, key: &ObjectKey) -> BTreeSet<String> {
        let of_service = |labels: &[(String, String)]| {
            labels.iter().any(|(name, value)| name == SERVICE_NAME && **value == *key.name)
        };
        let slices = self.slices.list_where(&key.namespace, |selection| of_service(&selection.labels));
        let mut nodes = BTreeSet::new();
        for endpoint in slices.iter().flat_map(|slice| slice.endpoints.iter().flatten()) {
            let ready = endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true);
            nodes.extend(endpoint.node_name.clone().filter(|_| ready));
        }
        nodes
    }

    async fn show(&self, service: &Service, addresses: &[String]) -> Result<(), SyncError> {
        let key = object_key(service);
        let ingress: Vec<_> = addresses.iter().map(|ip| json!({"ip": ip, "ipMode": "VIP"})).collect();
        let ingress = if ingress.is_empty() { json!(null) } else { json!(ingress) };
        let patch = Patch::Merge(json!({"status": {"loadBalancer": {"ingress": ingress}}}));
        match self.client.namespaced::<Service>(&key.namespace).patch_status(&key.name, &patch).await {
            Ok(_) if addresses.is_empty() => {}
            Ok(_) => self.recorder.normal(service, "EnsuredLoadBalancer", "Ensured load balancer"),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(SyncError::during(format!("writing the addresses of {key}"))(error)),
        }
        Ok(())
    }
}

impl Reconciler<()> for Balancer {
    async fn sync(&self, (): &()) -> Result<Requeue, SyncError> {
        let services = self.services.list_all("");
        let takers: Vec<_> = self.nodes.list_all("").iter().filter_map(|node| taker(node)).collect();
        let api = self.config.api_server_port.map(|port| (i32::from(port), "the API server"));
        let reserved: BTreeMap<_, _> = api.into_iter().chain([(KUBELET_PORT, "the kubelet")]).collect();
        let shares = share_out(&services, &takers, &reserved, |key| self.near(key));
        let mut errors = Vec::new();
        for service in &services {
            let is_balancer = service.spec.as_ref().is_some_and(|spec| spec.type_.as_deref() == Some("LoadBalancer"));
            let share = shares.get(&object_key(&**service));
            // Another controller's; but a Service that is no load balancer any more has nothing left to show.
            if share.is_none() && is_balancer {
                continue;
            }
            let addresses: Vec<_> = share.iter().flat_map(|share| &share.addresses).map(ToString::to_string).collect();
            if shown(service) != addresses {
                errors.extend(self.show(service, &addresses).await.err());
            }
            let refusal = share.and_then(|share| share.refusal.as_ref());
            self.tell(service, refusal);
        }
        self.told.lock().retain(|key| shares.contains_key(key));
        SyncError::all(errors)?;
        Ok(Requeue::Never)
    }
}

impl Balancer {
    fn tell(&self, service: &Service, refusal: Option<&plan::Refusal>) {
        let key = object_key(service);
        let Some(refusal) = refusal else {
            self.told.lock().remove(&key);
            return;
        };
        if self.told.lock().insert(key) {
            let text = format!("Error syncing load balancer: {refusal}");
            self.recorder.warning(service, "SyncLoadBalancerFailed", text);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use expect_test::expect;
    use rkube_api::Kind;
    use serde_json::{Value, json};

    use super::*;
    use crate::testing::{World, events, survives_any_crash};

    fn put_service(world: &World, name: &str, spec: Value) {
        let metadata = json!({"namespace": "default", "name": name, "creationTimestamp": "2029-12-31T00:00:00Z"});
        let service = json!({"metadata": metadata, "spec": spec});
        world.api.put(&Service::from_value(service).expect("a Service"));
    }

    fn arrange() -> World {
        let world = World::new(&[SERVICE_LB]);
        for (name, ip) in [("a", "192.0.2.1"), ("b", "192.0.2.2")] {
            let status = json!({
                "conditions": [{"type": "Ready", "status": "True"}],
                "addresses": [{"type": "InternalIP", "address": ip}],
            });
            let node = json!({"metadata": {"name": name}, "status": status});
            world.api.put(&Node::from_value(node).expect("a Node"));
        }
        put_service(&world, "web", json!({"type": "LoadBalancer", "ports": [{"port": 80}]}));
        put_service(&world, "web2", json!({"type": "LoadBalancer", "ports": [{"port": 80}]}));
        let local = json!({"type": "LoadBalancer", "ports": [{"port": 81}], "externalTrafficPolicy": "Local"});
        put_service(&world, "near", local);
        let slice = json!({
            "metadata": {"namespace": "default", "name": "near-1", "labels": {SERVICE_NAME: "near"}},
            "addressType": "IPv4",
            "endpoints": [{"addresses": ["10.42.0.5"], "nodeName": "b"}],
        });
        world.api.put(&EndpointSlice::from_value(slice).expect("an EndpointSlice"));
        world
    }

    fn outcome(world: &World) -> String {
        let mut text = String::new();
        for service in world.api.list::<Service>("default") {
            let _ = writeln!(text, "{} {:?}", service.metadata.name.as_deref().unwrap_or_default(), shown(&service));
        }
        text
    }

    #[tokio::test]
    async fn addresses_follow_nodes_and_services() {
        let mut world = arrange();
        world.start();
        world.settle().await;
        expect![[r#"
            near ["192.0.2.2"]
            web ["192.0.2.1", "192.0.2.2"]
            web2 []
        "#]]
        .assert_eq(&outcome(&world));
        expect![[r#"
            Normal EnsuredLoadBalancer: Ensured load balancer
            Normal EnsuredLoadBalancer: Ensured load balancer
            Warning SyncLoadBalancerFailed: Error syncing load balancer: port 80 of every node is used by Service default/web"#]].assert_eq(&events(&world, "default"));
        // The port is free again for the other, and a node that is not ready takes nothing.
        world.api.edit::<Service>("default", "web", |service| {
            service.spec.get_or_insert_default().type_ = Some("ClusterIP".to_owned());
        });
        world.api.edit::<Node>("", "a", |node| {
            let conditions = node.status.get_or_insert_default().conditions.iter_mut().flatten();
            conditions.for_each(|condition| condition.status = "Unknown".to_owned());
        });
        world.settle().await;
        expect![[r#"
            near ["192.0.2.2"]
            web []
            web2 ["192.0.2.2"]
        "#]]
        .assert_eq(&outcome(&world));
        // Nothing changes, so nothing is written.
        world.api.take_actions();
        world.api.edit::<Node>("", "b", |node| node.status.get_or_insert_default().images = Some(Vec::new()));
        world.settle().await;
        assert_eq!(world.api.take_writes(), "");
    }

    #[tokio::test]
    async fn converges_after_a_crash_at_any_write() {
        survives_any_crash(arrange, World::settle, outcome).await;
    }
}
