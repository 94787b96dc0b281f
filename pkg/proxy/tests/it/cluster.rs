//! Three nodes, each with all that `rkube` runs for the network, and a machine outside, on one wire. An API server
//! in memory says what there is; what counts is what packets do.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use rkube_api::Kind;
use rkube_api::k8s::core::v1::{Event, Namespace, Node, Service};
use rkube_api::k8s::discovery::v1::EndpointSlice;
use rkube_apimachinery::clock::{SharedClock, SystemClock};
use rkube_apimachinery::random::SeededRandom;
use rkube_client::fake::FakeApi;
use rkube_client::{Client, InformerFactory};
use rkube_dns::zone::Zone;
use rkube_dns::{DnsConfig, DnsServer};
use rkube_network::address::assign_local;
use rkube_network::netlink::Socket;
use rkube_network::netlink::route::{PROTOCOL, Route};
use rkube_network::node::{Backend, NetworkConfig, NodeNetwork};
use rkube_proxy::proxier::{Proxier, ProxierConfig};
use rkube_proxy::status::StatusConfig;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::host::{Host, Space};
use crate::world::{TIMEOUT, nft_command, until};

const DNS: Ipv4Addr = Ipv4Addr::new(10, 43, 0, 10);
const WEB: &str = "10.43.0.20:80";
const NODE_PORT: u16 = 30_080;
const HEALTHZ_PORT: u16 = 10_256;
const MARKER: &str = "10.43.0.99:1";

impl Space {
    /// The same namespace.
    pub(crate) fn clone_of(other: &Self) -> Self {
        Self(other.0.try_clone().unwrap())
    }
}

/// What one agent runs.
struct Agent {
    stop: CancellationToken,
    thread: JoinHandle<()>,
}

impl Agent {
    /// Returns when network, proxy and DNS are ready.
    fn start(number: u8, host: &Host, api: &FakeApi, backend: Backend) -> Self {
        let stop = CancellationToken::new();
        let (ready, all_ready) = mpsc::channel();
        let (space, api, token, folder) = (Space::clone_of(&host.space), api.clone(), stop.clone(), host.data.path());
        let cluster_cidr = "10.42.0.0/16".parse().unwrap();
        let network = NetworkConfig {
            node_name: name(number),
            node_ip: Some(host.address),
            backend,
            cluster_cidr,
            cni_bin_dir: folder.join("bin"),
            cni_conf_dir: folder.join("conf"),
            data_dir: folder.join("addresses"),
            executable: "/proc/self/exe".into(),
        };
        let proxy = ProxierConfig {
            node_name: name(number),
            node_ip: Some(host.address),
            cluster_cidr,
            own_addresses: [DNS].into(),
            status: StatusConfig { healthz: Some(SocketAddr::from(([0, 0, 0, 0], HEALTHZ_PORT))), metrics: None },
        };
        let dns = DnsConfig {
            listen: vec![SocketAddr::from((DNS, 53))],
            cluster_domain: "cluster.local".to_owned(),
            resolv_conf: "/nonexistent".into(),
            stub_domains: std::collections::BTreeMap::new(),
        };
        let work = move || {
            let clock: SharedClock = SystemClock::shared();
            let client = Client::new(api.connect(), clock.clone(), SeededRandom::shared(number.into()));
            let informers = InformerFactory::new(client, token.clone());
            let zone = Arc::new(Zone::default());
            zone.follow(&informers);
            let (network, proxier) = (NodeNetwork::new(network, &informers), Proxier::new(proxy, &informers));
            async move {
                informers.start();
                informers.wait_for_sync().await.unwrap();
                assign_local(DNS).unwrap();
                let dns = DnsServer::new(dns, zone, clock).unwrap();
                let done = |part: &'static str| {
                    let ready = ready.clone();
                    move || ready.send(part).unwrap()
                };
                let ended = tokio::join!(
                    network.run(done("network"), token.clone()),
                    proxier.run(done("proxy"), token.clone()),
                    dns.run(|_| done("dns")(), token.clone()),
                );
                ended.0.unwrap();
                ended.1.unwrap();
                ended.2.unwrap();
            }
        };
        let thread = std::thread::spawn(move || {
            space.within(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async { work().await });
            });
        });
        for _ in 0..3 {
            all_ready.recv_timeout(TIMEOUT).expect("network, proxy and DNS of the node are ready");
        }
        Self { stop, thread }
    }

    fn stop(self) {
        self.stop.cancel();
        self.thread.join().unwrap();
    }
}

