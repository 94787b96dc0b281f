//! The rules that Services share, and the sets and maps that make them differ.
//!
//! A connection to a Service walks like this: `services` (or `externals`, `node-ports`) has for its
//! destination a *class*: a number for how many endpoints there are, and what policy. `classes` has a chain for
//! each class in use, so ten thousand Services need a few dozen chains. The chain finds the Service port's own
//! number in `service-ids`, draws another, and `endpoints` has for the two an address. So an endpoint that comes
//! or goes changes one element of `endpoints` and one of `services`, and no rule.
//!
//! With affinity, `affinity` remembers the endpoint's address for client and Service port, filled by the rules
//! themselves; `affinity-cluster` and `affinity-local` have what still serves.
//!
//! Invariant: a set whose kind changes gets another name, since the kernel refuses to change it in place.

use std::net::Ipv4Addr;
use std::time::Duration;

use ipnet::Ipv4Net;
use rkube_network::nft::{Field, Op, Rule, Selector, SetSpec, ValueKind, Verdict};
use rkube_network::table::{FIREWALL, MASQUERADE_MARK, SERVICE_MASQUERADE, SERVICES, UNSERVED};

pub const OWN_ADDRESSES: &str = "own-addresses";
pub const CLUSTER_IPS: &str = "cluster-ips";
pub const SERVICE_MAP: &str = "services";
pub const EXTERNALS: &str = "externals";
pub const NODE_PORTS: &str = "node-ports";
pub const SERVICE_IDS: &str = "service-ids";
pub const EXTERNAL_IDS: &str = "external-ids";
pub const NODE_PORT_IDS: &str = "node-port-ids";
pub const CLASSES: &str = "classes";
pub const ENDPOINTS: &str = "endpoints";
pub const ENDPOINT_ADDRESSES: &str = "endpoint-addresses";
pub const REJECTS: &str = "rejects";
pub const DROPS: &str = "drops";
pub const NODE_PORT_REJECTS: &str = "node-port-rejects";
pub const NODE_PORT_DROPS: &str = "node-port-drops";
pub const HAIRPINS: &str = "hairpins";
pub const AFFINITY: &str = "affinity";
pub const AFFINITY_CLUSTER: &str = "affinity-cluster";
pub const AFFINITY_LOCAL: &str = "affinity-local";
pub const FIREWALLS: &str = "firewalls";

/// Clients times Services with affinity. Past it the kernel remembers no more, and such clients change
/// endpoints. A million elements are about 100 MB.
const AFFINITY_SIZE_MAX: u32 = 1 << 20;

const FRONTEND: &[Field] = &[Field::Address, Field::Protocol, Field::Port];
const NODE_PORT: &[Field] = &[Field::Protocol, Field::Port];
const NUMBER: &[Field] = &[Field::Number];
/// One word of meaning, see [`Rule::map`].
const HIDDEN_NUMBER: &[Field] = &[Field::Number, Field::Number];
const HIDDEN_ADDRESS: &[Field] = &[Field::Number, Field::Address];
const SLOT: &[Field] = &[Field::Number, Field::Number];
const TARGET: &[Field] = &[Field::Address, Field::Port];

const fn set(name: &'static str, key: &'static [Field]) -> SetSpec {
    SetSpec { name, key, value: None, dynamic_size_max: None }
}

const fn map(name: &'static str, key: &'static [Field], value: &'static [Field]) -> SetSpec {
    SetSpec { name, key, value: Some(ValueKind::Data(value)), dynamic_size_max: None }
}

const fn verdicts(name: &'static str, key: &'static [Field]) -> SetSpec {
    SetSpec { name, key, value: Some(ValueKind::Verdict), dynamic_size_max: None }
}

