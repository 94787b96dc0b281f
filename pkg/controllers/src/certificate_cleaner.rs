//! CSR cleaner controller: certificate signing requests go when they have served their purpose, or never will.
//!
//! Watches  certificates.k8s.io/v1 CertificateSigningRequest (primary)
//! Writes   CertificateSigningRequest (delete)
//! Behaves as  pkg/controller/certificates/cleaner/cleaner.go, v1.36, but at the moment instead of once an hour

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rkube_api::k8s::certificates::v1::CertificateSigningRequest;
use rkube_apimachinery::key::ObjectKey;
use rkube_client::owner::uid_of;
use rkube_client::{Client, DeleteOptions, Lister, Reconciler, Requeue, SyncError, WorkQueue};
use tracing::info;

use crate::common::enqueue::enqueue_all;
use crate::common::errors::ignore_not_found;
use crate::context::{ControllerContext, Descriptor, Running};

const NAME: &str = "certificatesigningrequest-cleaner-controller";

/// How long a request stays after it was decided, and how long it waits for a decision or a signature.
const DECIDED: Duration = Duration::from_secs(3600);
const PENDING: Duration = Duration::from_secs(24 * 3600);
/// A clock that was set is noticed after this.
const CHECK_MAX: Duration = Duration::from_secs(3600);

pub(crate) const CSR_CLEANER: Descriptor = Descriptor::new(NAME, "csrcleaner", start);

struct Cleaner {
    client: Client,
    requests: Lister<CertificateSigningRequest>,
}

fn start(context: &ControllerContext) -> Running {
    let requests = context.informers.informer::<CertificateSigningRequest>();
    let queue: WorkQueue<ObjectKey> = context.queue("certificate_cleaner");
    let controller = Arc::new(Cleaner { client: context.client_for(NAME), requests: requests.lister() });
    enqueue_all(&requests, &queue);
    context.run(NAME, &queue, &controller, 1)
}

/// When the request is to go; `None` for one whose times are missing.
fn deadline(request: &CertificateSigningRequest) -> Option<Timestamp> {
    let status = request.status.as_ref();
    let conditions = status.and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let certificate = status.and_then(|status| status.certificate.as_ref()).filter(|pem| !pem.0.is_empty());
    let after = |since: Timestamp, wait: Duration| since.checked_add(wait).ok();
    if conditions.is_empty() {
        let created = request.metadata.creation_timestamp.as_ref()?;
        return after(created.0, PENDING);
    }
    let of_condition = |kind: &str, since: Option<Timestamp>| match kind {
        "Denied" | "Failed" => after(since?, DECIDED),
        "Approved" if certificate.is_none() => after(since?, PENDING),
        "Approved" => {
            let expires = certificate.and_then(|pem| rkube_pki::not_after(&pem.0));
            since.and_then(|since| after(since, DECIDED)).into_iter().chain(expires).min()
        }
        _ => None,
    };
    let times = conditions
        .iter()
        .map(|condition| of_condition(&condition.type_, condition.last_update_time.as_ref().map(|time| time.0)));
    times.flatten().min()
}

impl Reconciler for Cleaner {
    async fn sync(&self, key: &ObjectKey) -> Result<Requeue, SyncError> {
        let Some(request) = self.requests.get(key) else { return Ok(Requeue::Never) };
        let Some(deadline) = deadline(&request) else { return Ok(Requeue::Never) };
        let left = Duration::try_from(deadline.duration_since(self.client.clock().now())).unwrap_or(Duration::ZERO);
        if !left.is_zero() {
            return Ok(Requeue::After(left.min(CHECK_MAX)));
        }
        let api = self.client.all::<CertificateSigningRequest>();
        let deleted = api.delete(&key.name, &DeleteOptions::uid(uid_of(&*request))).await;
        ignore_not_found(deleted).map_err(SyncError::during("deleting an old signing request"))?;
        info!(request = %key, "Deleted old certificate signing request");
        Ok(Requeue::Never)
    }
}

#[cfg(test)]
mod tests {
    use rkube_api::ByteString;
    use rkube_api::k8s::certificates::v1::CertificateSigningRequestCondition;
    use rkube_api::meta::pkg::apis::meta::v1::Time;
    use rkube_pki::{CertificateAuthority, Leaf};

    use super::*;
    use crate::testing::{World, metadata, names, survives_any_crash};

    fn request(
        name: &str,
        condition: Option<&str>,
        certificate: Option<String>,
        now: Timestamp,
    ) -> CertificateSigningRequest {
        let mut request = CertificateSigningRequest { metadata: metadata("", name), ..Default::default() };
        request.metadata.creation_timestamp = Some(Time(now));
        let status = request.status.get_or_insert_default();
        status.conditions = condition.map(|kind| {
            vec![CertificateSigningRequestCondition {
                type_: kind.to_owned(),
                status: "True".to_owned(),
                last_update_time: Some(Time(now)),
                ..CertificateSigningRequestCondition::default()
            }]
        });
        status.certificate = certificate.map(|pem| ByteString(pem.into_bytes()));
        request
    }

    fn arrange() -> World {
        let world = World::new(&[CSR_CLEANER]);
        let now = world.now();
        let (authority, _) = CertificateAuthority::generate("kubernetes", now).expect("an authority");
        let certificate = |minutes: u64| {
            let leaf = Leaf { lifetime: Duration::from_secs(60 * minutes), ..Leaf::client("someone", &[]) };
            Some(authority.issue(&leaf, now).expect("a certificate").certificate_pem)
        };
        world.api.put(&request("pending", None, None, now));
        world.api.put(&request("unsigned", Some("Approved"), None, now));
        world.api.put(&request("denied", Some("Denied"), None, now));
        world.api.put(&request("failed", Some("Failed"), None, now));
        world.api.put(&request("issued", Some("Approved"), certificate(600), now));
        world.api.put(&request("expired", Some("Approved"), certificate(30), now));
        world
    }

    #[tokio::test]
    async fn each_goes_in_its_own_time() {
        let mut world = arrange();
        world.start();
        world.run_for(Duration::from_secs(29 * 60)).await;
        assert_eq!(names::<CertificateSigningRequest>(&world, "").len(), 6);
        world.run_for(Duration::from_secs(2 * 60)).await;
        assert!(!names::<CertificateSigningRequest>(&world, "").contains(&"expired".to_owned()));
        world.run_for(Duration::from_secs(30 * 60)).await;
        assert_eq!(names::<CertificateSigningRequest>(&world, ""), ["pending", "unsigned"]);
        world.run_for(Duration::from_secs(24 * 3600)).await;
        assert!(names::<CertificateSigningRequest>(&world, "").is_empty());
    }

    #[tokio::test]
    async fn converges_after_a_crash_at_any_write() {
        let drive = async |world: &mut World| world.run_for(Duration::from_secs(2 * 3600)).await;
        survives_any_crash(arrange, drive, |world| names::<CertificateSigningRequest>(world, "").join(" ")).await;
    }
}
