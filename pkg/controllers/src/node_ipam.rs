//! Node IPAM controller: every node gets a range of pod addresses of its own, one per address family.
//!
//! Watches  v1 Node
//! Writes   v1 Node spec.podCIDR and spec.podCIDRs, once per node
//! Behaves as  pkg/controller/nodeipam/ipam/range_allocator.go, v1.36
//!
//! Invariant: a range is given out only after every node in the cache was counted, and no two nodes get one. The API
//! refuses to change a node's range, so a crash between decision and write loses nothing.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use parking_lot::Mutex;
use rkube_api::k8s::core::v1::Node;
use rkube_apimachinery::key::ObjectKey;
use rkube_client::owner::{object_key, uid_of};
use rkube_client::{Client, Delta, EventRecorder, EventType, Lister, Patch, Reconciler, Requeue, SyncError, WorkQueue};
use serde_json::json;

use crate::common::nodes::node_reference;
use crate::context::{ControllerContext, Descriptor, Running};
use crate::metrics::metrics;

const NAME: &str = "node-ipam-controller";

pub(crate) const NODEIPAM: Descriptor = Descriptor::new(NAME, "nodeipam", start);

struct Ipam {
    client: Client,
    recorder: EventRecorder,
    nodes: Lister<Node>,
    ranges: Mutex<Ranges>,
}

fn start(context: &ControllerContext) -> Running {
    let config = &context.config;
    let pools = config.cluster_cidrs.iter().map(|cidr| Pool {
        cidr: *cidr,
        prefix: if cidr.addr().is_ipv4() { config.node_cidr_mask_size_ipv4 } else { config.node_cidr_mask_size_ipv6 },
        reserved: config.service_cidrs.clone(),
        used: BTreeMap::new(),
        next: 0,
    });
    let ranges = Mutex::new(Ranges { pools: pools.collect(), by_node: HashMap::new(), counted: false });
    let nodes = context.informers.informer::<Node>();
    let queue: WorkQueue<ObjectKey> = context.queue("cidrallocator_node");
    let controller = Arc::new(Ipam {
        client: context.client_for(NAME),
        recorder: context.recorder.for_component("cidrAllocator"),
        nodes: nodes.lister(),
        ranges,
    });
    let (observer, keys) = (Arc::clone(&controller), queue.clone());
    nodes.add_handler(move |delta| {
        let key = object_key(&**delta.object());
        if matches!(delta, Delta::Deleted(_)) {
            observer.ranges.lock().release(&key.name);
        }
        keys.add(key);
    });
    context.run(NAME, &queue, &controller, 1)
}

/// A cluster range, cut into node ranges.
struct Pool {
    cidr: IpNet,
    /// Of a node's range.
    prefix: u8,
    /// Ranges that nodes must not get.
    reserved: Vec<IpNet>,
    used: BTreeMap<u64, usize>,
    /// Where the search goes on, so that a range just released is not given out at once.
    next: u64,
}

impl Pool {
    fn size(&self) -> u64 {
        let bits = self.prefix.saturating_sub(self.cidr.prefix_len()).min(63);
        if self.prefix < self.cidr.prefix_len() { 0 } else { 1 << bits }
    }

    fn range(&self, index: u64) -> Option<IpNet> {
        match self.cidr {
            IpNet::V4(cidr) => {
                let step = 1u64.checked_shl(32 - u32::from(self.prefix))?;
                let address = u64::from(u32::from(cidr.network())).checked_add(index.checked_mul(step)?)?;
                Ipv4Net::new(u32::try_from(address).ok()?.into(), self.prefix).ok().map(IpNet::V4)
            }
            IpNet::V6(cidr) => {
                let step = 1u128.checked_shl(128 - u32::from(self.prefix))?;
                let address = u128::from(cidr.network()).checked_add(u128::from(index).checked_mul(step)?)?;
                Ipv6Net::new(address.into(), self.prefix).ok().map(IpNet::V6)
            }
        }
    }

