//! Two nodes, one with the rules under test, and who answers whom.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, TcpListener};
use std::time::Duration;

use rkube_apimachinery::clock::{Clock, SystemClock};
use rkube_apimachinery::key::ObjectKey;
use rkube_network::netlink::Socket;
use rkube_network::netlink::route::Route;
use rkube_network::nft::NftApplier;
use rkube_network::node::{Backend, Peer, View};
use rkube_proxy::endpoints::{Endpoint, EndpointsByPort, Place, Target};
use rkube_proxy::proxier::Worker;
use rkube_proxy::ruleset::{Ruleset, RulesetConfig, ServiceView};
use rkube_proxy::service::{Frontend, ServicePort};
use serde_json::json;

use crate::host::{Host, Space};

/// Two nodes: pods `a`, `b` and a client on the first, `far` on the second, which is also the outside.
pub(crate) struct World {
    pub(crate) node: Host,
    pub(crate) other: Host,
    pub(crate) client: Space,
    pub(crate) pods: BTreeMap<&'static str, (Space, Target, TcpListener)>,
    pub(crate) worker: Worker,
    pub(crate) place: Place,
}

/// What is waited for comes much sooner, also on a busy machine.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(20);
/// An administrator's own table.
const ADMIN: &str = "add table ip admin; add chain ip admin c { type filter hook forward priority 5; }; \
                     add rule ip admin c counter accept";
/// Served by the node itself.
pub(crate) const OWN_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 43, 0, 10);
pub(crate) const SERVICE: &str = "10.43.0.1:80";

pub(crate) fn port(protocol: u8) -> ServicePort {
    ServicePort {
        name: String::new(),
        frontend: Frontend { address: Ipv4Addr::new(10, 43, 0, 1), protocol, port: 80 },
        node_port: None,
        external_ips: Vec::new(),
        load_balancer_ips: Vec::new(),
        source_ranges: Vec::new(),
        affinity: None,
        internal_local: false,
        external_local: false,
    }
}

/// What an agent has when it starts.
pub(crate) fn fresh_worker(node: &Host) -> Worker {
    let nft: Box<dyn NftApplier> = Box::new(node.space.within(|| Socket::netfilter().unwrap()));
    let config =
        RulesetConfig { cluster: "10.42.0.0/16".parse().unwrap(), own_addresses: BTreeSet::from([OWN_ADDRESS]) };
    Worker { nft, ruleset: Ruleset::new(config), needs_full: true }
}

impl World {
    pub(crate) fn new() -> Self {
        let (node, other) = (Host::new("10.42.0.0/24", "192.0.2.1"), Host::new("10.42.1.0/24", "192.0.2.2"));
        node.wire(&other);
        for (own, peer) in [(&node, &other), (&other, &node)] {
            let peers = vec![Peer { name: "peer".to_owned(), pods: peer.pods, address: peer.address }];
            let view = View { pods: Some(own.pods), address: Some(own.address), peers, problems: Vec::new() };
            own.ensure(Backend::HostGw, &view);
            own.space.within(|| {
                let default = Route { via: Some(peer.address), protocol: 3, ..Route::new(ipnet::Ipv4Net::default()) };
                Socket::route().unwrap().replace_route(&default).unwrap();
            });
        }
        let (client, _) = node.pod("client", json!({}));
        let pods = [("a", &node), ("b", &node), ("far", &other)].map(|(name, host)| {
            let (pod, address) = host.pod(name, json!({}));
            let listener = pod.listen("0.0.0.0:8080");
            listener.set_nonblocking(true).unwrap();
            (name, (pod, (address.parse().unwrap(), 8080), listener))
        });
        let worker = fresh_worker(&node);
        let place = Place { address: Some(node.address), ..Place::default() };
        // An administrator's own table, in use before, during and after.
        node.space.within(|| {
            nft_command(ADMIN);
        });
        Self { node, other, client, pods: pods.into(), worker, place }
    }

    pub(crate) fn endpoints(&self, names: &[&str]) -> EndpointsByPort {
        let of = |name: &&str| {
            let endpoint = Endpoint { is_local: *name != "far", ready: true, serving: true, ..Endpoint::default() };
            (self.pods[name].1, endpoint)
        };
        BTreeMap::from([(String::new(), names.iter().map(of).collect())])
    }

    pub(crate) fn serve(&mut self, port: ServicePort, names: &[&str]) {
        let view = ServiceView { ports: vec![port], endpoints: self.endpoints(names) };
        self.set(&view);
    }

    pub(crate) fn set(&mut self, view: &ServiceView) {
        self.worker.ruleset.set(&ObjectKey::new("default", "s"), view, &self.place);
        let worker = &mut self.worker;
        self.node.space.within(|| worker.sync().unwrap());
    }

    /// An administrator can list all rules, and their own are as they were.
    pub(crate) fn check_listing(&self) {
        self.node.space.within(|| {
            let listing = nft_command("list ruleset");
            assert!(listing.contains("table ip admin") && listing.contains("10.43.0.1"), "{listing}");
            // Of what this `nft` cannot print the comment tells.
            assert!(listing.contains("vmap @classes"), "{listing}");
            assert!(listing.contains("map @endpoints") || listing.contains("map @affinity"), "{listing}");
        });
    }

    /// Who answers, and whom it sees.
    pub(crate) fn answer(&self, from: &Space, to: &str) -> Result<(&'static str, String), String> {
        let _near = from.connect(to).map_err(|error| error.kind().to_string())?;
        for (name, (_, _, listener)) in &self.pods {
            if let Ok((_, seen)) = listener.accept() {
                return Ok((name, seen.ip().to_string()));
            }
        }
        Err("nobody accepted".to_owned())
    }

    /// Who answers in so many attempts that each of a few has been drawn: one of three is missed in 60
    /// with a chance of (2/3)^60 * 3 = 1e-10.
    pub(crate) fn answers(&self, from: &Space, to: &str) -> BTreeSet<&'static str> {
        (0..60).map(|_| self.answer(from, to).unwrap().0).collect()
    }
}

/// Asks the kernel, which has no other way to tell, until it says yes.
pub(crate) fn until(what: &str, holds: impl Fn() -> bool) {
    let clock = SystemClock::new();
    while !holds() {
        assert!(clock.monotonic() < TIMEOUT, "waited in vain until {what}");
        std::thread::yield_now();
    }
}

pub(crate) fn nft_command(text: &str) -> String {
    let output = std::process::Command::new("nft").arg(text).output().unwrap();
    assert!(output.status.success(), "nft {text}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
