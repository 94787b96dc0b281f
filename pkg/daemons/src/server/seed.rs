//! What every cluster holds from its first moment: namespaces, roles and bindings, priority classes. Reconciled at each start: what is missing is made, what an administrator changed
//! within the rules stays.
//!
//! Behaves as `pkg/controlplane/controller/systemnamespaces` and `pkg/registry/{rbac,scheduling}/rest`, v1.36.

use rkube_api::Kind;
use rkube_api::k8s::core::v1::{ConfigMap, Namespace};
use rkube_api::k8s::rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding};
use rkube_api::k8s::scheduling::v1::PriorityClass;
use rkube_apiserver::rbac::{bootstrap, rule};
use rkube_client::transport::ClientError;
use rkube_client::{Api, Client};
use rkube_pki::{authority, kubeconfig};
use serde_json::json;

use crate::node::ClusterFacts;

/// What the seeds are made of.
pub(crate) struct Seed {
    /// What others reach this server by, as a URL.
    pub(crate) server: String,
    /// PEM of the cluster's authority.
    pub(crate) authority: String,
    pub(crate) facts: ClusterFacts,
    /// Whether other servers may use the datastore.
    pub(crate) is_shared: bool,
}

const RBAC: &str = "rbac.authorization.k8s.io";
/// The ConfigMap that strangers know the cluster by.
const INFO: &str = "cluster-info";
const INFO_NAMESPACE: &str = "kube-public";
/// At one object, when other servers are faster; each of them writes it once.
const ATTEMPTS_MAX: usize = 10;
const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];

#[derive(Debug, thiserror::Error)]
pub(crate) enum SeedError {
    #[error("preparing {kind} {name}")]
    Prepare {
        kind: &'static str,
        name: String,
        #[source]
        source: ClientError,
    },
    #[error(
        "the datastore holds a cluster with another authority: copy server/tls from one of its servers into this one's \
         --data-dir, or name another datastore with --datastore-endpoint"
    )]
    AnotherCluster,
}

/// Makes everything, namespaces first.
pub(crate) async fn run(client: &Client, seed: &Seed) -> Result<(), SeedError> {
    if seed.is_shared {
        is_same_cluster(client, seed).await?;
    }
    for name in NAMESPACES {
        ensure::<Namespace>(client, &typed(json!({ "metadata": { "name": name } })), |_, _| false).await?;
    }
    let policy = bootstrap::policy();
    for role in &policy.cluster_roles {
        ensure(client, role, reconcile_cluster_role).await?;
    }
    for role in &policy.roles {
        ensure(client, role, reconcile_role).await?;
    }
    for binding in &policy.cluster_role_bindings {
        ensure(client, binding, reconcile_cluster_binding).await?;
    }
    for binding in &policy.role_bindings {
        ensure(client, binding, reconcile_binding).await?;
    }
    for (name, value, description) in [
        (
            "system-node-critical",
            2_000_001_000,
            "Used for system critical pods that must not be moved from their current node.",
        ),
        (
            "system-cluster-critical",
            2_000_000_000,
            "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
        ),
    ] {
        let class = json!({ "metadata": { "name": name }, "value": value, "description": description });
        ensure::<PriorityClass>(client, &typed(class), |_, _| false).await?;
    }
    joining(client, seed).await
}

/// A server with other authorities would lock out the workers and the tokens of the cluster it came to: it changes
/// nothing. While an authority is being replaced, old and new are both in `ca.crt`, and one in common is enough.
async fn is_same_cluster(client: &Client, seed: &Seed) -> Result<(), SeedError> {
    let found = match client.namespaced::<ConfigMap>(INFO_NAMESPACE).get(INFO).await {
        Ok(found) => found,
        Err(error) if error.is_not_found() => return Ok(()),
        Err(source) => return Err(SeedError::Prepare { kind: ConfigMap::KIND, name: INFO.to_owned(), source }),
    };
    let known = found.data.as_ref().and_then(|data| data.get("ca.crt")).map(String::as_str).unwrap_or_default();
    let read = |pem: &str| authority::certificates(pem, "cluster CA").unwrap_or_default();
    let (known, own) = (read(known), read(&seed.authority));
    if known.is_empty() || known.iter().any(|certificate| own.contains(certificate)) {
        return Ok(());
    }
    Err(SeedError::AnotherCluster)
}

