//! Notices what changes in the runtime: its events, and a list of everything from time to time in case
//! an event was lost. Keeps what is known of each pod for all others to read.
//!
//! Behaves as pkg/kubelet/pleg/{generic,evented}.go and pkg/kubelet/container/cache.go, v1.36.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use parking_lot::Mutex;
use rkube_cri::{EventStream, RuntimeError};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::pod::PodUid;
use crate::runtime::Runtime;
use crate::runtime::query::{ListedPod, Listing};
use crate::runtime::state::RuntimePod;

/// With events from the runtime a list is only a safety net.
const RELIST_WITH_EVENTS: Duration = Duration::from_secs(60);
/// Without, it is how changes are seen at all. Upstream's period.
const RELIST_WITHOUT_EVENTS: Duration = Duration::from_secs(1);
/// Events that come together, as when a pod starts, are looked at together.
const SETTLE: Duration = Duration::from_millis(5);
/// An event that nothing follows in this time was about something else.
const UNSEEN_AGE_MAX: Duration = Duration::from_secs(2);
const UNSEEN_MAX: usize = 1024;
/// Pods read from the runtime at a time: a burst of pods that start is as many changes.
const PARALLEL_READS_MAX: usize = 8;
/// No list for so long and the node is not healthy.
const UNHEALTHY_AFTER: Duration = Duration::from_secs(180);

/// What the runtime has, by pod.
#[derive(Default)]
pub struct PodCache(Mutex<HashMap<PodUid, Arc<RuntimePod>>>);

impl PodCache {
    pub fn get(&self, uid: &PodUid) -> Option<Arc<RuntimePod>> {
        self.0.lock().get(uid).cloned()
    }

    pub fn set(&self, pod: RuntimePod) -> Arc<RuntimePod> {
        let pod = Arc::new(pod);
        self.0.lock().insert(pod.uid.clone(), pod.clone());
        pod
    }

    pub fn all(&self) -> Vec<Arc<RuntimePod>> {
        self.0.lock().values().cloned().collect()
    }

    fn remove(&self, uid: &PodUid) {
        self.0.lock().remove(uid);
    }
}

/// A pod's containers changed.
pub type Notify = Arc<dyn Fn(&PodUid) + Send + Sync>;

pub struct Pleg {
    runtime: Arc<Runtime>,
    pub cache: Arc<PodCache>,
    notify: Notify,
    /// By the monotonic clock; `None` before the first list.
    last_relist: watch::Sender<Option<Duration>>,
    /// Whether the last list was answered.
    reachable: watch::Sender<bool>,
}

impl Pleg {
    pub fn new(runtime: Arc<Runtime>, cache: Arc<PodCache>, notify: Notify) -> Self {
        Self { runtime, cache, notify, last_relist: watch::channel(None).0, reachable: watch::channel(false).0 }
    }

    /// Waits until the first list is done, which is when absence from the cache means absence.
    pub async fn synced(&self) {
        let mut listed = self.last_relist.subscribe();
        // The sender lives in `self`.
        let _ = listed.wait_for(Option::is_some).await;
    }

    pub fn is_synced(&self) -> bool {
        self.last_relist.borrow().is_some()
    }

    /// Tells when the runtime comes and goes.
    pub fn reachable(&self) -> watch::Receiver<bool> {
        self.reachable.subscribe()
    }

