//! `Event` of the core group and of events.k8s.io: the same fields under different names.
//!
//! Behaves as pkg/apis/events/v1/conversion.go and pkg/apis/core/v1/conversion.go, v1.36.

use serde_json::{Map, Value};

use super::rename;

/// core/v1 name, events.k8s.io/v1 name.
const NAMES: [(&str, &str); 7] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

pub(super) fn to_events(event: &mut Map<String, Value>) {
    for (core, events) in NAMES {
        rename(event, core, events);
    }
    for name in ["reportingController", "reportingInstance"] {
        if event.get(name).and_then(Value::as_str) == Some("") {
            event.remove(name);
        }
    }
    if let Some(Value::Object(series)) = event.get_mut("series") {
        // Both are always written here and omitted when empty there.
        series.entry("count").or_insert(Value::from(0));
        series.entry("lastObservedTime").or_insert(Value::Null);
    }
}

/// Fields that core/v1 writes also when they are empty are left to encoding: an applied configuration must not
/// seem to set them.
pub(super) fn to_core(event: &mut Map<String, Value>) {
    for (core, events) in NAMES {
        rename(event, events, core);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::convert::convert;

    #[test]
    fn names_change_and_come_back() {
        let core = json!({
            "apiVersion": "v1", "kind": "Event", "metadata": {"name": "e", "namespace": "n"},
            "involvedObject": {"kind": "Pod", "name": "p"}, "message": "m", "reason": "r", "type": "Normal",
            "source": {"component": "c"}, "firstTimestamp": null, "lastTimestamp": null, "count": 2,
            "eventTime": null, "reportingComponent": "c", "reportingInstance": "",
        });
        let events = convert(core.clone(), "events.k8s.io", "v1");
        assert_eq!(
            events,
            json!({
                "apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "e", "namespace": "n"},
                "regarding": {"kind": "Pod", "name": "p"}, "note": "m", "reason": "r", "type": "Normal",
                "deprecatedSource": {"component": "c"}, "deprecatedFirstTimestamp": null,
                "deprecatedLastTimestamp": null, "deprecatedCount": 2, "eventTime": null, "reportingController": "c",
            })
        );
        let mut back = core;
        back.as_object_mut().map(|members| members.remove("reportingInstance"));
        assert_eq!(convert(events, "", "v1"), back);
    }
}
