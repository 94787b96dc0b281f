//! Service CIDR controller: a ServiceCIDR is ready when it is made, and goes when no address of a Service needs it.
//!
//! Watches  networking.k8s.io/v1 ServiceCIDR (primary); IPAddress (those of Services)
//! Writes   ServiceCIDR (its finalizer, its condition Ready)
//! Behaves as  pkg/controller/servicecidrs/servicecidrs_controller.go, v1.36

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use rkube_api::Kind;
use rkube_api::k8s::networking::v1::{IPAddress, ServiceCIDR};
use rkube_apimachinery::key::ObjectKey;
use rkube_apimachinery::time;
use rkube_client::owner::object_key;
use rkube_client::{Client, Delta, EventRecorder, Lister, Patch, Reconciler, Requeue, Runner, SyncError, WorkQueue};
use serde_json::json;
use tracing::info;

use crate::common::errors::ignore_not_found;
use crate::context::{ControllerContext, Descriptor, Running};

const NAME: &str = "service-cidr-controller";
const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";
const MANAGED_BY_LABEL: &str = "ipaddress.kubernetes.io/managed-by";
const ALLOCATOR: &str = "ipallocator.k8s.io";
/// Until every server knows that no address may be taken from it any more.
const DELETION_GRACE: Duration = Duration::from_secs(10);
const RETRIES_MAX: u32 = 15;

pub(crate) const SERVICE_CIDR: Descriptor = Descriptor::new(NAME, NAME, start);

struct ServiceCidrs {
    client: Client,
    recorder: EventRecorder,
    cidrs: Lister<ServiceCIDR>,
    addresses: Lister<IPAddress>,
}

fn start(context: &ControllerContext) -> Running {
    let cidrs = context.informers.informer::<ServiceCIDR>();
    let addresses = context.informers.informer::<IPAddress>();
    let queue: WorkQueue<ObjectKey> = context.queue("ipaddresses");
    let controller = Arc::new(ServiceCidrs {
        client: context.client_for(NAME),
        recorder: context.recorder.for_component(NAME),
        cidrs: cidrs.lister(),
        addresses: addresses.lister(),
    });
    let (lister, keys) = (cidrs.lister(), queue.clone());
    cidrs.add_handler(move |delta| {
        let cidr = delta.object();
        keys.add(object_key(&**cidr));
        // One that appears or goes decides whether those it overlaps may go.
        if !matches!(delta, Delta::Updated { .. }) {
            let own = networks(cidr);
            let overlaps = |other: &ServiceCIDR| {
                networks(other).iter().any(|one| own.iter().any(|two| one.contains(two) || two.contains(one)))
            };
            lister.list_all("").iter().filter(|other| overlaps(other)).for_each(|other| keys.add(object_key(&**other)));
        }
    });
    let (lister, keys) = (cidrs.lister(), queue.clone());
    addresses.add_handler(move |delta| {
        if !matches!(delta, Delta::Updated { .. })
            && let Some(address) = address_of_service(delta.object())
        {
            let containing = lister.list_all("");
            let containing = containing.iter().filter(|cidr| holds(cidr, address));
            containing.for_each(|cidr| keys.add(object_key(&**cidr)));
        }
    });
    let runner = Runner::new(NAME, queue, controller).workers(5);
    Box::pin(runner.retries_max(RETRIES_MAX).run(context.shutdown.clone()))
}

fn networks(cidr: &ServiceCIDR) -> Vec<IpNet> {
    let texts = cidr.spec.as_ref().and_then(|spec| spec.cidrs.as_deref()).unwrap_or_default();
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}

/// The address, if the allocator of Services manages it.
fn address_of_service(address: &IPAddress) -> Option<IpAddr> {
    let managed_by = address.metadata.labels.as_ref().and_then(|labels| labels.get(MANAGED_BY_LABEL));
    managed_by.filter(|by| *by == ALLOCATOR)?;
    address.metadata.name.as_deref()?.parse().ok()
}

/// Whether a Service may have this address from it: neither the network's own nor IPv4's broadcast.
fn holds(cidr: &ServiceCIDR, address: IpAddr) -> bool {
    networks(cidr).iter().any(|network| {
        let is_broadcast = address.is_ipv4() && network.broadcast() == address;
        network.contains(&address) && network.network() != address && !is_broadcast
    })
}

