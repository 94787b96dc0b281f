//! Images from real registries, by `registries.yaml`, by pull secrets and by neither.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use rkube_api::k8s::core::v1::{Event, LocalObjectReference, Pod, Secret};
use rkube_apimachinery::clock::SystemClock;
use rkube_kubelet::registries::Registries;
use rkube_pki::authority::{CertificateAuthority, Leaf};
use rkube_testing::registry::{Options, PASSWORD, Registry, USER};

use crate::harness::{wait, wait_for_pod};
use crate::real_node::{RealNode, STAYS, script_pod};

/// Nobody listens there: port 1 is privileged and unused.
const DEAD: &str = "https://127.0.0.1:1";

/// A certificate for 127.0.0.1 and its key, and the authority's own.
fn certificates(folder: &Path) -> (PathBuf, PathBuf, PathBuf) {
    let now = SystemClock::shared().now();
    let (authority, pair) = CertificateAuthority::generate("images", now).unwrap();
    let leaf = Leaf::server("registry", vec![], vec![IpAddr::V4(Ipv4Addr::LOCALHOST)]);
    let issued = authority.issue(&leaf, now).unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let ca = write("ca.crt", &pair.certificate_pem);
    (write("registry.crt", &issued.certificate_pem), write("registry.key", &issued.key_pem), ca)
}

/// A pod that stays, of this image.
fn image_pod(name: &str, image: &str, policy: &str) -> Pod {
    let mut pod = script_pod("Always", &[("a", STAYS)]);
    pod.metadata.name = Some(name.into());
    pod.metadata.uid = Some(name.into());
    let container = &mut pod.spec.as_mut().unwrap().containers[0];
    container.image = Some(image.into());
    container.image_pull_policy = Some(policy.into());
    pod
}

/// `reason: message` of the events of a pod, without what differs from run to run.
fn events(node: &RealNode, pod: &str) -> Vec<String> {
    let of_pod = |event: &&std::sync::Arc<Event>| event.involved_object.name.as_deref() == Some(pod);
    let events = node.api.list::<Event>("default");
    events
        .iter()
        .filter(of_pod)
        .filter_map(|event| Some(format!("{}: {}", event.reason.as_ref()?, event.message.as_ref()?)))
        .collect()
}

async fn wait_for_event(node: &RealNode, pod: &str, text: &str) {
    wait(&node.api, &format!("an event {text:?} of {pod}"), |_| {
        events(node, pod).iter().any(|event| event.contains(text))
    })
    .await;
}

/// Why the pod's container waits.
fn waiting(node: &RealNode, pod: &str) -> (String, String) {
    let status = node.api.get::<Pod>("default", pod).and_then(|pod| pod.status.clone()).unwrap_or_default();
    let state = status.container_statuses.into_iter().flatten().find_map(|container| container.state?.waiting);
    state.map(|waiting| (waiting.reason.unwrap_or_default(), waiting.message.unwrap_or_default())).unwrap_or_default()
}

#[tokio::test]
async fn images_come_from_mirrors_as_the_file_says() {
    let folder = tempfile::tempdir().unwrap();
    let (certificate, key, ca) = certificates(folder.path());
    let options = Options { tls: Some((certificate, key)), password: true };
    let registry = Registry::start(&folder.path().join("registry"), &options);
    for repository in ["team/app", "public/hello", "any"] {
        registry.put_busybox(repository, "1");
    }
    let address = registry.address;
    let file = folder.path().join("registries.yaml");
    let text = format!(
        r#"
mirrors:
  registry.example:
    endpoint: ["{DEAD}", "https://{address}"]
  docker.io:
    endpoint: ["{DEAD}", "https://{address}"]
    rewrite: {{"^library/(.*)": "public/$1"}}
  "*":
    endpoint: ["{address}"]
configs:
  "{address}":
    auth: {{username: {USER}, password: {PASSWORD}}}
    tls: {{ca_file: {}}}
"#,
        ca.display()
    );
    std::fs::write(&file, text).unwrap();
    let mut node = RealNode::start("mirrors").await;
    node.restart_with(Registries::read(&file).unwrap()).await;
    for (name, image) in
        [("order", "registry.example/team/app:1"), ("rewrite", "hello:1"), ("any", "other.example/any:1")]
    {
        node.api.put(&image_pod(name, image, "IfNotPresent"));
        wait_for_pod(&node.api, &format!("{name} Running a=running/0")).await;
        let status = node.api.get::<Pod>("default", name).unwrap().status.clone().unwrap();
        let shown = status.container_statuses.unwrap().remove(0);
        assert!(shown.image_id.contains("@sha256:") || shown.image_id.starts_with("sha256:"), "{}", shown.image_id);
        assert!(!shown.image_id.contains("rewrite"), "{}", shown.image_id);
        wait_for_event(&node, name, &format!("Pulled: Successfully pulled image \"{image}\" in ")).await;
    }
    // It is there under its own name, so the next pod needs no registry.
    drop(registry);
    node.api.put(&image_pod("again", "hello:1", "IfNotPresent"));
    wait_for_pod(&node.api, "again Running a=running/0").await;
    node.stop().await;
}

#[tokio::test]
async fn a_pull_secret_opens_the_registry_and_policies_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options { tls: None, password: true };
    let registry = Registry::start(folder.path(), &options);
    registry.put_busybox("private", "1");
    let address = registry.address;
    let image = format!("{address}/private:1");
    let mut node = RealNode::start("secrets").await;

    node.api.put(&image_pod("closed", &image, "IfNotPresent"));
    wait(&node.api, "the back-off", |_| waiting(&node, "closed").0 == "ImagePullBackOff").await;
    let (_, message) = waiting(&node, "closed");
    let begin =
        format!("Back-off pulling image \"{image}\": ErrImagePull: rpc error: code = Unknown desc = failed to pull");
    assert!(message.starts_with(&begin), "{message}");
    wait_for_event(&node, "closed", "Failed: Error: ErrImagePull").await;
    wait_for_event(&node, "closed", &format!("Pulling: Pulling image \"{image}\"")).await;
    node.api.put(&image_pod("never", &image, "Never"));
    wait(&node.api, "the policy", |_| waiting(&node, "never").0 == "ErrImageNeverPull").await;

    let login = base64::engine::general_purpose::STANDARD.encode(format!("{USER}:{PASSWORD}"));
    let logins = format!(r#"{{"auths": {{"{address}": {{"auth": "{login}"}}}}}}"#);
    let mut secret = Secret {
        data: Some([(".dockerconfigjson".to_owned(), rkube_api::ByteString(logins.into_bytes()))].into()),
        type_: Some("kubernetes.io/dockerconfigjson".into()),
        ..Secret::default()
    };
    secret.metadata.name = Some("login".into());
    secret.metadata.namespace = Some("default".into());
    node.api.put(&secret);
    let mut open = image_pod("open", &image, "IfNotPresent");
    open.spec.as_mut().unwrap().image_pull_secrets = Some(vec![LocalObjectReference { name: "login".into() }]);
    node.api.put(&open);
    wait_for_pod(&node.api, "open Running a=running/0").await;
    // Now that it is here, the others need no registry but the one that always asks it.
    wait_for_pod(&node.api, "never Running a=running/0").await;
    node.api.put(&image_pod("always", &image, "Always"));
    wait(&node.api, "a pull though the image is here", |_| waiting(&node, "always").0.contains("ImagePull")).await;
    node.stop().await;
}
