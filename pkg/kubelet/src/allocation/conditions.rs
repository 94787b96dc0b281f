//! What is told of a pod's resize: that it waits, that it is under way, what went wrong. Pure.
//!
//! Behaves as the resize conditions in pkg/kubelet/status/status_manager.go, v1.36.
//!
//! Differs from upstream: no `lastProbeTime`, which would have every sync of a pod under way write its status.

use jiff::Timestamp;
use rkube_api::k8s::core::v1::{PodCondition, PodStatus};
use rkube_api::meta::pkg::apis::meta::v1::Time;

pub const PENDING: &str = "PodResizePending";
pub const IN_PROGRESS: &str = "PodResizeInProgress";

#[derive(Clone, Debug, PartialEq, Eq)]
struct Told {
    reason: String,
    message: String,
    generation: Option<i64>,
    since: Timestamp,
}

impl Told {
    fn condition(&self, kind: &str) -> PodCondition {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        PodCondition {
            type_: kind.to_owned(),
            status: "True".to_owned(),
            reason: some(&self.reason),
            message: some(&self.message),
            observed_generation: self.generation,
            last_transition_time: Some(Time(self.since)),
            ..PodCondition::default()
        }
    }
}

/// A slot's next content: its time changes with its reason.
fn next(before: Option<&Told>, reason: &str, message: &str, generation: Option<i64>, now: Timestamp) -> Told {
    let since = before.filter(|before| before.reason == reason).map_or(now, |before| before.since);
    Told { reason: reason.to_owned(), message: message.to_owned(), generation, since }
}

/// The conditions of one pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResizeConditions {
    pending: Option<Told>,
    in_progress: Option<Told>,
}

impl ResizeConditions {
    /// As the kubelet before this one left them.
    pub fn of(status: &PodStatus) -> Self {
        let told = |kind: &str| {
            let condition = status.conditions.iter().flatten().find(|condition| condition.type_ == kind)?;
            Some(Told {
                reason: condition.reason.clone().unwrap_or_default(),
                message: condition.message.clone().unwrap_or_default(),
                generation: condition.observed_generation,
                since: condition.last_transition_time.as_ref()?.0,
            })
        };
        Self { pending: told(PENDING), in_progress: told(IN_PROGRESS) }
    }

    /// There is no room for what is asked. Returns whether that is news.
    pub fn defer(&mut self, message: &str, generation: Option<i64>, now: Timestamp) -> bool {
        const REASON: &str = "Deferred";
        let told = next(self.pending.as_ref(), REASON, message, generation, now);
        let before = self.pending.replace(told);
        before.is_none_or(|before| before.reason != REASON || before.generation != generation)
    }

    pub fn clear_pending(&mut self) {
        self.pending = None;
    }

    /// What is asked was given: errors of what was asked before are past.
    pub fn begin(&mut self, generation: Option<i64>, now: Timestamp) {
        self.pending = None;
        self.in_progress = Some(next(None, "", "", generation, now));
    }

    /// Containers do not have yet what was given. An error that was told stays until it is over.
    pub fn go_on(&mut self, generation: Option<i64>, now: Timestamp) {
        self.in_progress.get_or_insert_with(|| next(None, "", "", generation, now));
    }

    /// It could not be carried out. Returns the generation it is about, if that is news.
    pub fn fail(&mut self, message: &str, generation: Option<i64>, now: Timestamp) -> Option<Option<i64>> {
        let generation = self.in_progress.as_ref().map_or(generation, |before| before.generation);
        let told = next(self.in_progress.as_ref(), "Error", message, generation, now);
        let is_news = self.in_progress.as_ref() != Some(&told);
        self.in_progress = Some(told);
        is_news.then_some(generation)
    }

    /// All have what was given. Returns the generation that was under way.
    pub fn complete(&mut self) -> Option<Option<i64>> {
        self.in_progress.take().map(|told| told.generation)
    }

    pub fn deferred_since(&self) -> Option<Timestamp> {
        self.pending.as_ref().map(|told| told.since)
    }

    pub fn list(&self) -> Vec<PodCondition> {
        let pending = self.pending.iter().map(|told| told.condition(PENDING));
        pending.chain(self.in_progress.iter().map(|told| told.condition(IN_PROGRESS))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(told: &ResizeConditions) -> String {
        let of = |condition: &PodCondition| {
            let text = |text: &Option<String>| text.clone().unwrap_or_default();
            format!(
                "{}({} {} {} since {})",
                condition.type_.trim_start_matches("PodResize"),
                text(&condition.reason),
                text(&condition.message),
                condition.observed_generation.unwrap_or_default(),
                condition.last_transition_time.as_ref().unwrap().0.as_second()
            )
        };
        told.list().iter().map(of).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_resize_is_deferred_begun_failed_and_completed() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let mut told = ResizeConditions::default();
        assert!(told.defer("no room", Some(2), at(1)));
        assert!(!told.defer("less room", Some(2), at(2)), "the same, in other words");
        assert_eq!(text(&told), "Pending(Deferred less room 2 since 1)");
        assert!(told.defer("no room", Some(3), at(3)));
        assert_eq!(told.deferred_since(), Some(at(1)));

        told.begin(Some(3), at(4));
        told.go_on(Some(4), at(5));
        assert_eq!(text(&told), "InProgress(  3 since 4)");
        assert_eq!(told.fail("EBUSY", Some(4), at(6)), Some(Some(3)));
        assert_eq!(told.fail("EBUSY", Some(4), at(7)), None);
        told.go_on(Some(4), at(8));
        assert!(told.defer("no room", Some(4), at(9)));
        assert_eq!(text(&told), "Pending(Deferred no room 4 since 9) InProgress(Error EBUSY 3 since 6)");

        let status = PodStatus { conditions: Some(told.list()), ..PodStatus::default() };
        let mut again = ResizeConditions::of(&status);
        assert_eq!(again, told);
        again.clear_pending();
        assert_eq!((again.complete(), again.complete()), (Some(Some(3)), None));
        assert_eq!(again.list(), []);
    }
}