impl ServiceCidrs {
    /// Whether every network of it lies in another ServiceCIDR, or no address would be left without one.
    fn can_go(&self, cidr: &ServiceCIDR) -> bool {
        let all = self.cidrs.list_all("");
        let others = || all.iter().filter(|other| other.metadata.name != cidr.metadata.name);
        let has_parent =
            |network: &IpNet| others().any(|other| networks(other).iter().any(|parent| parent.contains(network)));
        if networks(cidr).iter().all(has_parent) {
            return true;
        }
        let addresses = self.addresses.list_all("");
        let mut own = addresses.iter().filter_map(|object| address_of_service(object));
        !own.any(|address| holds(cidr, address) && !others().any(|other| holds(other, address)))
    }

    async fn set_ready(&self, cidr: &ServiceCIDR, status: &str, reason: &str, message: &str) -> Result<(), SyncError> {
        let conditions = cidr.status.iter().flat_map(|status| status.conditions.iter().flatten());
        let mut current = conditions.filter(|condition| condition.type_ == "Ready");
        if current.any(|now| now.status == status && now.reason == reason && now.message == message) {
            return Ok(());
        }
        let name = cidr.metadata.name.as_deref().unwrap_or_default();
        let object = json!({
            "apiVersion": "networking.k8s.io/v1", "kind": ServiceCIDR::KIND, "metadata": { "name": name },
            "status": { "conditions": [{
                "type": "Ready", "status": status, "reason": reason, "message": message,
                "lastTransitionTime": time::format(self.client.clock().now()),
            }] },
        });
        let patch = Patch::Apply { object, field_manager: NAME.to_owned(), force: true };
        let applied = self.client.all::<ServiceCIDR>().patch_status(name, &patch).await;
        applied.map(drop).map_err(SyncError::during("updating the condition of a ServiceCIDR"))
    }

    async fn patch_finalizers(&self, cidr: &ServiceCIDR, directive: &str) -> Result<(), SyncError> {
        let name = cidr.metadata.name.as_deref().unwrap_or_default();
        let patch = Patch::Strategic(json!({ "metadata": { directive: [FINALIZER] } }));
        let patched = self.client.all::<ServiceCIDR>().patch(name, &patch).await.map(drop);
        ignore_not_found(patched).map_err(SyncError::during("changing the finalizers of a ServiceCIDR"))
    }
}

impl Reconciler for ServiceCidrs {
    async fn sync(&self, key: &ObjectKey) -> Result<Requeue, SyncError> {
        let Some(cidr) = self.cidrs.get(key) else { return Ok(Requeue::Never) };
        let is_protected = cidr.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == FINALIZER);
        if let Some(deleted) = &cidr.metadata.deletion_timestamp {
            if !self.can_go(&cidr) {
                let text = "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new \
                    ServiceCIDR";
                self.set_ready(&cidr, "False", "Terminating", text).await?;
                return Ok(Requeue::Never);
            }
            let since = self.client.clock().now().duration_since(deleted.0);
            let left = DELETION_GRACE.saturating_sub(Duration::try_from(since).unwrap_or(Duration::ZERO));
            if !left.is_zero() {
                return Ok(Requeue::After(left));
            }
            if is_protected {
                self.patch_finalizers(&cidr, "$deleteFromPrimitiveList/finalizers").await?;
                info!(cidr = %key, "Released ServiceCIDR");
            }
            return Ok(Requeue::Never);
        }
        if !is_protected {
            self.patch_finalizers(&cidr, "finalizers").await?;
        }
        if let Err(error) = self.set_ready(&cidr, "True", "", "Kubernetes Service CIDR is ready").await {
            let text = "The ServiceCIDR Status can not be set to Ready=True";
            self.recorder.warning(&*cidr, "KubernetesServiceCIDRError", text);
            return Err(error);
        }
        Ok(Requeue::Never)
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use rkube_api::k8s::networking::v1::ServiceCIDRSpec;
    use rkube_api::meta::pkg::apis::meta::v1::Time;