    /// Which node ranges a range lies in, first and last.
    fn indexes(&self, range: &IpNet) -> Option<(u64, u64)> {
        if !overlaps(&self.cidr, range) {
            return None;
        }
        let index = |address: IpAddr| match (self.cidr, address) {
            (IpNet::V4(cidr), IpAddr::V4(address)) => {
                let offset = u32::from(address).saturating_sub(u32::from(cidr.network()));
                Some(u64::from(offset).checked_shr(32 - u32::from(self.prefix)).unwrap_or(0))
            }
            (IpNet::V6(cidr), IpAddr::V6(address)) => {
                let offset = u128::from(address).saturating_sub(u128::from(cidr.network()));
                let index = offset.checked_shr(128 - u32::from(self.prefix)).unwrap_or(0);
                Some(u64::try_from(index).unwrap_or(u64::MAX))
            }
            _ => None,
        };
        let last = self.size().saturating_sub(1);
        Some((index(range.network())?.min(last), index(range.broadcast())?.min(last)))
    }

    fn count(&mut self, range: &IpNet, up: bool) {
        let Some((first, last)) = self.indexes(range) else { return };
        for index in first..=last {
            let uses = self.used.entry(index).or_insert(0);
            *uses = if up { *uses + 1 } else { uses.saturating_sub(1) };
            if *uses == 0 {
                self.used.remove(&index);
            }
        }
        if !up {
            metrics().range_released(&self.cidr.to_string());
        }
        metrics().ranges(&self.cidr.to_string(), self.used.len() as u64, self.size());
    }

    fn allocate(&mut self) -> Option<IpNet> {
        let size = self.size();
        let reserved: Vec<(u64, u64)> = self.reserved.iter().filter_map(|reserved| self.indexes(reserved)).collect();
        let taken = |index: &u64| {
            self.used.contains_key(index) || reserved.iter().any(|(first, last)| (first..=last).contains(&index))
        };
        // As many tries as there are taken ranges find a free one, if there is any.
        let reserved_count: u64 = reserved.iter().map(|(first, last)| (last - first).saturating_add(1)).sum();
        let tries = (self.used.len() as u64).saturating_add(reserved_count).saturating_add(1).min(size);
        let start = self.next;
        let free = (0..tries).map(|offset| start.wrapping_add(offset) % size.max(1)).find(|index| !taken(index));
        // A reserved range of more than the pool leaves nothing; else the last resort is a full search.
        let index = free.or_else(|| (0..size.min(1 << 20)).find(|index| !taken(index)))?;
        self.next = (index + 1) % size.max(1);
        metrics().range_allocated(&self.cidr.to_string(), index.wrapping_sub(start) % size.max(1));
        let range = self.range(index)?;
        self.count(&range, true);
        Some(range)
    }
}

fn overlaps(a: &IpNet, b: &IpNet) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

struct Ranges {
    pools: Vec<Pool>,
    by_node: HashMap<String, Vec<IpNet>>,
    /// Whether the nodes that have ranges already were counted.
    counted: bool,
}

impl Ranges {
    fn occupy(&mut self, node: &Node) {
        let name = node.metadata.name.clone().unwrap_or_default();
        let ranges = assigned(node);
        if ranges.is_empty() || self.by_node.contains_key(&name) {
            return;
        }
        for range in &ranges {
            self.pools.iter_mut().for_each(|pool| pool.count(range, true));
        }
        self.by_node.insert(name, ranges);
    }

    fn release(&mut self, name: &str) {
        for range in self.by_node.remove(name).unwrap_or_default() {
            self.pools.iter_mut().for_each(|pool| pool.count(&range, false));
        }
    }

    /// A range of each pool, or of none.
    fn allocate(&mut self, name: &str) -> Option<Vec<IpNet>> {
        if let Some(known) = self.by_node.get(name) {
            return Some(known.clone());
        }
        let mut ranges = Vec::with_capacity(self.pools.len());
        for index in 0..self.pools.len() {
            match self.pools.get_mut(index).and_then(Pool::allocate) {
                Some(range) => ranges.push(range),
                None => {
                    for range in &ranges {
                        self.pools.iter_mut().for_each(|pool| pool.count(range, false));
                    }
                    return None;
                }
            }
        }
        self.by_node.insert(name.to_owned(), ranges.clone());
        Some(ranges)
    }
}

/// The ranges a node has, readable ones.
fn assigned(node: &Node) -> Vec<IpNet> {
    let Some(spec) = &node.spec else { return Vec::new() };
    let all = spec.pod_cidrs.clone().unwrap_or_default();
    let texts = if all.is_empty() { spec.pod_cidr.clone().into_iter().collect() } else { all };
    texts.iter().filter_map(|text: &String| text.parse().ok()).collect()
}

