//! The frame of our nftables table: base chains, masquerading, host ports. Services are put into it by the
//! proxy, which owns the chains named here as its.
//!
//! Inputs: the node's and the cluster's pod networks, the host ports that pods were given.
//! Outputs: one atomic change, the same whatever was there before.
//!
//! Invariant: what a restarted agent applies equals what is there, so no packet sees a difference. Only if
//! the kernel refuses (a newer version hangs its chains elsewhere) the table is replaced as a whole.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use rkube_apimachinery::chain::chain;
use tracing::warn;

use crate::ipam::HostPort;
use crate::netlink::NetlinkError;
use crate::nft::{
    ChainKind, Datum, Element, Field, Hook, HookPoint, NftApplier, Op, Rule, Selector, SetSpec, Value, ValueKind,
    Verdict,
};

/// Filled by the proxy: where Services' traffic is sent on.
pub const SERVICES: &str = "services";
/// Filled by the proxy: what may not reach a load balancer address. Sees destinations as they came.
pub const FIREWALL: &str = "firewall";
/// Filled by the proxy: Services that nothing serves. Sees new connections that were not sent on.
pub const UNSERVED: &str = "unserved";
/// Filled by the proxy: connections that come back to where they came from.
pub const SERVICE_MASQUERADE: &str = "service-masquerade";
const HOST_PORTS: &str = "host-ports";
const MASQUERADE: &str = "masquerading";

/// Connections with this bit are masqueraded when they leave. Upstream's default bit, 14.
pub const MASQUERADE_MARK: u32 = 1 << 14;

const HOST_PORTS_ANY: &str = "host-ports-any";
const HOST_PORTS_BY_IP: &str = "host-ports-by-ip";
const HOST_PORT_HAIRPINS: &str = "host-port-hairpins";

const SETS: &[SetSpec] = &[
    SetSpec {
        name: HOST_PORTS_ANY,
        key: &[Field::Protocol, Field::Port],
        value: Some(ValueKind::Data(&[Field::Address, Field::Port])),
        dynamic_size_max: None,
    },
    SetSpec {
        name: HOST_PORTS_BY_IP,
        key: &[Field::Address, Field::Protocol, Field::Port],
        value: Some(ValueKind::Data(&[Field::Address, Field::Port])),
        dynamic_size_max: None,
    },
    SetSpec {
        name: HOST_PORT_HAIRPINS,
        key: &[Field::Address, Field::Address, Field::Protocol, Field::Port],
        value: None,
        dynamic_size_max: None,
    },
];

/// Before the kernel's own destination NAT, and at it.
const BEFORE_DNAT: i32 = -110;
const DNAT: i32 = -100;
const FILTER: i32 = 0;
const SNAT: i32 = 100;

const BASE_CHAINS: &[(&str, ChainKind, HookPoint, i32)] = &[
    ("filter-prerouting", ChainKind::Filter, HookPoint::Prerouting, BEFORE_DNAT),
    ("filter-output-early", ChainKind::Filter, HookPoint::Output, BEFORE_DNAT),
    ("nat-prerouting", ChainKind::Nat, HookPoint::Prerouting, DNAT),
    ("nat-output", ChainKind::Nat, HookPoint::Output, DNAT),
    ("filter-input", ChainKind::Filter, HookPoint::Input, FILTER),
    ("filter-forward", ChainKind::Filter, HookPoint::Forward, FILTER),
    ("filter-output", ChainKind::Filter, HookPoint::Output, FILTER),
    ("nat-postrouting", ChainKind::Nat, HookPoint::Postrouting, SNAT),
];

/// Which networks are the cluster's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableConfig {
    /// This node's pods; none while that is not known, or with another CNI plugin.
    pub pods: Option<Ipv4Net>,
    /// All pods.
    pub cluster: Ipv4Net,
    pub bridge: String,
}

fn jump(chain: &str) -> Verdict {
    Verdict::Jump(chain.to_owned())
}

/// The whole frame. `recreate` throws away what is there first, in the same change.
pub fn frame(config: &TableConfig, host_ports: &[(Ipv4Addr, HostPort)], recreate: bool) -> Vec<Op> {
    let mut ops = vec![Op::AddTable];
    if recreate {
        ops.extend([Op::DeleteTable, Op::AddTable]);
    }
    for &(name, kind, point, priority) in BASE_CHAINS {
        ops.push(Op::AddChain { name: name.to_owned(), hook: Some(Hook { kind, point, priority }) });
        ops.push(Op::FlushChain(name.to_owned()));
    }
    for name in [SERVICES, FIREWALL, UNSERVED, SERVICE_MASQUERADE, HOST_PORTS, MASQUERADE] {
        ops.push(Op::AddChain { name: name.to_owned(), hook: None });
    }
    for name in [HOST_PORTS, MASQUERADE] {
        ops.push(Op::FlushChain(name.to_owned()));
    }
    for set in SETS {
        ops.push(Op::AddSet(*set));
        ops.push(Op::FlushSet(set.name));
    }
    ops.extend(rules(config).into_iter().map(Op::AddRule));
    for (address, port) in host_ports {
        ops.extend(
            host_port_elements(*address, port).map(|(set, element)| Op::AddElements { set, elements: vec![element] }),
        );
    }
    ops
}

