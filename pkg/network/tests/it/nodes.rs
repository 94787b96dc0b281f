//! Two nodes with a cable between them.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::fd::AsRawFd;

use expect_test::expect;
use rkube_network::address::{assign_local, local_addresses};
use rkube_network::conflist::{self, Conflist};
use rkube_network::netlink::Socket;
use rkube_network::netlink::route::{PROTOCOL, Route};
use rkube_network::node::{self, Backend, Network, Peer, View};
use rkube_network::removal::{self, Folders};
use serde_json::json;

use crate::host::{Host, Space, TIMEOUT};

impl Space {
    /// Connects with one of this space's addresses as the source.
    pub(crate) fn connect_from(&self, source: &str, to: &str) -> std::io::Result<TcpStream> {
        use nix::sys::socket::{
            AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket, sockopt::SendTimeout,
        };
        let address = |text: &str| SockaddrIn::from(text.parse::<std::net::SocketAddrV4>().unwrap());
        self.within(|| {
            let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
            let seconds = i64::try_from(TIMEOUT.as_secs()).unwrap();
            setsockopt(&fd, SendTimeout, &nix::sys::time::TimeVal::new(seconds, 0))?;
            bind(fd.as_raw_fd(), &address(source))?;
            connect(fd.as_raw_fd(), &address(to))?;
            Ok(TcpStream::from(fd))
        })
    }
}

fn peer(host: &Host) -> Peer {
    Peer { name: host.address.to_string(), pods: host.pods, address: host.address }
}

fn view(host: &Host, peers: Vec<Peer>) -> View {
    View { pods: Some(host.pods), address: Some(host.address), peers, problems: Vec::new() }
}

fn pair(backend: Backend) -> (Host, Host) {
    let (a, b) = (Host::new("10.42.0.0/24", "192.0.2.1"), Host::new("10.42.1.0/24", "192.0.2.2"));
    a.wire(&b);
    // Twice: the second time finds everything in place.
    for _ in 0..2 {
        a.ensure(backend, &view(&a, vec![peer(&b)]));
        b.ensure(backend, &view(&b, vec![peer(&a)]));
    }
    (a, b)
}

fn own_routes(host: &Host) -> usize {
    let routes = host.space.within(|| Socket::route().unwrap().routes().unwrap());
    routes.iter().filter(|route| route.protocol == PROTOCOL).count()
}

fn pods_reach_pods_across(backend: Backend) {
    let (a, b) = pair(backend);
    let (pod_a, address_a) = a.pod("a", json!({}));
    let (pod_b, address_b) = b.pod("b", json!({}));
    let (on_a, on_b) = (pod_a.listen("0.0.0.0:80"), pod_b.listen("0.0.0.0:80"));
    // Pods see each other's addresses, and full packets get through.
    assert_eq!(pod_a.reach(&format!("{address_b}:80"), &on_b, 300_000).to_string(), address_a);
    assert_eq!(pod_b.reach(&format!("{address_a}:80"), &on_a, 300_000).to_string(), address_b);
    a.space.reach(&format!("{address_b}:80"), &on_b, 10);

    // Out of the cluster a pod has its node's address.
    let outside = b.space.listen("192.0.2.2:90");
    assert_eq!(pod_a.reach("192.0.2.2:90", &outside, 10).to_string(), "192.0.2.1");

    assert_eq!(own_routes(&a), 1);
    a.ensure(backend, &view(&a, Vec::new()));
    assert_eq!(own_routes(&a), 0);
}

#[test]
fn vxlan() {
    pods_reach_pods_across(Backend::Vxlan);
}

#[test]
fn host_gateway() {
    pods_reach_pods_across(Backend::HostGw);
}

#[test]
fn host_ports_lead_to_the_pod_from_everywhere() {
    let (a, b) = pair(Backend::Vxlan);
    let mapping = |host_port: u16, host_ip: &str| {
        json!({
            "hostPort": host_port, "containerPort": 80, "protocol": "tcp", "hostIP": host_ip,
        })
    };
    // As containerd writes it.
    let shouted = json!({"HostPort": 8081, "ContainerPort": 80, "Protocol": "tcp", "HostIP": "127.0.0.1"});
    let ports = json!({"runtimeConfig": {"portMappings": [mapping(8080, ""), shouted]}});
    let (pod, _) = a.pod("a", ports.clone());
    let (neighbour, neighbour_address) = a.pod("n", json!({}));
    let listener = pod.listen("0.0.0.0:80");
    assert_eq!(b.space.reach("192.0.2.1:8080", &listener, 10).to_string(), "192.0.2.2");
    assert_eq!(neighbour.reach("192.0.2.1:8080", &listener, 10).to_string(), neighbour_address);
    a.space.reach("127.0.0.1:8080", &listener, 10);
    a.space.reach("127.0.0.1:8081", &listener, 10);
    a.space.reach("192.0.2.1:8080", &listener, 10);
    pod.reach("192.0.2.1:8080", &listener, 10);
    // A program of the host that talks to 127.0.0.1 from another address of the host.
    for port in [8080, 8081] {
        let mut near = a.space.connect_from("192.0.2.1:0", &format!("127.0.0.1:{port}")).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        far.write_all(b"!").unwrap();
        near.read_exact(&mut [0]).unwrap();
    }
    assert!(b.space.connect("192.0.2.1:8081").is_err());

    // The frame is laid anew, as by an agent that restarts: host ports stay.
    a.ensure(Backend::Vxlan, &view(&a, vec![peer(&b)]));
    b.space.reach("192.0.2.1:8080", &listener, 10);

    let other = crate::host::Space::new();
    let error = a.cni("ADD", "other", Some(&other), ports).unwrap_err();
    assert_eq!(error.message, "host port 8080 is in use by container a");
    a.cni("DEL", "a", Some(&pod), json!({})).unwrap();
    assert!(b.space.connect("192.0.2.1:8080").is_err());
}

