//! Legacy service account token cleaner: auto-generated tokens that nobody used for long, and that no pod mounts,
//! are marked as invalid, and deleted when they stay unused for as long again.
//!
//! Watches  v1 Secret of type `kubernetes.io/service-account-token` (primary); v1 ServiceAccount; v1 Pod
//! Writes   v1 Secret (the label `kubernetes.io/legacy-token-invalid-since`, delete)
//! Behaves as  pkg/controller/serviceaccount/legacy_serviceaccount_token_cleaner.go, v1.36

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use rkube_api::k8s::core::v1::{ConfigMap, Pod, Secret, ServiceAccount};
use rkube_api::pod_references;
use rkube_client::owner::uid_of;
use rkube_client::{Client, DeleteOptions, Lister, Patch, Reconciler, Requeue, SyncError, WorkQueue};
use serde_json::json;
use tracing::{info, warn};

use super::{
    NAME_ANNOTATION, SINCE, TRACKING_CONFIG_MAP, TRACKING_NAMESPACE, UID_ANNOTATION, annotation, day, parse_day,
    secrets,
};
use crate::config::ControllerConfig;
use crate::context::{ControllerContext, Descriptor, Running};

const NAME: &str = "legacy-serviceaccount-token-cleaner-controller";
const INTERVAL: Duration = Duration::from_secs(24 * 3600);
const LAST_USED: &str = "kubernetes.io/legacy-token-last-used";
const INVALID_SINCE: &str = "kubernetes.io/legacy-token-invalid-since";

pub(crate) const LEGACY_SERVICEACCOUNT_TOKEN_CLEANER: Descriptor =
    Descriptor::new(NAME, "legacy-service-account-token-cleaner", start);

struct Cleaner {
    client: Client,
    config: Arc<ControllerConfig>,
    secrets: Lister<Secret>,
    accounts: Lister<ServiceAccount>,
    pods: Lister<Pod>,
}

fn start(context: &ControllerContext) -> Running {
    let secrets = secrets(&context.informers);
    // All tokens are looked at together, once a day.
    let queue: WorkQueue<()> = context.queue("legacy_serviceaccount_token_cleaner");
    let controller = Arc::new(Cleaner {
        client: context.client_for(NAME),
        config: Arc::clone(&context.config),
        secrets: secrets.lister(),
        accounts: context.informers.informer::<ServiceAccount>().lister(),
        pods: context.informers.informer::<Pod>().lister(),
    });
    queue.add(());
    context.run(NAME, &queue, &controller, 1)
}

#[derive(Debug, PartialEq, Eq)]
enum Decision {
    Keep,
    Invalidate,
    Delete,
}

/// Days that still count as recent, and whether tokens as young as their account of uses may be judged.
struct Horizon {
    /// Tokens created since are left alone.
    created: Timestamp,
    /// The first day whose uses are recent.
    day: String,
}

/// What becomes of a token that is auto-generated and mounted nowhere.
fn decide(secret: &Secret, horizon: &Horizon) -> Decision {
    let metadata = &secret.metadata;
    let created = metadata.creation_timestamp.as_ref().map(|time| time.0);
    if metadata.deletion_timestamp.is_some() || created.is_none_or(|created| created >= horizon.created) {
        return Decision::Keep;
    }
    let label = |name: &str| metadata.labels.as_ref().and_then(|labels| labels.get(name));
    // Days are texts that sort as days do. One that is none says nothing: then it was maybe used today.
    let is_recent = |day: &String| parse_day(day).is_none() || *day >= horizon.day;
    if label(LAST_USED).is_some_and(is_recent) {
        return Decision::Keep;
    }
    match label(INVALID_SINCE).filter(|day| parse_day(day).is_some()) {
        None => Decision::Invalidate,
        Some(since) if *since >= horizon.day => Decision::Keep,
        Some(_) => Decision::Delete,
    }
}

