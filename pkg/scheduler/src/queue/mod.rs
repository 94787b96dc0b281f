//! Pods waiting for a node: ready, backing off, waiting for an event, or gated.
//!
//! In: pods, failures, events, time. Out: the pod to try next, most important first, oldest among equals.
//! Invariant: a pod is in one place. A pod waiting for an event is moved by an event one of the plugins that
//! refused it cares for, or after five minutes. Nothing here wakes up by itself: `next_wake` says when to look.
//! Behaves as pkg/scheduler/backend/queue/scheduling_queue.go, v1.36.

pub(crate) mod hints;

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use crate::cluster::Cluster;
use crate::config::{Profile, SchedulerConfig};
use crate::metrics::metrics;
use crate::model::pod::PodInfo;
use crate::plugins::{Plugin, PluginSet, Point};
use crate::queue::hints::Event;

/// The event that brings a pod to a queue when an attempt to schedule it failed.
const FAILURE: &str = "ScheduleAttemptFailure";

/// A pod and its history with the scheduler.
#[derive(Clone, Debug)]
pub(crate) struct Queued {
    pub(crate) info: Arc<PodInfo>,
    /// Index of its profile.
    pub(crate) profile: usize,
    /// How often it was tried.
    pub(crate) attempts: u32,
    /// When it was first tried.
    pub(crate) first_attempt: Option<Duration>,
    /// Failures that back-off counts.
    failures: u32,
    /// When it entered the queue, last.
    since: Duration,
    sequence: u64,
    place: Place,
    backoff_until: Duration,
    /// Whether time brought it back, not an event.
    pub(crate) flushed: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Active,
    /// After an error, the wait is never cut short.
    Backoff {
        error: bool,
    },
    /// A pod that has victims waits for them, and is not disturbed when those of others leave.
    Unschedulable {
        group: String,
        has_victims: bool,
    },
    Gated,
    InFlight,
}

type ActiveKey = (Reverse<i32>, Duration, u64, Arc<str>);

/// Unschedulable pods that are alike in all that hints look at.
#[derive(Debug)]
struct Group {
    plugins: PluginSet,
    like: Arc<PodInfo>,
    uids: HashSet<Arc<str>>,
    /// Members that have victims.
    preemptors: HashSet<Arc<str>>,
}

/// How many pods are where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Depths {
    pub(crate) active: usize,
    pub(crate) backoff: usize,
    pub(crate) unschedulable: usize,
    pub(crate) gated: usize,
}

#[derive(Debug)]
pub(crate) struct Queue {
    profiles: Vec<Arc<Profile>>,
    initial_backoff: Duration,
    max_backoff: Duration,
    max_unschedulable: Duration,
    pods: HashMap<Arc<str>, Queued>,
    active: BTreeSet<ActiveKey>,
    backoff: BTreeSet<(Duration, u64, Arc<str>)>,
    /// By when they came here.
    unschedulable: BTreeSet<(Duration, u64, Arc<str>)>,
    groups: HashMap<String, Group>,
    /// The pods that a waiting pod has chosen to leave and that have not, and for whom a pod is to leave.
    victims: HashMap<Arc<str>, HashSet<Arc<str>>>,
    preemptors: HashMap<Arc<str>, SmallVec<[Arc<str>; 1]>>,
    gated: usize,
    sequence: u64,
}

impl Queue {
    pub(crate) fn new(config: &SchedulerConfig) -> Self {
        Self {
            profiles: config.profiles.clone(),
            initial_backoff: config.pod_initial_backoff,
            max_backoff: config.pod_max_backoff,
            max_unschedulable: config.pod_max_in_unschedulable,
            pods: HashMap::new(),
            active: BTreeSet::new(),
            backoff: BTreeSet::new(),
            unschedulable: BTreeSet::new(),
            groups: HashMap::new(),
            victims: HashMap::new(),
            preemptors: HashMap::new(),
            gated: 0,
            sequence: 0,
        }
    }

