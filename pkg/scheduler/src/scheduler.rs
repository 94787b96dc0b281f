//! The loop: take a pod, decide, hand the writing to others, take the next.
//!
//! Decisions are made one at a time, each seeing all before it. Writes happen beside them: bindings in tasks of
//! their own up to a limit, conditions by a few workers, events by the recorder.
//! Behaves as pkg/scheduler/schedule_one.go and eventhandlers.go, v1.36.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rkube_api::Kind;
use rkube_api::k8s::core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod};
use rkube_api::k8s::storage::v1::{CSIDriver, CSINode, CSIStorageCapacity, StorageClass};
use rkube_apimachinery::task;
use rkube_client::events::reference_to;
use rkube_client::factory::NotSynced;
use rkube_client::{Delta, EventType};
use tokio::sync::{Notify, Semaphore};
use tracing::{debug, info, info_span};

use crate::context::SchedulerContext;
use crate::decide::Decider;
use crate::decide::owners::CachedOwners;
use crate::metrics::{event_name, metrics};
use crate::model::pod::node_name;
use crate::preempt::{self, Preemption};
use crate::queue::Queued;
use crate::state::{State, Step};
use crate::status::{self, Report, Reports};
use crate::volumes::Storage;

/// The longest note an event may have.
const NOTE_MAX: usize = 1024;
/// Preemptions carried out at once: the first to come are the first to have their room, and no more writes wait in
/// the server than these make.
const PREEMPTIONS_MAX: usize = 16;
/// Decisions after which other tasks get a turn.
const DECISIONS_PER_TURN: u32 = 16;
/// Decisions after which gauges are renewed.
const DECISIONS_PER_GAUGE: u32 = 256;

/// One scheduler; tasks share it.
pub(crate) struct Scheduler {
    pub(crate) context: SchedulerContext,
    pub(crate) state: Mutex<State>,
    pub(crate) wake: Notify,
    pub(crate) reports: Reports,
    /// Told whenever a claim changed.
    pub(crate) storage_changed: Arc<Notify>,
    bindings: Arc<Semaphore>,
    pub(crate) preemptions: Semaphore,
}

/// Runs the scheduler until shutdown. `ready` is called when its caches have synced; it fails if shutdown comes
/// before that.
pub async fn run(context: SchedulerContext, ready: impl FnOnce()) -> Result<(), NotSynced> {
    let scheduler = Scheduler::start(context);
    scheduler.context.informers.start();
    scheduler.context.informers.wait_for_sync().await?;
    ready();
    info!("Caches synced");
    for worker in 0..status::WORKERS {
        let scheduler = Arc::clone(&scheduler);
        task::spawn(info_span!("scheduler-status", component = "scheduler", worker), async move {
            tokio::select! {
                () = scheduler.context.shutdown.cancelled() => {}
                () = scheduler.reports.work(&scheduler.context.client) => {}
            }
        });
    }
    let shutdown = scheduler.context.shutdown.clone();
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = scheduler.work() => {}
    }
    Ok(())
}

impl Scheduler {
    /// Asks for caches and listens to them.
    fn start(context: SchedulerContext) -> Arc<Self> {
        let owners = Box::new(CachedOwners::new(&context.informers));
        let budgets = preempt::Budgets::new(&context.informers);
        let storage = Storage::new(&context.informers);
        let storage_changed = Arc::clone(&storage.changed);
        let decider = Decider::new(owners, storage, Arc::clone(&context.random));
        let state = State::new(Arc::clone(&context.config), decider, budgets);
        let bindings = Arc::new(Semaphore::new(context.config.bindings_max.max(1)));
        let scheduler = Arc::new(Self {
            context,
            state: Mutex::new(state),
            wake: Notify::new(),
            reports: Reports::default(),
            storage_changed,
            bindings,
            preemptions: Semaphore::new(PREEMPTIONS_MAX),
        });
        scheduler.listen::<Pod>(
            State::pod,
            |pod| {
                if node_name(pod).is_some() { "AssignedPod" } else { "UnschedulablePod" }
            },
        );
        scheduler.listen::<Node>(State::node, |_| Node::KIND);
        scheduler.listen::<Namespace>(State::namespace, |_| Namespace::KIND);
        scheduler.listen::<PersistentVolumeClaim>(State::storage, |_| PersistentVolumeClaim::KIND);
        scheduler.listen::<PersistentVolume>(State::storage, |_| PersistentVolume::KIND);
        scheduler.listen::<StorageClass>(State::storage, |_| StorageClass::KIND);
        scheduler.listen::<CSINode>(State::storage, |_| CSINode::KIND);
        scheduler.listen::<CSIDriver>(State::storage, |_| CSIDriver::KIND);
        scheduler.listen::<CSIStorageCapacity>(State::storage, |_| CSIStorageCapacity::KIND);
        scheduler
    }

