//! core/v1 Event, which is also how events.k8s.io/v1 Events are stored.
//!
//! Behaves as pkg/apis/core/validation/events.go, v1.36.

use rkube_api::k8s::core::v1::{Event, EventSource};
use rkube_apimachinery::field::{ErrorList, Path};
use rkube_apimachinery::names;

use crate::common::meta::{validate_object_meta, validate_object_meta_update};
use crate::common::names::{dns_subdomain, validate_qualified_name};
use crate::common::report::{OptText, Report, immutable, shown};

const SHORT_TEXT_LENGTH_MAX: usize = 128;
const NOTE_LENGTH_MAX: usize = 1024;

pub fn set_defaults(event: &mut Event) {
    event.source.get_or_insert_default();
}

/// `by_core` says that the client spoke core/v1, which is read more loosely than events.k8s.io/v1.
pub fn validate(event: &Event, by_core: bool) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_legacy(event, by_core, &mut errors);
    if by_core {
        return errors;
    }
    validate_object_meta(&event.metadata, true, dns_subdomain, &Path::new("metadata"), &mut errors);
    validate_series(event, &mut errors);
    if event.event_time.is_none() {
        errors.required(Path::new("eventTime"), "");
    }
    let kind = event.type_.text();
    if !matches!(kind, "Normal" | "Warning") {
        errors.invalid(Path::new("type"), "", format!("has invalid value: {kind}"));
    }
    let source = event.source.as_ref().is_some_and(|source| *source != EventSource::default());
    for (field, set) in [
        ("firstTimestamp", event.first_timestamp.is_some()),
        ("lastTimestamp", event.last_timestamp.is_some()),
        ("count", event.count.unwrap_or(0) != 0),
        ("source", source),
    ] {
        if set {
            errors.invalid(Path::new(field), "", "needs to be unset");
        }
    }
    errors
}

pub fn validate_update(new: &Event, old: &Event, by_core: bool) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_legacy(new, by_core, &mut errors);
    if by_core {
        return errors;
    }
    validate_object_meta_update(&new.metadata, &old.metadata, &Path::new("metadata"), &mut errors);
    if new.series != old.series {
        validate_series(new, &mut errors);
    }
    immutable(&new.involved_object, &old.involved_object, Path::new("involvedObject"), &mut errors);
    immutable(&new.reason, &old.reason, Path::new("reason"), &mut errors);
    immutable(&new.message, &old.message, Path::new("message"), &mut errors);
    immutable(&new.source, &old.source, Path::new("source"), &mut errors);
    immutable(&new.first_timestamp, &old.first_timestamp, Path::new("firstTimestamp"), &mut errors);
    immutable(&new.last_timestamp, &old.last_timestamp, Path::new("lastTimestamp"), &mut errors);
    immutable(&new.count, &old.count, Path::new("count"), &mut errors);
    immutable(&new.reason, &old.reason, Path::new("reason"), &mut errors);
    immutable(&new.type_, &old.type_, Path::new("type"), &mut errors);
    let micros = |event: &Event| event.event_time.as_ref().map(|time| time.0.as_microsecond());
    if micros(new) != micros(old) {
        errors.invalid(Path::new("eventTime"), shown(&new.event_time), "field is immutable");
    }
    immutable(&new.action, &old.action, Path::new("action"), &mut errors);
    immutable(&new.related, &old.related, Path::new("related"), &mut errors);
    let (new_reporter, old_reporter) = (&new.reporting_component, &old.reporting_component);
    immutable(new_reporter, old_reporter, Path::new("reportingController"), &mut errors);
    immutable(&new.reporting_instance, &old.reporting_instance, Path::new("reportingInstance"), &mut errors);
    errors
}

fn validate_series(event: &Event, errors: &mut ErrorList) {
    let Some(series) = &event.series else { return };
    if series.count.unwrap_or(0) < 2 {
        errors.invalid(Path::new("series.count"), "", "should be at least 2");
    }
    if series.last_observed_time.is_none() {
        errors.required(Path::new("series.lastObservedTime"), "");
    }
}

fn validate_legacy(event: &Event, by_core: bool, errors: &mut ErrorList) {
    let namespace = event.metadata.namespace.text();
    let involved = event.involved_object.namespace.text();
    let mismatch = match (&event.event_time, involved) {
        (None, "") => !matches!(namespace, "" | "default"),
        (None, involved) => involved != namespace,
        (Some(_), "") => !matches!(namespace, "default" | "kube-system"),
        (Some(_), _) => false,
    };
    if mismatch {
        let path = Path::new("involvedObject").child("namespace");
        errors.invalid(path, involved, "does not match event.namespace");
    }
    if event.event_time.is_some() {
        let controller = event.reporting_component.text();
        let path = Path::new(if by_core { "reportingComponent" } else { "reportingController" });
        errors.not_empty(&path, controller);
        validate_qualified_name(controller, &path, errors);
        for (field, text) in [
            ("reportingInstance", event.reporting_instance.text()),
            ("action", event.action.text()),
            ("reason", event.reason.text()),
        ] {
            errors.not_empty(Path::new(field), text);
            validate_length(text, SHORT_TEXT_LENGTH_MAX, field, errors);
        }
        validate_length(event.message.text(), NOTE_LENGTH_MAX, "message", errors);
    }
    errors.invalid_each(Path::new("namespace"), namespace, names::is_dns1123_subdomain(namespace));
}

fn validate_length(text: &str, maximum: usize, field: &str, errors: &mut ErrorList) {
    if text.len() > maximum {
        errors.invalid(Path::new(field), "", format!("can have at most {maximum} characters"));
    }
}
