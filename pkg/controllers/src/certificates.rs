//! Certificate signing requests: approves those of kubelets and signs what is approved.
//!
//! Watches  certificates.k8s.io/v1 CertificateSigningRequest (primary)
//! Writes   its approval and its status
//! Behaves as  pkg/controller/certificates/{approver,signer}, v1.36
//!
//! Invariant: a certificate carries the request's subject and names and this controller's usages and lifetime;
//! nothing else a request asks for is copied.

use std::sync::Arc;
use std::time::Duration;

use rkube_api::k8s::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use rkube_api::k8s::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition};
use rkube_api::k8s::core::v1::Node;
use rkube_api::meta::pkg::apis::meta::v1::Time;
use rkube_apimachinery::key::ObjectKey;
use rkube_client::{Client, ClientError, Lister, Reconciler, Requeue, SyncError, WorkQueue};
use rkube_pki::Usages;
use rkube_pki::csr::SigningRequest;
use tracing::info;

use crate::common::enqueue::enqueue_all;
use crate::config::ControllerConfig;
use crate::context::{ControllerContext, Descriptor, Running};

const APPROVING: &str = "certificatesigningrequest-approving-controller";
const SIGNING: &str = "certificatesigningrequest-signing-controller";

const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";
const CLIENT: &str = "kubernetes.io/kube-apiserver-client";
const NODES: &str = "system:nodes";
const NODE_PREFIX: &str = "system:node:";
/// As `MIN_CERT_DURATION`: shorter asks are rounded up.
const LIFETIME_MIN: Duration = Duration::from_secs(600);

pub(crate) const APPROVER: Descriptor = Descriptor::new(APPROVING, "csrapproving", start_approver);
pub(crate) const SIGNER: Descriptor = Descriptor::new(SIGNING, "csrsigning", start_signer);

fn start_approver(context: &ControllerContext) -> Running {
    let requests = context.informers.informer::<CertificateSigningRequest>();
    let nodes = context.informers.informer::<Node>();
    let queue: WorkQueue<ObjectKey> = context.queue("certificate");
    let controller = Arc::new(Approver {
        client: context.client_for(APPROVING),
        requests: requests.lister(),
        nodes: nodes.lister(),
    });
    enqueue_all(&requests, &queue);
    // A serving certificate waits for the addresses of its node.
    let (pending, keys) = (requests.lister(), queue.clone());
    nodes.add_handler(move |_| {
        for request in pending.list_all("") {
            if !is_issued(&request) && request.spec.signer_name == KUBELET_SERVING {
                keys.add(ObjectKey::cluster(request.metadata.name.as_deref().unwrap_or_default()));
            }
        }
    });
    context.run(APPROVING, &queue, &controller, 1)
}

fn start_signer(context: &ControllerContext) -> Running {
    let requests = context.informers.informer::<CertificateSigningRequest>();
    let queue: WorkQueue<ObjectKey> = context.queue("certificate_signing");
    let controller = Arc::new(Signer {
        client: context.client_for(SIGNING),
        requests: requests.lister(),
        config: Arc::clone(&context.config),
    });
    enqueue_all(&requests, &queue);
    context.run(SIGNING, &queue, &controller, 1)
}

fn has(request: &CertificateSigningRequest, kind: &str) -> bool {
    let conditions = request.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|condition| condition.type_ == kind)
}

fn is_issued(request: &CertificateSigningRequest) -> bool {
    request
        .status
        .as_ref()
        .and_then(|status| status.certificate.as_ref())
        .is_some_and(|certificate| !certificate.0.is_empty())
}

