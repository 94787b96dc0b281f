//! The scheduler's memory, and every way it changes: by what the API reports, by decisions, by their failures.
//!
//! One lock holds cluster and queue, so that no event is lost between a decision and its pod's return to the
//! queue. Nothing under the lock waits for anything.

use std::sync::Arc;
use std::time::Duration;

use rkube_api::Kind;
use rkube_api::k8s::core::v1::{Node, Pod};
use rkube_client::Delta;

use crate::cluster::Cluster;
use crate::config::{Profile, SchedulerConfig};
use crate::decide::diagnosis::Diagnosis;
use crate::decide::{Decider, Verdict};
use crate::metrics::{event_name, metrics};
use crate::model::pod::{PodInfo, is_finished, node_name};
use crate::plugins::{Plugin, PluginSet, Point};
use crate::preempt::{self, Preemption};
use crate::queue::hints::Event;
use crate::queue::{Depths, Queue, Queued};
use crate::volumes::Bindings;

pub(crate) struct State {
    config: Arc<SchedulerConfig>,
    cluster: Cluster,
    queue: Queue,
    decider: Decider,
    budgets: preempt::Budgets,
}

/// What is to be done outside the lock.
pub(crate) enum Step {
    /// Write the pod's node to the API; the cluster counts it there already.
    Bind { queued: Queued, node: Arc<str>, volumes: Option<Bindings> },
    /// Tell the pod's owner why it has no node.
    Unfit { queued: Queued, message: String, preemption: Option<Preemption>, clear_nomination: bool },
    /// Nothing is ready; look again at this time, or when told.
    Idle(Option<Duration>),
}

impl State {
    pub(crate) fn new(config: Arc<SchedulerConfig>, decider: Decider, budgets: preempt::Budgets) -> Self {
        let queue = Queue::new(&config);
        Self { config, cluster: Cluster::default(), queue, decider, budgets }
    }

    pub(crate) fn depths(&self) -> Depths {
        self.queue.depths()
    }

    /// Nodes, pods on nodes, and pods assumed to be.
    pub(crate) fn sizes(&self) -> (usize, usize, usize) {
        (self.cluster.node_count(), self.cluster.pod_count(), self.cluster.assumed_count())
    }

    // === decisions ===

    /// Decides on the next pod.
    pub(crate) fn step(&mut self, now: Duration) -> Step {
        let Some(queued) = self.queue.pop(now) else { return Step::Idle(self.queue.next_wake()) };
        let config = Arc::clone(&self.config);
        let Some(profile) = config.profiles.get(queued.profile) else {
            // The queue holds only pods of profiles that exist.
            self.queue.remove(&queued.info.uid);
            return Step::Idle(Some(now));
        };
        match self.decider.decide(&mut self.cluster, (queued.profile, profile), &queued.info) {
            Verdict::Node(name) => {
                self.cluster.remove_nomination(&queued.info.uid);
                let volumes = self.decider.reserve(&self.cluster, profile, &queued.info, &name);
                self.cluster.assume(Arc::clone(&queued.info), &name);
                Step::Bind { queued, node: name, volumes }
            }
            Verdict::NoNodes => {
                let message = "no nodes available to schedule pods".to_owned();
                // Any node could do: whatever plugin would have looked at it.
                let plugins = Plugin::all().filter(|plugin| profile.filters(*plugin)).collect();
                self.unfit(queued, message, plugins, None, now)
            }
            Verdict::Unfit(diagnosis) => self.after_unfit(queued, profile, diagnosis, now),
        }
    }

