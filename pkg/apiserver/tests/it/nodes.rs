//! What nodes may do: the NodeRestriction plugin by itself, behind an authorizer that allows everything, and the
//! node authorizer before it. Cases as in upstream's tests of both; verdicts as text.

use std::sync::Arc;

use expect_test::{Expect, expect};
use http::Method;
use rkube_pki::{Leaf, csr};
use serde_json::{Value, json};

use crate::cluster::{AllBut, Answer, Cluster, Setup, node, user};

/// A pod with a container, and whatever `change` adds.
fn pod(name: &str, node: &str, change: impl FnOnce(&mut Value)) -> Value {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "namespace": "default" },
        "spec": { "nodeName": node, "containers": [{ "name": "c", "image": "i" }] }
    });
    change(&mut pod);
    pod
}

fn with_volumes(volumes: Value) -> impl FnOnce(&mut Value) {
    move |pod| pod["spec"]["volumes"] = volumes
}

fn as_mirror(node: &str, uid: &str) -> impl FnOnce(&mut Value) {
    let owner = json!([{ "apiVersion": "v1", "kind": "Node", "name": node, "uid": uid, "controller": true }]);
    move |pod: &mut Value| {
        pod["metadata"]["annotations"] = json!({ "kubernetes.io/config.mirror": "hash" });
        pod["metadata"]["ownerReferences"] = owner;
    }
}

fn node_object(name: &str, labels: Value, spec: Value) -> Value {
    json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name, "labels": labels }, "spec": spec })
}

/// What the cluster of all tests here holds.
fn objects() -> Vec<Value> {
    let claim = |name: &str, volume: &str| {
        json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": { "name": name, "namespace": "default" },
            "spec": {
                "accessModes": ["ReadWriteOnce"], "volumeName": volume, "storageClassName": "",
                "resources": { "requests": { "storage": "1Gi" } }
            }
        })
    };
    let volume = |name: &str, claim: &str, source: Value| {
        let mut volume = json!({
            "apiVersion": "v1", "kind": "PersistentVolume", "metadata": { "name": name },
            "spec": {
                "accessModes": ["ReadWriteOnce"], "capacity": { "storage": "1Gi" },
                "claimRef": { "namespace": "default", "name": claim }
            }
        });
        volume["spec"].as_object_mut().unwrap().extend(source.as_object().unwrap().clone());
        volume
    };
    let projected = |audience: &str| {
        json!([{ "name": "t", "projected": { "sources": [
            { "serviceAccountToken": { "path": "t", "audience": audience } }
        ] } }])
    };
    let account = |pod: &mut Value| pod["spec"]["serviceAccountName"] = json!("account");
    let driver = json!({ "driver": "driver.example", "volumeHandle": "h",
        "nodeStageSecretRef": { "namespace": "kube-system", "name": "of-volume" } });
    vec![
        node_object("mynode", json!({}), json!({})),
        node_object("othernode", json!({}), json!({})),
        node_object(
            "labelled",
            json!({ "foo": "a", "other.k8s.io/x": "a", "node-restriction.kubernetes.io/x": "a" }),
            json!({ "taints": [{ "key": "k", "value": "a", "effect": "NoSchedule" }] }),
        ),
        json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "account", "namespace": "default" } }),
        json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "default", "namespace": "default" } }),
        json!({ "apiVersion": "storage.k8s.io/v1", "kind": "CSIDriver", "metadata": { "name": "driver.example" },
            "spec": { "tokenRequests": [{ "audience": "csi" }] } }),
        json!({ "apiVersion": "storage.k8s.io/v1", "kind": "CSIDriver", "metadata": { "name": "file.csi.azure.com" },
            "spec": { "tokenRequests": [{ "audience": "azure" }] } }),
        claim("claim", "volume"),
        claim("in-ephemeral-v", "volume"),
        claim("lost", "nowhere"),
        claim("unused", ""),
        volume("volume", "claim", json!({ "csi": driver })),
        volume("other-volume", "other-claim", json!({ "csi": { "driver": "driver.example", "volumeHandle": "o" } })),
        pod("mine", "mynode", |pod| {
            account(pod);
            pod["metadata"]["labels"] = json!({ "a": "a" });
            pod["spec"]["containers"][0]["envFrom"] = json!([{ "secretRef": { "name": "in-env" } }]);
            with_volumes(json!([
                { "name": "s", "secret": { "secretName": "in-volume" } },
                { "name": "m", "configMap": { "name": "map" } },
                { "name": "p", "projected": { "sources": [{ "secret": { "name": "projected" } }] } },
                { "name": "c", "persistentVolumeClaim": { "claimName": "claim" } }
            ]))(pod);
            pod["spec"]["imagePullSecrets"] = json!([{ "name": "pull" }]);
            pod["spec"]["resourceClaims"] = json!([{ "name": "r", "resourceClaimName": "devices" }]);
        }),
        pod("theirs", "othernode", |pod| {
            pod["spec"]["serviceAccountName"] = json!("other-account");
            with_volumes(json!([{ "name": "s", "secret": { "secretName": "their-secret" } }]))(pod);
        }),
        pod("nowhere", "", |pod| {
            pod["spec"].as_object_mut().unwrap().remove("nodeName");
        }),
        pod("my-mirror", "mynode", |pod| {
            as_mirror("mynode", "u")(pod);
            with_volumes(json!([{ "name": "s", "secret": { "secretName": "in-mirror" } }]))(pod);
        }),
        pod("their-mirror", "othernode", as_mirror("othernode", "u")),
        pod("for-us", "mynode", |pod| {
            account(pod);
            with_volumes(projected(""))(pod);
        }),
        pod("for-foo", "mynode", |pod| {
            account(pod);
            with_volumes(projected("foo"))(pod);
        }),
        pod("inline", "mynode", |pod| {
            account(pod);
            with_volumes(json!([{ "name": "v", "csi": { "driver": "driver.example" } }]))(pod);
        }),
        pod("claimed", "mynode", |pod| {
            account(pod);
            with_volumes(json!([{ "name": "v", "persistentVolumeClaim": { "claimName": "claim" } }]))(pod);
        }),
        pod("in-ephemeral", "mynode", |pod| {
            account(pod);
            with_volumes(json!([{ "name": "v", "ephemeral": { "volumeClaimTemplate": { "spec": {
                "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Gi" } } } } } }]))(
                pod
            );
        }),
        pod("migrated", "mynode", |pod| {
            account(pod);
            with_volumes(json!([{ "name": "v", "azureFile": { "secretName": "s", "shareName": "s" } }]))(pod);
        }),
        pod("lost", "mynode", |pod| {
            account(pod);
            with_volumes(json!([{ "name": "v", "persistentVolumeClaim": { "claimName": "lost" } }]))(pod);
        }),
        pod("driverless", "mynode", |pod| {
            account(pod);
            with_volumes(json!([{ "name": "v", "csi": { "driver": "unknown.example" } }]))(pod);
        }),
        json!({ "apiVersion": "storage.k8s.io/v1", "kind": "VolumeAttachment", "metadata": { "name": "mine" },
            "spec": { "attacher": "driver.example", "nodeName": "mynode", "source": { "persistentVolumeName": "volume" } } }),
        json!({ "apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice", "metadata": { "name": "mine" },
            "spec": slice_spec("mynode") }),
        json!({ "apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice", "metadata": { "name": "theirs" },
            "spec": slice_spec("othernode") }),
        json!({ "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": { "name": "othernode", "namespace": "kube-node-lease" }, "spec": {} }),
    ]
}

