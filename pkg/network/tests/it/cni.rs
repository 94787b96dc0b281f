//! The plugin, called as runtimes call it and as they should not.

use std::collections::BTreeSet;

use rkube_network::cni::Code;
use rkube_network::ipam::{Attachment, Ipam};
use rkube_network::netlink::Socket;
use rkube_network::node::{Backend, View};
use serde_json::json;

use crate::host::{Host, Space, address_of};

impl Host {
    /// What the kernel does some time after a pod's namespace is gone. No error if it was faster.
    pub(crate) fn delete_device(&self, name: &str) {
        self.space.within(|| {
            let mut socket = Socket::route().unwrap();
            if let Some(link) = socket.link(name).unwrap() {
                socket.delete_link(link.index).unwrap();
            }
        });
    }

    pub(crate) fn device_count(&self) -> usize {
        self.space.within(|| Socket::route().unwrap().links().unwrap().len())
    }
}

fn single() -> Host {
    let host = Host::new("10.42.0.0/24", "127.0.0.1");
    host.ensure(Backend::None, &View::default());
    host
}

#[test]
fn pods_of_a_node_reach_each_other_and_the_node() {
    let host = single();
    let (a, a_address) = host.pod("a", json!({}));
    let (b, b_address) = host.pod("b", json!({}));
    let listener = b.listen("0.0.0.0:80");
    assert_eq!(a.reach(&format!("{b_address}:80"), &listener, 100_000).to_string(), a_address);
    assert_eq!(host.space.reach(&format!("{b_address}:80"), &listener, 10).to_string(), "10.42.0.1");
    let on_host = host.space.listen("10.42.0.1:81");
    assert_eq!(a.reach("10.42.0.1:81", &on_host, 10).to_string(), a_address);
    host.cni("CHECK", "a", Some(&a), json!({})).unwrap();
    host.cni("STATUS", "", None, json!({})).unwrap();
}

#[test]
fn called_twice_adds_once_and_deletes_without_complaint() {
    let host = single();
    let pod = Space::new();
    let first = host.cni("ADD", "a", Some(&pod), json!({})).unwrap();
    let devices = host.device_count();
    assert_eq!(host.cni("ADD", "a", Some(&pod), json!({})).unwrap(), first);
    assert_eq!(host.device_count(), devices);

    for _ in 0..2 {
        host.cni("DEL", "a", Some(&pod), json!({})).unwrap();
        host.cni("DEL", "a", None, json!({})).unwrap();
    }
    assert_eq!(host.device_count(), devices - 1);
    let error = host.cni("CHECK", "a", Some(&pod), json!({})).unwrap_err();
    assert_eq!((error.code, error.message.as_str()), (Code::CheckFailed, "no address is reserved for a"));

    // A pod's namespace that went without a DEL: the same name comes again with another one.
    drop(host.pod("a", json!({})));
    let (again, _) = host.pod("a", json!({}));
    host.cni("CHECK", "a", Some(&again), json!({})).unwrap();
    assert_eq!(host.device_count(), devices);
}

#[test]
fn a_call_after_a_crash_anywhere_begins_anew() {
    let host = single();
    let directory = host.data.path();
    // The first pod brings the bridge.
    let devices = host.device_count() + 1;
    let attachment = Attachment { container_id: "a".to_owned(), ifname: "eth0".to_owned() };
    let pod = Space::new();
    let add = || {
        let address = address_of(&host.cni("ADD", "a", Some(&pod), json!({})).unwrap());
        host.cni("CHECK", "a", Some(&pod), json!({})).unwrap();
        assert_eq!(host.device_count(), devices + 1);
        assert_eq!(Ipam::lock(directory).unwrap().reservations().len(), 1);
        address
    };
    // After the reservation, before the device, with another file half written.
    Ipam::lock(directory).unwrap().reserve(host.pods, &attachment, "vethgone", Vec::new()).unwrap();
    std::fs::write(directory.join("new"), "{\"addr").unwrap();
    let address = add();
    // After the device, before its end in the pod had all it needs.
    pod.within(|| {
        let mut socket = Socket::route().unwrap();
        let link = socket.link("eth0").unwrap().unwrap().index;
        socket.delete_address(link, address.parse::<std::net::Ipv4Addr>().unwrap().into()).unwrap();
    });
    add();
    // The records are lost and the device is not.
    for entry in std::fs::read_dir(directory).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    add();
    for entry in std::fs::read_dir(directory).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    host.cni("DEL", "a", Some(&pod), json!({})).unwrap();
    assert_eq!(host.device_count(), devices);
}

#[test]
fn concurrent_calls_get_different_addresses() {
    let host = single();
    let pods: Vec<_> = (0..12).map(|_| Space::new()).collect();
    let addresses: BTreeSet<_> = std::thread::scope(|scope| {
        let adds: Vec<_> = pods
            .iter()
            .enumerate()
            .map(|(index, pod)| {
                let host = &host;
                scope.spawn(move || host.cni("ADD", &format!("pod{index}"), Some(pod), json!({})).unwrap())
            })
            .collect();
        adds.into_iter().map(|add| address_of(&add.join().unwrap())).collect()
    });
    assert_eq!(addresses.len(), 12);
    let valid = json!([{"containerID": "pod3", "ifname": "eth0"}]);
    host.cni("GC", "", None, json!({"cni.dev/valid-attachments": valid})).unwrap();
    host.cni("CHECK", "pod3", Some(&pods[3]), json!({})).unwrap();
    assert!(host.cni("CHECK", "pod4", Some(&pods[4]), json!({})).is_err());
}

#[test]
fn addresses_of_vanished_pods_are_reclaimed_when_there_are_no_others() {
    let mut host = single();
    host.pods = "10.42.0.0/29".parse().unwrap();
    let kept: Vec<_> = (0..4).map(|index| host.pod(&format!("kept{index}"), json!({}))).collect();
    let vanished = host.cni("ADD", "vanished", Some(&Space::new()), json!({})).unwrap();
    host.delete_device(vanished["interfaces"][1]["name"].as_str().unwrap());
    let (_pod, _address) = host.pod("next", json!({}));
    let last = Space::new();
    let error = host.cni("ADD", "toomany", Some(&last), json!({})).unwrap_err();
    assert_eq!(error.code, Code::AddressesExhausted);
    assert_eq!(error.message, "no IP addresses available in 10.42.0.0/29");
    drop(kept);
}

#[test]
fn bad_calls_are_refused_with_the_code_of_the_specification() {
    let host = single();
    let pod = Space::new();
    let code = |command: &str, id: &str, extra| host.cni(command, id, Some(&pod), extra).unwrap_err().code;
    assert_eq!(code("ADD", "../../etc", json!({})), Code::InvalidEnvironment);
    assert_eq!(code("ADD", "", json!({})), Code::InvalidEnvironment);
    assert_eq!(code("FROB", "a", json!({})), Code::InvalidEnvironment);
    assert_eq!(code("ADD", "a", json!({"cniVersion": "9.0.0"})), Code::IncompatibleVersion);
    assert_eq!(code("ADD", "a", json!({"podCIDR": "10.42.0.0/99"})), Code::InvalidConfig);
    let port = json!({"portMappings": [{"hostPort": 70000, "containerPort": 1, "protocol": "tcp"}]});
    assert_eq!(code("ADD", "a", json!({"runtimeConfig": port})), Code::InvalidConfig);
    let versions = host.cni("VERSION", "", None, json!({})).unwrap();
    assert!(versions["supportedVersions"].as_array().unwrap().contains(&json!("1.1.0")));
}
