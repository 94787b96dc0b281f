//! Counts one quota at a time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rkube_api::StoredObject;
use rkube_api::k8s::core::v1::ResourceQuota;
use rkube_api::quota;
use rkube_api::resource::Resource;
use rkube_apimachinery::clock::SharedClock;
use rkube_apimachinery::key::ObjectKey;
use rkube_client::owner::object_key;
use rkube_client::{Client, Delta, Lister, Reconciler, Requeue, Runner, SyncError, WorkQueue};

use super::NAME;
use super::monitors::{Found, Monitors, Rediscover, SETTLE};
use super::plan;
use crate::common::errors::ignore_not_found;
use crate::context::{ControllerContext, Running};

/// How long after a charge a quota is counted. Long enough for every cache to have the object that was charged:
/// counting without it would lower the quota and let one too many in.
const RECOUNT_DELAY: Duration = Duration::from_secs(30);
/// How soon a kind whose cache did not fill is looked at again.
const FILLING_DELAY: Duration = Duration::from_secs(5);

struct QuotaController {
    client: Client,
    clock: SharedClock,
    quotas: Lister<ResourceQuota>,
    monitors: Monitors,
}

/// Quotas that hold somebody up are counted apart from those that are merely out of date.
#[derive(Clone)]
struct Queues {
    urgent: WorkQueue<ObjectKey>,
    usual: WorkQueue<ObjectKey>,
}

pub(super) fn start(context: &ControllerContext) -> Running {
    let quotas = context.informers.informer::<ResourceQuota>();
    let queues =
        Queues { urgent: context.queue("resourcequota_priority"), usual: context.queue("resourcequota_primary") };
    let client = context.client_for(NAME);
    let (lister, keys, clock) = (quotas.lister(), queues.usual.clone(), context.clock().clone());
    let observer = move |resource: &Resource, delta: &Delta<Arc<StoredObject>>| {
        object_changed(&lister, &keys, &clock, resource, delta);
    };
    let monitors = Monitors::new(client.clone(), context.informers.clone(), Arc::new(observer));
    let clock = context.clock().clone();
    let controller = Arc::new(QuotaController { client, clock, quotas: quotas.lister(), monitors });

    let keys = queues.clone();
    quotas.add_handler(move |delta| keys.quota_changed(&delta));
    let discovery: WorkQueue<Rediscover> = context.queue("resource_quota_controller_resource_changes");
    for (group, plural) in
        [("apiextensions.k8s.io", "customresourcedefinitions"), ("apiregistration.k8s.io", "apiservices")]
    {
        if let Some(resource) = rkube_api::resource_named(group, "v1", plural) {
            let keys = discovery.clone();
            let informer = context.informers.dynamic(Arc::clone(resource));
            informer.add_handler(move |_| keys.add_after(Rediscover, SETTLE));
        }
    }
    let workers = context.config.concurrent_syncs;
    let urgent = Runner::new(NAME, queues.urgent, Arc::clone(&controller)).workers(workers);
    let usual = Runner::new(NAME, queues.usual.clone(), Arc::clone(&controller)).workers(workers);
    let watching = Arc::clone(&controller);
    let discovering = Runner::new(NAME, discovery, Arc::new(Discovery(controller, queues.usual))).workers(1);
    let stop = context.shutdown.clone();
    Box::pin(async move {
        // Not before the other controllers run: they do not wait for these caches.
        watching.monitors.watch_built_in();
        tokio::join!(discovering.run(stop.clone()), urgent.run(stop.clone()), usual.run(stop));
    })
}

impl Queues {
    fn quota_changed(&self, delta: &Delta<Arc<ResourceQuota>>) {
        let quota = delta.object();
        let key = object_key(&**quota);
        match delta {
            Delta::Deleted(_) => {}
            // Only admission and this controller write the status, most of the time.
            Delta::Updated { old, new } if old.spec == new.spec && !plan::is_urgent(new) => {
                self.usual.add_after(key, RECOUNT_DELAY);
            }
            Delta::Added(_) | Delta::Updated { .. } if plan::is_urgent(quota) => self.urgent.add(key),
            Delta::Added(_) | Delta::Updated { .. } => self.usual.add(key),
        }
    }
}

/// Queues the quotas that a change of an object concerns.
fn object_changed(
    quotas: &Lister<ResourceQuota>,
    queue: &WorkQueue<ObjectKey>,
    clock: &SharedClock,
    resource: &Resource,
    delta: &Delta<Arc<StoredObject>>,
) {
    let kind = (resource.group.as_ref(), resource.plural.as_ref());
    let about = quotas.list_all(&delta.object().key.namespace).into_iter().filter(|quota| {
        let hard = quota.spec.as_ref().and_then(|spec| spec.hard.as_ref());
        hard.into_iter().flatten().any(|(name, _)| quota::is_about(name, kind.0, kind.1))
    });
    let mut about = about.peekable();
    if about.peek().is_none() {
        return;
    }
    let delay = match delta {
        Delta::Added(_) => RECOUNT_DELAY,
        Delta::Updated { old, new } if !plan::changes_usage(old, new, kind, clock.now()) => return,
        Delta::Updated { .. } | Delta::Deleted(_) => Duration::ZERO,
    };
    for quota in about {
        queue.add_after(object_key(&*quota), delay);
    }
}

impl Reconciler for QuotaController {
    async fn sync(&self, key: &ObjectKey) -> Result<Requeue, SyncError> {
        let Some(quota) = self.quotas.get(key) else { return Ok(Requeue::Never) };
        let now = self.clock.now();
        let mut measured = BTreeMap::new();
        let mut requeue = Requeue::Never;
        for kind in plan::kinds(&quota) {
            match self.monitors.objects(&kind, &key.namespace).await {
                Found::Objects(objects) => {
                    let usage = plan::usage(&quota, (&kind.0, &kind.1), &objects, now);
                    requeue = requeue.or_sooner(Requeue::after(usage.changes_in));
                    measured.insert(kind, usage.used);
                }
                Found::Filling => requeue = requeue.or_sooner(Requeue::After(FILLING_DELAY)),
                Found::Unknown => {}
            }
        }
        let status = plan::status(&quota, &measured);
        if !plan::is_up_to_date(&quota, &status) {
            let updated = ResourceQuota { status: Some(status), ..(*quota).clone() };
            let written = self.client.namespaced::<ResourceQuota>(&key.namespace).update_status(&updated).await;
            ignore_not_found(written.map(drop)).map_err(SyncError::during("writing the status"))?;
        }
        Ok(requeue)
    }
}

/// Looks for new kinds, and counts the quotas that may be about them.
struct Discovery(Arc<QuotaController>, WorkQueue<ObjectKey>);

impl Reconciler<Rediscover> for Discovery {
    async fn sync(&self, key: &Rediscover) -> Result<Requeue, SyncError> {
        let Self(controller, queue) = self;
        let requeue = controller.monitors.sync(key).await?;
        for quota in controller.quotas.list_all("") {
            if plan::is_urgent(&quota) {
                queue.add(object_key(&*quota));
            }
        }
        Ok(requeue)
    }
}
