//! Events that repeat as series: the first is written, the second makes it a series, and those that follow are counted
//! and written when nothing came for a while, or now and then.
//!
//! Behaves as `k8s.io/client-go/tools/events/event_broadcaster.go`, v1.36.

use std::time::Duration;

use jiff::Timestamp;
use rkube_api::k8s::core::v1::{Event, EventSeries, ObjectReference};
use rkube_api::meta::pkg::apis::meta::v1::MicroTime;
use serde_json::{Value, json};

use super::Lru;

/// After so long without a repeat a series has ended. It is looked for as often.
const FINISH_AFTER: Duration = Duration::from_secs(360);
/// A series that goes on is written as often, so that it does not expire.
const REFRESH_AFTER: Duration = Duration::from_secs(1800);

/// The events that a repeat would be counted on.
#[derive(Default)]
pub(super) struct AllSeries {
    known: Lru<String, Option<Series>>,
    next_check: Option<Duration>,
}

struct Series {
    /// As it was first written, with the count of now.
    event: Event,
    seen: Duration,
    written: Duration,
}

impl AllSeries {
    /// When [`Self::check`] may have something.
    pub(super) fn next_check(&self) -> Option<Duration> {
        self.next_check
    }

    /// The event to write: a new one, or one that becomes a series.
    pub(super) fn note(&mut self, event: Event, now: Timestamp, monotonic: Duration) -> Option<Event> {
        self.next_check.get_or_insert(monotonic + FINISH_AFTER);
        let known = self.known.get_or_insert_with(key_of(&event), || None);
        let Some(series) = known else {
            *known = Some(Series { event: event.clone(), seen: monotonic, written: monotonic });
            return Some(event);
        };
        series.seen = monotonic;
        let count = series.event.series.as_ref().and_then(|series| series.count);
        series.event.series = Some(EventSeries {
            count: Some(count.map_or(2, |count| count.saturating_add(1))),
            last_observed_time: Some(MicroTime(now)),
        });
        if count.is_some() {
            return None;
        }
        series.written = monotonic;
        Some(series.event.clone())
    }

    /// Forgets what has ended. What is to be written of it, and of series that go on for long.
    pub(super) fn check(&mut self, monotonic: Duration) -> Vec<Event> {
        let mut due = Vec::new();
        self.known.retain(|series| {
            let Some(series) = series else { return false };
            let ended = monotonic.saturating_sub(series.seen) >= FINISH_AFTER;
            let stale = monotonic.saturating_sub(series.written) >= REFRESH_AFTER;
            if series.event.series.is_some() && (ended || stale) {
                series.written = monotonic;
                due.push(series.event.clone());
            }
            !ended
        });
        self.next_check = (!self.known.is_empty()).then_some(monotonic + FINISH_AFTER);
        due
    }
}

/// The change that counts repeats.
pub(super) fn series_patch(series: &EventSeries) -> Value {
    let last = series.last_observed_time.as_ref().map(|time| time.0.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string());
    json!({"series": {"count": series.count, "lastObservedTime": last}})
}

/// What repeats have in common, joined by a character that no name holds. The note is no part of it.
fn key_of(event: &Event) -> String {
    let reference = |object: Option<&ObjectReference>| {
        let part = |of: fn(&ObjectReference) -> &Option<String>| object.and_then(|object| of(object).as_deref());
        [
            part(|object| &object.kind),
            part(|object| &object.namespace),
            part(|object| &object.name),
            part(|object| &object.uid),
            part(|object| &object.resource_version),
            part(|object| &object.field_path),
        ]
        .map(Option::unwrap_or_default)
        .join("\n")
    };
    let own = [&event.type_, &event.action, &event.reason, &event.reporting_component, &event.reporting_instance];
    let own = own.map(|text| text.as_deref().unwrap_or_default()).join("\n");
    format!("{own}\n{}\n{}", reference(Some(&event.involved_object)), reference(event.related.as_ref()))
}
