//! Cluster IPs and node ports: allocated, given back, repaired.

use std::sync::Arc;
use std::time::Duration;

use expect_test::expect;
use rkube_apimachinery::meta::MetaMut;
use rkube_registry::options::CreateOptions;
use rkube_registry::store::{Answer, Target};
use rkube_storage::memory::MemoryStorage;
use serde_json::{Value, json};

use crate::cluster::{Cluster, PATIENCE, at, keys, value};

/// Six addresses and twenty ports.
async fn cluster() -> Cluster {
    over(Arc::new(MemoryStorage::new()), &["10.43.0.0/29"]).await
}

async fn over(storage: Arc<MemoryStorage>, cidrs: &[&str]) -> Cluster {
    Cluster::configured(storage, config(cidrs)).await
}

pub(crate) fn config(cidrs: &[&str]) -> rkube_registry::Config {
    let service_cidrs = cidrs.iter().map(|cidr| cidr.parse().expect("a range")).collect();
    rkube_registry::Config { service_cidrs, node_ports: (30_000, 30_019), ..crate::cluster::config() }
}

pub(crate) fn service(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec})
}

fn ports(kind: &str) -> Value {
    json!({"type": kind, "ports": [{"port": 53, "protocol": "TCP", "name": "t"}, {"port": 53, "protocol": "UDP", "name": "u"}]})
}

pub(crate) async fn addresses(cluster: &Cluster) -> Vec<String> {
    keys(&cluster.list("ipaddresses", "", json!({})).await.expect("lists"))
}

/// Waits until the allocated addresses are these: releases happen in their own time.
pub(crate) async fn addresses_become(cluster: &Cluster, expected: &[&str]) {
    let mut watching = cluster.watch("ipaddresses", "", json!({})).await.expect("watches");
    while addresses(cluster).await != expected {
        let change = tokio::time::timeout(PATIENCE, watching.event());
        change.await.unwrap_or_else(|_| panic!("waiting for the addresses {expected:?}"));
    }
}

#[tokio::test]
async fn a_service_holds_an_address_until_it_goes() {
    let cluster = cluster().await;
    let created = cluster.create("services", service("a", json!({}))).await.expect("creates");
    let address = created["spec"]["clusterIP"].as_str().expect("an address").to_owned();
    assert_eq!(created["spec"]["clusterIPs"], json!([address]));
    assert_eq!(created["spec"]["ipFamilies"], json!(["IPv4"]));
    assert_eq!(created["spec"]["ipFamilyPolicy"], "SingleStack");
    let (store, target) = (cluster.store("ipaddresses"), Target::new("", address.as_str()));
    let object = value(&store.get(&cluster.context, &target, &Default::default()).await.expect("reads"));
    assert_eq!(object["spec"]["parentRef"], json!({"resource": "services", "namespace": "ns", "name": "a"}));
    assert_eq!(object["metadata"]["labels"]["ipaddress.kubernetes.io/managed-by"], "ipallocator.k8s.io");

    // The client's own form, sent again, changes nothing.
    let again = cluster.update("services", &at("a"), service("a", json!({}))).await.expect("updates");
    assert_eq!(value(&again.object)["spec"], created["spec"]);
    cluster.delete("services", "a", json!({})).await.expect("deletes");
    addresses_become(&cluster, &[]).await;
}

