//! Who may grant what, who may approve and sign certificates, and what else admission says of ordinary users.

use std::sync::Arc;

use base64::Engine as _;
use expect_test::expect;
use futures_util::future::join_all;
use http::Method;
use rkube_pki::{Leaf, csr};
use serde_json::{Value, json};

use crate::cluster::{Cluster, Setup, admin, user};

const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";

fn object(kind: &str, namespace: &str, name: &str, rest: Value) -> Value {
    let mut object = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind,
        "metadata": { "name": name }
    });
    if !namespace.is_empty() {
        object["metadata"]["namespace"] = json!(namespace);
    }
    object.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
    object
}

fn rules(list: &[(&str, &str, &str)]) -> Value {
    let words = |text: &str| {
        text.split(',').map(|word| if word == "core" { "" } else { word }).map(Value::from).collect::<Vec<_>>()
    };
    let rules: Vec<Value> = list
        .iter()
        .map(|(verbs, groups, resources)| {
            json!({ "verbs": words(verbs), "apiGroups": words(groups), "resources": words(resources) })
        })
        .collect();
    json!({ "rules": rules })
}

fn binding(kind: &str, role: &str, who: &str) -> Value {
    json!({
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": role },
        "subjects": [{ "kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": who }]
    })
}

/// `editor` writes roles and bindings and has `get pods` besides; `delegate` may bind `view` in `default`;
/// `escalator` may write any role.
fn objects() -> Vec<Value> {
    let all = "create,update,patch,delete,get,list,deletecollection";
    let kinds = "roles,rolebindings,clusterroles,clusterrolebindings";
    let mut bind = rules(&[(all, "rbac.authorization.k8s.io", "rolebindings")]);
    bind["rules"].as_array_mut().unwrap().push(json!({ "verbs": ["bind"], "apiGroups": ["rbac.authorization.k8s.io"],
        "resources": ["clusterroles"], "resourceNames": ["view"] }));
    let group = "rbac.authorization.k8s.io";
    vec![
        object("ClusterRole", "", "editor", rules(&[(all, group, kinds), ("get,list", "core", "pods")])),
        object("ClusterRoleBinding", "", "editor", binding("ClusterRole", "editor", "editor")),
        object("Role", "default", "local", rules(&[(all, group, "roles,rolebindings"), ("get", "core", "secrets")])),
        object("RoleBinding", "default", "local", binding("Role", "local", "local")),
        object("ClusterRole", "", "delegate", bind),
        object("RoleBinding", "default", "delegate", binding("ClusterRole", "delegate", "delegate")),
        object("ClusterRole", "", "escalator", rules(&[(&format!("{all},escalate"), group, kinds)])),
        object("ClusterRoleBinding", "", "escalator", binding("ClusterRole", "escalator", "escalator")),
        object("ClusterRole", "", "root", rules(&[("*", "*", "*")])),
        object("Role", "default", "owned", {
            let mut role = rules(&[("*", "*", "*")]);
            role["metadata"] = json!({ "name": "owned", "namespace": "default", "finalizers": ["example.com/f"] });
            role
        }),
    ]
}