    fn listen<K: Kind>(
        self: &Arc<Self>,
        report: fn(&mut State, &Delta<Arc<K>>, Duration) -> bool,
        resource: fn(&K) -> &'static str,
    ) {
        let scheduler = Arc::downgrade(self);
        self.context.informers.informer::<K>().add_handler(move |delta| {
            let Some(scheduler) = scheduler.upgrade() else { return };
            let start = scheduler.now();
            let ready = report(&mut scheduler.state.lock(), &delta, start);
            let event = event_name(resource(delta.object()), &delta);
            metrics().handled(event, scheduler.now().saturating_sub(start));
            if ready {
                scheduler.wake.notify_one();
            }
        });
    }

    pub(crate) fn now(&self) -> Duration {
        self.context.clock.monotonic()
    }

    async fn work(self: &Arc<Self>) {
        let mut decisions = 0_u32;
        loop {
            // Without a free place for a binding there is no point in deciding what to bind.
            let Ok(permit) = Arc::clone(&self.bindings).acquire_owned().await else { return };
            let wake = self.wake.notified();
            let start = self.now();
            let step = self.state.lock().step(start);
            let took = self.now().saturating_sub(start);
            match step {
                Step::Idle(until) => {
                    drop(permit);
                    self.set_gauges();
                    self.wait(until, wake).await;
                    continue;
                }
                Step::Bind { queued, node, volumes } => {
                    metrics().algorithm_duration.observe(took.as_secs_f64());
                    metrics().ran("Filter", "Success", self.profile_name(&queued), took);
                    let counted = metrics().binding();
                    let scheduler = Arc::clone(self);
                    let span = info_span!("bind", component = "scheduler", pod = %queued.info.key);
                    task::spawn(span, async move {
                        scheduler.bind(queued, node, volumes, start).await;
                        drop((permit, counted));
                    });
                }
                Step::Unfit { queued, message, preemption, clear_nomination } => {
                    metrics().algorithm_duration.observe(took.as_secs_f64());
                    self.report_unfit(&queued, message, preemption.as_ref(), clear_nomination, took);
                    if let Some(preemption) = preemption {
                        self.carry_out(queued, preemption);
                    }
                }
            }
            decisions = decisions.wrapping_add(1);
            if decisions.is_multiple_of(DECISIONS_PER_TURN) {
                tokio::task::yield_now().await;
            }
            if decisions.is_multiple_of(DECISIONS_PER_GAUGE) {
                self.set_gauges();
            }
        }
    }

    async fn wait(&self, until: Option<Duration>, wake: impl Future<Output = ()>) {
        match until {
            None => wake.await,
            Some(until) => {
                let sleep = self.context.clock.sleep(until.saturating_sub(self.now()));
                tokio::select! {
                    () = wake => {}
                    () = sleep => {}
                }
            }
        }
    }

    fn set_gauges(&self) {
        let (depths, (nodes, pods, assumed)) = {
            let state = self.state.lock();
            (state.depths(), state.sizes())
        };
        metrics().depths(depths);
        metrics().cache(nodes, pods, assumed);
    }

    pub(crate) fn profile_name(&self, queued: &Queued) -> &str {
        let profile = self.context.config.profiles.get(queued.profile);
        profile.map_or(crate::config::DEFAULT_SCHEDULER_NAME, |profile| profile.scheduler_name.as_str())
    }

    fn report_unfit(
        &self,
        queued: &Queued,
        message: String,
        preemption: Option<&Preemption>,
        clear_nomination: bool,
        took: Duration,
    ) {
        let profile = self.profile_name(queued);
        metrics().attempt(profile, "unschedulable", took);
        metrics().ran("Filter", "Unschedulable", profile, took);
        debug!(pod = %queued.info.key, message, "Unable to schedule pod; no fit; waiting");
        self.event(queued, EventType::Warning, "FailedScheduling", "Scheduling", &message);
        let nominated = preemption.map(|preemption| preemption.node.to_string());
        let nominated = nominated.or_else(|| clear_nomination.then(String::new));
        let info = Arc::clone(&queued.info);
        self.reports.add(Report { info, reason: "Unschedulable", message, nominated });
    }

    /// Records an event about the pod, cut to what events may hold.
    pub(crate) fn event(&self, queued: &Queued, event_type: EventType, reason: &str, action: &str, note: &str) {
        let reference = reference_to(queued.info.pod.as_ref());
        let recorder = self.context.recorder.for_component(self.profile_name(queued));
        recorder.event_with_action(reference, None, event_type, reason, action, cut(note));
    }
}

fn cut(note: &str) -> String {
    const SUFFIX: &str = " ...";
    if note.len() <= NOTE_MAX {
        return note.to_owned();
    }
    let mut end = NOTE_MAX - SUFFIX.len();
    while !note.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{SUFFIX}", &note[..end])
}