    /// A pod that wants a node, new or changed. Whether something is ready now that was not.
    pub(crate) fn set(&mut self, info: Arc<PodInfo>, profile: usize, now: Duration) -> bool {
        let Some(known) = self.pods.get_mut(&info.uid) else {
            return self.insert(info, profile, now);
        };
        let changed = matters(&known.info, &info);
        let old_place = known.place.clone();
        match old_place {
            Place::InFlight => {
                known.info = info;
                false
            }
            Place::Active if known.info.priority == info.priority => {
                known.info = info;
                false
            }
            Place::Backoff { .. } => {
                known.info = info;
                false
            }
            Place::Gated | Place::Unschedulable { .. } if !changed => {
                known.info = info;
                false
            }
            Place::Active | Place::Gated | Place::Unschedulable { .. } => {
                let uid = Arc::clone(&info.uid);
                self.leave(&uid);
                if let Some(known) = self.pods.get_mut(&uid) {
                    known.info = info;
                }
                self.enter_ready(&uid, "UnschedulablePodUpdate", now)
            }
        }
    }

    fn insert(&mut self, info: Arc<PodInfo>, profile: usize, now: Duration) -> bool {
        let uid = Arc::clone(&info.uid);
        self.sequence += 1;
        let queued = Queued {
            info,
            profile,
            attempts: 0,
            first_attempt: None,
            failures: 0,
            since: now,
            sequence: self.sequence,
            place: Place::InFlight,
            backoff_until: Duration::ZERO,
            flushed: false,
        };
        self.pods.insert(Arc::clone(&uid), queued);
        self.enter_ready(&uid, "UnschedulablePodAdd", now)
    }

    /// The pod has a node or is gone.
    pub(crate) fn remove(&mut self, uid: &str) -> bool {
        self.leave(uid);
        self.pods.remove(uid).is_some()
    }

    pub(crate) fn contains(&self, uid: &str) -> bool {
        self.pods.contains_key(uid)
    }

    /// The next pod to try. It stays known, as in flight, until `remove`, `failed` or `unfit`.
    pub(crate) fn pop(&mut self, now: Duration) -> Option<Queued> {
        self.flush(now);
        let uid = match self.active.pop_first() {
            Some((.., uid)) => uid,
            None => {
                // With nothing else to do there is no point in waiting, except after errors.
                let pods = &self.pods;
                let early = |uid: &Arc<str>| {
                    pods.get(uid).is_some_and(|queued| queued.place == Place::Backoff { error: false })
                };
                let key = self.backoff.iter().find(|(.., uid)| early(uid)).cloned()?;
                self.backoff.remove(&key);
                metrics().incoming("active", "PopFromBackoffQ");
                key.2
            }
        };
        let queued = self.pods.get_mut(&uid)?;
        queued.place = Place::InFlight;
        queued.attempts = queued.attempts.saturating_add(1);
        queued.first_attempt.get_or_insert(now);
        Some(queued.clone())
    }

    /// No node will have the pod. It waits for an event that concerns `plugins`; with none of them, it backs off.
    /// With `victims` it waits first of all for these to leave.
    pub(crate) fn unfit(&mut self, uid: &str, plugins: PluginSet, victims: HashSet<Arc<str>>, now: Duration) {
        if plugins.is_empty() {
            return self.failed(uid, now);
        }
        let Some(backoff) = self.note_failure(uid, now) else { return };
        let Some(queued) = self.pods.get_mut(uid) else { return };
        queued.backoff_until = now + backoff;
        let group = group_key(&queued.info, plugins);
        let has_victims = !victims.is_empty();
        metrics().incoming("unschedulable", FAILURE);
        if let Some(profile) = self.profiles.get(queued.profile) {
            count_unschedulable(plugins, profile, 1);
        }
        queued.place = Place::Unschedulable { group: group.clone(), has_victims };
        let (key, uid) = ((queued.since, queued.sequence, Arc::clone(&queued.info.uid)), Arc::clone(&queued.info.uid));
        let like = Arc::clone(&queued.info);
        self.unschedulable.insert(key);
        let fresh = || Group { plugins, like, uids: HashSet::new(), preemptors: HashSet::new() };
        let group = self.groups.entry(group).or_insert_with(fresh);
        if has_victims {
            group.preemptors.insert(Arc::clone(&uid));
            for victim in &victims {
                self.preemptors.entry(Arc::clone(victim)).or_default().push(Arc::clone(&uid));
            }
            self.victims.insert(uid, victims);
        } else {
            group.uids.insert(uid);
        }
    }