impl Cleaner {
    /// The start of the day after uses began to be written down; `None` if nobody says when.
    async fn tracked_since(&self) -> Result<Option<Timestamp>, SyncError> {
        let api = self.client.namespaced::<ConfigMap>(TRACKING_NAMESPACE);
        let map = match api.get(TRACKING_CONFIG_MAP).await {
            Ok(map) => map,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(SyncError::during("reading since when token Secrets are tracked")(error)),
        };
        let since = map.data.as_ref().and_then(|data| data.get(SINCE)).and_then(|text| parse_day(text));
        let next = since.and_then(|since: Date| since.tomorrow().ok());
        Ok(next.and_then(|next| next.to_zoned(TimeZone::UTC).ok()).map(|start| start.timestamp()))
    }

    /// Whether the account lists the token, as it does with those that were generated for it.
    fn is_auto_generated(&self, secret: &Secret) -> bool {
        let namespace = secret.metadata.namespace.as_deref().unwrap_or_default();
        let uid = annotation(secret, UID_ANNOTATION);
        let account = self.accounts.get_named(namespace, annotation(secret, NAME_ANNOTATION));
        account.is_some_and(|account| {
            (uid.is_empty() || uid_of(&*account) == uid)
                && account.secrets.iter().flatten().any(|reference| reference.name == secret.metadata.name)
        })
    }

    fn mounted(&self, namespace: &str) -> HashSet<String> {
        let pods = self.pods.list_all(namespace);
        let specs = pods.iter().filter_map(|pod| pod.spec.as_ref());
        specs.flat_map(pod_references::secrets).map(str::to_owned).collect()
    }

    async fn carry_out(&self, secret: &Secret, decision: Decision, now: Timestamp) -> Result<(), SyncError> {
        let namespace = secret.metadata.namespace.as_deref().unwrap_or_default();
        let name = secret.metadata.name.as_deref().unwrap_or_default();
        let api = self.client.namespaced::<Secret>(namespace);
        let done = match decision {
            Decision::Keep => return Ok(()),
            Decision::Invalidate => {
                let metadata = json!({ "uid": uid_of(secret), "labels": { INVALID_SINCE: day(now) } });
                let marked = api.patch(name, &Patch::Merge(json!({ "metadata": metadata }))).await;
                info!(namespace, name, "Marked an unused service account token as invalid");
                marked.map(drop)
            }
            Decision::Delete => {
                let version = secret.metadata.resource_version.as_deref().unwrap_or_default();
                let deleted = api.delete(name, &DeleteOptions::uid(uid_of(secret)).resource_version(version)).await;
                info!(namespace, name, "Deleted an unused service account token");
                deleted
            }
        };
        match done {
            Err(error) if !(error.is_not_found() || error.is_conflict()) => {
                Err(SyncError::during("cleaning up an unused service account token")(error))
            }
            _ => Ok(()),
        }
    }
}

