//! Which plugins the chain has, and that a node is asked for no more than it has declared.

use std::sync::Arc;

use http::Method;
use rkube_apimachinery::clock::SystemClock;
use rkube_apimachinery::random::SystemRandom;
use rkube_apiserver::admission::Chain;
use rkube_apiserver::auth::Authorizer;
use serde_json::{Value, json};

use crate::cluster::{AllBut, Cluster, Setup, admin};

/// What kube-apiserver v1.36 has on by default, and NodeRestriction, which kubeadm adds: in its order, with the reason
/// where one is not here.
const UPSTREAM: [(&str, &str); 28] = [
    ("NamespaceLifecycle", ""),
    ("LimitRanger", ""),
    ("ServiceAccount", ""),
    ("NodeRestriction", ""),
    ("TaintNodesByCondition", ""),
    ("PodSecurity", ""),
    ("Priority", ""),
    ("DefaultTolerationSeconds", ""),
    ("DefaultStorageClass", ""),
    ("StorageObjectInUseProtection", ""),
    ("PodGroupProtection", "idle without the feature GenericWorkload, which is off by default"),
    ("PersistentVolumeClaimResize", ""),
    ("RuntimeClass", ""),
    ("CertificateApproval", ""),
    ("CertificateSigning", ""),
    ("ClusterTrustBundleAttest", "its kind is only in versions that are not served by default"),
    ("CertificateSubjectRestriction", ""),
    ("DefaultIngressClass", ""),
    ("PodTopologyLabels", ""),
    ("PodGroupWorkloadExists", "idle without the feature GenericWorkload, which is off by default"),
    ("NodeDeclaredFeatureValidator", ""),
    ("JobValidation", "idle without the feature WorkloadWithJob, which is off by default"),
    ("PodResizeValidator", ""),
    ("MutatingAdmissionPolicy", "not built yet"),
    ("MutatingAdmissionWebhook", "not built yet"),
    ("ValidatingAdmissionPolicy", "not built yet"),
    ("ValidatingAdmissionWebhook", "not built yet"),
    ("ResourceQuota", ""),
];

#[tokio::test]
async fn the_chain_has_the_default_plugins_in_their_order() {
    let cluster = Cluster::start(Setup::default()).await;
    let authorizer: Arc<dyn Authorizer> = Arc::new(AllBut(&[]));
    let plugins = Chain::builtin(&cluster.registry, &authorizer, SystemClock::shared(), Arc::new(SystemRandom));
    let expected = UPSTREAM.iter().filter(|(_, missing)| missing.is_empty()).map(|(name, _)| *name);
    // The last is where the storage of roles does it upstream.
    let expected: Vec<&str> = expected.chain(["RoleEscalation"]).collect();
    assert_eq!(Chain::new(plugins).names(), expected);
}

#[test]
fn what_admission_leaves_out_for_its_kind_is_not_served() {
    let bundles = rkube_api::resources().iter().filter(|row| row.plural == "clustertrustbundles");
    assert_eq!(bundles.count(), 0, "with the kind comes ClusterTrustBundleAttest, after CertificateSigning");
}

fn node(name: &str, features: &[&str]) -> Value {
    let resources = json!({ "cpu": "8", "memory": "16Gi", "pods": "110" });
    json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name, "labels": { "kubernetes.io/os": "linux" } },
        "status": { "declaredFeatures": features, "capacity": resources, "allocatable": resources } })
}

fn pod(name: &str, node: &str) -> Value {
    let cpu = |amount: &str| json!({ "requests": { "cpu": amount }, "limits": { "cpu": amount } });
    json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "namespace": "default" },
        "spec": { "nodeName": node, "resources": cpu("2"),
            "initContainers": [{ "name": "i", "image": "i", "resources": cpu("1") }],
            "containers": [{ "name": "c", "image": "i", "resources": cpu("1") }] } })
}

#[tokio::test]
async fn a_bound_pod_is_not_changed_beyond_what_its_node_declares() {
    let account = json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "default", "namespace": "default" } });
    let all = ["InPlacePodLevelResourcesVerticalScaling", "InPlacePodVerticalScalingInitContainers"];
    let objects = vec![account, node("old", &[]), node("new", &all), pod("a", "old"), pod("b", "new")];
    let cluster = Cluster::start(Setup { objects, ..Setup::default() }).await;
    let resize = async |name: &str, patch: Value| {
        let path = format!("/api/v1/namespaces/default/pods/{name}/resize");
        let answer = cluster.patch(&admin(), &path, &patch).await;
        if answer.code == 403 { answer.message().to_owned() } else { answer.code.to_string() }
    };
    let cpu = |amount: &str| json!({ "requests": { "cpu": amount }, "limits": { "cpu": amount } });
    let whole = json!({ "spec": { "resources": cpu("3") } });
    let container = json!({ "spec": { "containers": [{ "name": "c", "resources": cpu("2") }] } });
    let init = json!({ "spec": { "initContainers": [{ "name": "i", "resources": cpu("2") }] } });
    let refused = |features: &str| {
        format!(
            "pods \"a\" is forbidden: pod update requires features {features} which are not available on node \"old\""
        )
    };
    assert_eq!(resize("a", container.clone()).await, "200", "needs nothing declared");
    assert_eq!(resize("a", whole.clone()).await, refused(all[0]));
    assert_eq!(resize("a", init.clone()).await, refused(all[1]));
    for patch in [container, whole, init] {
        assert_eq!(resize("b", patch.clone()).await, "200", "{patch}");
    }
    let label = json!({ "metadata": { "labels": { "a": "b" } } });
    let answer = cluster.patch(&admin(), "/api/v1/namespaces/default/pods/a", &label).await;
    assert_eq!(answer.code, 200, "{}", answer.message());
    let missing = cluster.ask(&admin(), Method::GET, "/apis/certificates.k8s.io/v1beta1", &Value::Null).await;
    assert_eq!(missing.code, 404);
}