fn rules(config: &TableConfig) -> Vec<Rule> {
    let loopback = Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8);
    let multicast = Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 4);
    let destination = [Selector::DestinationAddress, Selector::Protocol, Selector::DestinationPort];
    let mut rules = vec![
        // Ports on 127.0.0.1 are for this host only, although `route_localnet` lets such packets in.
        Rule::new("filter-prerouting").not_into_by("lo").to(loopback).verdict(Verdict::Drop),
        Rule::new("filter-prerouting").new_connection().verdict(jump(FIREWALL)),
        Rule::new("filter-output-early").new_connection().verdict(jump(FIREWALL)),
        // Pods have no route but the gateway: telling them of a better one is noise.
        Rule::new("filter-output").out_by(&config.bridge).icmp_redirect().verdict(Verdict::Drop),
    ];
    for chain in ["filter-input", "filter-forward", "filter-output"] {
        rules.push(Rule::new(chain).new_connection().verdict(jump(UNSERVED)));
    }
    for chain in ["nat-prerouting", "nat-output"] {
        rules.push(Rule::new(chain).verdict(jump(SERVICES)));
        rules.push(Rule::new(chain).to_local().verdict(jump(HOST_PORTS)));
    }
    rules.extend([
        // A pod cannot answer 127.0.0.1.
        Rule::new(HOST_PORTS).from(loopback).mark(MASQUERADE_MARK),
        Rule::new(HOST_PORTS).load(0, &destination).map(HOST_PORTS_BY_IP, (0, 3), (4, 2)).dnat(4),
        Rule::new(HOST_PORTS)
            .load(0, &[Selector::Protocol, Selector::DestinationPort])
            .map(HOST_PORTS_ANY, (0, 2), (4, 2))
            .dnat(4),
        Rule::new("nat-postrouting").verdict(jump(MASQUERADE)),
        Rule::new(MASQUERADE).marked(MASQUERADE_MARK).unmark(MASQUERADE_MARK).masquerade(),
        Rule::new(MASQUERADE).destination_natted().verdict(jump(SERVICE_MASQUERADE)),
        Rule::new(MASQUERADE)
            .destination_natted()
            .load(
                0,
                &[Selector::SourceAddress, Selector::DestinationAddress, Selector::Protocol, Selector::DestinationPort],
            )
            .member(HOST_PORT_HAIRPINS, 0, 4)
            .masquerade(),
    ]);
    if let Some(pods) = config.pods {
        rules.push(Rule::new(MASQUERADE).from(pods).not_to(config.cluster).not_to(multicast).masquerade());
    }
    rules
}

fn host_port_elements(address: Ipv4Addr, port: &HostPort) -> impl Iterator<Item = (&'static str, Element)> {
    let protocol = Datum::Protocol(port.protocol);
    let target = Some(Value::Data(vec![Datum::Address(address), Datum::Port(port.container_port)]));
    let mut key = vec![protocol, Datum::Port(port.host_port)];
    let set = match port.host_ip {
        Some(host_ip) => {
            key.insert(0, Datum::Address(host_ip));
            HOST_PORTS_BY_IP
        }
        None => HOST_PORTS_ANY,
    };
    let own = Datum::Address(address);
    let hairpin = Element { key: vec![own, own, protocol, Datum::Port(port.container_port)], value: None };
    [(set, Element { key, value: target }), (HOST_PORT_HAIRPINS, hairpin)].into_iter()
}

/// Puts the frame in place. Call it with the IPAM lock held, so that no host port is missed.
pub fn ensure(
    nft: &mut dyn NftApplier,
    config: &TableConfig,
    host_ports: &[(Ipv4Addr, HostPort)],
) -> Result<(), NetlinkError> {
    let Err(error) = nft.apply(&frame(config, host_ports, false)) else { return Ok(()) };
    warn!(error = %chain(&error), "The nftables table is not as this version makes it, replacing it");
    nft.apply(&frame(config, host_ports, true))
}

/// Removes everything of ours from nftables.
pub fn remove(nft: &mut dyn NftApplier) -> Result<(), NetlinkError> {
    // Adding first makes removing what is not there no error.
    nft.apply(&[Op::AddTable, Op::DeleteTable])
}

/// Opens host ports to a pod.
pub fn add_host_ports(nft: &mut dyn NftApplier, address: Ipv4Addr, ports: &[HostPort]) -> Result<(), NetlinkError> {
    let elements = ports.iter().flat_map(|port| host_port_elements(address, port));
    let ops: Vec<_> = elements.map(|(set, element)| Op::AddElements { set, elements: vec![element] }).collect();
    nft.apply(&ops)
}

/// Closes host ports; those that are closed are no error.
pub fn delete_host_ports(nft: &mut dyn NftApplier, address: Ipv4Addr, ports: &[HostPort]) -> Result<(), NetlinkError> {
    for (set, element) in ports.iter().flat_map(|port| host_port_elements(address, port)) {
        crate::netlink::gone(nft.apply(&[Op::DeleteElements { set, elements: vec![element] }]))?;
    }
    Ok(())
}
