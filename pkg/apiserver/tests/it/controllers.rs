//! The controllers with their own identities, under the roles a new cluster has: none is ever refused what it asks for.
//!
//! The scenario leads every controller to each kind of write it makes. What is waited for is what a controller wrote.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use http::Method;
use parking_lot::Mutex;
use rkube_api::resource::SharedResource;
use rkube_apimachinery::clock::SystemClock;
use rkube_apimachinery::random::SystemRandom;
use rkube_apimachinery::task;
use rkube_apiserver::auth::{Attributes, Authorizer, Decision, Rules};
use rkube_client::transport::WatchEvent;
use rkube_client::{Client, EventRecorder, InformerFactory, ListParams};
use rkube_controllers::{AsAccount, ControllerConfig, ControllerContext};
use rkube_pki::service_account::ServiceAccountKeys;
use rkube_pki::{Leaf, csr};
use rkube_registry::UserInfo;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::cluster::{Cluster, Setup, admin, user};

/// For a debug build on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);
const MANAGER: &str = "system:kube-controller-manager";
const ACCOUNTS: &str = "system:serviceaccount:kube-system:";
const CORE: &str = "/api/v1/namespaces/work";
const APPS: &str = "/apis/apps/v1/namespaces/work";
const BATCH: &str = "/apis/batch/v1/namespaces/work";

/// What was refused to controllers, as sentences.
type Refused = Arc<Mutex<BTreeSet<String>>>;

/// Writes down what it refuses to the controllers.
struct Recording {
    authorizer: Arc<dyn Authorizer>,
    refused: Refused,
}

impl Authorizer for Recording {
    fn authorize<'a>(&'a self, attributes: &'a Attributes) -> BoxFuture<'a, Decision> {
        Box::pin(async move {
            let decision = self.authorizer.authorize(attributes).await;
            let name = &attributes.user.name;
            if !decision.is_allowed() && (name.starts_with(ACCOUNTS) || name == MANAGER) {
                self.refused.lock().insert(attributes.forbidden("").message().to_owned());
            }
            decision
        })
    }

    fn rules<'a>(&'a self, user: &'a UserInfo, namespace: &'a str) -> BoxFuture<'a, Rules> {
        self.authorizer.rules(user, namespace)
    }
}

/// A cluster with all controllers.
struct Managed {
    cluster: Cluster,
    client: Client,
    stop: CancellationToken,
    refused: Refused,
}

impl Managed {
    async fn start() -> Self {
        let refused = Refused::default();
        let recorded = Arc::clone(&refused);
        let observe: crate::cluster::Observe =
            Box::new(move |authorizer| Arc::new(Recording { authorizer, refused: recorded }));
        let cluster = Cluster::start(Setup { observe: Some(observe), ..Setup::default() }).await;
        let api = cluster.api.clone();
        let client_as =
            move |user: UserInfo| Client::new(api.transport_as(user), SystemClock::shared(), Arc::new(SystemRandom));
        let client = client_as(admin());
        let manager = client_as(user(MANAGER, &["system:authenticated"]));
        let as_account: AsAccount = Arc::new(move |account| {
            let groups = ["system:serviceaccounts", "system:serviceaccounts:kube-system", "system:authenticated"];
            client_as(user(&format!("{ACCOUNTS}{account}"), &groups))
        });
        let stop = CancellationToken::new();
        let config = ControllerConfig {
            controllers: ["*", "bootstrap-signer-controller", "token-cleaner-controller"].map(str::to_owned).into(),
            cluster_cidrs: vec!["10.42.0.0/16".parse().unwrap()],
            service_cidrs: vec!["10.43.0.0/16".parse().unwrap()],
            root_ca: cluster.authority.certificate_pem().to_owned(),
            signing_authority: Some(cluster.authority.clone()),
            service_account_keys: Some(ServiceAccountKeys::generate().unwrap()),
            horizontal_pod_autoscaler_sync_period: Duration::from_secs(1),
            node_monitor_period: Duration::from_secs(1),
            terminated_pod_gc_threshold: 1,
            ..ControllerConfig::default()
        };
        let context = ControllerContext {
            as_account: Some(as_account),
            informers: InformerFactory::new(manager.clone(), stop.clone()),
            recorder: EventRecorder::start(manager.clone(), "kube-controller-manager", stop.clone()),
            config: Arc::new(config),
            shutdown: stop.clone(),
            client: manager,
        };
        let (ready, is_ready) = tokio::sync::oneshot::channel();
        let synced = || ready.send(()).unwrap();
        task::spawn(tracing::Span::none(), rkube_controllers::run(rkube_controllers::descriptors(), context, synced));
        tokio::time::timeout(PATIENCE, is_ready).await.expect("the caches have synced").unwrap();
        Self { cluster, client, stop, refused }
    }