#[tokio::test]
async fn nobody_grants_more_than_they_have() {
    let cluster = Cluster::start(Setup { objects: objects(), ..Setup::default() }).await;
    let role = |list: &[(&str, &str, &str)]| object("Role", "", "new", rules(list));
    let cluster_role = |list: &[(&str, &str, &str)]| object("ClusterRole", "", "new", rules(list));
    let local = format!("{RBAC}/namespaces/default");
    let aggregated = {
        let mut role = cluster_role(&[]);
        role["aggregationRule"] = json!({ "clusterRoleSelectors": [{ "matchLabels": { "a": "b" } }] });
        role
    };
    let mut paths = cluster_role(&[]);
    paths["rules"] = json!([{ "verbs": ["get"], "nonResourceURLs": ["/metrics"] }]);
    let many: Vec<String> = (0..200).map(|number| format!("x{number}")).collect();
    let huge =
        json!({ "metadata": { "name": "new" }, "rules": [{ "verbs": many, "apiGroups": many, "resources": many }] });
    let bind = |kind: &str, role: &str| {
        let mut object = object("RoleBinding", "", "new", binding(kind, role, "friend"));
        object.as_object_mut().unwrap().remove("kind");
        object
    };
    let (roles, bindings) = (format!("{local}/roles"), format!("{local}/rolebindings"));
    let (cluster_roles, cluster_bindings) = (format!("{RBAC}/clusterroles"), format!("{RBAC}/clusterrolebindings"));
    let mut text = String::new();
    for (who, path, body) in [
        ("editor", &roles, role(&[("get", "core", "pods")])),
        ("editor", &roles, role(&[("get,list,watch", "core", "pods,secrets"), ("get", "core", "pods")])),
        ("editor", &roles, role(&[("*", "*", "*")])),
        ("local", &roles, role(&[("get", "core", "secrets")])),
        ("local", &roles, role(&[("get", "core", "pods")])),
        ("escalator", &roles, role(&[("*", "*", "*")])),
        ("escalator", &cluster_roles, aggregated.clone()),
        ("editor", &cluster_roles, cluster_role(&[("get,list", "core", "pods")])),
        ("editor", &cluster_roles, paths),
        ("editor", &cluster_roles, aggregated),
        ("editor", &cluster_roles, huge),
        ("admin", &cluster_roles, cluster_role(&[("*", "*", "*")])),
        ("editor", &bindings, bind("ClusterRole", "editor")),
        ("editor", &bindings, bind("ClusterRole", "system:node-bootstrapper")),
        ("editor", &bindings, bind("ClusterRole", "nothing")),
        ("editor", &bindings, bind("Role", "nothing")),
        ("editor", &bindings, bind("User", "x")),
        ("local", &bindings, bind("Role", "local")),
        ("delegate", &bindings, bind("ClusterRole", "view")),
        ("delegate", &bindings, bind("ClusterRole", "system:node-bootstrapper")),
        ("escalator", &bindings, bind("ClusterRole", "root")),
        ("editor", &cluster_bindings, bind("ClusterRole", "editor")),
        ("editor", &cluster_bindings, bind("ClusterRole", "cluster-admin")),
        ("admin", &cluster_bindings, bind("ClusterRole", "cluster-admin")),
    ] {
        let sender = if who == "admin" { admin() } else { user(who, &["staff", "system:authenticated"]) };
        let mut body = body;
        body.as_object_mut().unwrap().remove("kind");
        let answer = cluster.ask(&sender, Method::POST, &format!("{path}?dryRun=All"), &body).await;
        let verdict = answer.verdict();
        let verdict: Vec<&str> = verdict.lines().take(4).collect();
        let what = path.rsplit('/').next().unwrap_or_default();
        let to = body.pointer("/roleRef/name").and_then(Value::as_str).unwrap_or_default();
        text.push_str(&format!("{who} {what} {to}: {}\n", verdict.join("\n    ")));
    }
    // A binding keeps its role, and what one may not grant one may still let go.
    let change = |patch: Value, path: String, who: &'static str| {
        let (cluster, sender) = (&cluster, user(who, &[]));
        async move {
            let mut current = cluster.ask(&admin(), Method::GET, &path, &Value::Null).await.body;
            let members = patch.as_object().unwrap().clone();
            for (name, value) in members {
                current[name] = value;
            }
            format!(
                "{path}: {}\n",
                cluster.ask(&sender, Method::PUT, &format!("{path}?dryRun=All"), &current).await.verdict()
            )
        }
    };
    let other = binding("ClusterRole", "editor", "editor");
    text += &change(json!({ "roleRef": other["roleRef"] }), format!("{bindings}/local"), "editor").await;
    text += &change(json!({ "subjects": [] }), format!("{cluster_bindings}/escalator"), "editor").await;
    let owned = cluster.ask(&admin(), Method::GET, &format!("{roles}/owned"), &Value::Null).await.body;
    let mut metadata = owned["metadata"].clone();
    metadata["finalizers"] = json!([]);
    text += &change(json!({ "metadata": metadata }), format!("{roles}/owned"), "editor").await;
    metadata["labels"] = json!({ "a": "b" });
    text += &change(json!({ "metadata": metadata }), format!("{roles}/owned"), "editor").await;
    expect![[r#"
        editor roles : ok
        editor roles : 403 roles.rbac.authorization.k8s.io "new" is forbidden: user "editor" (groups=["staff" "system:authenticated"]) is attempting to grant RBAC permissions not currently held:
            {APIGroups:[""], Resources:["pods"], Verbs:["watch"]}
            {APIGroups:[""], Resources:["secrets"], Verbs:["get" "list" "watch"]}
        editor roles : 403 roles.rbac.authorization.k8s.io "new" is forbidden: user "editor" (groups=["staff" "system:authenticated"]) is attempting to grant RBAC permissions not currently held:
            {APIGroups:["*"], Resources:["*"], Verbs:["*"]}
        local roles : ok
        local roles : 403 roles.rbac.authorization.k8s.io "new" is forbidden: user "local" (groups=["staff" "system:authenticated"]) is attempting to grant RBAC permissions not currently held:
            {APIGroups:[""], Resources:["pods"], Verbs:["get"]}
        escalator roles : ok
        escalator clusterroles : ok
        editor clusterroles : ok
        editor clusterroles : 403 clusterroles.rbac.authorization.k8s.io "new" is forbidden: user "editor" (groups=["staff" "system:authenticated"]) is attempting to grant RBAC permissions not currently held:
            {NonResourceURLs:["/metrics"], Verbs:["get"]}
        editor clusterroles : 403 clusterroles.rbac.authorization.k8s.io "new" is forbidden: must have cluster-admin privileges to use the aggregationRule
        editor clusterroles : 403 clusterroles.rbac.authorization.k8s.io "new" is forbidden: the rules are too many to be compared with those of the user
        admin clusterroles : ok
        editor rolebindings editor: ok
        editor rolebindings system:node-bootstrapper: 403 rolebindings.rbac.authorization.k8s.io "new" is forbidden: user "editor" (groups=["staff" "system:authenticated"]) is attempting to grant RBAC permissions not currently held:
            {APIGroups:["certificates.k8s.io"], Resources:["certificatesigningrequests"], Verbs:["create" "get" "list" "watch"]}
        editor rolebindings nothing: 404 clusterroles.rbac.authorization.k8s.io "nothing" not found
        editor rolebindings nothing: 404 roles.rbac.authorization.k8s.io "nothing" not found
        editor rolebindings x: 500 Internal error occurred: unsupported role reference kind: "User"
        local rolebindings local: ok
        delegate rolebindings view: ok
        delegate rolebindings system:node-bootstrapper: 403 rolebindings.rbac.authorization.k8s.io "new" is forbidden: user "delegate" (groups=["staff" "system:authenticated"]) is attempting to grant RBAC permissions not currently held:
            {APIGroups:["certificates.k8s.io"], Resources:["certificatesigningrequests"], Verbs:["create" "get" "list" "watch"]}
        escalator rolebindings root: 403 rolebindings.rbac.authorization.k8s.io "new" is forbidden: user "escalator" (groups=["staff" "system:authenticated"]) is attempting to grant RBAC permissions not currently held:
            {APIGroups:["*"], Resources:["*"], Verbs:["*"]}
        editor clusterrolebindings editor: ok
        editor clusterrolebindings cluster-admin: 403 clusterrolebindings.rbac.authorization.k8s.io "new" is forbidden: user "editor" (groups=["staff" "system:authenticated"]) is attempting to grant RBAC permissions not currently held:
            {APIGroups:["*"], Resources:["*"], Verbs:["*"]}
            {NonResourceURLs:["*"], Verbs:["*"]}
        admin clusterrolebindings cluster-admin: ok
        /apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings/local: 422 RoleBinding.rbac.authorization.k8s.io "local" is invalid: roleRef: Invalid value: {"apiGroup":"rbac.authorization.k8s.io","kind":"ClusterRole","name":"editor"}: cannot change roleRef
        /apis/rbac.authorization.k8s.io/v1/clusterrolebindings/escalator: 403 clusterrolebindings.rbac.authorization.k8s.io "escalator" is forbidden: user "editor" (groups=[]) is attempting to grant RBAC permissions not currently held:
        {APIGroups:["rbac.authorization.k8s.io"], Resources:["clusterrolebindings"], Verbs:["escalate"]}
        {APIGroups:["rbac.authorization.k8s.io"], Resources:["clusterroles"], Verbs:["escalate"]}
        {APIGroups:["rbac.authorization.k8s.io"], Resources:["rolebindings"], Verbs:["escalate"]}
        {APIGroups:["rbac.authorization.k8s.io"], Resources:["roles"], Verbs:["escalate"]}
        /apis/rbac.authorization.k8s.io/v1/namespaces/default/roles/owned: ok
        /apis/rbac.authorization.k8s.io/v1/namespaces/default/roles/owned: 403 roles.rbac.authorization.k8s.io "owned" is forbidden: user "editor" (groups=[]) is attempting to grant RBAC permissions not currently held:
        {APIGroups:["*"], Resources:["*"], Verbs:["*"]}
    "#]].assert_eq(&text);
}

#[tokio::test]
async fn certificates_are_approved_and_signed_by_those_authorized_for_their_signer() {
    let group = "certificates.k8s.io";
    let named = |verb: &str, name: &str| json!({ "verbs": [verb], "apiGroups": [group], "resources": ["signers"], "resourceNames": [name] });
    let grant = |name: &str, more: Value| {
        let mut role = rules(&[(
            "create,get,update",
            group,
            "certificatesigningrequests,certificatesigningrequests/approval,certificatesigningrequests/status",
        )]);
        role["rules"].as_array_mut().unwrap().push(more);
        [
            object("ClusterRole", "", name, role),
            object("ClusterRoleBinding", "", name, binding("ClusterRole", name, name)),
        ]
    };
    let request = csr::request(&Leaf::client("jane", &["system:masters"])).unwrap().request_pem;
    let encoded = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    let signing = |name: &str, signer: &str, pem: &str| {
        json!({ "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": { "name": name },
            "spec": { "signerName": signer, "request": encoded(pem), "usages": ["client auth"] } })
    };
    let mut objects = vec![signing("waiting", "example.com/one", &request)];
    objects.extend(grant("exact", named("approve", "example.com/one")));
    objects.extend(grant("domain", named("approve", "example.com/*")));
    objects.extend(grant("other", named("approve", "example.com/two")));
    objects.extend(grant("signer", named("sign", "example.com/one")));
    let cluster = Cluster::start(Setup { objects, ..Setup::default() }).await;
    let path = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    let mut text = String::new();
    let stored = cluster.ask(&admin(), Method::GET, &format!("{path}/waiting"), &Value::Null).await.body;
    for who in ["exact", "domain", "other", "signer"] {
        let mut approved = stored.clone();
        approved["status"]["conditions"] =
            json!([{ "type": "Approved", "status": "True", "reason": "Test", "message": "" }]);
        let mut failed = stored.clone();
        failed["status"]["conditions"] =
            json!([{ "type": "Failed", "status": "True", "reason": "Test", "message": "" }]);
        for (subresource, body) in [("approval", &approved), ("status", &failed), ("status", &stored)] {
            let path = format!("{path}/waiting/{subresource}?dryRun=All");
            let answer = cluster.ask(&user(who, &[]), Method::PUT, &path, body).await;
            text.push_str(&format!("{who} {subresource}: {}\n", answer.verdict()));
        }
    }
    for signer in ["kubernetes.io/kube-apiserver-client", "example.com/one"] {
        let body = signing("new", signer, &request);
        let answer = cluster.ask(&user("exact", &[]), Method::POST, &format!("{path}?dryRun=All"), &body).await;
        text.push_str(&format!("masters by {signer}: {}\n", answer.verdict()));
    }
    expect![[r#"
        exact approval: ok
        exact status: 403 certificatesigningrequests.certificates.k8s.io "waiting" is forbidden: user not permitted to sign requests with signerName "example.com/one"
        exact status: ok
        domain approval: ok
        domain status: 403 certificatesigningrequests.certificates.k8s.io "waiting" is forbidden: user not permitted to sign requests with signerName "example.com/one"
        domain status: ok
        other approval: 403 certificatesigningrequests.certificates.k8s.io "waiting" is forbidden: user not permitted to approve requests with signerName "example.com/one"
        other status: 403 certificatesigningrequests.certificates.k8s.io "waiting" is forbidden: user not permitted to sign requests with signerName "example.com/one"
        other status: ok
        signer approval: 403 certificatesigningrequests.certificates.k8s.io "waiting" is forbidden: user not permitted to approve requests with signerName "example.com/one"
        signer status: ok
        signer status: ok
        masters by kubernetes.io/kube-apiserver-client: 403 certificatesigningrequests.certificates.k8s.io "new" is forbidden: use of kubernetes.io/kube-apiserver-client signer with system:masters group is not allowed
        masters by example.com/one: ok
    "#]].assert_eq(&text);
}

#[tokio::test]
async fn pods_are_limited_resized_and_labelled_as_their_namespace_and_node_say() {
    let pod = |name: &str, resources: Value| {
        json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "namespace": "default" },
            "spec": { "nodeName": "n", "containers": [{ "name": "c", "image": "one", "resources": resources }] } })
    };
    let objects = vec![
        json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "n", "labels": {
            "topology.kubernetes.io/zone": "z", "topology.kubernetes.io/region": "r", "other": "o" } },
            "status": { "allocatable": { "cpu": "2", "memory": "1Gi" } } }),
        json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "default", "namespace": "default" } }),
        pod("before", json!({})),
        pod("limited", json!({ "requests": { "cpu": "1" }, "limits": { "cpu": "1" } })),
        json!({ "apiVersion": "v1", "kind": "LimitRange", "metadata": { "name": "l", "namespace": "default" },
            "spec": { "limits": [{ "type": "Container", "default": { "cpu": "1" }, "defaultRequest": { "cpu": "500m" } }] } }),
    ];
    let cluster = Cluster::start(Setup { objects, ..Setup::default() }).await;
    let pods = "/api/v1/namespaces/default/pods";
    let mut text = String::new();
    let made = cluster.ask(&admin(), Method::POST, pods, &pod("after", json!({}))).await;
    let shown = |pod: &Value| format!("{} {}", pod["metadata"]["labels"], pod["spec"]["containers"][0]["resources"]);
    text.push_str(&format!("new: {}\n", shown(&made.body)));
    for (name, change) in [
        ("before", json!({ "image": "two" })),
        ("after", json!({ "image": "two" })),
        ("after", json!({ "resources": { "requests": { "cpu": "600m" } } })),
        ("limited", json!({ "resources": { "requests": { "cpu": "3" }, "limits": { "cpu": "3" } } })),
    ] {
        let mut object = cluster.ask(&admin(), Method::GET, &format!("{pods}/{name}"), &Value::Null).await.body;
        for (member, value) in change.as_object().unwrap() {
            match value {
                Value::Object(members) => {
                    for (side, amounts) in members {
                        object["spec"]["containers"][0][member][side] = amounts.clone();
                    }
                }
                value => object["spec"]["containers"][0][member] = value.clone(),
            }
        }
        let path = format!("{pods}/{name}/resize?dryRun=All");
        let answer = cluster.ask(&admin(), Method::PUT, &path, &object).await;
        text.push_str(&format!("resize {name} {change}: {}\n", answer.verdict()));
    }
    expect![[r#"
        new: {"topology.kubernetes.io/region":"r","topology.kubernetes.io/zone":"z"} {"limits":{"cpu":"1"},"requests":{"cpu":"500m"}}
        resize before {"image":"two"}: 422 Pod "before" is invalid: spec: Invalid value: "BestEffort": Pod QOS Class may not change as a result of resizing
        resize after {"image":"two"}: ok
        resize after {"resources":{"requests":{"cpu":"600m"}}}: ok
        resize limited {"resources":{"limits":{"cpu":"3"},"requests":{"cpu":"3"}}}: 403 pods "limited" is forbidden: node didn't have enough allocatable resources: cpu, requested: 3000, allocatable: 2000
    "#]].assert_eq(&text);
}

#[tokio::test]
async fn creators_that_race_share_a_quota_and_never_exceed_it() {
    const CREATORS: usize = 40;
    let pod = |name: &str| {
        json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "namespace": "default" },
            "spec": { "containers": [{ "name": "c", "image": "i" }] } })
    };
    let quota = json!({ "apiVersion": "v1", "kind": "ResourceQuota", "metadata": { "name": "q", "namespace": "default" },
        "spec": { "hard": { "pods": "6", "requests.cpu": "6" } } });
    let account = json!({ "apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": { "name": "default", "namespace": "default" } });
    let cluster =
        Arc::new(Cluster::start(Setup { objects: vec![account, pod("before"), quota], ..Setup::default() }).await);
    let path = "/api/v1/namespaces/default";
    let mut counted = cluster.ask(&admin(), Method::GET, &format!("{path}/resourcequotas/q"), &Value::Null).await.body;
    counted["status"] =
        json!({ "hard": { "pods": "6", "requests.cpu": "6" }, "used": { "pods": "1", "requests.cpu": "0" } });
    let status = format!("{path}/resourcequotas/q/status");
    assert_eq!(cluster.ask(&admin(), Method::PUT, &status, &counted).await.code, 200);
    // The quota lets be what was there before it.
    let label = json!({ "metadata": { "labels": { "a": "b" } } });
    let old = cluster.ask(&admin(), Method::GET, &format!("{path}/pods/before"), &Value::Null).await;
    let mut labelled = old.body.clone();
    labelled["metadata"]["labels"] = label["metadata"]["labels"].clone();
    assert_eq!(cluster.ask(&admin(), Method::PUT, &format!("{path}/pods/before"), &labelled).await.code, 200);

    let answers = join_all((0..CREATORS).map(|number| {
        let (cluster, body) = (Arc::clone(&cluster), limited(pod(&format!("p{number}"))));
        async move { cluster.ask(&admin(), Method::POST, &format!("{path}/pods"), &body).await }
    }))
    .await;
    let made = answers.iter().filter(|answer| answer.code == 201).count();
    let refused =
        answers.iter().filter(|answer| answer.code == 403 && answer.message().contains("exceeded quota: q")).count();
    assert_eq!((made, refused), (5, CREATORS - 5), "{:?}", answers.first());
    let used = cluster.ask(&admin(), Method::GET, &format!("{path}/resourcequotas/q"), &Value::Null).await.body;
    assert_eq!(used["status"]["used"], json!({ "pods": "6", "requests.cpu": "5" }));
    let bare = cluster.ask(&admin(), Method::POST, &format!("{path}/pods"), &pod("bare")).await;
    expect![[r#"pods "bare" is forbidden: failed quota: q: must specify requests.cpu for: c"#]]
        .assert_eq(bare.message());
    let free = cluster
        .ask(
            &admin(),
            Method::POST,
            &format!("{path}/services"),
            &json!({
        "metadata": { "name": "free" }, "spec": { "ports": [{ "port": 80 }] } }),
        )
        .await;
    assert_eq!(free.code, 201, "what no quota is about is free: {}", free.body);
}

fn limited(mut pod: Value) -> Value {
    pod["spec"]["containers"][0]["resources"] = json!({ "requests": { "cpu": "1" } });
    pod
}