/// What workers join by: who may ask for a node's certificate, who is given one, and what a stranger may
/// read to know the cluster by. As kubeadm sets it up.
async fn joining(client: &Client, seed: &Seed) -> Result<(), SeedError> {
    let group = |name: &str| json!([{ "kind": "Group", "apiGroup": RBAC, "name": name }]);
    let signing = "system:certificates.k8s.io:certificatesigningrequests";
    for (name, role, subjects) in [
        ("rkube:node-bootstrapper", "system:node-bootstrapper".to_owned(), group("system:bootstrappers")),
        ("rkube:node-autoapprove-bootstrap", format!("{signing}:nodeclient"), group("system:bootstrappers")),
        ("rkube:node-autoapprove-certificate-rotation", format!("{signing}:selfnodeclient"), group("system:nodes")),
        ("rkube:node", "rkube:node".to_owned(), group("system:nodes")),
        // Upstream leaves serving certificates to an administrator; ours approves those for a node's own addresses.
        (
            "rkube:kubelet-serving-approver",
            "system:certificates.k8s.io:kubelet-serving-approver".to_owned(),
            json!([{ "kind": "ServiceAccount", "namespace": "kube-system", "name": "certificate-controller" }]),
        ),
        (
            "rkube:kube-apiserver-kubelet-client",
            "system:kubelet-api-admin".to_owned(),
            json!([{ "kind": "User", "apiGroup": RBAC, "name": "kube-apiserver-kubelet-client" }]),
        ),
    ] {
        let role = json!({ "apiGroup": RBAC, "kind": "ClusterRole", "name": role });
        let binding = json!({ "metadata": { "name": name }, "roleRef": role, "subjects": subjects });
        ensure::<ClusterRoleBinding>(client, &typed(binding), reconcile_cluster_binding).await?;
    }
    // Service proxy, DNS and pod network run on the node, as the node.
    let role = json!({ "metadata": { "name": "rkube:node" }, "rules": [
        { "apiGroups": [""], "resources": ["services", "namespaces", "nodes"], "verbs": ["get", "list", "watch"] },
        { "apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["get", "list", "watch"] },
    ] });
    ensure::<ClusterRole>(client, &typed(role), reconcile_cluster_role).await?;
    let info = json!({
        "metadata": { "name": INFO, "namespace": INFO_NAMESPACE },
        "data": {
            "ca.crt": seed.authority, "kubeconfig": kubeconfig::cluster_info(&seed.server, &seed.authority), "cluster-dns": seed.facts.dns.to_string(),
            "cluster-domain": seed.facts.domain, "cluster-cidr": seed.facts.pods,
        }
    });
    ensure::<ConfigMap>(client, &typed(info), |have, wanted| {
        let data = have.data.get_or_insert_default();
        let before = data.clone();
        data.extend(wanted.data.clone().unwrap_or_default());
        *data != before
    })
    .await?;
    let rule = json!([{ "apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["cluster-info"], "verbs": ["get"] }]);
    let metadata = json!({ "name": "rkube:cluster-info", "namespace": "kube-public" });
    ensure::<Role>(client, &typed(json!({ "metadata": metadata, "rules": rule })), reconcile_role).await?;
    let role = json!({ "apiGroup": RBAC, "kind": "Role", "name": "rkube:cluster-info" });
    let stranger = json!([{ "kind": "User", "apiGroup": RBAC, "name": "system:anonymous" }]);
    let binding = json!({ "metadata": metadata, "roleRef": role, "subjects": stranger });
    ensure::<RoleBinding>(client, &typed(binding), reconcile_binding).await
}

fn typed<K: Kind>(value: serde_json::Value) -> K {
    K::from_value(value).expect("the objects in this file are well formed")
}

/// Makes `wanted` if it is missing; otherwise lets `reconcile` change what is there and writes it if it did. Other
/// servers on the same datastore may do the same at the same time.
async fn ensure<K: Kind>(client: &Client, wanted: &K, reconcile: fn(&mut K, &K) -> bool) -> Result<(), SeedError> {
    let name = wanted.metadata().name.clone().unwrap_or_default();
    let api = match &wanted.metadata().namespace {
        Some(namespace) => client.namespaced::<K>(namespace),
        None => client.all::<K>(),
    };
    let mut attempts = 1..=ATTEMPTS_MAX;
    let outcome = loop {
        let outcome = ensure_once(&api, &name, wanted, reconcile).await;
        match outcome {
            Err(error) if attempts.next().is_some() && (error.is_conflict() || error.is_already_exists()) => {}
            outcome => break outcome,
        }
    };
    outcome.map_err(|source| SeedError::Prepare { kind: K::KIND, name, source })
}

async fn ensure_once<K: Kind>(
    api: &Api<K>,
    name: &str,
    wanted: &K,
    reconcile: fn(&mut K, &K) -> bool,
) -> Result<(), ClientError> {
    match api.get(name).await {
        Ok(mut found) => {
            let leave = found.metadata().annotations.as_ref().and_then(|all| all.get(bootstrap::AUTOUPDATE));
            if leave.is_none_or(|value| value != "false") && reconcile(&mut found, wanted) {
                api.update(&found).await?;
            }
        }
        Err(error) if error.is_not_found() => drop(api.create(wanted).await?),
        Err(error) => return Err(error),
    }
    Ok(())
}

/// Adds the rules that are not covered. Rules an administrator added stay.
fn add_rules(have: &mut Option<Vec<PolicyRule>>, wanted: &Option<Vec<PolicyRule>>) -> bool {
    let missing = rule::uncovered(have.as_deref().unwrap_or_default(), wanted.as_deref().unwrap_or_default());
    let changed = !missing.is_empty();
    if changed {
        have.get_or_insert_default().extend(missing);
    }
    changed
}

fn reconcile_cluster_role(have: &mut ClusterRole, wanted: &ClusterRole) -> bool {
    let aggregated = wanted.aggregation_rule.is_some();
    let changed = aggregated && have.aggregation_rule != wanted.aggregation_rule;
    if changed {
        have.aggregation_rule = wanted.aggregation_rule.clone();
    }
    // The rules of an aggregated role are the aggregation controller's.
    changed | (!aggregated && add_rules(&mut have.rules, &wanted.rules))
}

fn reconcile_role(have: &mut Role, wanted: &Role) -> bool {
    add_rules(&mut have.rules, &wanted.rules)
}

fn reconcile_cluster_binding(have: &mut ClusterRoleBinding, wanted: &ClusterRoleBinding) -> bool {
    add_missing(&mut have.subjects, &wanted.subjects)
}

fn reconcile_binding(have: &mut RoleBinding, wanted: &RoleBinding) -> bool {
    add_missing(&mut have.subjects, &wanted.subjects)
}

fn add_missing<T: Clone + PartialEq>(have: &mut Option<Vec<T>>, wanted: &Option<Vec<T>>) -> bool {
    let have = have.get_or_insert_default();
    let missing: Vec<T> = wanted.iter().flatten().filter(|one| !have.contains(one)).cloned().collect();
    have.extend(missing.iter().cloned());
    !missing.is_empty()
}