/// All sets and maps that are filled from Services.
pub const SETS: &[SetSpec] = &[
    set(OWN_ADDRESSES, &[Field::Address]),
    set(CLUSTER_IPS, &[Field::Address]),
    map(SERVICE_MAP, FRONTEND, HIDDEN_NUMBER),
    map(EXTERNALS, FRONTEND, HIDDEN_NUMBER),
    map(NODE_PORTS, NODE_PORT, HIDDEN_NUMBER),
    map(SERVICE_IDS, FRONTEND, HIDDEN_NUMBER),
    map(EXTERNAL_IDS, FRONTEND, HIDDEN_NUMBER),
    map(NODE_PORT_IDS, NODE_PORT, HIDDEN_NUMBER),
    verdicts(CLASSES, NUMBER),
    map(ENDPOINTS, SLOT, TARGET),
    map(ENDPOINT_ADDRESSES, SLOT, HIDDEN_ADDRESS),
    map(AFFINITY_CLUSTER, &[Field::Number, Field::Address], TARGET),
    map(AFFINITY_LOCAL, &[Field::Number, Field::Address], TARGET),
    set(REJECTS, FRONTEND),
    set(DROPS, FRONTEND),
    set(NODE_PORT_REJECTS, NODE_PORT),
    set(NODE_PORT_DROPS, NODE_PORT),
    set(HAIRPINS, &[Field::Address, Field::Address, Field::Protocol, Field::Port]),
    verdicts(FIREWALLS, FRONTEND),
];

/// Filled by packets, so not flushed when all else is.
const AFFINITY_SET: SetSpec = SetSpec {
    name: AFFINITY,
    key: &[Field::Address, Field::Number],
    value: Some(ValueKind::Data(HIDDEN_ADDRESS)),
    dynamic_size_max: Some(AFFINITY_SIZE_MAX),
};

/// How a connection names the Service port it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Arrival {
    /// By the cluster IP.
    Cluster,
    /// By an external or load balancer address.
    External,
    NodePort,
}

/// Which endpoints may serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Group {
    Cluster,
    Local,
}

impl Group {
    /// The number of this group's first endpoint in `endpoints`. A Service has far fewer than that.
    pub fn offset(self) -> u32 {
        match self {
            Self::Cluster => 0,
            Self::Local => 1 << 24,
        }
    }

    /// Which endpoints a client may be kept with.
    pub fn affinity_set(self) -> &'static str {
        match self {
            Self::Cluster => AFFINITY_CLUSTER,
            Self::Local => AFFINITY_LOCAL,
        }
    }
}

/// What a Service port has in common with many others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Class {
    pub arrival: Arrival,
    /// By policy; for connections from outside this is the external one.
    pub group: Group,
    pub cluster_count: u32,
    pub local_count: u32,
    pub affinity_seconds: u32,
}

impl Class {
    fn pick(self, group: Group) -> Pick {
        let count = match group {
            Group::Cluster => self.cluster_count,
            Group::Local => self.local_count,
        };
        Pick { arrival: self.arrival, group, count, affinity_seconds: self.affinity_seconds }
    }

    /// The chain a connection of this class goes to.
    pub fn chain(self) -> Chain {
        match self.arrival {
            Arrival::Cluster => Chain::Pick(self.pick(self.group)),
            Arrival::External | Arrival::NodePort => Chain::External(self),
        }
    }

    /// All chains that this class needs, those that others go to first.
    pub fn chains(self) -> Vec<Chain> {
        let mut chains = Vec::new();
        if self.arrival != Arrival::Cluster {
            let groups = [Group::Cluster, Group::Local];
            let used = groups.into_iter().map(|group| self.pick(group)).filter(|pick| pick.count > 0);
            let used = used.filter(|pick| pick.group == Group::Cluster || self.group == Group::Local);
            chains.extend(used.map(Chain::Pick));
        }
        chains.push(self.chain());
        chains
    }
}

/// Draws one of `count` endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pick {
    arrival: Arrival,
    group: Group,
    count: u32,
    affinity_seconds: u32,
}

/// A chain that comes and goes with who needs it. Its rules follow from this alone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Chain {
    Pick(Pick),
    /// Decides about masquerading and policy for what comes from outside.
    External(Class),
    /// Lets sources in to a load balancer's address.
    Firewall {
        frontend: (Ipv4Addr, u8, u16),
        sources: Vec<Ipv4Net>,
    },
}

const PREFIXES: &[&str] = &["pick-", "ext-", "fw-"];

/// Whether a chain of our table is one of [`Chain`].
pub fn is_dynamic(name: &str) -> bool {
    PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

fn short(arrival: Arrival) -> &'static str {
    match arrival {
        Arrival::Cluster => "ip",
        Arrival::External => "ext",
        Arrival::NodePort => "port",
    }
}