/// What is wrong with a request for its signer; nothing for one that may be signed.
fn refused(signer: &str, asked: &SigningRequest, usages: &[String]) -> Option<&'static str> {
    let only = |allowed: &[&str]| usages.iter().all(|usage| allowed.contains(&usage.as_str()));
    let asks = |usage: &str| usages.iter().any(|one| one == usage);
    let is_node = asked.organizations == [NODES] && asked.common_name.starts_with(NODE_PREFIX);
    match signer {
        KUBELET_CLIENT => {
            let names =
                asked.dns_names.len() + asked.ip_addresses.len() + asked.email_addresses.len() + asked.uris.len();
            if !is_node {
                return Some("the subject is not a node's");
            }
            if names > 0 {
                return Some("a client certificate has no names");
            }
            let fine = asks("client auth") && asks("digital signature");
            let fine = fine && only(&["key encipherment", "digital signature", "client auth"]);
            (!fine).then_some("usages did not match [client auth, digital signature]")
        }
        KUBELET_SERVING => {
            if !is_node {
                return Some("the subject is not a node's");
            }
            if asked.dns_names.is_empty() && asked.ip_addresses.is_empty() {
                return Some("at least one DNS or IP SAN is required");
            }
            if !asked.email_addresses.is_empty() || !asked.uris.is_empty() {
                return Some("email and URI SANs are not allowed");
            }
            let fine = asks("server auth") && asks("digital signature");
            let fine = fine && only(&["key encipherment", "digital signature", "server auth"]);
            (!fine).then_some("usages did not match [server auth, digital signature]")
        }
        CLIENT => {
            let fine = asks("client auth") && only(&["key encipherment", "digital signature", "client auth"]);
            (!fine).then_some("usages did not match [client auth]")
        }
        _ => Some("the signer is not this controller's"),
    }
}

struct Approver {
    client: Client,
    requests: Lister<CertificateSigningRequest>,
    nodes: Lister<Node>,
}

