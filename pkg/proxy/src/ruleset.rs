//! What the table holds for the Services, and the least that must change to get there.
//!
//! Inputs: one Service after the other, with its endpoints. Outputs: operations for one atomic change.
//!
//! Invariant: after any sequence of changes the table holds what building it anew would give, but for the
//! numbers that Service ports, classes and endpoints have, and for at most [`RETIRED_MAX`] chains that
//! nothing leads to.
//!
//! Invariant: an element that several Services claim, as the same external address and port, belongs to the
//! first by name, whoever came first; the others get it when that one goes.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use rkube_apimachinery::key::ObjectKey;
use rkube_network::conntrack::Flow;
use rkube_network::nft::{Datum, Element, Op, UDP, Value, Verdict};

use crate::chains::{
    Arrival, CLASSES, CLUSTER_IPS, Chain, Class, DROPS, ENDPOINT_ADDRESSES, ENDPOINTS, EXTERNAL_IDS, EXTERNALS,
    FIREWALLS, Group, HAIRPINS, NODE_PORT_DROPS, NODE_PORT_IDS, NODE_PORT_REJECTS, NODE_PORTS, OWN_ADDRESSES, REJECTS,
    SERVICE_IDS, SERVICE_MAP, frame,
};
use crate::endpoints::{EndpointsByPort, Place, Serving, Target, categorize};
use crate::service::{Frontend, ServicePort};

/// Chains that nothing leads to any more are removed when there are this many: most are soon needed again.
pub const RETIRED_MAX: usize = 64;

/// The first word of values that are one, see `Rule::map`.
const UNUSED: Datum = Datum::Number(0);

type SetName = &'static str;
type ElementId = (SetName, Vec<Datum>);

/// What does not change from Service to Service.
#[derive(Clone, Debug)]
pub struct RulesetConfig {
    /// All pods.
    pub cluster: Ipv4Net,
    /// Addresses that this node serves itself, as that of cluster DNS. No Service, node port or host port gets
    /// what is sent there.
    pub own_addresses: BTreeSet<Ipv4Addr>,
}

/// A Service with all that its packets need.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceView {
    pub ports: Vec<ServicePort>,
    pub endpoints: EndpointsByPort,
}

/// What one Service brings.
#[derive(Debug, Default)]
struct Contribution {
    elements: BTreeMap<ElementId, Option<Value>>,
    chains: BTreeSet<Chain>,
    /// The endpoints in the order of their numbers.
    slots: BTreeMap<(Frontend, Group), Vec<Target>>,
    ports: Vec<(ServicePort, Serving)>,
}

/// Numbers that stand for Service ports and for classes in the table's maps. They mean nothing elsewhere, but
/// unless two collide they are the same after a restart: the affinity that the kernel remembers has them, and
/// so has a packet that is between two lookups while all is written anew.
#[derive(Debug, Default)]
struct Numbers {
    ports: HashMap<Frontend, u32>,
    /// Never forgotten: there are few, and most come again.
    classes: HashMap<Class, u32>,
    used: HashSet<u32>,
}

impl Numbers {
    fn port(&mut self, frontend: Frontend) -> Datum {
        let Frontend { address, protocol, port } = frontend;
        let name = [u32::from(address), protocol.into(), port.into()];
        Datum::Number(*self.ports.entry(frontend).or_insert_with(|| unused(&mut self.used, &name)))
    }

    fn forget(&mut self, frontend: Frontend) {
        if let Some(number) = self.ports.remove(&frontend) {
            self.used.remove(&number);
        }
    }

    fn class(&mut self, class: Class) -> Datum {
        let Class { arrival, group, cluster_count, local_count, affinity_seconds } = class;
        let name = [arrival as u32, group as u32, cluster_count, local_count, affinity_seconds];
        Datum::Number(*self.classes.entry(class).or_insert_with(|| unused(&mut self.used, &name)))
    }
}

/// A number for what has this name.
fn unused(used: &mut HashSet<u32>, name: &[u32]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    for word in name {
        hasher.update(&word.to_be_bytes());
    }
    let mut number = hasher.finalize();
    while !used.insert(number) {
        number = number.wrapping_add(1);
    }
    number
}

/// The Services' part of the table.
#[derive(Debug)]
pub struct Ruleset {
    config: RulesetConfig,
    services: BTreeMap<ObjectKey, Contribution>,
    numbers: Numbers,
    claims: HashMap<ElementId, BTreeMap<ObjectKey, Option<Value>>>,
    /// How many Services need a chain.
    chains: BTreeMap<Chain, usize>,
    retired: BTreeSet<Chain>,
    /// Chains needed that the kernel does not have yet.
    new_chains: BTreeSet<Chain>,
    /// Elements that may have changed since the last operations, as they were then.
    touched: BTreeMap<ElementId, Option<Element>>,
    stale_udp: bool,
}