fn goto(pick: Pick) -> Verdict {
    Verdict::Goto(Chain::Pick(pick).name())
}

impl Chain {
    pub fn name(&self) -> String {
        let group = |group| if group == Group::Local { "local" } else { "cluster" };
        match self {
            Self::Pick(pick) => {
                let Pick { arrival, count, affinity_seconds, .. } = pick;
                format!("pick-{}-{}-{count}-{affinity_seconds}", short(*arrival), group(pick.group))
            }
            Self::External(class) => {
                let Class { arrival, cluster_count, local_count, affinity_seconds, .. } = class;
                let policy = group(class.group);
                format!("ext-{}-{policy}-{cluster_count}-{local_count}-{affinity_seconds}", short(*arrival))
            }
            // The sources are part of the name, since a chain's rules never change.
            Self::Firewall { frontend: (address, protocol, port), sources } => {
                let mut hash: u32 = 0x811c_9dc5;
                for byte in sources.iter().flat_map(|net| net.to_string().into_bytes()) {
                    hash = (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
                }
                format!("fw-{address}-{protocol}-{port}-{hash:08x}")
            }
        }
    }

    pub fn rules(&self, cluster: Ipv4Net) -> Vec<Rule> {
        let name = self.name();
        match self {
            Self::Pick(pick) => pick.rules(&name),
            Self::External(class) => external_rules(&name, *class, cluster),
            Self::Firewall { sources, .. } => {
                let allow = sources.iter().map(|net| Rule::new(&name).from(net.trunc()).verdict(Verdict::Accept));
                allow.chain([Rule::new(&name).verdict(Verdict::Drop)]).collect()
            }
        }
    }
}

const DESTINATION: [Selector; 3] = [Selector::DestinationAddress, Selector::Protocol, Selector::DestinationPort];
const PORT: [Selector; 2] = [Selector::Protocol, Selector::DestinationPort];

// Registers of a pick: 0 the client, 1 the Service port's number, 2 the number drawn or the endpoint's
// address, 4 and 5 the endpoint. So neighbours make the keys of all maps, and 1 and 2 the value of `affinity`.
const CLIENT: u8 = 0;
const ID: u8 = 1;
const DRAWN: u8 = 2;
const CHOSEN: u8 = 2;
const ENDPOINT: u8 = 4;
const ARRIVED: u8 = 8;

impl Pick {
    /// Loads the Service port's number.
    fn identified(self, rule: Rule) -> Rule {
        match self.arrival {
            Arrival::Cluster => rule.load(ARRIVED, &DESTINATION).map(SERVICE_IDS, (ARRIVED, 3), (ID, 1)),
            Arrival::External => rule.load(ARRIVED, &DESTINATION).map(EXTERNAL_IDS, (ARRIVED, 3), (ID, 1)),
            Arrival::NodePort => rule.load(ARRIVED, &PORT).map(NODE_PORT_IDS, (ARRIVED, 2), (ID, 1)),
        }
    }