impl Reconciler for Ipam {
    async fn sync(&self, key: &ObjectKey) -> Result<Requeue, SyncError> {
        {
            let mut ranges = self.ranges.lock();
            if !ranges.counted {
                self.nodes.list_all("").iter().for_each(|node| ranges.occupy(node));
                ranges.counted = true;
            }
        }
        let Some(node) = self.nodes.get(key) else { return Ok(Requeue::Never) };
        if !assigned(&node).is_empty() {
            self.ranges.lock().occupy(&node);
            return Ok(Requeue::Never);
        }
        if self.ranges.lock().pools.is_empty() || node.metadata.deletion_timestamp.is_some() {
            return Ok(Requeue::Never);
        }
        let Some(ranges) = self.ranges.lock().allocate(&key.name) else {
            let text = format!("Node {} status is now: CIDRNotAvailable", key.name);
            let reference = node_reference(&key.name, uid_of(&*node));
            self.recorder.event_about(reference, EventType::Normal, "CIDRNotAvailable", text);
            return Err(SyncError::other(
                "failed to allocate cidr: CIDR allocation failed; there are no remaining CIDRs left to allocate in the accepted range",
            ));
        };
        let texts: Vec<String> = ranges.iter().map(ToString::to_string).collect();
        let patch =
            json!({"metadata": {"uid": node.metadata.uid}, "spec": {"podCIDR": texts.first(), "podCIDRs": texts}});
        match self.client.all::<Node>().patch(&key.name, &Patch::Merge(patch)).await {
            Ok(_) => Ok(Requeue::Never),
            Err(error) if error.is_not_found() => {
                self.ranges.lock().release(&key.name);
                Ok(Requeue::Never)
            }
            // The write may have happened: the range stays taken, and the next try is the same.
            Err(error) => Err(SyncError::during("assigning pod ranges")(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::testing::{World, metadata, survives_any_crash};

    fn world() -> World {
        let mut world = World::new(&[NODEIPAM]);
        world.config.cluster_cidrs =
            vec!["10.42.0.0/22".parse().expect("a range"), "fd00::/62".parse().expect("a range")];
        world.config.service_cidrs = vec!["10.42.1.0/24".parse().expect("a range")];
        for name in ["a", "b"] {
            world.api.put(&Node { metadata: metadata("", name), ..Node::default() });
        }
        world
    }

    fn outcome(world: &World) -> String {
        let describe = |node: &Node| {
            format!(
                "{} {:?}",
                node.metadata.name.as_deref().unwrap_or_default(),
                node.spec.as_ref().and_then(|spec| spec.pod_cidrs.clone()).unwrap_or_default()
            )
        };
        world.api.list::<Node>("").iter().map(|node| describe(node)).collect::<Vec<_>>().join("\n")
    }

    #[tokio::test]
    async fn nodes_get_ranges_until_there_are_none() {
        let mut world = world();
        world.start();
        world.settle().await;
        expect_test::expect![[r#"
            a ["10.42.0.0/24", "fd00::/64"]
            b ["10.42.2.0/24", "fd00:0:0:1::/64"]"#]]
        .assert_eq(&outcome(&world));
        for name in ["c", "d"] {
            world.api.put(&Node { metadata: metadata("", name), ..Node::default() });
            world.settle().await;
        }
        assert!(outcome(&world).ends_with("c [\"10.42.3.0/24\", \"fd00:0:0:2::/64\"]\nd []"), "{}", outcome(&world));
        // A node that goes leaves its ranges to the next.
        world.api.remove::<Node>("", "a");
        world.run_for(Duration::from_secs(60)).await;
        assert!(outcome(&world).ends_with("d [\"10.42.0.0/24\", \"fd00:0:0:3::/64\"]"), "{}", outcome(&world));
    }

    #[tokio::test]
    async fn ranges_are_unique_after_a_crash_at_any_write() {
        let drive = async |world: &mut World| world.run_for(Duration::from_secs(10)).await;
        let distinct = |world: &World| {
            let nodes = world.api.list::<Node>("");
            let all: std::collections::BTreeSet<_> =
                nodes.iter().flat_map(|node| assigned(node)).map(|range| range.to_string()).collect();
            format!("{} ranges", all.len())
        };
        survives_any_crash(world, drive, distinct).await;
    }
}