    async fn create(&self, path: &str, object: Value) {
        let answer = self.cluster.ask(&admin(), Method::POST, path, &object).await;
        assert_eq!(answer.code, 201, "{path}: {}", answer.message());
    }

    async fn patch(&self, path: &str, patch: Value) {
        let answer = self.cluster.patch(&admin(), path, &patch).await;
        assert_eq!(answer.code, 200, "{path}: {}", answer.message());
    }

    /// Writes part of an object's status, as a node or a scheduler would.
    async fn status(&self, path: &str, status: Value) {
        self.patch(&format!("{path}/status"), json!({"status": status})).await;
    }

    async fn delete(&self, path: &str) {
        let answer = self.cluster.ask(&admin(), Method::DELETE, path, &Value::Null).await;
        assert!(answer.code < 300, "{path}: {}", answer.message());
    }

    /// Waits until what is at `path` is gone.
    async fn until_gone(&self, group: &str, plural: &str, path: &str) {
        let api = self.client.dynamic(row(group, plural), "");
        let gone = async {
            loop {
                let mut events = api.watch(&ListParams::default(), 60).await.unwrap();
                loop {
                    if self.cluster.code_as(&admin(), Method::GET, path, &Value::Null).await == 404 {
                        return;
                    }
                    if events.next().await.is_none() {
                        break;
                    }
                }
            }
        };
        tokio::time::timeout(PATIENCE, gone).await.unwrap_or_else(|_| panic!("waiting for the end of {path}"));
    }

    /// Waits until an object of a resource is as it should be.
    async fn until(&self, group: &str, plural: &str, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        let api = self.client.dynamic(row(group, plural), "");
        let seen = async {
            loop {
                let mut events = api.watch(&ListParams::default(), 60).await.unwrap();
                while let Some(event) = events.next().await {
                    let (WatchEvent::Added(object) | WatchEvent::Modified(object)) = event.unwrap() else { continue };
                    let object = object.value().unwrap();
                    if is_so(&object) {
                        return object;
                    }
                }
            }
        };
        let waited = tokio::time::timeout(PATIENCE, seen).await;
        waited.unwrap_or_else(|_| panic!("waiting for {what} of {plural}"))
    }
}

fn row(group: &str, plural: &str) -> SharedResource {
    let is_it = |row: &&SharedResource| {
        row.group == group && row.plural == plural && row.verbs.iter().any(|verb| verb == "watch")
    };
    let found = rkube_api::resources().iter().find(is_it);
    Arc::clone(found.unwrap_or_else(|| panic!("{plural} are not served")))
}

fn template(app: &str) -> Value {
    json!({
        "metadata": {"labels": {"app": app}},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": "i"}]},
    })
}

fn workload(kind: &str, name: &str, more: Value) -> Value {
    let mut spec = json!({"selector": {"matchLabels": {"app": name}}, "template": template(name)});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name}, "spec": spec})
}

fn claim_spec() -> Value {
    json!({
        "accessModes": ["ReadWriteOnce"], "storageClassName": "none", "resources": {"requests": {"storage": "1Gi"}},
    })
}

fn named<'a>(name: &'a str, condition: impl Fn(&Value) -> bool + 'a) -> impl Fn(&Value) -> bool + 'a {
    move |object| object["metadata"]["name"] == name && condition(object)
}

fn conditions(status: &str) -> Value {
    json!([{
        "type": "Ready", "status": status, "reason": "Test", "message": "as the test says",
        "lastHeartbeatTime": "2030-01-01T00:00:00Z", "lastTransitionTime": "2030-01-01T00:00:00Z",
    }])
}