    /// A pod left its node. If it was the last victim of a pod, that one's room is there: it is tried at once.
    /// Whether a pod is ready now that was not.
    pub(crate) fn pod_removed(&mut self, gone: &PodInfo, cluster: &Cluster, now: Duration) -> bool {
        let event = Event::PodRemoved(gone, cluster);
        let Some(preemptors) = self.preemptors.remove(&gone.uid) else { return self.event(&event, now) };
        let mut woken = false;
        for preemptor in preemptors {
            let Some(victims) = self.victims.get_mut(&preemptor) else { continue };
            victims.remove(&gone.uid);
            woken |= victims.is_empty() && self.activate(&preemptor, now);
        }
        // The room is promised; pods that wait for other victims have nothing to gain from it.
        self.move_groups(&event, false, now) || woken
    }

    /// Something went wrong that may go right the next time.
    pub(crate) fn failed(&mut self, uid: &str, now: Duration) {
        let Some(backoff) = self.note_failure(uid, now) else { return };
        let Some(queued) = self.pods.get_mut(uid) else { return };
        queued.backoff_until = now + backoff;
        queued.place = Place::Backoff { error: true };
        metrics().incoming("backoff", FAILURE);
        self.backoff.insert((queued.backoff_until, queued.sequence, Arc::clone(&queued.info.uid)));
    }

    /// Counts a failure of a pod in flight and says how long it must wait.
    fn note_failure(&mut self, uid: &str, now: Duration) -> Option<Duration> {
        let (initial, max) = (self.initial_backoff, self.max_backoff);
        let queued = self.pods.get_mut(uid).filter(|queued| queued.place == Place::InFlight)?;
        let backoff = initial.saturating_mul(1_u32.checked_shl(queued.failures).unwrap_or(u32::MAX)).min(max);
        queued.failures = queued.failures.saturating_add(1).min(31);
        queued.since = now;
        queued.flushed = false;
        Some(backoff)
    }

    /// Something happened. Whether a pod is ready now that was not.
    pub(crate) fn event(&mut self, event: &Event<'_>, now: Duration) -> bool {
        self.move_groups(event, true, now)
    }

    fn move_groups(&mut self, event: &Event<'_>, preemptors_too: bool, now: Duration) -> bool {
        if self.groups.is_empty() {
            return false;
        }
        let moved: Vec<String> = self
            .groups
            .iter()
            .filter(|(_, group)| preemptors_too || !group.uids.is_empty())
            .filter(|(_, group)| group.plugins.iter().any(|plugin| hints::may_help(plugin, event, &group.like)))
            .map(|(key, _)| key.clone())
            .collect();
        let mut any = false;
        for key in moved {
            let Some(group) = self.groups.get(&key) else { continue };
            let preemptors = group.preemptors.iter().filter(|_| preemptors_too);
            let uids: Vec<Arc<str>> = group.uids.iter().chain(preemptors).cloned().collect();
            for uid in uids {
                self.leave(&uid);
                any |= self.enter_after_backoff(&uid, event.name(), now);
            }
        }
        any
    }

    /// Moves one pod that waits for an event: what it waited for has come about.
    pub(crate) fn activate(&mut self, uid: &str, now: Duration) -> bool {
        let waits =
            |queued: &Queued| matches!(queued.place, Place::Unschedulable { .. } | Place::Backoff { error: false });
        if !self.pods.get(uid).is_some_and(waits) {
            return false;
        }
        let uid: Arc<str> = uid.into();
        self.leave(&uid);
        self.enter_ready(&uid, "ForceActivate", now)
    }

    /// Moves pods whose time has come.
    fn flush(&mut self, now: Duration) {
        while let Some((until, _, uid)) = self.backoff.first().cloned()
            && until <= now
        {
            self.leave(&uid);
            self.enter_ready(&uid, "BackoffComplete", now);
        }
        while let Some((since, _, uid)) = self.unschedulable.first().cloned()
            && since + self.max_unschedulable <= now
        {
            self.leave(&uid);
            if let Some(queued) = self.pods.get_mut(&uid) {
                queued.flushed = true;
            }
            self.enter_after_backoff(&uid, "UnschedulableTimeout", now);
        }
    }

    /// When something will be ready without an event.
    pub(crate) fn next_wake(&self) -> Option<Duration> {
        let backoff = self.backoff.first().map(|(until, ..)| *until);
        let unschedulable = self.unschedulable.first().map(|(since, ..)| *since + self.max_unschedulable);
        backoff.into_iter().chain(unschedulable).min()
    }

    pub(crate) fn depths(&self) -> Depths {
        Depths {
            active: self.active.len(),
            backoff: self.backoff.len(),
            unschedulable: self.unschedulable.len(),
            gated: self.gated,
        }
    }