#[tokio::test]
async fn addresses_run_out_and_come_back() {
    let cluster = cluster().await;
    for index in 0..6 {
        cluster.create("services", service(&format!("s{index}"), json!({}))).await.expect("creates");
    }
    let full = cluster.create("services", service("more", json!({}))).await.expect_err("is full");
    expect![[r#"500 Internal error occurred: failed to allocate a serviceIP for Service "more": range is full"#]]
        .assert_eq(&format!("{} {}", full.code(), full.message()));
    cluster
        .create("services", service("headless", json!({"clusterIP": "None", "selector": {"a": "b"}})))
        .await
        .expect("creates");
    cluster
        .create("services", service("outside", json!({"type": "ExternalName", "externalName": "x.org"})))
        .await
        .expect("creates");
    cluster.delete("services", "s3", json!({})).await.expect("deletes");
    cluster.create("services", service("more", json!({}))).await.expect("creates");
    assert_eq!(addresses(&cluster).await.len(), 6);
}

#[tokio::test]
async fn a_chosen_address_must_be_free_and_in_range() {
    let cluster = cluster().await;
    let choose = |name: &str, address: &str| service(name, json!({"clusterIP": address}));
    cluster.create("services", choose("a", "10.43.0.5")).await.expect("creates");
    let refuse = async |body: Value| {
        let status = cluster.create("services", body).await.expect_err("is refused");
        format!("{} {}", status.code(), status.message())
    };
    expect![[r#"422 Service "b" is invalid: spec.clusterIPs: Invalid value: ["10.43.0.5"]: failed to allocate IP 10.43.0.5: provided IP is already allocated"#]]
        .assert_eq(&refuse(choose("b", "10.43.0.5")).await);
    expect![[r#"422 Service "b" is invalid: spec.clusterIPs: Invalid value: ["10.43.0.7"]: failed to allocate IP 10.43.0.7: the provided IP (10.43.0.7) is not in the valid range. The range of valid IPs is 10.43.0.0/29"#]]
        .assert_eq(&refuse(choose("b", "10.43.0.7")).await);
    expect![[r#"422 Service "b" is invalid: spec.clusterIPs: Invalid value: ["10.9.0.1"]: failed to allocate IP 10.9.0.1: the provided network does not match the current range"#]]
        .assert_eq(&refuse(choose("b", "10.9.0.1")).await);
    expect![[r#"422 Service "b" is invalid: spec.clusterIPs[0]: Invalid value: ["fd00::1"]: IPv6 is not configured on this cluster"#]]
        .assert_eq(&refuse(choose("b", "fd00::1")).await);
    expect![[r#"422 Service "b" is invalid: spec.ipFamilyPolicy: Invalid value: "RequireDualStack": this cluster is not configured for dual-stack services"#]]
        .assert_eq(&refuse(service("b", json!({"ipFamilyPolicy": "RequireDualStack"}))).await);
}

#[tokio::test]
async fn what_a_failed_write_held_goes_back() {
    let cluster = cluster().await;
    cluster.create("services", service("a", json!({"clusterIP": "10.43.0.5"}))).await.expect("creates");
    cluster.create("services", service("a", ports("NodePort"))).await.expect_err("exists");
    addresses_become(&cluster, &["10.43.0.5"]).await;
    let options = CreateOptions { dry_run: vec!["All".to_owned()], ..CreateOptions::default() };
    let store = cluster.store("services");
    let answer =
        store.create(&cluster.context, &Target::new("ns", ""), service("b", ports("NodePort")), &options).await;
    let Answer::Object(object) = answer.expect("pretends") else { panic!("an object") };
    assert_eq!(value(&object)["spec"]["clusterIP"], "10.43.0.0");
    assert_eq!(value(&object)["spec"]["ports"][0]["nodePort"], 32769);
    assert_eq!(addresses(&cluster).await, ["10.43.0.5"]);
    for index in 0..5 {
        cluster.create("services", service(&format!("s{index}"), ports("NodePort"))).await.expect("all are free");
    }
}

#[tokio::test]
async fn node_ports_are_shared_by_protocols_kept_and_released() {
    let cluster = cluster().await;
    let created = cluster.create("services", service("a", ports("NodePort"))).await.expect("creates");
    let port = created["spec"]["ports"][0]["nodePort"].as_i64().expect("a port");
    assert!((30_000..=30_019).contains(&port));
    assert_eq!(created["spec"]["ports"][1]["nodePort"], port);
    let mut chosen = service("b", ports("NodePort"));
    chosen["spec"]["ports"][0]["nodePort"] = json!(port);
    let status = cluster.create("services", chosen.clone()).await.expect_err("is taken");
    assert_eq!(
        status.message(),
        format!(
            "Service \"b\" is invalid: spec.ports[0].nodePort: Invalid value: {port}: provided port is already allocated"
        )
    );
    chosen["spec"]["ports"][0]["nodePort"] = json!(80);
    let status = cluster.create("services", chosen.clone()).await.expect_err("is out of range");
    expect![[r#"Service "b" is invalid: spec.ports[0].nodePort: Invalid value: 80: provided port is not in the valid range. The range of valid ports is 30000-30019"#]]
        .assert_eq(status.message());

    let kept = cluster.update("services", &at("a"), service("a", ports("NodePort"))).await.expect("updates");
    assert_eq!(value(&kept.object)["spec"]["ports"], created["spec"]["ports"]);
    let mut body = service("a", ports("ClusterIP"));
    body.set_resource_version("");
    cluster.update("services", &at("a"), body).await.expect("releases");
    chosen["spec"]["ports"][0]["nodePort"] = json!(port);
    cluster.create("services", chosen).await.expect("is free again");
}

#[tokio::test]
async fn two_ranges_make_two_stacks() {
    let cluster = over(Arc::new(MemoryStorage::new()), &["10.43.0.0/29", "fd00::/120"]).await;
    let single = cluster.create("services", service("a", json!({}))).await.expect("creates");
    assert_eq!(single["spec"]["ipFamilies"], json!(["IPv4"]));
    let mut both = single.clone();
    both["spec"]["ipFamilyPolicy"] = json!("PreferDualStack");
    let both = value(&cluster.update("services", &at("a"), both).await.expect("upgrades").object);
    assert_eq!(both["spec"]["ipFamilies"], json!(["IPv4", "IPv6"]));
    assert_eq!(both["spec"]["clusterIP"], single["spec"]["clusterIP"]);
    assert!(both["spec"]["clusterIPs"][1].as_str().is_some_and(|address| address.starts_with("fd00::")));
    assert_eq!(addresses(&cluster).await.len(), 2);
    let mut back = both.clone();
    back["spec"]["ipFamilyPolicy"] = json!("SingleStack");
    let back = value(&cluster.update("services", &at("a"), back).await.expect("downgrades").object);
    assert_eq!(back["spec"]["clusterIPs"], single["spec"]["clusterIPs"]);
    addresses_become(&cluster, &[single["spec"]["clusterIP"].as_str().expect("an address")]).await;
}

#[tokio::test]
async fn what_a_crash_left_is_repaired() {
    let first = cluster().await;
    let created = first.create("services", service("a", json!({}))).await.expect("creates");
    let address = created["spec"]["clusterIP"].as_str().expect("an address").to_owned();
    let leaked = if address == "10.43.0.6" { "10.43.0.5" } else { "10.43.0.6" };
    let body = json!({
        "metadata": {"name": leaked, "labels": {"ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io"}},
        "spec": {"parentRef": {"resource": "services", "namespace": "ns", "name": "never-made"}},
    });
    first
        .store("ipaddresses")
        .create(&first.context, &Target::new("", ""), body, &Default::default())
        .await
        .expect("leaks");
    let store = first.store("ipaddresses");
    store.delete(&first.context, &Target::new("", address.as_str()), Default::default()).await.expect("loses");

    first.clock.advance(Duration::from_secs(200));
    addresses_become(&first, &[&address]).await;
}