    /// Upstream's message when it is not.
    pub fn health(&self) -> Result<(), String> {
        let Some(last) = *self.last_relist.borrow() else {
            return Err("pleg has yet to be successful".to_owned());
        };
        let since = self.runtime.clock.monotonic().saturating_sub(last);
        if since > UNHEALTHY_AFTER {
            return Err(format!(
                "pleg was last seen active {}s ago; threshold is {}s",
                since.as_secs(),
                UNHEALTHY_AFTER.as_secs()
            ));
        }
        Ok(())
    }

    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let mut known = Listing::default();
        let mut events: Option<EventStream> = None;
        let mut unseen = Unseen::default();
        loop {
            if events.is_none() {
                // Subscribed before listing, so that nothing falls between the two.
                events = self.runtime.service.events().await.ok();
            }
            let listed = self.relist(&mut known, &mut unseen).await;
            let answered = listed.is_ok();
            self.reachable.send_if_modified(|reachable| std::mem::replace(reachable, answered) != answered);
            match listed {
                Ok(()) => {
                    self.last_relist.send_replace(Some(self.runtime.clock.monotonic()));
                }
                Err(error) => tracing::debug!(%error, "Runtime was not listed"),
            }
            let period = if events.is_some() { RELIST_WITH_EVENTS } else { RELIST_WITHOUT_EVENTS };
            let period = unseen.delay(self.runtime.clock.monotonic()).unwrap_or(period);
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.runtime.clock.sleep(period) => {}
                event = next_event(&mut events) => match event {
                    Some(id) => {
                        unseen.add(id, self.runtime.clock.monotonic());
                        self.settle(&mut events, &mut unseen).await;
                    }
                    None => {
                        events = None;
                        // A runtime that just went away is not asked in a tight loop.
                        tokio::select! {
                            () = shutdown.cancelled() => return,
                            () = self.runtime.clock.sleep(RELIST_WITHOUT_EVENTS) => {}
                        }
                    }
                },
            }
        }
    }

    async fn settle(&self, events: &mut Option<EventStream>, unseen: &mut Unseen) {
        let end = self.runtime.clock.sleep(SETTLE);
        tokio::pin!(end);
        loop {
            tokio::select! {
                () = &mut end => return,
                event = next_event(events) => match event {
                    Some(id) => unseen.add(id, self.runtime.clock.monotonic()),
                    None => {
                        *events = None;
                        return;
                    }
                },
            }
        }
    }

    /// Compares what is listed with what was, and reads anew the pods that differ.
    async fn relist(&self, known: &mut Listing, unseen: &mut Unseen) -> Result<(), RuntimeError> {
        let listing = self.runtime.list(None).await?;
        unseen.retain(known, &listing);
        let changed = changed(known, &listing);
        let reads: Vec<_> = changed.iter().map(|(uid, pod)| self.read(uid, pod.as_ref())).collect();
        let failed: Vec<Option<PodUid>> =
            futures_util::stream::iter(reads).buffer_unordered(PARALLEL_READS_MAX).collect().await;
        *known = listing;
        for uid in failed.into_iter().flatten() {
            known.pods.remove(&uid);
        }
        for (uid, _) in &changed {
            (self.notify)(uid);
        }
        Ok(())
    }

    /// Reads one pod anew. Gives its UID when that failed, so that it is forgotten and the next round sees a difference
    /// again; the others go on.
    async fn read(&self, uid: &PodUid, pod: Option<&ListedPod>) -> Option<PodUid> {
        let Some(pod) = pod else {
            self.cache.remove(uid);
            return None;
        };
        match self.runtime.pod_status(uid, &pod.namespace, &pod.name).await {
            Ok(status) => {
                self.cache.set(status);
                None
            }
            Err(error) => {
                tracing::warn!(%uid, %error, "Pod was not read from the runtime");
                Some(uid.clone())
            }
        }
    }
}

/// Pods whose parts differ, with what they are now.
fn changed(before: &Listing, now: &Listing) -> Vec<(PodUid, Option<ListedPod>)> {
    let gone = before.pods.keys().filter(|uid| !now.pods.contains_key(*uid)).map(|uid| (uid.clone(), None));
    let differing = now.pods.iter().filter(|(uid, pod)| before.pods.get(*uid) != Some(pod));
    gone.chain(differing.map(|(uid, pod)| (uid.clone(), Some(pod.clone())))).collect()
}

/// Containers that an event was about and whose state has not changed in the list since.
///
/// containerd before 1.7 announces the end of a container's task before its CRI half knows of it: a list
/// taken at once still shows it running. Such a list is taken again, soon and then less soon.
#[derive(Debug, Default)]
struct Unseen(HashMap<String, Duration>);

impl Unseen {
    fn add(&mut self, id: String, now: Duration) {
        if self.0.len() < UNSEEN_MAX {
            self.0.insert(id, now);
        }
    }

    fn retain(&mut self, before: &Listing, now: &Listing) {
        if self.0.is_empty() {
            return;
        }
        let states = |listing: &Listing| -> HashMap<String, crate::runtime::state::State> {
            listing.pods.values().flat_map(|pod| &pod.parts).map(|part| (part.id.clone(), part.state)).collect()
        };
        let (before, now) = (states(before), states(now));
        self.0.retain(|id, _| before.get(id) == now.get(id));
    }

    /// When to look again: after a quarter of the time gone by since the newest event, until it is stale.
    fn delay(&mut self, now: Duration) -> Option<Duration> {
        self.0.retain(|_, since| now.saturating_sub(*since) < UNSEEN_AGE_MAX);
        let newest = self.0.values().max()?;
        Some((now.saturating_sub(*newest) / 4).max(SETTLE))
    }
}

/// Waits for an event. `None` when there will be none any more.
async fn next_event(events: &mut Option<EventStream>) -> Option<String> {
    match events {
        Some(stream) => stream.next().await?.ok().map(|event| event.id),
        None => std::future::pending().await,
    }
}