    fn rules(self, chain: &str) -> Vec<Rule> {
        let drawn = Selector::Random { modulus: self.count.max(1), offset: self.group.offset() };
        if self.affinity_seconds == 0 {
            let rule = self.identified(Rule::new(chain)).load(DRAWN, &[drawn]);
            return vec![rule.map(ENDPOINTS, (ID, 2), (ENDPOINT, 2)).dnat(ENDPOINT)];
        }
        let timeout = Duration::from_secs(self.affinity_seconds.into());
        let client = || self.identified(Rule::new(chain).load(CLIENT, &[Selector::SourceAddress]));
        let serving = self.group.affinity_set();
        vec![
            client()
                .map(AFFINITY, (CLIENT, 2), (CHOSEN, 1))
                .map(serving, (ID, 2), (ENDPOINT, 2))
                .update(AFFINITY, (CLIENT, 2), ID, timeout)
                .dnat(ENDPOINT),
            // What is remembered no longer serves, and an update alone would only prolong it.
            client()
                .load(DRAWN, &[drawn])
                .map(ENDPOINT_ADDRESSES, (ID, 2), (CHOSEN, 1))
                .map(serving, (ID, 2), (ENDPOINT, 2))
                .forget(AFFINITY, (CLIENT, 2), ID)
                .update(AFFINITY, (CLIENT, 2), ID, timeout)
                .dnat(ENDPOINT),
        ]
    }
}

fn external_rules(name: &str, class: Class, cluster: Ipv4Net) -> Vec<Rule> {
    let (everywhere, here) = (class.pick(Group::Cluster), class.pick(Group::Local));
    let mut rules = Vec::new();
    if class.group == Group::Cluster {
        // The endpoint may be on another node, which must answer over this one.
        rules.push(Rule::new(name).mark(MASQUERADE_MARK));
        if everywhere.count > 0 {
            rules.push(Rule::new(name).verdict(goto(everywhere)));
        }
        return rules;
    }
    // Pods and this node use the Service as from inside, as if they had gone out to a balancer and back.
    if everywhere.count > 0 {
        rules.push(Rule::new(name).from(cluster).verdict(goto(everywhere)));
        rules.push(Rule::new(name).from_local().mark(MASQUERADE_MARK));
        rules.push(Rule::new(name).from_local().verdict(goto(everywhere)));
    }
    if here.count > 0 {
        rules.push(Rule::new(name).verdict(goto(here)));
    }
    rules
}

/// What there is without any Service. Empties every set but `affinity`.
pub fn frame(cluster: Ipv4Net) -> Vec<Op> {
    let owned = [SERVICES, FIREWALL, UNSERVED, SERVICE_MASQUERADE];
    let mut ops = vec![Op::AddTable];
    for name in owned {
        ops.push(Op::AddChain { name: name.to_owned(), hook: None });
        ops.push(Op::FlushChain(name.to_owned()));
    }
    for set in SETS {
        ops.push(Op::AddSet(*set));
        ops.push(Op::FlushSet(set.name));
    }
    ops.push(Op::AddSet(AFFINITY_SET));
    ops.extend(static_rules(cluster).into_iter().map(Op::AddRule));
    ops
}

fn static_rules(cluster: Ipv4Net) -> Vec<Rule> {
    let by_destination = |chain: &str| Rule::new(chain).load(0, &DESTINATION);
    let by_port = |chain: &str| Rule::new(chain).to_local().load(0, &PORT);
    vec![
        // Nobody takes cluster DNS away by an external address, a node port or a host port.
        Rule::new(SERVICES).to_member(OWN_ADDRESSES).verdict(Verdict::Accept),
        // Who is not a pod may have no way for the answers but back over this node.
        Rule::new(SERVICES).to_member(CLUSTER_IPS).not_from(cluster).mark(MASQUERADE_MARK),
        by_destination(SERVICES).map(SERVICE_MAP, (0, 3), (4, 1)).verdict_map(CLASSES, 4, 1),
        // A cluster IP is its Service's, also while nothing serves it: no external address takes it.
        Rule::new(SERVICES).to_member(CLUSTER_IPS).verdict(Verdict::Accept),
        by_destination(SERVICES).map(EXTERNALS, (0, 3), (4, 1)).verdict_map(CLASSES, 4, 1),
        by_port(SERVICES).map(NODE_PORTS, (0, 2), (4, 1)).verdict_map(CLASSES, 4, 1),
        by_destination(FIREWALL).verdict_map(FIREWALLS, 0, 3),
        by_destination(UNSERVED).member(REJECTS, 0, 3).reject(),
        by_destination(UNSERVED).member(DROPS, 0, 3).verdict(Verdict::Drop),
        by_port(UNSERVED).member(NODE_PORT_REJECTS, 0, 2).reject(),
        by_port(UNSERVED).member(NODE_PORT_DROPS, 0, 2).verdict(Verdict::Drop),
        // Ports that the Service does not have.
        Rule::new(UNSERVED).to_member(CLUSTER_IPS).reject(),
        Rule::new(SERVICE_MASQUERADE)
            .load(
                0,
                &[Selector::SourceAddress, Selector::DestinationAddress, Selector::Protocol, Selector::DestinationPort],
            )
            .member(HAIRPINS, 0, 4)
            .masquerade(),
    ]
}
