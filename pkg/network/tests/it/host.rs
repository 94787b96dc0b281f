//! Hosts and pods made of network namespaces, and connections between them. The tests of the network and of the proxy
//! share this file; what only one of them needs is in its own.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::Ipv4Net;
use nix::sched::{CloneFlags, unshare};
use rkube_network::cni::{self, Failure};
use rkube_network::netlink::Socket;
use rkube_network::netns::Netns;
use rkube_network::node::{self, Backend, Network, View};
use serde_json::{Value, json};

pub(crate) const TIMEOUT: Duration = Duration::from_secs(5);

/// A network namespace of its own, with `lo` up.
pub(crate) struct Space(pub(crate) File);

impl Space {
    /// Needs root, as everything does that changes the kernel's network.
    pub(crate) fn new() -> Self {
        let made = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace, which needs root");
            let mut socket = Socket::route().unwrap();
            let lo = socket.link("lo").unwrap().unwrap();
            socket.set_up(lo.index).unwrap();
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        Self(made.join().unwrap())
    }

    pub(crate) fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.0.as_raw_fd()).into()
    }

    pub(crate) fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        Netns::open(&self.path()).unwrap().within(work).unwrap()
    }

    pub(crate) fn file(&self) -> &File {
        &self.0
    }

    pub(crate) fn listen(&self, address: &str) -> TcpListener {
        self.within(|| TcpListener::bind(address).unwrap())
    }

    pub(crate) fn connect(&self, to: &str) -> std::io::Result<TcpStream> {
        let to: SocketAddr = to.parse().unwrap();
        self.within(|| TcpStream::connect_timeout(&to, TIMEOUT))
    }

    /// Connects to `to`, which must lead to `listener`, sends `bytes` there and back, and returns who the
    /// listener saw.
    pub(crate) fn reach(&self, to: &str, listener: &TcpListener, bytes: usize) -> IpAddr {
        let mut near = self.connect(to).unwrap_or_else(|error| panic!("connecting to {to}: {error}"));
        let (mut far, from) = listener.accept().unwrap();
        for stream in [&near, &far] {
            stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        }
        let data = vec![7; bytes];
        std::thread::scope(|scope| {
            scope.spawn(|| near.write_all(&data).unwrap());
            let mut received = vec![0; bytes];
            far.read_exact(&mut received).unwrap();
            assert!(received == data);
        });
        far.write_all(b"!").unwrap();
        near.read_exact(&mut [0]).unwrap();
        from.ip()
    }
}

/// A node: a namespace, where it keeps its addresses, and its pods' network.
pub(crate) struct Host {
    pub(crate) space: Space,
    pub(crate) data: tempfile::TempDir,
    pub(crate) pods: Ipv4Net,
    pub(crate) address: Ipv4Addr,
}

impl Host {
    pub(crate) fn new(pods: &str, address: &str) -> Self {
        Self {
            space: Space::new(),
            data: tempfile::tempdir().unwrap(),
            pods: pods.parse().unwrap(),
            address: address.parse().unwrap(),
        }
    }

    /// Joins two hosts by a cable.
    pub(crate) fn wire(&self, other: &Self) {
        let plug = |host: &Self, device: &str| {
            host.space.within(|| {
                let mut socket = Socket::route().unwrap();
                let link = socket.link(device).unwrap().unwrap();
                socket.add_address(link.index, Ipv4Net::new(host.address, 24).unwrap()).unwrap();
                socket.set_up(link.index).unwrap();
            });
        };
        let peer = other.space.file();
        self.space.within(|| Socket::route().unwrap().add_veth("wire0", 1500, "wire0", None, peer).unwrap());
        plug(self, "wire0");
        plug(other, "wire0");
    }

    pub(crate) fn ensure(&self, backend: Backend, view: &View) {
        let cluster = "10.42.0.0/16".parse().unwrap();
        let network = Network { backend, cluster, data_dir: self.data.path().to_owned() };
        self.space.within(|| node::ensure(&network, view).unwrap());
    }

    pub(crate) fn cni(&self, command: &str, id: &str, pod: Option<&Space>, extra: Value) -> Result<Value, Failure> {
        let mut config = json!({
            "cniVersion": "1.0.0", "name": "rkube", "type": "rkube-cni",
            "podCIDR": self.pods, "bridge": "rkube0", "mtu": 1450, "dataDir": self.data.path(),
        });
        config.as_object_mut().unwrap().extend(extra.as_object().cloned().unwrap_or_default());
        let netns = pod.map(|pod| pod.path().display().to_string());
        let environment = |name: &str| match name {
            "CNI_COMMAND" => Some(command.to_owned()),
            "CNI_CONTAINERID" => Some(id.to_owned()),
            "CNI_IFNAME" => Some("eth0".to_owned()),
            "CNI_NETNS" => netns.clone(),
            _ => None,
        };
        let input = config.to_string();
        let text =
            self.space.within(|| cni::call("/opt/cni/bin/rkube-cni".as_ref(), &environment, input.as_bytes()))?;
        Ok(if text.is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap() })
    }

    /// A new pod and its address.
    pub(crate) fn pod(&self, id: &str, extra: Value) -> (Space, String) {
        let pod = Space::new();
        let result = self.cni("ADD", id, Some(&pod), extra).unwrap();
        (pod, address_of(&result))
    }
}

pub(crate) fn address_of(result: &Value) -> String {
    let net: Ipv4Net = result["ips"][0]["address"].as_str().unwrap().parse().unwrap();
    net.addr().to_string()
}