impl Reconciler<()> for Cleaner {
    async fn sync(&self, (): &()) -> Result<Requeue, SyncError> {
        let again = Ok(Requeue::After(INTERVAL));
        let now = self.client.clock().now();
        let period = self.config.legacy_service_account_token_clean_up_period;
        let Some(tracked) = self.tracked_since().await? else {
            warn!("Nobody wrote down since when token Secrets are tracked; unused ones stay");
            return again;
        };
        let Ok(created) = now.checked_sub(period) else { return again };
        if created < tracked {
            return again;
        }
        let horizon = Horizon { created, day: day(created) };
        let mut mounted: HashMap<String, HashSet<String>> = HashMap::new();
        let mut errors = Vec::new();
        for secret in self.secrets.list_all("") {
            let decision = decide(&secret, &horizon);
            if decision == Decision::Keep || !self.is_auto_generated(&secret) {
                continue;
            }
            let namespace = secret.metadata.namespace.clone().unwrap_or_default();
            let in_use = mounted.entry(namespace.clone()).or_insert_with(|| self.mounted(&namespace));
            if !in_use.contains(secret.metadata.name.as_deref().unwrap_or_default()) {
                errors.extend(self.carry_out(&secret, decision, now).await.err());
            }
        }
        SyncError::all(errors)?;
        again
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use rkube_api::k8s::core::v1::{ObjectReference, PodSpec, SecretVolumeSource, Volume};
    use rkube_api::meta::pkg::apis::meta::v1::Time;

    use super::super::{LEGACY_TOKEN_TRACKING, TYPE};
    use super::*;
    use crate::testing::{World, labels, metadata, survives_any_crash};

    fn secret(name: &str, last_used: &str) -> Secret {
        let mut metadata = metadata("ns", name);
        metadata.annotations = Some(labels(&[(NAME_ANNOTATION, "robot")]));
        metadata.labels = Some(labels(&[(LAST_USED, last_used)])).filter(|_| !last_used.is_empty());
        let created = "2028-01-01T00:00:00Z".parse().expect("a time");
        metadata.creation_timestamp = Some(Time(created));
        Secret { metadata, type_: Some(TYPE.to_owned()), ..Secret::default() }
    }

    fn arrange() -> World {
        let world = World::new(&[LEGACY_SERVICEACCOUNT_TOKEN_CLEANER, LEGACY_TOKEN_TRACKING]);
        let tokens = ["never", "long-ago", "lately", "mounted", "garbled"];
        let listed = tokens.map(|name| ObjectReference { name: Some(name.to_owned()), ..ObjectReference::default() });
        world.api.put(&ServiceAccount {
            metadata: metadata("ns", "robot"),
            secrets: Some(listed.into()),
            ..ServiceAccount::default()
        });
        world.api.put(&secret("never", ""));
        world.api.put(&secret("long-ago", "2028-06-01"));
        world.api.put(&secret("lately", "2030-12-24"));
        world.api.put(&secret("mounted", ""));
        world.api.put(&secret("garbled", "yesterday"));
        world.api.put(&secret("by-hand", ""));
        let source = SecretVolumeSource { secret_name: Some("mounted".to_owned()), ..SecretVolumeSource::default() };
        let volume = Volume { name: "v".to_owned(), secret: Some(source), ..Volume::default() };
        let spec = PodSpec { volumes: Some(vec![volume]), ..PodSpec::default() };
        world.api.put(&Pod { metadata: metadata("ns", "pod"), spec: Some(spec), status: None });
        world
    }

    fn outcome(world: &World) -> String {
        let describe = |secret: &Secret| {
            let invalid = secret.metadata.labels.as_ref().and_then(|labels| labels.get(INVALID_SINCE)).cloned();
            format!("{} {}\n", secret.metadata.name.as_deref().unwrap_or_default(), invalid.unwrap_or_default())
        };
        world.api.list::<Secret>("ns").iter().map(|secret| describe(secret)).collect()
    }

    const DAY: Duration = Duration::from_secs(24 * 3600);

    #[tokio::test]
    async fn unused_tokens_are_marked_after_a_year_and_deleted_after_another() {
        let mut world = arrange();
        world.start();
        world.run_for(DAY * 360).await;
        assert!(!outcome(&world).contains("203"), "{}", outcome(&world));
        world.run_for(DAY * 10).await;
        expect![[r#"
            by-hand 
            garbled 
            lately 
            long-ago 2031-01-02
            mounted 
            never 2031-01-02
        "#]]
        .assert_eq(&outcome(&world));
        world.run_for(DAY * 370).await;
        expect![[r#"
            by-hand 
            garbled 
            lately 2031-12-25
            mounted 
        "#]]
        .assert_eq(&outcome(&world));
    }

    #[tokio::test]
    async fn converges_after_a_crash_at_any_write() {
        // After a crash the daily look happens at another hour; the days of marks are what they are by then.
        let names = |world: &World| crate::testing::names::<Secret>(world, "ns").join(" ");
        let drive = async |world: &mut World| world.run_for(DAY * 26).await;
        let world = || {
            let mut world = arrange();
            world.config.legacy_service_account_token_clean_up_period = DAY * 10;
            world
        };
        survives_any_crash(world, drive, names).await;
    }
}