/// Nodes get their networks and lose the taint they began with.
async fn nodes(world: &Managed) {
    let capacity = json!({"cpu": "4", "memory": "8Gi", "pods": "110"});
    for name in ["n1", "n2"] {
        world.create("/api/v1/nodes", json!({"metadata": {"name": name}})).await;
        let status = json!({"capacity": capacity, "allocatable": capacity, "conditions": conditions("True")});
        world.status(&format!("/api/v1/nodes/{name}"), status).await;
        let is_usable = |node: &Value| node["spec"]["podCIDR"].is_string() && node["spec"]["taints"].is_null();
        world.until("", "nodes", "the pod network", named(name, is_usable)).await;
    }
}

/// Workloads of every kind make what they own.
async fn workloads(world: &Managed) {
    world.create(&format!("{APPS}/deployments"), workload("Deployment", "web", json!({"replicas": 2}))).await;
    let claims = json!({
        "serviceName": "db",
        "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": claim_spec()}],
        "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Delete", "whenScaled": "Delete"},
    });
    world.create(&format!("{APPS}/statefulsets"), workload("StatefulSet", "db", claims)).await;
    world.create(&format!("{APPS}/daemonsets"), workload("DaemonSet", "agent", json!({}))).await;
    let old = json!({"replicas": 1, "selector": {"app": "old"}, "template": template("old")});
    world.create(&format!("{CORE}/replicationcontrollers"), json!({"metadata": {"name": "old"}, "spec": old})).await;
    let mut run = template("run");
    run["spec"]["restartPolicy"] = json!("Never");
    let job = json!({"metadata": {"name": "run"}, "spec": {"ttlSecondsAfterFinished": 0, "template": run}});
    world.create(&format!("{BATCH}/jobs"), job).await;
    let tick = json!({"schedule": "* * * * *", "jobTemplate": {"spec": {"template": run}}});
    world.create(&format!("{BATCH}/cronjobs"), json!({"metadata": {"name": "tick"}, "spec": tick})).await;
    for (plural, name) in [("deployments", "web"), ("statefulsets", "db"), ("daemonsets", "agent")] {
        let is_observed = |object: &Value| object["status"]["observedGeneration"] == 1;
        world.until("apps", plural, "the status", named(name, is_observed)).await;
    }
    let has_pod = |object: &Value| object["status"]["replicas"] == 1;
    world.until("", "replicationcontrollers", "the pod", named("old", has_pod)).await;

    let budget = json!({"minAvailable": 1, "selector": {"matchLabels": {"app": "web"}}});
    let budgets = "/apis/policy/v1/namespaces/work/poddisruptionbudgets";
    world.create(budgets, json!({"metadata": {"name": "web"}, "spec": budget})).await;
    let is_counted = |object: &Value| object["status"]["expectedPods"] == 2;
    world.until("policy", "poddisruptionbudgets", "the status", named("web", is_counted)).await;
    let target = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"});
    let scaler = json!({"minReplicas": 3, "maxReplicas": 4, "scaleTargetRef": target});
    let scalers = "/apis/autoscaling/v2/namespaces/work/horizontalpodautoscalers";
    world.create(scalers, json!({"metadata": {"name": "web"}, "spec": scaler})).await;
    let is_scaled = |object: &Value| object["spec"]["replicas"] == 3;
    world.until("apps", "deployments", "the scale", named("web", is_scaled)).await;
}