fn key(Frontend { address, protocol, port }: Frontend) -> Vec<Datum> {
    vec![Datum::Address(address), Datum::Protocol(protocol), Datum::Port(port)]
}

fn target_data((address, port): Target) -> [Datum; 2] {
    [Datum::Address(address), Datum::Port(port)]
}

/// Keeps the numbers of endpoints that stay; the last fill the gaps of those that went.
fn renumber(old: &[Target], wanted: &[Target]) -> Vec<Target> {
    let wanted_set: BTreeSet<_> = wanted.iter().copied().collect();
    let old_set: BTreeSet<_> = old.iter().copied().collect();
    let mut added = wanted.iter().copied().filter(|target| !old_set.contains(target));
    let mut slots: Vec<Option<Target>> =
        old.iter().map(|target| Some(*target).filter(|target| wanted_set.contains(target))).collect();
    for slot in slots.iter_mut().filter(|slot| slot.is_none()) {
        *slot = added.next();
    }
    slots.extend(added.map(Some));
    let mut index = 0;
    while index < slots.len() {
        if slots[index].is_none() {
            slots.swap_remove(index);
        } else {
            index += 1;
        }
    }
    slots.into_iter().flatten().collect()
}

impl Contribution {
    fn add(&mut self, set: SetName, key: Vec<Datum>, value: Option<Value>) {
        self.elements.entry((set, key)).or_insert(value);
    }

    fn class(&mut self, class: Class, numbers: &mut Numbers) -> Option<Value> {
        let number = numbers.class(class);
        let verdict = Verdict::Goto(class.chain().name());
        self.add(CLASSES, vec![number], Some(Value::Verdict(verdict)));
        self.chains.extend(class.chains());
        Some(Value::Data(vec![UNUSED, number]))
    }

    fn endpoints(&mut self, port: &ServicePort, id: Datum, group: Group, targets: &[Target], old: &[Target]) {
        let slots = renumber(old, targets);
        for (number, target) in (group.offset()..).zip(&slots) {
            let slot = vec![id, Datum::Number(number)];
            let [address, _] = target_data(*target);
            let target = Some(Value::Data(target_data(*target).to_vec()));
            if port.affinity.is_some() {
                self.add(ENDPOINT_ADDRESSES, slot, Some(Value::Data(vec![UNUSED, address])));
                // Of several ports of one address a client gets the first: what is remembered is the address.
                self.add(group.affinity_set(), vec![id, address], target);
            } else {
                self.add(ENDPOINTS, slot, target);
            }
        }
        self.slots.insert((port.frontend, group), slots);
    }

    fn port(
        &mut self,
        port: &ServicePort,
        serving: &Serving,
        place: &Place,
        old: Option<&Self>,
        numbers: &mut Numbers,
    ) {
        let id = numbers.port(port.frontend);
        let Frontend { address, protocol, port: number } = port.frontend;
        let old_slots = |group| {
            let slots = old.and_then(|old| old.slots.get(&(port.frontend, group)));
            slots.map(Vec::as_slice).unwrap_or_default()
        };
        self.add(CLUSTER_IPS, vec![Datum::Address(address)], None);
        self.add(SERVICE_IDS, key(port.frontend), Some(Value::Data(vec![UNUSED, id])));
        self.endpoints(port, id, Group::Cluster, &serving.cluster, old_slots(Group::Cluster));
        self.endpoints(port, id, Group::Local, &serving.local, old_slots(Group::Local));
        for (address, port) in &serving.on_this_node {
            let own = Datum::Address(*address);
            self.add(HAIRPINS, vec![own, own, Datum::Protocol(protocol), Datum::Port(*port)], None);
        }
        let count = |targets: &[Target]| u32::try_from(targets.len()).unwrap_or(u32::MAX);
        let class = |arrival, group| {
            // What a class does not use is no part of it, so that more Services share it.
            let cluster_used = arrival != Arrival::Cluster || group == Group::Cluster;
            Class {
                arrival,
                group,
                cluster_count: if cluster_used { count(&serving.cluster) } else { 0 },
                local_count: if group == Group::Local { count(&serving.local) } else { 0 },
                affinity_seconds: port.affinity.map_or(0, |time| u32::try_from(time.as_secs()).unwrap_or(u32::MAX)),
            }
        };
        let group = |local: bool| if local { Group::Local } else { Group::Cluster };
        let served = |local: bool| serving.has_any && !(local && serving.local.is_empty());
        let refuse = |by_address: bool| match (by_address, serving.has_any) {
            (true, false) => REJECTS,
            (true, true) => DROPS,
            (false, false) => NODE_PORT_REJECTS,
            (false, true) => NODE_PORT_DROPS,
        };

        if served(port.internal_local) {
            let value = self.class(class(Arrival::Cluster, group(port.internal_local)), numbers);
            self.add(SERVICE_MAP, key(port.frontend), value);
        } else {
            self.add(refuse(true), key(port.frontend), None);
        }
        for external in port.external_ips.iter().chain(&port.load_balancer_ips) {
            let arrival = key(Frontend { address: *external, protocol, port: number });
            if serving.has_any {
                let value = self.class(class(Arrival::External, group(port.external_local)), numbers);
                self.add(EXTERNALS, arrival.clone(), value);
                self.add(EXTERNAL_IDS, arrival.clone(), Some(Value::Data(vec![UNUSED, id])));
            }
            if !served(port.external_local) {
                self.add(refuse(true), arrival, None);
            }
        }
        self.firewall(port, place);
        if let Some(node_port) = port.node_port {
            let arrival = vec![Datum::Protocol(protocol), Datum::Port(node_port)];
            if serving.has_any {
                let value = self.class(class(Arrival::NodePort, group(port.external_local)), numbers);
                self.add(NODE_PORTS, arrival.clone(), value);
                self.add(NODE_PORT_IDS, arrival.clone(), Some(Value::Data(vec![UNUSED, id])));
            }
            if !served(port.external_local) {
                self.add(refuse(false), arrival, None);
            }
        }
    }