    fn enter_after_backoff(&mut self, uid: &Arc<str>, event: &'static str, now: Duration) -> bool {
        let Some(queued) = self.pods.get_mut(uid) else { return false };
        if queued.backoff_until <= now {
            return self.enter_ready(uid, event, now);
        }
        metrics().incoming("backoff", event);
        queued.place = Place::Backoff { error: false };
        self.backoff.insert((queued.backoff_until, queued.sequence, Arc::clone(uid)));
        true
    }

    fn enter_ready(&mut self, uid: &Arc<str>, event: &'static str, now: Duration) -> bool {
        let Some(queued) = self.pods.get_mut(uid) else { return false };
        queued.since = now;
        let gates = queued.info.spec().scheduling_gates.as_ref().is_some_and(|gates| !gates.is_empty());
        let profile = self.profiles.get(queued.profile);
        if gates && profile.is_some_and(|profile| profile.enabled(Point::PreEnqueue, Plugin::SchedulingGates)) {
            queued.place = Place::Gated;
            metrics().incoming("gated", event);
            self.gated += 1;
            return false;
        }
        queued.place = Place::Active;
        metrics().incoming("active", event);
        self.active.insert(active_key(queued))
    }

    /// Takes the pod from where it is.
    fn leave(&mut self, uid: &str) {
        let Some(queued) = self.pods.get_mut(uid) else { return };
        match std::mem::replace(&mut queued.place, Place::InFlight) {
            Place::Active => {
                self.active.remove(&active_key(queued));
            }
            Place::Backoff { .. } => {
                self.backoff.remove(&(queued.backoff_until, queued.sequence, Arc::clone(&queued.info.uid)));
            }
            Place::Unschedulable { group, has_victims } => {
                self.unschedulable.remove(&(queued.since, queued.sequence, Arc::clone(&queued.info.uid)));
                if let Some(members) = self.groups.get_mut(&group) {
                    if let Some(profile) = self.profiles.get(queued.profile) {
                        count_unschedulable(members.plugins, profile, -1);
                    }
                    let set = if has_victims { &mut members.preemptors } else { &mut members.uids };
                    set.remove(uid);
                    if members.uids.is_empty() && members.preemptors.is_empty() {
                        self.groups.remove(&group);
                    }
                }
                for victim in self.victims.remove(uid).into_iter().flatten() {
                    if let Some(preemptors) = self.preemptors.get_mut(&victim) {
                        preemptors.retain(|preemptor| **preemptor != *uid);
                        if preemptors.is_empty() {
                            self.preemptors.remove(&victim);
                        }
                    }
                }
            }
            Place::Gated => self.gated -= 1,
            Place::InFlight => {}
        }
    }
}

fn count_unschedulable(plugins: PluginSet, profile: &Profile, change: i64) {
    plugins.iter().for_each(|plugin| metrics().unschedulable(plugin.name(), &profile.scheduler_name, change));
}

fn active_key(queued: &Queued) -> ActiveKey {
    (Reverse(queued.info.priority), queued.since, queued.sequence, Arc::clone(&queued.info.uid))
}

/// Whether a change of a waiting pod may make it schedulable. Status and annotations do not.
fn matters<'a>(old: &'a PodInfo, new: &'a PodInfo) -> bool {
    let labels = |info: &'a PodInfo| info.labels().filter(|labels| !labels.is_empty());
    labels(old) != labels(new) || old.pod.spec != new.pod.spec
}

/// All that hints look at.
fn group_key(info: &PodInfo, plugins: PluginSet) -> String {
    let spec = info.spec();
    let mut key = String::new();
    // Writing to a string does not fail.
    let _ = write!(key, "{plugins:?}|{}|{}|{:?}", info.priority, info.namespace(), info.labels());
    let _ = write!(key, "|{:?}|{:?}", info.requests, info.ports);
    let _ = write!(key, "|{:?}|{:?}|{:?}", spec.node_name, spec.node_selector, spec.tolerations);
    let _ = write!(key, "|{:?}|{:?}", spec.affinity, spec.topology_spread_constraints);
    for volume in spec.volumes.iter().flatten() {
        if let Some(claim) = &volume.persistent_volume_claim {
            let _ = write!(key, "|{:?}", claim.claim_name);
        }
        if volume.ephemeral.is_some() {
            // Its claim is named after the pod.
            let _ = write!(key, "|{}-{}", info.key.name, volume.name);
        }
    }
    key
}