/// A pod that runs, behind Services of both kinds.
async fn network(world: &Managed) {
    let services = format!("{CORE}/services");
    let web = json!({"selector": {"app": "single"}, "type": "LoadBalancer", "ports": [{"port": 80}]});
    world.create(&services, json!({"metadata": {"name": "web"}, "spec": web})).await;
    let mut single = template("single");
    single["metadata"]["name"] = json!("single");
    single["spec"]["nodeName"] = json!("n1");
    single["spec"]["volumes"] = json!([{"name": "v", "ephemeral": {"volumeClaimTemplate": {"spec": claim_spec()}}}]);
    world.create(&format!("{CORE}/pods"), single).await;
    let running = json!({
        "phase": "Running", "podIP": "10.42.0.9", "podIPs": [{"ip": "10.42.0.9"}],
        "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2030-01-01T00:00:00Z"}],
    });
    world.status(&format!("{CORE}/pods/single"), running).await;
    let leads_to = |address: &'static str| move |found: &Value| found["endpoints"][0]["addresses"][0] == address;
    world.until("discovery.k8s.io", "endpointslices", "the endpoint", leads_to("10.42.0.9")).await;
    world.until("", "persistentvolumeclaims", "an ephemeral claim", named("single-v", |_| true)).await;
    world.create(&services, json!({"metadata": {"name": "bare"}, "spec": {"ports": [{"port": 1}]}})).await;
    let subsets = json!([{"addresses": [{"ip": "192.0.2.1"}], "ports": [{"port": 1}]}]);
    world.create(&format!("{CORE}/endpoints"), json!({"metadata": {"name": "bare"}, "subsets": subsets})).await;
    world.until("discovery.k8s.io", "endpointslices", "a mirrored slice", leads_to("192.0.2.1")).await;

    let ranges = "/apis/networking.k8s.io/v1/servicecidrs";
    world.create(ranges, json!({"metadata": {"name": "more"}, "spec": {"cidrs": ["10.44.0.0/24"]}})).await;
    let is_ready = |object: &Value| object["status"]["conditions"][0]["type"] == "Ready";
    world.until("networking.k8s.io", "servicecidrs", "the condition", named("more", is_ready)).await;
    world.delete(&format!("{ranges}/more")).await;
}

/// Volumes, quotas, tokens, certificates, aggregated roles.
async fn the_rest(world: &Managed) {
    let volume = json!({
        "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": "none",
        "persistentVolumeReclaimPolicy": "Delete", "hostPath": {"path": "/tmp/x"},
    });
    world.create("/api/v1/persistentvolumes", json!({"metadata": {"name": "pv"}, "spec": volume})).await;
    let is_bound = |object: &Value| object["status"]["phase"] == "Bound";
    world.until("", "persistentvolumes", "the claim", named("pv", is_bound)).await;
    let class = json!({"metadata": {"name": "fast"}, "driverName": "csi.example.com", "parameters": {"iops": "1"}});
    let classes = "/apis/storage.k8s.io/v1/volumeattributesclasses";
    world.create(classes, class).await;
    let is_protected = |object: &Value| object["metadata"]["finalizers"].is_array();
    world.until("storage.k8s.io", "volumeattributesclasses", "the protection", named("fast", is_protected)).await;
    world.delete(&format!("{classes}/fast")).await;
    world.until_gone("storage.k8s.io", "volumeattributesclasses", &format!("{classes}/fast")).await;

    let hard = json!({"hard": {"pods": "100", "secrets": "100"}});
    world.create(&format!("{CORE}/resourcequotas"), json!({"metadata": {"name": "q"}, "spec": hard})).await;
    let is_counted = |object: &Value| object["status"]["used"]["pods"].is_string();
    world.until("", "resourcequotas", "the use", named("q", is_counted)).await;

    let token = json!({
        "metadata": {"name": "t", "annotations": {"kubernetes.io/service-account.name": "default"}},
        "type": "kubernetes.io/service-account-token",
    });
    world.create(&format!("{CORE}/secrets"), token).await;
    let has_token = |object: &Value| object["data"]["token"].is_string();
    world.until("", "secrets", "a token", named("t", has_token)).await;
    let info = json!({"metadata": {"name": "cluster-info"}, "data": {"kubeconfig": "{}"}});
    world.create("/api/v1/namespaces/kube-public/configmaps", info).await;
    let bootstrap = |id: &str, expires: &str| {
        json!({
            "metadata": {"name": format!("bootstrap-token-{id}")}, "type": "bootstrap.kubernetes.io/token",
            "stringData": {
                "token-id": id, "token-secret": "0123456789abcdef", "usage-bootstrap-signing": "true",
                "expiration": expires,
            },
        })
    };
    let secrets = "/api/v1/namespaces/kube-system/secrets";
    world.create(secrets, bootstrap("abcdef", "2099-01-01T00:00:00Z")).await;
    let is_signed = |object: &Value| object["data"]["jws-kubeconfig-abcdef"].is_string();
    world.until("", "configmaps", "the signature", named("cluster-info", is_signed)).await;
    world.create(secrets, bootstrap("fedcba", "2020-01-01T00:00:00Z")).await;
    world.until_gone("", "secrets", &format!("{secrets}/bootstrap-token-fedcba")).await;

    let request = csr::request(&Leaf::client("system:node:n9", &["system:nodes"])).unwrap().request_pem;
    let spec = json!({
        "request": STANDARD.encode(request), "usages": ["client auth", "digital signature"],
        "signerName": "kubernetes.io/kube-apiserver-client-kubelet",
    });
    let requests = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    world.create(requests, json!({"metadata": {"name": "node"}, "spec": spec})).await;
    let is_issued = |object: &Value| object["status"]["certificate"].is_string();
    world.until("certificates.k8s.io", "certificatesigningrequests", "a certificate", named("node", is_issued)).await;

    let role = json!({
        "metadata": {"name": "more", "labels": {"rbac.authorization.k8s.io/aggregate-to-view": "true"}},
        "rules": [{"apiGroups": ["example.com"], "resources": ["things"], "verbs": ["get"]}],
    });
    let group = "rbac.authorization.k8s.io";
    world.create(&format!("/apis/{group}/v1/clusterroles"), role).await;
    let has_rule = |role: &Value| role["rules"].to_string().contains("example.com");
    world.until(group, "clusterroles", "the aggregated rule", named("view", has_rule)).await;
}