    fn firewall(&mut self, port: &ServicePort, place: &Place) {
        if port.source_ranges.is_empty() || port.load_balancer_ips.is_empty() {
            return;
        }
        let mut sources = port.source_ranges.clone();
        // A node that has the balancer's address itself talks to it from that address.
        if place.address.is_some_and(|own| sources.iter().any(|net| net.contains(&own))) {
            sources.extend(port.load_balancer_ips.iter().copied().map(Ipv4Net::from));
        }
        let Frontend { address, protocol, port: number } = port.frontend;
        let chain = Chain::Firewall { frontend: (address, protocol, number), sources };
        for address in &port.load_balancer_ips {
            let arrival = key(Frontend { address: *address, protocol, port: number });
            self.add(FIREWALLS, arrival, Some(Value::Verdict(Verdict::Goto(chain.name()))));
        }
        self.chains.insert(chain);
    }
}

impl Ruleset {
    pub fn new(config: RulesetConfig) -> Self {
        Self {
            config,
            services: BTreeMap::new(),
            numbers: Numbers::default(),
            claims: HashMap::new(),
            chains: BTreeMap::new(),
            retired: BTreeSet::new(),
            new_chains: BTreeSet::new(),
            touched: BTreeMap::new(),
            stale_udp: false,
        }
    }

    /// Replaces a Service by what it is now; one without ports goes.
    pub fn set(&mut self, name: &ObjectKey, view: &ServiceView, place: &Place) {
        let old = self.services.remove(name);
        let mut new = Contribution::default();
        for port in view.ports.iter().filter(|port| !self.config.own_addresses.contains(&port.frontend.address)) {
            let none = BTreeMap::new();
            let port = self.beside_own(port);
            let serving = categorize(view.endpoints.get(&port.name).unwrap_or(&none), &port, place);
            new.port(&port, &serving, place, old.as_ref(), &mut self.numbers);
            new.ports.push((port.into_owned(), serving));
        }
        let old = old.unwrap_or_default();
        self.stale_udp |= udp_differs(&old.ports, &new.ports);
        for (id, _) in old.elements.iter().filter(|(id, value)| new.elements.get(*id) != Some(*value)) {
            self.claim(id, name, None);
        }
        for (id, value) in new.elements.iter().filter(|(id, value)| old.elements.get(*id) != Some(*value)) {
            self.claim(id, name, Some(value.clone()));
        }
        for chain in new.chains.difference(&old.chains) {
            self.need(chain);
        }
        for chain in old.chains.difference(&new.chains) {
            self.release(chain);
        }
        for (frontend, _) in old.slots.keys().filter(|slot| !new.slots.contains_key(slot)) {
            self.numbers.forget(*frontend);
        }
        if !new.ports.is_empty() {
            self.services.insert(name.clone(), new);
        }
    }

