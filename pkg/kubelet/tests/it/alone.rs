//! A node that starts while its server is away.

use rkube_api::k8s::core::v1::{
    ConfigMap, ConfigMapKeySelector, ConfigMapVolumeSource, EnvVar, EnvVarSource, Pod, Service, ServicePort,
    ServiceSpec, Volume, VolumeMount,
};
use rkube_apimachinery::clock::SystemClock;
use rkube_apimachinery::random::SystemRandom;
use rkube_client::Client;
use rkube_cri::fake::FakeRuntime;

use crate::harness::{Node, PATIENCE, pod};

fn configured() -> Pod {
    let mut pod = pod("Always", &["a"]);
    let spec = pod.spec.as_mut().unwrap();
    let source = ConfigMapVolumeSource { name: "m".into(), ..ConfigMapVolumeSource::default() };
    spec.volumes = Some(vec![Volume { name: "m".into(), config_map: Some(source), ..Volume::default() }]);
    let container = &mut spec.containers[0];
    container.volume_mounts =
        Some(vec![VolumeMount { name: "m".into(), mount_path: "/m".into(), ..VolumeMount::default() }]);
    let key = ConfigMapKeySelector { name: "m".into(), key: "word".into(), optional: None };
    let source = EnvVarSource { config_map_key_ref: Some(key), ..EnvVarSource::default() };
    container.env = Some(vec![EnvVar { name: "WORD".into(), value_from: Some(source), ..EnvVar::default() }]);
    pod
}

#[tokio::test]
async fn pods_run_again_after_a_reboot_without_the_server() {
    let mut node = Node::start();
    let mut map = ConfigMap { data: Some([("word".to_owned(), "kept".to_owned())].into()), ..ConfigMap::default() };
    map.metadata.name = Some("m".into());
    map.metadata.namespace = Some("default".into());
    node.api.put(&map);
    let mut service = Service::default();
    service.metadata.name = Some("web".into());
    service.metadata.namespace = Some("default".into());
    let ports = Some(vec![ServicePort { port: 80, ..ServicePort::default() }]);
    service.spec = Some(ServiceSpec { cluster_ip: Some("10.43.0.7".into()), ports, ..ServiceSpec::default() });
    node.api.put(&service);
    node.api.put(&configured());
    node.wait_for_pod("p Running a=running/0").await;
    let environment = |node: &Node| {
        let config = node.runtime.container_config("a").unwrap();
        let wanted = ["WORD", "WEB_SERVICE_HOST"];
        let mut found: Vec<String> = config
            .envs
            .into_iter()
            .filter(|variable| wanted.contains(&variable.key.as_str()))
            .map(|variable| format!("{}={}", variable.key, String::from_utf8_lossy(&variable.value)))
            .collect();
        found.sort();
        found
    };
    let before = environment(&node);
    assert_eq!(before, ["WEB_SERVICE_HOST=10.43.0.7", "WORD=kept"]);
    node.kill_kubelet().await;

    // The machine is started anew: nothing runs, and nobody answers.
    let clock = SystemClock::shared();
    node.runtime = FakeRuntime::new().at(i64::try_from(clock.now().as_nanosecond()).unwrap()).with_image("i:1");
    let server = node.client.clone();
    let (transport, dead) = node.api.connect_until_write(i64::MAX);
    dead.cancel();
    node.client = Client::new(transport, clock, std::sync::Arc::new(SystemRandom));
    node.start_kubelet();
    let runs = node.runtime.wait_until(|inventory| inventory.iter().any(|line| line.ends_with(" a running")));
    assert!(tokio::time::timeout(PATIENCE, runs).await.is_ok(), "{:?}", node.runtime.inventory());
    assert_eq!(environment(&node), before);
    node.kill_kubelet().await;
    node.runtime.take_calls();

    // The server is back, and finds what runs.
    node.client = server;
    node.api.edit::<Pod>("default", "p", |pod| pod.status = None);
    node.start_kubelet();
    node.wait_for_pod("p Running a=running/0").await;
    assert_eq!(node.runtime.take_calls(), Vec::<String>::new());
    node.stop_kubelet().await;
}