/// A job that is done, a rollout, what is owned, pods of a bad node, a node, a namespace.
async fn ends(world: &Managed) {
    let run = world.until("", "pods", "the Job's pod", |pod| pod["metadata"]["labels"]["app"] == "run").await;
    let pod = run["metadata"]["name"].as_str().unwrap();
    world.status(&format!("{CORE}/pods/{pod}"), json!({"phase": "Succeeded"})).await;
    world.until_gone("batch", "jobs", &format!("{BATCH}/jobs/run")).await;
    let image = json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "j"}]}}}});
    for (plural, name) in [("deployments", "web"), ("statefulsets", "db"), ("daemonsets", "agent")] {
        world.patch(&format!("{APPS}/{plural}/{name}"), image.clone()).await;
        let is_observed = |object: &Value| object["status"]["observedGeneration"].as_i64() >= Some(2);
        world.until("apps", plural, "the rollout", named(name, is_observed)).await;
    }
    world.delete(&format!("{APPS}/deployments/web?propagationPolicy=Foreground")).await;
    world.until_gone("apps", "deployments", &format!("{APPS}/deployments/web")).await;
    world.delete(&format!("{APPS}/statefulsets/db?propagationPolicy=Orphan")).await;
    world.until_gone("apps", "statefulsets", &format!("{APPS}/statefulsets/db")).await;

    // Ended pods, one more than may stay.
    for name in ["ended-1", "ended-2"] {
        let mut ended = template("ended");
        ended["metadata"]["name"] = json!(name);
        ended["spec"]["nodeName"] = json!("n2");
        world.create(&format!("{CORE}/pods"), ended).await;
        world.status(&format!("{CORE}/pods/{name}"), json!({"phase": "Failed"})).await;
    }
    let taint = json!({"spec": {"taints": [{"key": "bad", "effect": "NoExecute"}]}});
    world.patch("/api/v1/nodes/n1", taint).await;
    world.until_gone("", "pods", &format!("{CORE}/pods/single")).await;
    world.status("/api/v1/nodes/n2", json!({"conditions": conditions("False")})).await;
    let is_tainted = |node: &Value| node["spec"]["taints"].to_string().contains("node.kubernetes.io/not-ready");
    world.until("", "nodes", "the taint", named("n2", is_tainted)).await;
    world.until_gone("", "pods", &format!("{CORE}/pods/ended-1")).await;
    world.delete("/api/v1/nodes/n1").await;
    world.delete("/api/v1/namespaces/work").await;
    world.until_gone("", "namespaces", "/api/v1/namespaces/work").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_controller_is_refused_what_it_does() {
    let world = Managed::start().await;
    world.create("/api/v1/namespaces", json!({"metadata": {"name": "work"}})).await;
    let is_here = |object: &Value| object["metadata"]["namespace"] == "work";
    world.until("", "serviceaccounts", "the default account", named("default", is_here)).await;
    world.until("", "configmaps", "the root certificate", named("kube-root-ca.crt", is_here)).await;
    nodes(&world).await;
    workloads(&world).await;
    network(&world).await;
    the_rest(&world).await;
    ends(&world).await;
    world.stop.cancel();
    let refused: Vec<String> = world.refused.lock().iter().cloned().collect();
    assert!(refused.is_empty(), "{refused:#?}");
}