    /// The port without external addresses that are this node's own: nobody may take the cluster's DNS from it, nor have
    /// it refused by a Service without endpoints.
    fn beside_own<'a>(&self, port: &'a ServicePort) -> Cow<'a, ServicePort> {
        let is_own = |address: &Ipv4Addr| self.config.own_addresses.contains(address);
        if !port.external_ips.iter().chain(&port.load_balancer_ips).any(is_own) {
            return Cow::Borrowed(port);
        }
        let mut port = port.clone();
        port.external_ips.retain(|address| !is_own(address));
        port.load_balancer_ips.retain(|address| !is_own(address));
        Cow::Owned(port)
    }

    fn effective(&self, id: &ElementId) -> Option<Element> {
        let (_, value) = self.claims.get(id)?.first_key_value()?;
        Some(Element { key: id.1.clone(), value: value.clone() })
    }

    fn claim(&mut self, id: &ElementId, owner: &ObjectKey, value: Option<Option<Value>>) {
        let before = self.effective(id);
        self.touched.entry(id.clone()).or_insert(before);
        match value {
            Some(value) => {
                self.claims.entry(id.clone()).or_default().insert(owner.clone(), value);
            }
            None => {
                if let Some(owners) = self.claims.get_mut(id) {
                    owners.remove(owner);
                    if owners.is_empty() {
                        self.claims.remove(id);
                    }
                }
            }
        }
    }

    fn need(&mut self, chain: &Chain) {
        let count = self.chains.entry(chain.clone()).or_default();
        *count += 1;
        if *count == 1 && !self.retired.remove(chain) {
            self.new_chains.insert(chain.clone());
        }
    }

    fn release(&mut self, chain: &Chain) {
        let Some(count) = self.chains.get_mut(chain) else { return };
        *count -= 1;
        if *count == 0 {
            self.chains.remove(chain);
            if !self.new_chains.remove(chain) {
                self.retired.insert(chain.clone());
            }
        }
    }

    /// What brings the kernel from the last operations to now.
    pub fn take_ops(&mut self) -> Vec<Op> {
        let mut ops = Vec::new();
        let chains = std::mem::take(&mut self.new_chains);
        ops.extend(chains.iter().map(|chain| Op::AddChain { name: chain.name(), hook: None }));
        ops.extend(chains.iter().flat_map(|chain| chain.rules(self.config.cluster)).map(Op::AddRule));
        let (mut deletes, mut adds) = (BTreeMap::<_, Vec<_>>::new(), BTreeMap::<_, Vec<_>>::new());
        for (id, before) in std::mem::take(&mut self.touched) {
            let after = self.effective(&id);
            if before == after {
                continue;
            }
            if let Some(before) = before {
                deletes.entry(id.0).or_default().push(before);
            }
            if let Some(after) = after {
                adds.entry(id.0).or_default().push(after);
            }
        }
        ops.extend(deletes.into_iter().map(|(set, elements)| Op::DeleteElements { set, elements }));
        ops.extend(adds.into_iter().map(|(set, elements)| Op::AddElements { set, elements }));
        ops
    }

    /// What makes the kernel have this and nothing else, whatever it has; but for chains of earlier times,
    /// which [`Self::forget_chains`] is for.
    pub fn full_ops(&mut self) -> Vec<Op> {
        self.touched.clear();
        self.new_chains.clear();
        self.retired.clear();
        let mut ops = frame(self.config.cluster);
        let own = self.config.own_addresses.iter().map(|address| Datum::Address(*address));
        let own: Vec<_> = own.map(|address| Element { key: vec![address], value: None }).collect();
        if !own.is_empty() {
            ops.push(Op::AddElements { set: OWN_ADDRESSES, elements: own });
        }
        for chain in self.chains.keys() {
            ops.push(Op::AddChain { name: chain.name(), hook: None });
            ops.push(Op::FlushChain(chain.name()));
        }
        ops.extend(self.chains.keys().flat_map(|chain| chain.rules(self.config.cluster)).map(Op::AddRule));
        let mut adds = BTreeMap::<_, Vec<_>>::new();
        for id in self.claims.keys() {
            adds.entry(id.0).or_default().extend(self.effective(id));
        }
        for elements in adds.values_mut() {
            elements.sort_unstable();
        }
        ops.extend(adds.into_iter().map(|(set, elements)| Op::AddElements { set, elements }));
        ops
    }

    /// Chains to remove, if there are enough of them. Nothing leads to them.
    pub fn take_retired(&mut self) -> Vec<String> {
        if self.retired.len() < RETIRED_MAX {
            return Vec::new();
        }
        std::mem::take(&mut self.retired).iter().map(Chain::name).collect()
    }

    /// The chains that there should be, or may still be.
    pub fn chain_names(&self) -> HashSet<String> {
        self.chains.keys().chain(&self.retired).map(Chain::name).collect()
    }

    /// Whether UDP flows may have to be forgotten since this was last asked.
    pub fn take_stale_udp(&mut self) -> bool {
        std::mem::take(&mut self.stale_udp)
    }

    /// Says of a UDP flow whether it goes where no endpoint of its Service is. `host` are this host's addresses.
    ///
    /// Behaves as pkg/proxy/conntrack/cleanup.go, v1.36.
    // Differs from upstream: a flow to a node port's number elsewhere is not ours and goes on.
    pub fn stale_flows(&self, host: BTreeSet<Ipv4Addr>) -> impl Fn(&Flow) -> bool + use<> {
        let mut by_address: HashMap<Target, BTreeSet<Target>> = HashMap::new();
        let mut by_node_port: HashMap<u16, BTreeSet<Target>> = HashMap::new();
        let ports = self.services.values().flat_map(|service| &service.ports);
        for (port, serving) in ports.filter(|(port, _)| port.frontend.protocol == UDP) {
            let targets: BTreeSet<_> = serving.lasting.iter().copied().collect();
            // Without endpoints there is nowhere better to go.
            if targets.is_empty() {
                continue;
            }
            let addresses = [port.frontend.address].into_iter();
            for address in
                addresses.chain(port.external_ips.iter().copied()).chain(port.load_balancer_ips.iter().copied())
            {
                by_address.entry((address, port.frontend.port)).or_default().extend(&targets);
            }
            if let Some(node_port) = port.node_port {
                by_node_port.entry(node_port).or_default().extend(&targets);
            }
        }
        move |flow| {
            let to = flow.original.destination;
            let gone = |targets: &BTreeSet<Target>| !targets.contains(&flow.reply.source);
            flow.original.protocol == UDP
                && (by_address.get(&to).is_some_and(gone)
                    || host.contains(&to.0) && by_node_port.get(&to.1).is_some_and(gone))
        }
    }

    /// Whether an external address is not served because it is a cluster IP or this node's own.
    pub fn keeps(&self, address: Ipv4Addr) -> bool {
        let cluster_ip = (CLUSTER_IPS, vec![Datum::Address(address)]);
        self.config.own_addresses.contains(&address) || self.claims.contains_key(&cluster_ip)
    }

    /// How many Services are served, for the metrics.
    pub fn services(&self) -> usize {
        self.services.len()
    }
}