#[test]
fn a_host_network_that_overlaps_the_pods_is_refused_with_the_remedy() {
    let (a, b) = (Host::new("10.42.0.0/24", "10.42.7.1"), Host::new("10.42.1.0/24", "10.42.7.2"));
    a.wire(&b);
    let network = Network {
        backend: Backend::Vxlan,
        cluster: "10.42.0.0/16".parse().unwrap(),
        data_dir: a.data.path().to_owned(),
    };
    let devices = a.device_count();
    let refused = a.space.within(|| node::ensure(&network, &view(&a, vec![peer(&b)])).unwrap_err().to_string());
    assert_eq!(
        refused,
        "device wire0 has the address 10.42.7.1/24, which is inside the pods' network 10.42.0.0/16: \
         give the cluster another one with --cluster-cidr, or the device another address"
    );
    assert_eq!(a.device_count(), devices);
}

fn ruleset(host: &Host) -> String {
    host.space.within(|| {
        let output = std::process::Command::new("nft").args(["list", "ruleset"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    })
}

#[test]
fn removal_takes_all_that_is_ours_and_nothing_else() {
    let (a, b) = (Host::new("10.42.0.0/24", "192.0.2.1"), Host::new("10.42.1.0/24", "192.0.2.2"));
    a.wire(&b);
    a.space.within(|| {
        let table = "add table ip admin; add chain ip admin c { type nat hook prerouting priority -100; }; \
                     add rule ip admin c tcp dport 9 redirect to :10";
        assert!(std::process::Command::new("nft").arg(table).status().unwrap().success());
        let mut socket = Socket::route().unwrap();
        let foreign = Route { via: Some(b.address), protocol: 4, ..Route::new("198.51.100.0/24".parse().unwrap()) };
        socket.replace_route(&foreign).unwrap();
    });
    let seen = |host: &Host| {
        let routes = host.space.within(|| Socket::route().unwrap().routes().unwrap());
        (host.device_count(), routes, ruleset(host))
    };
    let before = seen(&a);
    a.ensure(Backend::Vxlan, &view(&a, vec![peer(&b)]));
    let port = json!({"hostPort": 8080, "containerPort": 80, "protocol": "tcp"});
    let pod = Space::new();
    let added = a.cni("ADD", "a", Some(&pod), json!({"runtimeConfig": {"portMappings": [port]}})).unwrap();
    let device = added["interfaces"][1]["name"].as_str().unwrap().to_owned();
    assert!(ruleset(&a).contains("table ip rkube"));
    let folders = Folders {
        data: a.data.path().to_owned(),
        cni_bin: a.data.path().join("bin"),
        cni_conf: a.data.path().join("conf"),
    };
    conflist::install_plugin("/opt/program".as_ref(), &folders.cni_bin).unwrap();
    let installed =
        Conflist { pods: a.pods, bridge: node::BRIDGE.to_owned(), mtu: 1450, data_dir: folders.data.clone() };
    conflist::install(&installed, &folders.cni_conf).unwrap();
    std::fs::write(folders.cni_conf.join("10-other.conflist"), "{}").unwrap();
    let dns = Ipv4Addr::new(10, 43, 0, 10);
    a.space.within(|| assign_local(dns).unwrap());
    let found = a.space.within(|| removal::find(&folders).unwrap());
    let shown = found.iter().map(|trace| format!("{trace}\n")).collect::<String>();
    expect![[r#"
        file DATA/conf/05-rkube.conflist
        file DATA/bin/rkube-cni
        file DATA/bin/loopback
        route to 10.42.1.0/24
        network device PODS
        network device rkube-vxlan
        network device rkube0
        address 10.43.0.10 of lo
        nftables table ip rkube
        records of 1 pod addresses in DATA
    "#]]
    .assert_eq(&shown.replace(&a.data.path().display().to_string(), "DATA").replace(&device, "PODS"));
    // Twice: what is gone is no error.
    for _ in 0..2 {
        a.space.within(|| found.iter().for_each(|trace| removal::remove(trace).unwrap()));
        assert_eq!(seen(&a), before);
    }
    assert!(a.space.within(|| removal::find(&folders).unwrap().is_empty() && local_addresses().unwrap().is_empty()));
    assert!(folders.cni_conf.join("10-other.conflist").exists());
    assert!(rkube_network::ipam::Ipam::lock(a.data.path()).unwrap().reservations().is_empty());
}