fn slice_spec(node: &str) -> Value {
    json!({ "driver": "d.example", "nodeName": node, "pool": { "name": node, "generation": 1, "resourceSliceCount": 1 } })
}

const PODS: &str = "/api/v1/namespaces/default/pods";

/// Requests, and what becomes of each: `METHOD PATH: verdict`. Nothing is written.
struct Transcript {
    cluster: Cluster,
    text: String,
}

impl Transcript {
    async fn new(authorizer: Option<Arc<AllBut>>) -> Self {
        let authorizer = authorizer.map(|authorizer| authorizer as Arc<dyn rkube_apiserver::auth::Authorizer>);
        let setup = Setup { objects: objects(), authorizer, ..Setup::default() };
        Self { cluster: Cluster::start(setup).await, text: String::new() }
    }

    async fn ask(&self, name: &str, method: Method, path: &str, body: &Value) -> Answer {
        let separator = if path.contains('?') { '&' } else { '?' };
        let reads = method == Method::GET;
        let path = if reads { path.to_owned() } else { format!("{path}{separator}dryRun=All") };
        self.cluster.ask(&node(name), method, &path, body).await
    }

    async fn of(&mut self, name: &str, what: &str, method: Method, path: &str, body: &Value) {
        let verdict = self.ask(name, method, path, body).await.verdict();
        self.text.push_str(&format!("{what}: {verdict}\n"));
    }

    /// A change of what is stored.
    async fn change(&mut self, name: &str, what: &str, path: &str, change: impl FnOnce(&mut Value)) {
        let read = path.trim_end_matches("/status");
        let mut object = self.cluster.ask(&crate::cluster::admin(), Method::GET, read, &Value::Null).await.body;
        object["metadata"].as_object_mut().unwrap().remove("resourceVersion");
        change(&mut object);
        self.of(name, what, Method::PUT, path, &object).await;
    }

    fn is(self, expected: &Expect) {
        expected.assert_eq(&self.text);
    }
}