    fn after_unfit(&mut self, queued: Queued, profile: &Profile, mut diagnosis: Box<Diagnosis>, now: Duration) -> Step {
        if profile.enabled(Point::PostFilter, Plugin::DefaultPreemption) {
            metrics().preemption_attempts.inc();
        }
        let profile = (queued.profile, profile);
        let outcome =
            preempt::preempt(&mut self.decider, &mut self.cluster, &self.budgets, profile, &queued.info, &diagnosis);
        diagnosis.postfilter = outcome.message;
        let message = diagnosis.to_string();
        let plugins = diagnosis.plugins;
        if let Some(preemption) = &outcome.preemption {
            preemption.victims.iter().for_each(|victim| self.cluster.condemn(&victim.uid));
            preemption.demoted.iter().for_each(|demoted| self.cluster.remove_nomination(&demoted.uid));
            self.cluster.nominate(&queued.info, Some(&preemption.node));
        } else if outcome.clear_nomination {
            self.cluster.remove_nomination(&queued.info.uid);
        }
        let clear = outcome.clear_nomination;
        match self.unfit(queued, message, plugins, outcome.preemption, now) {
            Step::Unfit { queued, message, preemption, .. } => {
                Step::Unfit { queued, message, preemption, clear_nomination: clear }
            }
            step => step,
        }
    }

    fn unfit(
        &mut self,
        queued: Queued,
        message: String,
        plugins: PluginSet,
        preemption: Option<Preemption>,
        now: Duration,
    ) -> Step {
        let victims = preemption.iter().flat_map(|preemption| &preemption.victims);
        let victims = victims.map(|victim| Arc::clone(&victim.uid)).collect();
        self.queue.unfit(&queued.info.uid, plugins, victims, now);
        Step::Unfit { queued, message, preemption, clear_nomination: false }
    }

    // === bindings ===

    /// The API has the pod on its node.
    pub(crate) fn bound(&mut self, uid: &str) {
        self.queue.remove(uid);
    }

    /// The pod did not get its node. Whether something may be ready now.
    pub(crate) fn not_bound(&mut self, info: &Arc<PodInfo>, gone: bool, now: Duration) -> bool {
        let was_assumed = self.cluster.is_assumed(&info.uid);
        self.cluster.forget(&info.uid);
        if gone {
            self.queue.remove(&info.uid);
        } else {
            self.queue.failed(&info.uid, now);
        }
        if was_assumed {
            self.queue.pod_removed(info, &self.cluster, now);
        }
        true
    }

    /// The API shows the volumes, or they are given up.
    pub(crate) fn release(&mut self, volumes: &Bindings) {
        self.decider.storage.release(volumes);
    }

    /// Whether the pod still waits for a node; if it does not, its victims stay.
    pub(crate) fn still_wants(&mut self, uid: &str, victims: &[Arc<PodInfo>]) -> bool {
        let waits = self.queue.contains(uid);
        if !waits {
            victims.iter().for_each(|victim| self.pardon(&victim.uid));
        }
        waits
    }

    /// A victim stays.
    pub(crate) fn pardon(&mut self, uid: &str) {
        self.cluster.pardon(uid);
    }

    /// Tries a pod again that waits for an event which will not come. Whether it is ready.
    pub(crate) fn activate(&mut self, uid: &str, now: Duration) -> bool {
        self.queue.activate(uid, now)
    }

    // === reports ===

    /// Whether a pod may be ready that was not.
    pub(crate) fn pod(&mut self, delta: &Delta<Arc<Pod>>, now: Duration) -> bool {
        let pod = delta.object();
        match delta {
            Delta::Deleted(_) => self.pod_gone(pod, now),
            Delta::Added(_) | Delta::Updated { .. } if is_finished(pod) => self.pod_gone(pod, now),
            Delta::Added(_) | Delta::Updated { .. } => match node_name(pod) {
                Some(node) => self.pod_on_node(pod, node, now),
                None => self.pod_pending(pod, now),
            },
        }
    }

    fn pod_gone(&mut self, pod: &Pod, now: Duration) -> bool {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        self.queue.remove(uid);
        let promised = self.cluster.nomination(uid).is_some();
        self.cluster.remove_nomination(uid);
        let Some(info) = self.cluster.pod(uid).cloned() else {
            // Room that was kept for it is free.
            return promised && {
                let info = PodInfo::new(Arc::new(pod.clone()));
                self.queue.pod_removed(&info, &self.cluster, now)
            };
        };
        self.cluster.remove_pod(uid);
        self.queue.pod_removed(&info, &self.cluster, now)
    }