fn name(number: u8) -> String {
    format!("node{number}")
}

/// A pod that says its name to whoever connects, and whom it sees.
struct Pod {
    name: String,
    node: usize,
    space: Space,
    address: String,
    closing: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Pod {
    fn start(name: &str, node: usize, host: &Host) -> Self {
        let (space, address) = host.pod(name, json!({}));
        let (listener, echo) =
            space.within(|| (TcpListener::bind("0.0.0.0:8080").unwrap(), UdpSocket::bind("0.0.0.0:8080").unwrap()));
        let closing = Arc::new(AtomicBool::new(false));
        let (own, stop) = (name.to_owned(), Arc::clone(&closing));
        let tcp = std::thread::spawn(move || {
            let answer = |(mut stream, from): (TcpStream, SocketAddr)| {
                stream.set_read_timeout(Some(TIMEOUT)).unwrap();
                // A client that checks whether anybody listens says nothing.
                if matches!(stream.read(&mut [0; 16]), Ok(1..)) {
                    let _ = stream.write_all(format!("{own} {}", from.ip()).as_bytes());
                }
            };
            while !stop.load(Ordering::Relaxed) {
                answer(listener.accept().unwrap());
            }
            // Whoever is connected already is served.
            listener.set_nonblocking(true).unwrap();
            while let Ok(last) = listener.accept() {
                last.0.set_nonblocking(false).unwrap();
                answer(last);
            }
        });
        let stop = Arc::clone(&closing);
        let udp = std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while !stop.load(Ordering::Relaxed) {
                let (length, from) = echo.recv_from(&mut buffer).unwrap();
                echo.send_to(&buffer[..length], from).unwrap();
            }
        });
        Self { name: name.to_owned(), node, space, address, closing, threads: vec![tcp, udp] }
    }

    /// Ends when all clients are served, as a process does that was told to stop.
    fn stop(self, host: &Host) {
        self.closing.store(true, Ordering::Relaxed);
        drop(self.space.connect("127.0.0.1:8080"));
        self.space.within(|| UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"x", "127.0.0.1:8080").unwrap());
        for thread in self.threads {
            thread.join().unwrap();
        }
        host.cni("DEL", &self.name, Some(&self.space), json!({})).unwrap();
    }
}

/// Who answers, and whom it sees.
fn ask(from: &Space, to: &str) -> Result<(String, String), String> {
    let attempt = || -> std::io::Result<String> {
        let mut stream = from.connect(to)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.write_all(b"?")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = attempt().map_err(|error| format!("{to}: {error}"))?;
    answer.split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned())).ok_or_else(|| format!("{to} said {answer:?}"))
}