#[tokio::test]
async fn a_node_makes_and_removes_pods_of_its_own_only() {
    let mut run = Transcript::new(Some(Arc::new(AllBut(&[])))).await;
    let uid = run.cluster.uid("nodes", "", "mynode").await;
    let mirror = |change: &dyn Fn(&mut Value)| {
        pod("new", "mynode", |pod| {
            as_mirror("mynode", &uid)(pod);
            change(pod);
        })
    };
    let owner = |field: &'static str, value: Value| {
        mirror(&move |pod| pod["metadata"]["ownerReferences"][0][field] = value.clone())
    };
    let volume = |source: Value| mirror(&move |pod| pod["spec"]["volumes"] = json!([source.clone()]));
    for (what, body) in [
        ("mirror", mirror(&|_| {})),
        ("mirror of another", pod("new", "othernode", as_mirror("othernode", "u"))),
        ("mirror unbound", mirror(&|pod| pod["spec"]["nodeName"] = json!(""))),
        ("no mirror", pod("new", "mynode", |_| {})),
        ("no owner", mirror(&|pod| pod["metadata"]["ownerReferences"] = json!([]))),
        (
            "two owners",
            mirror(&|pod| {
                let one = pod["metadata"]["ownerReferences"][0].clone();
                let mut two = one.clone();
                two["uid"] = json!("another");
                two["controller"] = json!(false);
                pod["metadata"]["ownerReferences"] = json!([one, two]);
            }),
        ),
        ("owner's name", owner("name", json!("othernode"))),
        ("owner's uid", owner("uid", json!("wrong"))),
        ("owner's version", owner("apiVersion", json!("v2"))),
        ("owner's kind", owner("kind", json!("Pod"))),
        ("owner no controller", owner("controller", json!(false))),
        ("owner blocks deletion", owner("blockOwnerDeletion", json!(true))),
        ("secret", volume(json!({ "name": "v", "secret": { "secretName": "foo" } }))),
        ("config map", volume(json!({ "name": "v", "configMap": { "name": "foo" } }))),
        ("claim", volume(json!({ "name": "v", "persistentVolumeClaim": { "claimName": "foo" } }))),
        ("csi", volume(json!({ "name": "v", "csi": { "driver": "foo" } }))),
        (
            "token",
            volume(json!({ "name": "v", "projected": { "sources": [{ "serviceAccountToken": { "path": "t" } }] } })),
        ),
        ("projected downward", volume(json!({ "name": "v", "projected": { "sources": [{ "downwardAPI": {} }] } }))),
        ("host path", volume(json!({ "name": "v", "hostPath": { "path": "/" } }))),
        (
            "resource claim",
            mirror(&|pod| {
                pod["spec"]["resourceClaims"] = json!([{ "name": "c", "resourceClaimName": "d" }]);
            }),
        ),
    ] {
        run.of("mynode", what, Method::POST, PODS, &body).await;
    }
    let (bob, theirs) = (user("bob", &[]), pod("x", "", |_| {}));
    let verdict = run.cluster.ask(&bob, Method::POST, &format!("{PODS}?dryRun=All"), &theirs).await.verdict();
    run.text.push_str(&format!("bob's pod: {verdict}\n"));
    for name in ["mine", "theirs", "nowhere", "my-mirror", "their-mirror", "gone"] {
        let path = format!("{PODS}/{name}");
        run.of("mynode", &format!("delete {name}"), Method::DELETE, &path, &Value::Null).await;
        let eviction = json!({ "metadata": { "name": name } });
        run.of("mynode", &format!("evict {name}"), Method::POST, &format!("{path}/eviction"), &eviction).await;
    }
    for name in ["mine", "theirs", "nowhere"] {
        run.change("mynode", &format!("update {name}"), &format!("{PODS}/{name}"), |pod| {
            pod["metadata"]["labels"] = json!({ "a": "b" });
        })
        .await;
        run.change("mynode", &format!("status of {name}"), &format!("{PODS}/{name}/status"), |pod| {
            pod["status"]["message"] = json!("hello");
        })
        .await;
    }
    let status = format!("{PODS}/mine/status");
    run.change("mynode", "label by status", &status, |pod| pod["metadata"]["labels"] = json!({ "a": "a", "b": "b" }))
        .await;
    run.change("mynode", "unlabel by status", &status, |pod| pod["metadata"]["labels"] = json!({})).await;
    run.change("mynode", "claims by status", &status, |pod| {
        pod["status"]["resourceClaimStatuses"] = json!([{ "name": "r", "resourceClaimName": "other" }]);
    })
    .await;
    run.change("mynode", "extended claims by status", &status, |pod| {
        pod["status"]["extendedResourceClaimStatus"] = json!({ "resourceClaimName": "other", "requestMappings": [
            { "containerName": "c", "resourceName": "d.example/x", "requestName": "r" }] });
    })
    .await;
    run.change("mynode", "resize", &format!("{PODS}/mine/resize"), |_| {}).await;
    run.of("", "a node without a name", Method::POST, PODS, &mirror(&|_| {})).await;
    run.text = run.text.replace(&uid, "UID");
    run.is(&expect![[r#"
        mirror: ok
        mirror of another: 403 pods "new" is forbidden: node "mynode" can only create pods with spec.nodeName set to itself
        mirror unbound: 403 pods "new" is forbidden: node "mynode" can only create pods with spec.nodeName set to itself
        no mirror: 403 pods "new" is forbidden: pod does not have "kubernetes.io/config.mirror" annotation, node "mynode" can only create mirror pods
        no owner: 403 pods "new" is forbidden: node "mynode" can only create pods with an owner reference set to itself
        two owners: 403 pods "new" is forbidden: node "mynode" can only create pods with a single owner reference set to itself
        owner's name: 403 pods "new" is forbidden: node "mynode" can only create pods with an owner reference set to itself
        owner's uid: 403 pods "new" is forbidden: node mynode UID mismatch: expected wrong got UID
        owner's version: 403 pods "new" is forbidden: node "mynode" can only create pods with an owner reference set to itself
        owner's kind: 403 pods "new" is forbidden: node "mynode" can only create pods with an owner reference set to itself
        owner no controller: 403 pods "new" is forbidden: node "mynode" can only create pods with a controller owner reference set to itself
        owner blocks deletion: 403 pods "new" is forbidden: node "mynode" must not set blockOwnerDeletion on an owner reference
        secret: 403 pods "new" is forbidden: a mirror pod may not reference secrets
        config map: 403 pods "new" is forbidden: node "mynode" can not create pods that reference configmaps
        claim: 403 pods "new" is forbidden: node "mynode" can not create pods that reference persistentvolumeclaims
        csi: 403 pods "new" is forbidden: node "mynode" can not create pods that reference csidrivers (via CSI volumes)
        token: 403 pods "new" is forbidden: a mirror pod may not use ServiceAccountToken volume projections
        projected downward: ok
        host path: ok
        resource claim: 403 pods "new" is forbidden: node "mynode" can not create pods that reference resourceclaims
        bob's pod: ok
        delete mine: ok
        evict mine: ok
        delete theirs: 403 pods "theirs" is forbidden: node "mynode" can only delete pods with spec.nodeName set to itself
        evict theirs: 403 pods "theirs" is forbidden: node mynode can only evict pods with spec.nodeName set to itself
        delete nowhere: 403 pods "nowhere" is forbidden: node "mynode" can only delete pods with spec.nodeName set to itself
        evict nowhere: 403 pods "nowhere" is forbidden: node mynode can only evict pods with spec.nodeName set to itself
        delete my-mirror: ok
        evict my-mirror: ok
        delete their-mirror: 403 pods "their-mirror" is forbidden: node "mynode" can only delete pods with spec.nodeName set to itself
        evict their-mirror: 403 pods "their-mirror" is forbidden: node mynode can only evict pods with spec.nodeName set to itself
        delete gone: 404 pods "gone" not found
        evict gone: 404 pods "gone" not found
        update mine: 403 pods "mine" is forbidden: unexpected operation "UPDATE", node "mynode" can only create and delete mirror pods
        status of mine: ok
        update theirs: 403 pods "theirs" is forbidden: unexpected operation "UPDATE", node "mynode" can only create and delete mirror pods
        status of theirs: 403 pods "theirs" is forbidden: node "mynode" can only update pod status for pods with spec.nodeName set to itself
        update nowhere: 403 pods "nowhere" is forbidden: unexpected operation "UPDATE", node "mynode" can only create and delete mirror pods
        status of nowhere: 403 pods "nowhere" is forbidden: node "mynode" can only update pod status for pods with spec.nodeName set to itself
        label by status: 403 pods "mine" is forbidden: node "mynode" cannot update labels through pod status
        unlabel by status: 403 pods "mine" is forbidden: node "mynode" cannot update labels through pod status
        claims by status: 403 pods "mine" is forbidden: node "mynode" cannot update resource claim statues
        extended claims by status: 403 pods "mine" is forbidden: node "mynode" cannot update extended resource claim status
        resize: 403 pods "mine" is forbidden: unexpected pod subresource "resize", only 'status' and 'eviction' are allowed
        a node without a name: 403 pods "new" is forbidden: could not determine node from user "system:node:"
    "#]]);
}

#[tokio::test]
async fn a_node_changes_itself_only_and_not_what_steers_pods() {
    let mut run = Transcript::new(Some(Arc::new(AllBut(&[])))).await;
    let nodes = "/api/v1/nodes";
    let source = json!({ "configMap": { "name": "n", "namespace": "ns", "uid": "u", "kubeletConfigKey": "k" } });
    let label = |key: &str| node_object("new", json!({ key: "a" }), json!({}));
    for (what, body) in [
        ("itself", node_object("new", json!({}), json!({}))),
        ("another", node_object("another", json!({}), json!({}))),
        ("a generated name", json!({ "metadata": { "generateName": "new" } })),
        ("taints", node_object("new", json!({}), json!({ "taints": [{ "key": "k", "effect": "NoSchedule" }] }))),
        ("configSource", node_object("new", json!({}), json!({ "configSource": source }))),
        ("label foo", label("foo")),
        ("label example.com/foo", label("example.com/foo")),
        ("label kubernetes.io/hostname", label("kubernetes.io/hostname")),
        ("label topology.kubernetes.io/zone", label("topology.kubernetes.io/zone")),
        ("label foo.node.kubernetes.io/foo", label("foo.node.kubernetes.io/foo")),
        ("label kubelet.kubernetes.io/foo", label("kubelet.kubernetes.io/foo")),
        ("label node-role.kubernetes.io/x", label("node-role.kubernetes.io/x")),
        ("label kubernetes.io/foo", label("kubernetes.io/foo")),
        ("label other.k8s.io/foo", label("other.k8s.io/foo")),
        ("label notk8s.io/foo", label("notk8s.io/foo")),
        ("label foo.node-restriction.kubernetes.io/foo", label("foo.node-restriction.kubernetes.io/foo")),
    ] {
        run.of("new", &format!("create {what}"), Method::POST, nodes, &body).await;
    }
    let own = "/api/v1/nodes/labelled";
    let labels = |key: &'static str, value: Value| {
        move |node: &mut Value| {
            node["metadata"]["labels"][key] = value;
            let labels = node["metadata"]["labels"].as_object_mut().unwrap();
            labels.retain(|_, value| !value.is_null());
        }
    };
    run.change("labelled", "no change", own, |_| {}).await;
    run.change("labelled", "own label changed", own, labels("foo", json!("b"))).await;
    run.change("labelled", "own label removed", own, labels("foo", Value::Null)).await;
    run.change("labelled", "own label added", own, labels("kubernetes.io/os", json!("b"))).await;
    run.change("labelled", "foreign label changed", own, labels("other.k8s.io/x", json!("b"))).await;
    run.change("labelled", "foreign label removed", own, labels("node-restriction.kubernetes.io/x", Value::Null)).await;
    run.change("labelled", "foreign label added", own, labels("node-role.kubernetes.io/x", json!(""))).await;
    run.change("labelled", "taint added", own, |node| {
        node["spec"]["taints"].as_array_mut().unwrap().push(json!({ "key": "new", "effect": "NoExecute" }));
    })
    .await;
    run.change("labelled", "taint changed", own, |node| node["spec"]["taints"][0]["value"] = json!("b")).await;
    run.change("labelled", "taints removed", own, |node| node["spec"]["taints"] = json!([])).await;
    run.change("labelled", "taints removed by status", &format!("{own}/status"), |node| {
        node["spec"]["taints"] = json!([]);
    })
    .await;
    run.change("labelled", "configSource", own, |node| node["spec"]["configSource"] = source.clone()).await;
    run.change("labelled", "owner", own, |node| {
        node["metadata"]["ownerReferences"] = json!([{ "apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u" }]);
    })
    .await;
    run.change("labelled", "status", &format!("{own}/status"), |node| {
        node["status"]["conditions"] = json!([{ "type": "Ready", "status": "True" }]);
    })
    .await;
    run.change("mynode", "another", own, |node| node["metadata"]["annotations"] = json!({ "a": "b" })).await;
    run.change("mynode", "another's status", &format!("{own}/status"), |_| {}).await;
    run.of("mynode", "delete another", Method::DELETE, own, &Value::Null).await;
    run.of("labelled", "delete itself", Method::DELETE, own, &Value::Null).await;

    let lease = |name: &str| json!({ "metadata": { "name": name }, "spec": {} });
    let leases = |namespace: &str| format!("/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases");
    run.of("mynode", "own lease", Method::POST, &leases("kube-node-lease"), &lease("mynode")).await;
    run.of("mynode", "lease elsewhere", Method::POST, &leases("default"), &lease("mynode")).await;
    run.of("mynode", "another's new lease", Method::POST, &leases("kube-node-lease"), &lease("labelled")).await;
    let theirs = format!("{}/othernode", leases("kube-node-lease"));
    run.change("mynode", "another's lease", &theirs, |lease| lease["spec"]["holderIdentity"] = json!("me")).await;
    run.of("mynode", "delete another's lease", Method::DELETE, &theirs, &Value::Null).await;
    let csi = |name: &str| json!({ "metadata": { "name": name }, "spec": { "drivers": [] } });
    run.of("mynode", "own CSINode", Method::POST, "/apis/storage.k8s.io/v1/csinodes", &csi("mynode")).await;
    run.of("mynode", "another's CSINode", Method::POST, "/apis/storage.k8s.io/v1/csinodes", &csi("othernode")).await;
    let slices = "/apis/resource.k8s.io/v1/resourceslices";
    for of in ["mynode", "othernode"] {
        let slice = json!({ "metadata": { "name": "new" }, "spec": slice_spec(of) });
        run.of("mynode", &format!("slice of {of}"), Method::POST, slices, &slice).await;
    }
    run.of("mynode", "delete own slice", Method::DELETE, &format!("{slices}/mine"), &Value::Null).await;
    run.of("mynode", "delete another's slice", Method::DELETE, &format!("{slices}/theirs"), &Value::Null).await;
    run.is(&expect![[r#"
        create itself: ok
        create another: 403 nodes "another" is forbidden: node "new" is not allowed to modify node "another"
        create a generated name: 403 nodes "new" is forbidden: node "new" is not allowed to modify node ""
        create taints: ok
        create configSource: 403 nodes "new" is forbidden: node "new" is not allowed to create pods with a non-nil configSource
        create label foo: ok
        create label example.com/foo: ok
        create label kubernetes.io/hostname: ok
        create label topology.kubernetes.io/zone: ok
        create label foo.node.kubernetes.io/foo: ok
        create label kubelet.kubernetes.io/foo: ok
        create label node-role.kubernetes.io/x: 403 nodes "new" is forbidden: node "new" is not allowed to set the following labels: node-role.kubernetes.io/x
        create label kubernetes.io/foo: 403 nodes "new" is forbidden: node "new" is not allowed to set the following labels: kubernetes.io/foo
        create label other.k8s.io/foo: 403 nodes "new" is forbidden: node "new" is not allowed to set the following labels: other.k8s.io/foo
        create label notk8s.io/foo: ok
        create label foo.node-restriction.kubernetes.io/foo: 403 nodes "new" is forbidden: node "new" is not allowed to set the following labels: foo.node-restriction.kubernetes.io/foo
        no change: ok
        own label changed: ok
        own label removed: ok
        own label added: ok
        foreign label changed: 403 nodes "labelled" is forbidden: is not allowed to modify labels: other.k8s.io/x
        foreign label removed: 403 nodes "labelled" is forbidden: is not allowed to modify labels: node-restriction.kubernetes.io/x
        foreign label added: 403 nodes "labelled" is forbidden: is not allowed to modify labels: node-role.kubernetes.io/x
        taint added: 403 nodes "labelled" is forbidden: node "labelled" is not allowed to modify taints
        taint changed: 403 nodes "labelled" is forbidden: node "labelled" is not allowed to modify taints
        taints removed: 403 nodes "labelled" is forbidden: node "labelled" is not allowed to modify taints
        taints removed by status: 403 nodes "labelled" is forbidden: node "labelled" is not allowed to modify taints
        configSource: 403 nodes "labelled" is forbidden: node "labelled" is not allowed to update configSource to a new non-nil configSource
        owner: 403 nodes "labelled" is forbidden: node "labelled" is not allowed to modify ownerReferences
        status: ok
        another: 403 nodes "labelled" is forbidden: node "mynode" is not allowed to modify node "labelled"
        another's status: 403 nodes "labelled" is forbidden: node "mynode" is not allowed to modify node "labelled"
        delete another: 403 nodes "labelled" is forbidden: node "mynode" is not allowed to modify node "labelled"
        delete itself: ok
        own lease: ok
        lease elsewhere: 403 leases.coordination.k8s.io "mynode" is forbidden: can only access leases in the "kube-node-lease" system namespace
        another's new lease: 403 leases.coordination.k8s.io "labelled" is forbidden: can only access node lease with the same name as the requesting node
        another's lease: 403 leases.coordination.k8s.io "othernode" is forbidden: can only access node lease with the same name as the requesting node
        delete another's lease: 403 leases.coordination.k8s.io "othernode" is forbidden: can only access node lease with the same name as the requesting node
        own CSINode: ok
        another's CSINode: 403 csinodes.storage.k8s.io "othernode" is forbidden: can only access CSINode with the same name as the requesting node
        slice of mynode: ok
        slice of othernode: 403 resourceslices.resource.k8s.io "new" is forbidden: can only create ResourceSlice with the same NodeName as the requesting node
        delete own slice: ok
        delete another's slice: 403 resourceslices.resource.k8s.io "theirs" is forbidden: can only delete ResourceSlice with the same NodeName as the requesting node
    "#]]);
}

#[tokio::test]
async fn a_node_gets_tokens_and_certificates_for_what_it_runs() {
    let mut run = Transcript::new(Some(Arc::new(AllBut(&["request-serviceaccounts-token-audience"])))).await;
    let tokens = "/api/v1/namespaces/default/serviceaccounts/account/token";
    for (pod, audience) in [
        ("for-us", ""),
        ("for-us", "foo"),
        ("for-foo", "foo"),
        ("for-foo", "foo,bar"),
        ("inline", "csi"),
        ("inline", "other"),
        ("claimed", "csi"),
        ("in-ephemeral", "csi"),
        ("migrated", "azure"),
        ("lost", "csi"),
        ("driverless", "csi"),
    ] {
        let uid = run.cluster.uid("pods", "default", pod).await;
        let audiences: Vec<&str> = audience.split(',').filter(|audience| !audience.is_empty()).collect();
        let bound = json!({ "apiVersion": "v1", "kind": "Pod", "name": pod, "uid": uid });
        let request = json!({ "spec": { "audiences": audiences, "boundObjectRef": bound } });
        run.of("mynode", &format!("{pod} for {audience:?}"), Method::POST, tokens, &request).await;
    }
    let uid = run.cluster.uid("pods", "default", "theirs").await;
    for (what, bound) in [
        ("unbound", Value::Null),
        ("bound to a node", json!({ "apiVersion": "v1", "kind": "Node", "name": "mynode", "uid": "u" })),
        ("bound without uid", json!({ "apiVersion": "v1", "kind": "Pod", "name": "for-us" })),
        ("bound with another uid", json!({ "apiVersion": "v1", "kind": "Pod", "name": "for-us", "uid": "x" })),
        ("bound to nothing", json!({ "apiVersion": "v1", "kind": "Pod", "name": "gone", "uid": "x" })),
        ("bound to another's pod", json!({ "apiVersion": "v1", "kind": "Pod", "name": "theirs", "uid": uid })),
    ] {
        let request = json!({ "spec": { "audiences": [], "boundObjectRef": bound } });
        run.of("mynode", what, Method::POST, tokens, &request).await;
    }
    let requests = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    let signing = |signer: &str, pem: &str| {
        use base64::Engine as _;
        let request = base64::engine::general_purpose::STANDARD.encode(pem);
        json!({ "metadata": { "name": "new" }, "spec": {
            "signerName": signer, "request": request,
            "usages": if signer.ends_with("serving") {
                json!(["digital signature", "server auth"])
            } else { json!(["digital signature", "client auth"]) } } })
    };
    let pem = |node: &str| {
        csr::request(&Leaf::client(&format!("system:node:{node}"), &["system:nodes"])).unwrap().request_pem
    };
    for (what, signer, pem) in [
        ("own serving", "kubernetes.io/kubelet-serving", pem("mynode")),
        ("own client", "kubernetes.io/kube-apiserver-client-kubelet", pem("mynode")),
        ("another's client", "kubernetes.io/kube-apiserver-client-kubelet", pem("othernode")),
        ("another signer", "example.com/signer", pem("othernode")),
        ("no request", "kubernetes.io/kubelet-serving", "nonsense".to_owned()),
    ] {
        run.of("mynode", what, Method::POST, requests, &signing(signer, &pem)).await;
    }
    let claim = "/api/v1/namespaces/default/persistentvolumeclaims/claim";
    run.change("mynode", "claim", claim, |_| {}).await;
    let status = format!("{claim}/status");
    run.change("mynode", "claim's capacity", &status, |claim| {
        claim["status"]["capacity"] = json!({ "storage": "2Gi" });
        claim["status"]["allocatedResources"] = json!({ "storage": "2Gi" });
        claim["status"]["conditions"] = json!([{ "type": "Resizing", "status": "True" }]);
    })
    .await;
    run.change("mynode", "claim's phase", &status, |claim| claim["status"]["phase"] = json!("Lost")).await;
    run.change("mynode", "claim's labels", &status, |claim| claim["metadata"]["labels"] = json!({ "a": "b" })).await;
    run.is(&expect![[r#"
        for-us for "": ok
        for-us for "foo": 403 serviceaccounts "account" is forbidden: audience "foo" not found in pod spec volume, system:node:mynode is not authorized to request tokens for this audience
        for-foo for "foo": ok
        for-foo for "foo,bar": 403 serviceaccounts "account" is forbidden: node may only request 0 or 1 audiences
        inline for "csi": ok
        inline for "other": 403 serviceaccounts "account" is forbidden: audience "other" not found in pod spec volume, system:node:mynode is not authorized to request tokens for this audience
        claimed for "csi": ok
        in-ephemeral for "csi": ok
        migrated for "azure": ok
        lost for "csi": 403 serviceaccounts "account" is forbidden: error validating audience "csi": persistentvolume "nowhere" not found
        driverless for "csi": 403 serviceaccounts "account" is forbidden: error validating audience "csi": csidriver.storage.k8s.io "unknown.example" not found
        unbound: 403 serviceaccounts "account" is forbidden: node requested token not bound to a pod
        bound to a node: 403 serviceaccounts "account" is forbidden: node requested token not bound to a pod
        bound without uid: 403 serviceaccounts "account" is forbidden: node requested token with a pod binding without a uid
        bound with another uid: 403 serviceaccounts "account" is forbidden: the UID in the bound object reference (x) does not match the UID in record. The object might have been deleted and then recreated
        bound to nothing: 404 pods "gone" not found
        bound to another's pod: 403 serviceaccounts "account" is forbidden: node requested token bound to a pod scheduled on a different node
        own serving: ok
        own client: ok
        another's client: 403 certificatesigningrequests.certificates.k8s.io "new" is forbidden: can only create a node CSR with CN=system:node:mynode
        another signer: ok
        no request: 403 certificatesigningrequests.certificates.k8s.io "new" is forbidden: unable to parse csr: certificate signing request: PEM block type must be CERTIFICATE REQUEST
        claim: 403 persistentvolumeclaims "claim" is forbidden: may only update PVC status
        claim's capacity: ok
        claim's phase: 403 persistentvolumeclaims "claim" is forbidden: node "mynode" is not allowed to update fields other than status.quantity and status.conditions: status.phase
        claim's labels: 403 persistentvolumeclaims "claim" is forbidden: node "mynode" is not allowed to update fields other than status.quantity and status.conditions: metadata.labels
    "#]]);
}

/// Behind the real authorizer: node A never reads or writes what is node B's.
#[tokio::test]
async fn a_node_sees_what_its_pods_use_and_nothing_else() {
    let mut run = Transcript::new(None).await;
    let of = |plural: &str, name: &str| format!("/api/v1/namespaces/default/{plural}/{name}");
    let listed =
        |plural: &str, name: &str| format!("/api/v1/namespaces/default/{plural}?fieldSelector=metadata.name={name}");
    let mut paths: Vec<String> = Vec::new();
    for secret in ["in-env", "in-volume", "projected", "pull", "in-mirror", "their-secret", "unused"] {
        paths.push(of("secrets", secret));
    }
    paths.extend([
        "/api/v1/namespaces/kube-system/secrets/of-volume".to_owned(),
        "/api/v1/namespaces/kube-system/secrets/in-volume".to_owned(),
        listed("secrets", "in-volume"),
        listed("secrets", "their-secret"),
        "/api/v1/namespaces/default/secrets".to_owned(),
        "/api/v1/secrets?fieldSelector=metadata.name=in-volume".to_owned(),
        of("configmaps", "map"),
        of("configmaps", "unused"),
        of("serviceaccounts", "account"),
        of("serviceaccounts", "other-account"),
        of("persistentvolumeclaims", "claim"),
        of("persistentvolumeclaims", "lost"),
        of("persistentvolumeclaims", "unused"),
        "/api/v1/persistentvolumes/volume".to_owned(),
        "/api/v1/persistentvolumes/other-volume".to_owned(),
        "/api/v1/persistentvolumes".to_owned(),
        "/apis/resource.k8s.io/v1/namespaces/default/resourceclaims/devices".to_owned(),
        "/apis/resource.k8s.io/v1/namespaces/default/resourceclaims/others".to_owned(),
        "/apis/resource.k8s.io/v1/resourceslices/mine".to_owned(),
        "/apis/resource.k8s.io/v1/resourceslices/theirs".to_owned(),
        "/apis/resource.k8s.io/v1/resourceslices?fieldSelector=spec.nodeName=mynode".to_owned(),
        "/apis/resource.k8s.io/v1/resourceslices".to_owned(),
        "/apis/storage.k8s.io/v1/volumeattachments/mine".to_owned(),
        "/apis/storage.k8s.io/v1/volumeattachments/theirs".to_owned(),
        "/api/v1/nodes/mynode".to_owned(),
        "/api/v1/nodes/othernode".to_owned(),
        "/api/v1/nodes".to_owned(),
        "/api/v1/nodes?fieldSelector=metadata.name=mynode".to_owned(),
        of("pods", "mine"),
        of("pods", "theirs"),
        of("pods", "gone"),
        "/api/v1/pods".to_owned(),
        "/api/v1/pods?fieldSelector=spec.nodeName=mynode".to_owned(),
        "/api/v1/pods?fieldSelector=spec.nodeName=othernode".to_owned(),
        "/api/v1/pods?fieldSelector=spec.nodeName!=mynode".to_owned(),
        listed("pods", "mine"),
        listed("pods", "theirs"),
        "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/othernode".to_owned(),
        "/api/v1/services".to_owned(),
        "/api/v1/namespaces/default/endpoints".to_owned(),
    ]);
    for path in paths {
        let answer = run.ask("mynode", Method::GET, &path, &Value::Null).await;
        // What is not there may be told to be gone to those who may read it.
        let verdict = if matches!(answer.code, 200 | 404) { "allowed".to_owned() } else { answer.verdict() };
        let reason = verdict.split_once("scope: ").or_else(|| verdict.split_once("\"default\": "));
        let reason = reason.or_else(|| verdict.split_once("lease\": ")).map_or(verdict.as_str(), |(_, reason)| reason);
        run.text.push_str(&format!("{path}: {reason}\n"));
    }
    run.text.push_str("-- writes\n");
    for (path, what) in [
        (of("pods", "theirs/status"), "status of another's pod"),
        ("/api/v1/nodes/othernode/status".to_owned(), "status of another node"),
        ("/api/v1/nodes/othernode".to_owned(), "another node"),
        ("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/othernode".to_owned(), "another's lease"),
        (of("persistentvolumeclaims", "unused/status"), "status of another's claim"),
        ("/apis/resource.k8s.io/v1/resourceslices/theirs".to_owned(), "another's slice"),
    ] {
        run.change("mynode", what, &path, |_| {}).await;
    }
    for (path, what) in [
        (of("pods", "theirs"), "another's pod"),
        ("/api/v1/nodes/othernode".to_owned(), "another node"),
        ("/api/v1/nodes/mynode".to_owned(), "itself"),
        (of("secrets", "in-volume"), "a secret"),
        ("/api/v1/namespaces/default/pods".to_owned(), "all pods"),
    ] {
        run.of("mynode", &format!("delete {what}"), Method::DELETE, &path, &Value::Null).await;
    }
    let token = json!({ "spec": {} });
    run.of("mynode", "token of another's account", Method::POST, &of("serviceaccounts", "other-account/token"), &token)
        .await;
    run.is(&expect![[r#"
        /api/v1/namespaces/default/secrets/in-env: allowed
        /api/v1/namespaces/default/secrets/in-volume: allowed
        /api/v1/namespaces/default/secrets/projected: allowed
        /api/v1/namespaces/default/secrets/pull: allowed
        /api/v1/namespaces/default/secrets/in-mirror: no relationship found between node 'mynode' and this object
        /api/v1/namespaces/default/secrets/their-secret: no relationship found between node 'mynode' and this object
        /api/v1/namespaces/default/secrets/unused: no relationship found between node 'mynode' and this object
        /api/v1/namespaces/kube-system/secrets/of-volume: allowed
        /api/v1/namespaces/kube-system/secrets/in-volume: 403 secrets "in-volume" is forbidden: User "system:node:mynode" cannot get resource "secrets" in API group "" in the namespace "kube-system": no relationship found between node 'mynode' and this object
        /api/v1/namespaces/default/secrets?fieldSelector=metadata.name=in-volume: allowed
        /api/v1/namespaces/default/secrets?fieldSelector=metadata.name=their-secret: no relationship found between node 'mynode' and this object
        /api/v1/namespaces/default/secrets: No Object name found
        /api/v1/secrets?fieldSelector=metadata.name=in-volume: can only read namespaced object of this type
        /api/v1/namespaces/default/configmaps/map: allowed
        /api/v1/namespaces/default/configmaps/unused: no relationship found between node 'mynode' and this object
        /api/v1/namespaces/default/serviceaccounts/account: allowed
        /api/v1/namespaces/default/serviceaccounts/other-account: no relationship found between node 'mynode' and this object
        /api/v1/namespaces/default/persistentvolumeclaims/claim: allowed
        /api/v1/namespaces/default/persistentvolumeclaims/lost: allowed
        /api/v1/namespaces/default/persistentvolumeclaims/unused: no relationship found between node 'mynode' and this object
        /api/v1/persistentvolumes/volume: allowed
        /api/v1/persistentvolumes/other-volume: no relationship found between node 'mynode' and this object
        /api/v1/persistentvolumes: can only get individual resources of this type
        /apis/resource.k8s.io/v1/namespaces/default/resourceclaims/devices: allowed
        /apis/resource.k8s.io/v1/namespaces/default/resourceclaims/others: no relationship found between node 'mynode' and this object
        /apis/resource.k8s.io/v1/resourceslices/mine: allowed
        /apis/resource.k8s.io/v1/resourceslices/theirs: no relationship found between node 'mynode' and this object
        /apis/resource.k8s.io/v1/resourceslices?fieldSelector=spec.nodeName=mynode: allowed
        /apis/resource.k8s.io/v1/resourceslices: can only list/watch/deletecollection resourceslices with nodeName field selector
        /apis/storage.k8s.io/v1/volumeattachments/mine: allowed
        /apis/storage.k8s.io/v1/volumeattachments/theirs: no relationship found between node 'mynode' and this object
        /api/v1/nodes/mynode: allowed
        /api/v1/nodes/othernode: node 'mynode' cannot read 'othernode', only its own Node object
        /api/v1/nodes: node 'mynode' cannot read all nodes, only its own Node object
        /api/v1/nodes?fieldSelector=metadata.name=mynode: allowed
        /api/v1/namespaces/default/pods/mine: allowed
        /api/v1/namespaces/default/pods/theirs: no relationship found between node 'mynode' and this object
        /api/v1/namespaces/default/pods/gone: no relationship found between node 'mynode' and this object
        /api/v1/pods: can only list/watch pods with spec.nodeName field selector
        /api/v1/pods?fieldSelector=spec.nodeName=mynode: allowed
        /api/v1/pods?fieldSelector=spec.nodeName=othernode: can only list/watch pods with spec.nodeName field selector
        /api/v1/pods?fieldSelector=spec.nodeName!=mynode: can only list/watch pods with spec.nodeName field selector
        /api/v1/namespaces/default/pods?fieldSelector=metadata.name=mine: allowed
        /api/v1/namespaces/default/pods?fieldSelector=metadata.name=theirs: no relationship found between node 'mynode' and this object
        /apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/othernode: can only access node lease with the same name as the requesting node
        /api/v1/services: allowed
        /api/v1/namespaces/default/endpoints: 403 endpoints is forbidden: User "system:node:mynode" cannot list resource "endpoints" in API group "" in the namespace "default"
        -- writes
        status of another's pod: 403 pods "theirs" is forbidden: node "mynode" can only update pod status for pods with spec.nodeName set to itself
        status of another node: 403 nodes "othernode" is forbidden: node "mynode" is not allowed to modify node "othernode"
        another node: 403 nodes "othernode" is forbidden: node "mynode" is not allowed to modify node "othernode"
        another's lease: 403 leases.coordination.k8s.io "othernode" is forbidden: User "system:node:mynode" cannot update resource "leases" in API group "coordination.k8s.io" in the namespace "kube-node-lease": can only access node lease with the same name as the requesting node
        status of another's claim: 403 persistentvolumeclaims "unused" is forbidden: User "system:node:mynode" cannot update resource "persistentvolumeclaims/status" in API group "" in the namespace "default": no relationship found between node 'mynode' and this object
        another's slice: 403 resourceslices.resource.k8s.io "theirs" is forbidden: User "system:node:mynode" cannot update resource "resourceslices" in API group "resource.k8s.io" at the cluster scope: no relationship found between node 'mynode' and this object
        delete another's pod: 403 pods "theirs" is forbidden: node "mynode" can only delete pods with spec.nodeName set to itself
        delete another node: 403 nodes "othernode" is forbidden: User "system:node:mynode" cannot delete resource "nodes" in API group "" at the cluster scope
        delete itself: 403 nodes "mynode" is forbidden: User "system:node:mynode" cannot delete resource "nodes" in API group "" at the cluster scope
        delete a secret: 403 secrets "in-volume" is forbidden: User "system:node:mynode" cannot delete resource "secrets" in API group "" in the namespace "default": can only read resources of this type
        delete all pods: 403 pods is forbidden: User "system:node:mynode" cannot deletecollection resource "pods" in API group "" in the namespace "default"
        token of another's account: 403 serviceaccounts "other-account" is forbidden: User "system:node:mynode" cannot create resource "serviceaccounts/token" in API group "" in the namespace "default": no relationship found between node 'mynode' and this object
    "#]]);
}