/// Changes in two steps: what comes and what is replaced, then what goes. One step would not do although a batch
/// is atomic: a packet that is under way looks up its Service before the batch and what that leads to after it.
pub fn make_before_break(ops: Vec<Op>) -> (Vec<Op>, Vec<Op>) {
    let replaced: BTreeSet<(&'static str, Vec<Datum>)> = ops
        .iter()
        .filter_map(|op| match op {
            Op::AddElements { set, elements } => Some((*set, elements)),
            _ => None,
        })
        .flat_map(|(set, elements)| elements.iter().map(move |element| (set, element.key.clone())))
        .collect();
    let (mut coming, mut going) = (Vec::new(), Vec::new());
    for op in ops {
        let Op::DeleteElements { set, elements } = op else {
            coming.push(op);
            continue;
        };
        let (now, later): (Vec<_>, Vec<_>) =
            elements.into_iter().partition(|element| replaced.contains(&(set, element.key.clone())));
        for (elements, ops) in [(now, &mut coming), (later, &mut going)] {
            if !elements.is_empty() {
                ops.push(Op::DeleteElements { set, elements });
            }
        }
    }
    (coming, going)
}

/// Removes chains, from each other first.
pub fn forget_chains(names: &[String]) -> Vec<Op> {
    let flush = names.iter().cloned().map(Op::FlushChain);
    flush.chain(names.iter().cloned().map(Op::DeleteChain)).collect()
}

/// Whether an endpoint of a UDP port went, or came where none was.
fn udp_differs(old: &[(ServicePort, Serving)], new: &[(ServicePort, Serving)]) -> bool {
    let udp = |ports: &[(ServicePort, Serving)]| -> BTreeMap<Frontend, BTreeSet<Target>> {
        let ports = ports.iter().filter(|(port, _)| port.frontend.protocol == UDP);
        ports.map(|(port, serving)| (port.frontend, serving.lasting.iter().copied().collect())).collect()
    };
    let (old, new) = (udp(old), udp(new));
    new.iter().any(|(frontend, targets)| match old.get(frontend) {
        Some(before) => before.is_empty() != targets.is_empty() || !before.is_subset(targets),
        None => !targets.is_empty(),
    })
}

#[cfg(test)]
mod tests;