/// What a page says, with its head.
fn fetch(from: &Space, server: &str, path: &str) -> String {
    let mut stream = from.connect(server).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// The address that the cluster's DNS has for a name.
fn lookup(from: &Space, name: &str) -> String {
    try_lookup(from, name, TIMEOUT).unwrap()
}

/// As `lookup`, of a DNS that may not be there yet: nobody says that a question was lost.
fn try_lookup(from: &Space, name: &str, patience: Duration) -> io::Result<String> {
    let socket = from.within(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    socket.set_read_timeout(Some(patience)).unwrap();
    let mut query = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(u8::try_from(label.len()).unwrap());
        query.extend_from_slice(label.as_bytes());
    }
    query.extend_from_slice(&[0, 0, 1, 0, 1]);
    socket.send_to(&query, (DNS, 53))?;
    let mut reply = [0; 512];
    let length = socket.recv(&mut reply)?;
    if reply[3] & 0xf != 0 {
        return Err(io::Error::other(format!("{name} does not exist")));
    }
    // The last record is an address, and its last four bytes are that.
    let [.., a, b, c, d] = reply[..length] else { unreachable!("a header is longer") };
    Ok(Ipv4Addr::from([a, b, c, d]).to_string())
}

/// Longer than an answer ever takes.
const ONE_TRY: Duration = Duration::from_secs(1);

struct Cluster {
    api: FakeApi,
    backend: Backend,
    hosts: Vec<Host>,
    agents: Vec<Option<Agent>>,
    outside: Space,
    _wire: Space,
}

impl Cluster {
    fn new(backend: Backend) -> Self {
        let api = FakeApi::new(SystemClock::shared());
        api.put(&Namespace::from_value(json!({"metadata": {"name": "default"}})).unwrap());
        let (wire, outside) = (Space::new(), Space::new());
        let bridge = wire.within(|| {
            let mut socket = Socket::route().unwrap();
            socket.add_bridge("br0", [2, 0, 0, 0, 0, 1], 1500).unwrap();
            let bridge = socket.link("br0").unwrap().unwrap().index;
            socket.set_up(bridge).unwrap();
            bridge
        });
        let gateway = Ipv4Addr::new(192, 0, 2, 100);
        let plug = |space: &Space, device: &str, address: Ipv4Addr| {
            wire.within(|| {
                let mut socket = Socket::route().unwrap();
                socket.add_veth(device, 1500, "eth0", None, space.file()).unwrap();
                let port = socket.link(device).unwrap().unwrap().index;
                socket.set_master(port, bridge).unwrap();
                socket.set_up(port).unwrap();
            });
            space.within(|| {
                let mut socket = Socket::route().unwrap();
                let link = socket.link("eth0").unwrap().unwrap().index;
                socket.add_address(link, ipnet::Ipv4Net::new(address, 24).unwrap()).unwrap();
                socket.set_up(link).unwrap();
                if address != gateway {
                    let default = Route { via: Some(gateway), protocol: 3, ..Route::new(ipnet::Ipv4Net::default()) };
                    socket.replace_route(&default).unwrap();
                }
            });
        };
        plug(&outside, "outside", gateway);
        let mut cluster =
            Self { api, backend, hosts: Vec::new(), agents: Vec::new(), outside, _wire: Space::clone_of(&wire) };
        for number in 0..3u8 {
            let pods = format!("10.42.{number}.0/24");
            let host = Host::new(&pods, &format!("192.0.2.{}", number + 1));
            plug(&host.space, &name(number), host.address);
            let node = json!({
                "metadata": {"name": name(number)}, "spec": {"podCIDR": pods},
                "status": {"addresses": [{"type": "InternalIP", "address": host.address.to_string()}]},
            });
            cluster.api.put(&Node::from_value(node).unwrap());
            cluster.hosts.push(host);
        }
        cluster.service("web", WEB, json!({"type": "NodePort"}), Some(NODE_PORT));
        cluster.service("marker", MARKER, json!({}), None);
        for number in 0..3u8 {
            let agent = Agent::start(number, &cluster.hosts[usize::from(number)], &cluster.api, backend);
            cluster.agents.push(Some(agent));
        }
        cluster
    }

    fn service(&self, name: &str, frontend: &str, mut spec: Value, node_port: Option<u16>) {
        let (address, port) = frontend.split_once(':').unwrap();
        spec["clusterIP"] = address.into();
        let port: u16 = port.parse().unwrap();
        spec["ports"] = json!(["TCP", "UDP"].map(|protocol| json!({
            "name": protocol.to_lowercase(), "port": port, "protocol": protocol, "nodePort": node_port,
        })));
        let service = json!({"metadata": {"name": name, "namespace": "default"}, "spec": spec});
        self.api.put(&Service::from_value(service).unwrap());
    }

    fn pod(&self, name: &str, node: usize) -> Pod {
        Pod::start(name, node, &self.hosts[node])
    }

    /// Says which pods serve: the first are ready, the second are on their way out and still serve.
    fn publish(&self, service: &str, ready: &[&Pod], leaving: &[&Pod]) {
        let endpoint = |pod: &Pod, ready: bool| {
            json!({
                "addresses": [pod.address], "nodeName": format!("node{}", pod.node),
                "conditions": {"ready": ready, "serving": true, "terminating": !ready},
            })
        };
        let all = ready.iter().map(|pod| endpoint(pod, true)).chain(leaving.iter().map(|pod| endpoint(pod, false)));
        let ports =
            ["TCP", "UDP"].map(|protocol| json!({"name": protocol.to_lowercase(), "port": 8080, "protocol": protocol}));
        let slice = json!({
            "metadata": {
                "name": service, "namespace": "default", "labels": {"kubernetes.io/service-name": service},
            },
            "addressType": "IPv4", "endpoints": all.collect::<Vec<_>>(), "ports": ports,
        });
        self.api.put(&EndpointSlice::from_value(slice).unwrap());
    }

    /// Returns when all nodes have carried out what was published before: changes arrive in order.
    fn barrier(&self, pod: &Pod) {
        for pods in [&[pod][..], &[]] {
            self.publish("marker", pods, &[]);
            for host in &self.hosts {
                until("a node carries out a change", || host.space.connect(MARKER).is_ok() != pods.is_empty());
            }
        }
    }

    fn stop(mut self) {
        for agent in self.agents.iter_mut().filter_map(Option::take) {
            agent.stop();
        }
    }
}

fn everyone_reaches_everyone(backend: Backend) {
    let cluster = Cluster::new(backend);
    let pods: Vec<Pod> =
        [("a", 0), ("neighbour", 0), ("b", 1), ("c", 2)].map(|(name, node)| cluster.pod(name, node)).into();
    for from in &pods {
        for to in &pods {
            let answer = ask(&from.space, &format!("{}:8080", to.address)).unwrap();
            assert_eq!(answer, (to.name.clone(), from.address.clone()), "from {}", from.name);
        }
    }
    for host in &cluster.hosts {
        for pod in &pods {
            assert_eq!(ask(&host.space, &format!("{}:8080", pod.address)).unwrap().0, pod.name);
        }
    }

    // One endpoint after the other, for all who ask: pods of every node, the nodes, the outside by every node.
    for serving in &pods {
        cluster.publish("web", &[serving], &[]);
        cluster.barrier(serving);
        for from in &pods {
            let answer = ask(&from.space, WEB).unwrap();
            assert_eq!(answer.0, serving.name);
            if from.name != serving.name {
                assert_eq!(answer.1, from.address, "a Service shows the pod that asks");
            }
        }
        for host in &cluster.hosts {
            assert_eq!(ask(&host.space, WEB).unwrap().0, serving.name);
            for from in [&cluster.outside, &host.space, &pods[0].space, &pods[2].space] {
                let to = format!("{}:{NODE_PORT}", host.address);
                assert_eq!(ask(from, &to).unwrap().0, serving.name, "{to}");
            }
        }
    }
    for pod in &pods {
        assert_eq!(lookup(&pod.space, "web.default.svc.cluster.local"), "10.43.0.20");
        let dashed = pods[3].address.replace('.', "-");
        assert_eq!(lookup(&pod.space, &format!("{dashed}.web.default.svc.cluster.local")), pods[3].address);
    }

    // A balancer outside learns which nodes to use: not one that is about to go.
    let health = |host: &Host| fetch(&cluster.outside, &format!("{}:{HEALTHZ_PORT}", host.address), "/healthz");
    assert!(health(&cluster.hosts[1]).starts_with("HTTP/1.1 200 OK\r\n"));
    let taint = json!([{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]);
    let address = json!({"type": "InternalIP", "address": cluster.hosts[1].address.to_string()});
    let marked = json!({
        "metadata": {"name": "node1"}, "spec": {"podCIDR": "10.42.1.0/24", "taints": taint},
        "status": {"addresses": [address]},
    });
    cluster.api.put(&Node::from_value(marked).unwrap());
    until("the node says that it goes", || health(&cluster.hosts[1]).contains("\"nodeEligible\":false"));
    assert!(health(&cluster.hosts[1]).starts_with("HTTP/1.1 503 Service Unavailable\r\n"));
    assert!(health(&cluster.hosts[0]).starts_with("HTTP/1.1 200 OK\r\n"));

    // A node leaves for good: nothing leads to its pods, the others go on.
    let routes = || {
        let routes = cluster.hosts[0].space.within(|| Socket::route().unwrap().routes().unwrap());
        routes.into_iter().filter(|route| route.protocol == PROTOCOL).count()
    };
    assert_eq!(routes(), 2);
    cluster.publish("web", &[&pods[2]], &[]);
    cluster.api.remove::<Node>("", "node2");
    until("the route to the node that left goes", || routes() == 1);
    assert_eq!(ask(&pods[0].space, &format!("{}:8080", pods[2].address)).unwrap().0, "b");
    for pod in pods {
        let host = &cluster.hosts[pod.node];
        pod.stop(host);
    }
    cluster.stop();
}

#[test]
fn everyone_reaches_everyone_over_vxlan() {
    everyone_reaches_everyone(Backend::Vxlan);
}

#[test]
fn everyone_reaches_everyone_by_routes() {
    everyone_reaches_everyone(Backend::HostGw);
}

#[test]
fn users_are_told_what_is_not_done_and_why() {
    let cluster = Cluster::new(Backend::Vxlan);
    let told = |reason: &str| {
        let events = cluster.api.list::<Event>("");
        let found = events.iter().filter(|event| event.reason.as_deref() == Some(reason));
        found.filter_map(|event| event.message.clone()).collect::<BTreeSet<_>>()
    };
    cluster.service("greedy", "10.43.0.30:53", json!({"externalIPs": [DNS]}), None);
    until("the Service's owner is told", || !told("ExternalIPNotServed").is_empty());
    let expected = format!("External IP {DNS} is an address of the cluster itself and is not served");
    assert_eq!(told("ExternalIPNotServed"), BTreeSet::from([expected]));
    // Another node may have told it, before this one was ready.
    let web = || try_lookup(&cluster.hosts[0].space, "web.default.svc.cluster.local", ONE_TRY);
    until("the cluster's DNS is the one that answers", || web().is_ok_and(|address| address == "10.43.0.20"));

    // A network of the host's that pods have already; the next change of a node makes it look.
    let host = &cluster.hosts[0];
    host.space.within(|| {
        let mut socket = Socket::route().unwrap();
        let link = socket.link("eth0").unwrap().unwrap().index;
        socket.add_address(link, "10.42.200.1/24".parse().unwrap()).unwrap();
    });
    cluster.api.remove::<Node>("", "node2");
    until("the administrator is told", || !told("NetworkSetupFailed").is_empty());
    let expected = "device eth0 has the address 10.42.200.1/24, which is inside the pods' network 10.42.0.0/16: \
                    give the cluster another one with --cluster-cidr, or the device another address";
    assert_eq!(told("NetworkSetupFailed"), BTreeSet::from([expected.to_owned()]));
    cluster.stop();
}

/// Asks without a pause until told to stop, and returns what went wrong. Often enough to have met something.
fn ask_on(from: &Space, to: &str, stop: &AtomicBool) -> Vec<String> {
    let (mut count, mut failures) = (0, Vec::new());
    while count < 10 || !stop.load(Ordering::Relaxed) {
        count += 1;
        failures.extend(ask(from, to).err());
    }
    failures
}

/// Runs `work` while clients everywhere use the Service, of whom none may see anything of it.
fn unnoticed<T>(cluster: &Cluster, client: &Pod, work: impl FnOnce() -> T) -> T {
    let stop = AtomicBool::new(false);
    let by_node = cluster.hosts.iter().map(|host| format!("{}:{NODE_PORT}", host.address));
    let mut ways: Vec<(&Space, String)> = by_node.map(|to| (&cluster.outside, to)).collect();
    ways.push((&client.space, WEB.to_owned()));
    ways.push((&cluster.hosts[1].space, WEB.to_owned()));
    std::thread::scope(|scope| {
        let asking: Vec<_> = ways.iter().map(|(from, to)| (to, scope.spawn(|| ask_on(from, to, &stop)))).collect();
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        stop.store(true, Ordering::Relaxed);
        for (to, thread) in asking {
            let failures = thread.join().unwrap();
            assert!(failures.is_empty(), "{to}: {failures:?}");
        }
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[test]
fn no_connection_is_refused_or_lost_while_pods_are_replaced() {
    let cluster = Cluster::new(Backend::Vxlan);
    let client = cluster.pod("client", 0);
    let mut serving = cluster.pod("web-0", 0);
    cluster.publish("web", &[&serving], &[]);
    cluster.barrier(&client);
    unnoticed(&cluster, &client, || {
        for round in 1..8 {
            let new = cluster.pod(&format!("web-{round}"), round % 3);
            cluster.publish("web", &[&new, &serving], &[]);
            cluster.publish("web", &[&new], &[&serving]);
            cluster.publish("web", &[&new], &[]);
            // The time that pods have to end is for this: the last node hears of it.
            cluster.barrier(&client);
            let old = std::mem::replace(&mut serving, new);
            let host = &cluster.hosts[old.node];
            old.stop(host);
        }
    });
    let host = &cluster.hosts[serving.node];
    serving.stop(host);
    client.stop(&cluster.hosts[0]);
    cluster.stop();
}

/// All rules, of which none changes with packets.
fn rules(host: &Host) -> String {
    host.space.within(|| nft_command("list ruleset"))
}

#[test]
fn an_agent_that_restarts_disturbs_no_packet() {
    let mut cluster = Cluster::new(Backend::Vxlan);
    let (client, serving) = (cluster.pod("client", 0), cluster.pod("web", 1));
    cluster.publish("web", &[&serving], &[]);
    cluster.barrier(&client);
    for host in &cluster.hosts {
        host.space.within(|| nft_command("add table inet admin; add chain inet admin c { type filter hook input priority 0; }; add rule inet admin c tcp dport 9 drop"));
    }
    let before: Vec<String> = cluster.hosts.iter().map(rules).collect();
    let mut agents: Vec<Option<Agent>> = std::mem::take(&mut cluster.agents);
    let talk = client.space.within(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    talk.set_read_timeout(Some(TIMEOUT)).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // One flow of questions and answers, each waited for: a packet that is lost ends it.
        let talking = scope.spawn(|| {
            let mut count: u32 = 0;
            while !stop.load(Ordering::Relaxed) {
                count += 1;
                talk.send_to(&count.to_be_bytes(), WEB).unwrap();
                let mut answer = [0; 4];
                talk.recv_from(&mut answer).expect("an answer to every question");
                assert_eq!(u32::from_be_bytes(answer), count);
            }
            count
        });
        unnoticed(&cluster, &client, || {
            for _ in 0..3 {
                for (number, agent) in (0u8..).zip(&mut agents) {
                    agent.take().unwrap().stop();
                    let host = &cluster.hosts[usize::from(number)];
                    *agent = Some(Agent::start(number, host, &cluster.api, cluster.backend));
                }
            }
        });
        stop.store(true, Ordering::Relaxed);
        assert!(talking.join().unwrap() > 0);
    });
    assert_eq!(cluster.hosts.iter().map(rules).collect::<Vec<_>>(), before);
    cluster.agents = agents;
    for pod in [client, serving] {
        let node = pod.node;
        pod.stop(&cluster.hosts[node]);
    }
    cluster.stop();
}