    fn pod_on_node(&mut self, pod: &Arc<Pod>, node: &str, now: Duration) -> bool {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let confirmed = self.cluster.is_assumed(uid);
        let before = self.cluster.pod(uid).cloned();
        if before.is_none() || confirmed {
            self.queue.remove(uid);
            self.cluster.remove_nomination(uid);
        }
        self.cluster.set_pod(pod, node);
        let Some(after) = self.cluster.pod(uid).cloned() else { return false };
        let namespaces = &self.cluster.namespaces;
        match before {
            None => self.queue.event(&Event::PodAdded(&after, namespaces), now),
            Some(_) if confirmed => self.queue.event(&Event::PodAdded(&after, namespaces), now),
            // A status that moved on is nobody's business.
            Some(before) if unchanged(&before, &after) => false,
            Some(before) => self.queue.event(&Event::PodUpdated { old: &before, new: &after }, now),
        }
    }

    fn pod_pending(&mut self, pod: &Arc<Pod>, now: Duration) -> bool {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        if self.cluster.is_assumed(uid) {
            return false;
        }
        let name = pod.spec.as_ref().and_then(|spec| spec.scheduler_name.as_deref()).unwrap_or_default();
        let name = if name.is_empty() { crate::config::DEFAULT_SCHEDULER_NAME } else { name };
        let Some(profile) = self.config.profile(name) else { return false };
        if pod.metadata.deletion_timestamp.is_some() {
            self.cluster.remove_nomination(uid);
            self.queue.remove(uid);
            return false;
        }
        let info = PodInfo::new(Arc::clone(pod));
        // After a restart the promises of the process before are kept.
        if !self.queue.contains(uid) && info.nominated_node().is_some() {
            self.cluster.nominate(&info, info.nominated_node());
        }
        self.queue.set(info, profile, now)
    }

    pub(crate) fn storage<K: Kind>(&mut self, delta: &Delta<Arc<K>>, now: Duration) -> bool {
        self.decider.storage.changed.notify_waiters();
        self.queue.event(&Event::Storage(event_name(K::KIND, delta)), now)
    }

    pub(crate) fn node(&mut self, delta: &Delta<Arc<Node>>, now: Duration) -> bool {
        match delta {
            Delta::Added(node) => {
                self.cluster.set_node(node);
                self.queue.event(&Event::NodeAdded(node), now)
            }
            Delta::Updated { old, new } => {
                if !node_matters(old, new) {
                    return false;
                }
                self.cluster.set_node(new);
                self.queue.event(&Event::NodeUpdated { old, new }, now)
            }
            Delta::Deleted(node) => {
                self.cluster.remove_node(node.metadata.name.as_deref().unwrap_or_default());
                self.queue.event(&Event::NodeRemoved, now)
            }
        }
    }

    pub(crate) fn namespace(&mut self, delta: &Delta<Arc<rkube_api::k8s::core::v1::Namespace>>, now: Duration) -> bool {
        let namespace = delta.object();
        let name = namespace.metadata.name.as_deref().unwrap_or_default();
        let labels = match delta {
            Delta::Deleted(_) => None,
            Delta::Added(_) | Delta::Updated { .. } => Some(namespace.metadata.labels.clone().unwrap_or_default()),
        };
        self.cluster.set_namespace(name, labels) && self.queue.event(&Event::NamespaceLabels, now)
    }
}

fn unchanged(old: &PodInfo, new: &PodInfo) -> bool {
    old.labels() == new.labels() && old.requests == new.requests && old.is_terminating() == new.is_terminating()
}

/// Whether a node changed in what scheduling looks at; heartbeats do not count.
fn node_matters(old: &Node, new: &Node) -> bool {
    let status = |node: &Node| node.status.clone().map(|status| (status.allocatable, status.images));
    old.metadata.labels != new.metadata.labels || old.spec != new.spec || status(old) != status(new)
}