    use super::*;
    use crate::testing::{World, labels, metadata, survives_any_crash};

    fn cidr(name: &str, network: &str) -> ServiceCIDR {
        let spec = ServiceCIDRSpec { cidrs: Some(vec![network.to_owned()]) };
        ServiceCIDR { metadata: metadata("", name), spec: Some(spec), status: None }
    }

    fn address(name: &str) -> IPAddress {
        let mut address = IPAddress { metadata: metadata("", name), ..IPAddress::default() };
        address.metadata.labels = Some(labels(&[(MANAGED_BY_LABEL, ALLOCATOR)]));
        address
    }

    fn arrange() -> World {
        let world = World::new(&[SERVICE_CIDR]);
        world.api.put(&cidr("kubernetes", "10.43.0.0/16"));
        world.api.put(&cidr("more", "10.44.0.0/24"));
        world.api.put(&address("10.44.0.9"));
        world
    }

    fn delete(world: &World, name: &str) {
        let now = world.now();
        world.api.edit::<ServiceCIDR>("", name, |cidr| cidr.metadata.deletion_timestamp = Some(Time(now)));
    }

    fn outcome(world: &World) -> String {
        let describe = |cidr: &ServiceCIDR| {
            let conditions = cidr.status.iter().flat_map(|status| status.conditions.iter().flatten());
            let conditions = conditions.map(|one| format!("{}={} {}", one.type_, one.status, one.reason));
            format!(
                "{} {} {:?}\n",
                cidr.metadata.name.as_deref().unwrap_or_default(),
                conditions.collect::<Vec<_>>().join(" "),
                cidr.metadata.finalizers.as_deref().unwrap_or_default(),
            )
        };
        world.api.list::<ServiceCIDR>("").iter().map(|cidr| describe(cidr)).collect()
    }

    fn check(world: &World, expected: Expect) {
        expected.assert_eq(&outcome(world));
    }

    #[tokio::test]
    async fn one_in_use_stays_until_its_addresses_are_gone() {
        let mut world = arrange();
        world.start();
        world.settle().await;
        check(
            &world,
            expect![[r#"
            kubernetes Ready=True  ["networking.k8s.io/service-cidr-finalizer"]
            more Ready=True  ["networking.k8s.io/service-cidr-finalizer"]
        "#]],
        );
        delete(&world, "more");
        world.run_for(Duration::from_secs(60)).await;
        check(
            &world,
            expect![[r#"
            kubernetes Ready=True  ["networking.k8s.io/service-cidr-finalizer"]
            more Ready=False Terminating ["networking.k8s.io/service-cidr-finalizer"]
        "#]],
        );
        world.api.take_actions();
        world.run_for(Duration::from_secs(3600)).await;
        assert_eq!(world.api.take_writes(), "");

        world.api.remove::<IPAddress>("", "10.44.0.9");
        world.settle().await;
        check(
            &world,
            expect![[r#"
            kubernetes Ready=True  ["networking.k8s.io/service-cidr-finalizer"]
        "#]],
        );
    }

    #[tokio::test]
    async fn one_inside_another_goes_after_its_grace() {
        let mut world = arrange();
        world.start();
        world.api.put(&cidr("larger", "10.44.0.0/16"));
        world.settle().await;
        delete(&world, "more");
        world.run_for(Duration::from_secs(9)).await;
        assert!(world.api.get::<ServiceCIDR>("", "more").is_some());
        world.run_for(Duration::from_secs(2)).await;
        assert!(world.api.get::<ServiceCIDR>("", "more").is_none());
        // Now the address needs the larger one.
        delete(&world, "larger");
        world.run_for(Duration::from_secs(60)).await;
        assert!(world.api.get::<ServiceCIDR>("", "larger").is_some());
    }

    #[tokio::test]
    async fn converges_after_a_crash_at_any_write() {
        let drive = async |world: &mut World| {
            world.run_for(Duration::from_secs(5)).await;
            delete(world, "more");
            world.run_for(Duration::from_secs(60)).await;
            world.api.remove::<IPAddress>("", "10.44.0.9");
            world.run_for(Duration::from_secs(60)).await;
        };
        survives_any_crash(arrange, drive, outcome).await;
    }
}
