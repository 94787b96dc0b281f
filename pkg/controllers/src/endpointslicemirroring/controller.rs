//! Carries out the plan for the Endpoints of one Service at a time.

use std::sync::Arc;
use std::time::Duration;

use rkube_api::k8s::core::v1::{Endpoints, Service};
use rkube_api::k8s::discovery::v1::EndpointSlice;
use rkube_apimachinery::key::ObjectKey;
use rkube_apimachinery::labels::Selector;
use rkube_client::owner::object_key;
use rkube_client::workqueue::RateLimits;
use rkube_client::{Client, Delta, EventRecorder, Lister, Reconciler, Requeue, Runner, SyncError, WorkQueue};

use super::plan::{Plan, plan};
use super::{MANAGED_BY, NAME};
use crate::common::slices::{self, Changes, MANAGED_BY_LABEL, SERVICE_NAME_LABEL};
use crate::common::written::Written;
use crate::context::{ControllerContext, Running};
use crate::metrics::{Outlook, metrics};

/// Failures in a row before Endpoints wait for their next event.
const RETRIES_MAX: u32 = 15;
/// As `--mirroring-max-endpoints-per-subset`.
const PER_SUBSET_MAX: usize = 1_000;
const LEADER_ANNOTATION: &str = "control-plane.alpha.kubernetes.io/leader";
const SKIP_MIRROR_LABEL: &str = "endpointslice.kubernetes.io/skip-mirror";

struct Mirroring {
    client: Client,
    recorder: EventRecorder,
    endpoints: Lister<Endpoints>,
    services: Lister<Service>,
    slices: Lister<EndpointSlice>,
    written: Written,
}

pub(super) fn start(context: &ControllerContext) -> Running {
    let endpoints = context.informers.informer::<Endpoints>();
    let services = context.informers.informer::<Service>();
    let slices = context.informers.informer::<EndpointSlice>();
    let limits =
        RateLimits { base_delay: Duration::from_secs(1), delay_max: Duration::from_secs(100), ..RateLimits::default() };
    let queue: WorkQueue<ObjectKey> =
        WorkQueue::with_limits("endpoint_slice_mirroring", context.clock().clone(), limits);
    let controller = Arc::new(Mirroring {
        client: context.client_for(NAME),
        recorder: context.recorder.for_component("endpoint-slice-mirroring-controller"),
        endpoints: endpoints.lister(),
        services: services.lister(),
        slices: slices.lister(),
        written: Written::new(context.clock().clone(), Arc::clone(slices.core())),
    });
    let keys = queue.clone();
    endpoints.add_handler(move |delta| {
        if delta.old().into_iter().chain([delta.object()]).any(|endpoints| is_mirrored(endpoints)) {
            keys.add(object_key(&**delta.object()));
        }
    });
    let keys = queue.clone();
    services.add_handler(move |delta| {
        let service = delta.object();
        let matters = match delta.old() {
            Some(old) => has_selector(old) != has_selector(service),
            None => !has_selector(service),
        };
        if matters {
            keys.add(object_key(&**service));
        }
    });
    let (observer, keys) = (Arc::clone(&controller), queue.clone());
    slices.add_handler(move |delta| observer.slice_changed(&delta, &keys));
    let runner = Runner::new(NAME, queue, controller).workers(context.config.concurrent_syncs);
    Box::pin(runner.retries_max(RETRIES_MAX).run(context.shutdown.clone()))
}

/// Not those another makes slices for, nor those that are locks.
fn is_mirrored(endpoints: &Endpoints) -> bool {
    let metadata = &endpoints.metadata;
    let skipped = metadata.labels.as_ref().and_then(|labels| labels.get(SKIP_MIRROR_LABEL));
    let is_lock = metadata.annotations.as_ref().is_some_and(|all| all.contains_key(LEADER_ANNOTATION));
    skipped.is_none_or(|value| value != "true") && !is_lock
}

fn has_selector(service: &Service) -> bool {
    service.spec.as_ref().is_some_and(|spec| spec.selector.is_some())
}

impl Mirroring {
    /// A slice that another changed or deleted is put right. Our own writes only clear what we wait for.
    fn slice_changed(&self, delta: &Delta<Arc<EndpointSlice>>, queue: &WorkQueue<ObjectKey>) {
        let slice = delta.object();
        self.written.observe(&slice.metadata, matches!(delta, Delta::Deleted(_)));
        for slice in delta.old().into_iter().chain([slice]) {
            let label = |name: &str| slice.metadata.labels.as_ref().and_then(|labels| labels.get(name));
            if label(MANAGED_BY_LABEL).is_some_and(|by| by == MANAGED_BY)
                && let Some(service) = label(SERVICE_NAME_LABEL)
            {
                let namespace = slice.metadata.namespace.as_deref().unwrap_or_default();
                queue.add(ObjectKey::new(namespace, service.as_str()));
            }
        }
    }

    fn report(&self, endpoints: &Endpoints, plan: &Plan) {
        if plan.invalid > 0 {
            let text = format!("Skipped {} invalid IP addresses when mirroring to EndpointSlices", plan.invalid);
            self.recorder.warning(endpoints, "InvalidIPAddress", text);
        }
        if plan.skipped > 0 {
            let skipped = plan.skipped + plan.invalid;
            let text = format!(
                "A max of {PER_SUBSET_MAX} addresses can be mirrored to EndpointSlices per Endpoints subset. \
                 {skipped} addresses were skipped"
            );
            self.recorder.warning(endpoints, "TooManyAddressesToMirror", text);
        }
    }
}

impl Reconciler for Mirroring {
    async fn sync(&self, key: &ObjectKey) -> Result<Requeue, SyncError> {
        if let Some(wait) = self.written.unsettled(key) {
            // The event that settles it queues the key; the wait is for one that never comes.
            return Ok(Requeue::After(wait));
        }
        let labels = [(SERVICE_NAME_LABEL, &*key.name), (MANAGED_BY_LABEL, MANAGED_BY)];
        let mut existing = self.slices.list(&key.namespace, &Selector::from_set(labels));
        existing.retain(|slice| slice.metadata.deletion_timestamp.is_none());
        let endpoints = self.endpoints.get(key).filter(|endpoints| is_mirrored(endpoints));
        let service = self.services.get(key).filter(|service| !has_selector(service));
        let clock = self.client.clock();
        let start = clock.monotonic();
        let is_mirrored = endpoints.is_some() && service.is_some();
        let changes = match (endpoints, service) {
            (Some(endpoints), Some(_)) => {
                let mut plan = plan(&endpoints, &existing, PER_SUBSET_MAX);
                self.report(&endpoints, &plan);
                metrics().mirroring.skipped(plan.skipped + plan.invalid);
                if endpoints.metadata.deletion_timestamp.is_some() {
                    plan.changes.create.clear();
                }
                plan.changes
            }
            _ => Changes { delete: existing.clone(), ..Changes::default() },
        };
        let outlook = Outlook::new(&existing, &changes, PER_SUBSET_MAX);
        slices::carry_out(&self.client, &self.written, key, changes).await?;
        let mirroring = &metrics().mirroring;
        mirroring.written(key, outlook, "");
        if !is_mirrored {
            mirroring.forget(key);
        }
        mirroring.took(clock.monotonic().saturating_sub(start));
        Ok(Requeue::Never)
    }
}