impl Approver {
    /// Why a request is approved without a person; `None` leaves it to one.
    async fn reason(
        &self,
        request: &CertificateSigningRequest,
        asked: &SigningRequest,
    ) -> Result<Option<&'static str>, ClientError> {
        let spec = &request.spec;
        let by_itself = spec.username.as_deref() == Some(asked.common_name.as_str());
        match spec.signer_name.as_str() {
            KUBELET_CLIENT if by_itself => {
                let may = self.may(request, "selfnodeclient").await?;
                Ok(may.then_some("Auto approving self kubelet client certificate after SubjectAccessReview."))
            }
            KUBELET_CLIENT => {
                let may = self.may(request, "nodeclient").await?;
                Ok(may.then_some("Auto approving kubelet client certificate after SubjectAccessReview."))
            }
            // Differs from upstream: a node gets a serving certificate for the addresses its Node object
            // has, and for no other. Upstream leaves all of these to an administrator.
            KUBELET_SERVING if by_itself && self.is_of_node(asked) => {
                Ok(Some("Auto approving kubelet serving certificate for the node's own addresses."))
            }
            _ => Ok(None),
        }
    }

    fn is_of_node(&self, asked: &SigningRequest) -> bool {
        let name = asked.common_name.trim_start_matches(NODE_PREFIX);
        let Some(node) = self.nodes.get(&ObjectKey::cluster(name)) else { return false };
        let addresses = node.status.as_ref().and_then(|status| status.addresses.as_ref());
        let known: Vec<&str> = addresses.into_iter().flatten().map(|address| address.address.as_str()).collect();
        asked.dns_names.iter().all(|dns| dns == name || known.contains(&dns.as_str()))
            && asked.ip_addresses.iter().all(|ip| known.contains(&ip.to_string().as_str()))
    }

    async fn may(&self, request: &CertificateSigningRequest, subresource: &str) -> Result<bool, ClientError> {
        let spec = &request.spec;
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: spec.username.clone(),
                uid: spec.uid.clone(),
                groups: spec.groups.clone(),
                extra: spec.extra.clone(),
                resource_attributes: Some(ResourceAttributes {
                    group: Some("certificates.k8s.io".to_owned()),
                    resource: Some("certificatesigningrequests".to_owned()),
                    subresource: Some(subresource.to_owned()),
                    verb: Some("create".to_owned()),
                    version: Some("*".to_owned()),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let answer = self.client.all::<SubjectAccessReview>().create(&review).await?;
        Ok(answer.status.is_some_and(|status| status.allowed))
    }
}

impl Reconciler for Approver {
    async fn sync(&self, key: &ObjectKey) -> Result<Requeue, SyncError> {
        let Some(request) = self.requests.get(key) else { return Ok(Requeue::Never) };
        if is_issued(&request) || has(&request, "Approved") || has(&request, "Denied") {
            return Ok(Requeue::Never);
        }
        let Ok(asked) = SigningRequest::parse(&request.spec.request.0) else { return Ok(Requeue::Never) };
        let usages = request.spec.usages.clone().unwrap_or_default();
        if refused(&request.spec.signer_name, &asked, &usages).is_some() {
            return Ok(Requeue::Never);
        }
        let reason = self.reason(&request, &asked).await.map_err(SyncError::during("reviewing a signing request"))?;
        let Some(reason) = reason else { return Ok(Requeue::Never) };
        let mut approved = CertificateSigningRequest::clone(&request);
        let now = Time(self.client.clock().now());
        approved.status.get_or_insert_default().conditions.get_or_insert_default().push(
            CertificateSigningRequestCondition {
                type_: "Approved".to_owned(),
                status: "True".to_owned(),
                reason: Some("AutoApproved".to_owned()),
                message: Some(reason.to_owned()),
                last_update_time: Some(now),
                ..CertificateSigningRequestCondition::default()
            },
        );
        let api = self.client.all::<CertificateSigningRequest>();
        let body = rkube_api::Kind::to_value(&approved);
        let outcome = api.dynamic().update_subresource(&key.name, "approval", &body).await;
        outcome.map_err(SyncError::during("approving a signing request"))?;
        info!(request = %key, "Approved certificate signing request");
        Ok(Requeue::Never)
    }
}

struct Signer {
    client: Client,
    requests: Lister<CertificateSigningRequest>,
    config: Arc<ControllerConfig>,
}

impl Reconciler for Signer {
    async fn sync(&self, key: &ObjectKey) -> Result<Requeue, SyncError> {
        let Some(request) = self.requests.get(key) else { return Ok(Requeue::Never) };
        let Some(authority) = &self.config.signing_authority else { return Ok(Requeue::Never) };
        let is_due = has(&request, "Approved") && !has(&request, "Denied") && !has(&request, "Failed");
        if !is_due || is_issued(&request) {
            return Ok(Requeue::Never);
        }
        let spec = &request.spec;
        if ![KUBELET_CLIENT, KUBELET_SERVING, CLIENT].contains(&spec.signer_name.as_str()) {
            return Ok(Requeue::Never);
        }
        let now = self.client.clock().now();
        let usages = spec.usages.clone().unwrap_or_default();
        let mut signed = CertificateSigningRequest::clone(&request);
        let status = signed.status.get_or_insert_default();
        let parsed = SigningRequest::parse(&spec.request.0);
        let fault = match &parsed {
            Ok(asked) => refused(&spec.signer_name, asked, &usages).map(str::to_owned),
            Err(error) => Some(error.to_string()),
        };
        match (parsed, fault) {
            (Ok(asked), None) => {
                let asked_for = spec.expiration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
                let asked_for = asked_for.map_or(self.config.cluster_signing_duration, Duration::from_secs);
                let lifetime = asked_for.min(self.config.cluster_signing_duration).max(LIFETIME_MIN);
                let asks = |usage: &str| usages.iter().any(|one| one == usage);
                let granted = Usages {
                    digital_signature: true,
                    key_encipherment: asks("key encipherment"),
                    server: asks("server auth"),
                    client: asks("client auth"),
                };
                let pem = authority
                    .sign(&asked, granted, lifetime, now)
                    .map_err(|error| SyncError::other(format!("signing a certificate: {error}")))?;
                status.certificate = Some(rkube_api::ByteString(pem.into_bytes()));
            }
            (_, fault) => {
                status.conditions.get_or_insert_default().push(CertificateSigningRequestCondition {
                    type_: "Failed".to_owned(),
                    status: "True".to_owned(),
                    reason: Some("SignerValidationFailure".to_owned()),
                    message: fault,
                    last_update_time: Some(Time(now)),
                    ..CertificateSigningRequestCondition::default()
                });
            }
        }
        let api = self.client.all::<CertificateSigningRequest>();
        api.update_status(&signed).await.map_err(SyncError::during("issuing a certificate"))?;
        info!(request = %key, "Signed certificate");
        Ok(Requeue::Never)
    }
}

#[cfg(test)]
mod tests {
    use rkube_api::ByteString;
    use rkube_api::k8s::certificates::v1::CertificateSigningRequestSpec;
    use rkube_api::k8s::core::v1::{NodeAddress, NodeStatus};
    use rkube_pki::{CertificateAuthority, Leaf};

    use super::*;
    use crate::testing::{World, metadata, survives_any_crash};

    const ADDRESS: &str = "192.0.2.7";

    fn serving(node: &str, address: &str) -> Leaf {
        let name = format!("{NODE_PREFIX}{node}");
        let organizations = vec![NODES.to_owned()];
        let address = address.parse().expect("an address");
        Leaf { organizations, ..Leaf::server(&name, vec![node.to_owned()], vec![address]) }
    }

    fn put(world: &World, name: &str, signer: &str, leaf: &Leaf, usage: &str) {
        let request = rkube_pki::csr::request(leaf).expect("a request").request_pem.into_bytes();
        world.api.put(&CertificateSigningRequest {
            metadata: metadata("", name),
            spec: CertificateSigningRequestSpec {
                request: ByteString(request),
                signer_name: signer.to_owned(),
                usages: Some(vec!["digital signature".to_owned(), usage.to_owned()]),
                username: Some(leaf.common_name.clone()),
                ..CertificateSigningRequestSpec::default()
            },
            ..CertificateSigningRequest::default()
        });
    }

    /// A node's serving certificate for its address, one for another's, a client's, and one with a usage too many.
    fn arrange() -> World {
        let mut world = World::new(&[APPROVER, SIGNER]);
        let (authority, _) = CertificateAuthority::generate("kubernetes", world.now()).expect("an authority");
        world.config.signing_authority = Some(authority);
        let address = NodeAddress { type_: "InternalIP".to_owned(), address: ADDRESS.to_owned() };
        let status = NodeStatus { addresses: Some(vec![address]), ..NodeStatus::default() };
        world.api.put(&Node { metadata: metadata("", "n1"), status: Some(status), ..Node::default() });
        put(&world, "own", KUBELET_SERVING, &serving("n1", ADDRESS), "server auth");
        put(&world, "other", KUBELET_SERVING, &serving("n1", "192.0.2.8"), "server auth");
        put(&world, "user", CLIENT, &Leaf::client("jane", &[]), "client auth");
        put(&world, "usage", CLIENT, &Leaf::client("jane", &[]), "server auth");
        world
    }

    fn approve(world: &World, name: &str) {
        world.api.edit::<CertificateSigningRequest>("", name, |request| {
            let condition = CertificateSigningRequestCondition {
                type_: "Approved".to_owned(),
                status: "True".to_owned(),
                ..CertificateSigningRequestCondition::default()
            };
            request.status.get_or_insert_default().conditions.get_or_insert_default().push(condition);
        });
    }

    fn outcome(world: &World) -> String {
        let describe = |request: &CertificateSigningRequest| {
            let status = request.status.as_ref();
            let conditions = status.and_then(|status| status.conditions.as_ref()).into_iter().flatten();
            let conditions: Vec<_> = conditions.map(|condition| condition.type_.as_str()).collect();
            let name = request.metadata.name.as_deref().unwrap_or_default();
            format!("{name} {conditions:?} issued {}", is_issued(request))
        };
        let requests = world.api.list::<CertificateSigningRequest>("");
        requests.iter().map(|request| describe(request)).collect::<Vec<_>>().join("\n")
    }

    #[tokio::test]
    async fn a_node_gets_what_is_its_own_and_others_what_is_approved_whatever_crashes() {
        let drive = async |world: &mut World| {
            approve(world, "user");
            approve(world, "usage");
            world.run_for(Duration::from_secs(10)).await;
        };
        survives_any_crash(arrange, drive, outcome).await;
        let mut world = arrange();
        world.start();
        drive(&mut world).await;
        expect_test::expect![[r#"
            other [] issued false
            own ["Approved"] issued true
            usage ["Approved", "Failed"] issued false
            user ["Approved"] issued true"#]]
        .assert_eq(&outcome(&world));
    }
}
