//! Numbers that may be given in percent.
//!
//! Behaves as ValidatePositiveIntOrPercent of pkg/apis/apps/validation/validation.go, v1.36.

use std::borrow::Borrow;

use rkube_api::meta::pkg::util::intstr::IntOrString;
use rkube_apimachinery::field::{ErrorList, Path};
use rkube_apimachinery::names;
use serde_json::Value;

use super::report::Report;

pub(crate) fn shown(value: &IntOrString) -> Value {
    match value {
        IntOrString::Int(number) => Value::from(*number),
        IntOrString::String(text) => Value::from(text.as_str()),
    }
}

pub(crate) fn validate_positive(value: &IntOrString, path: impl Borrow<Path>, errors: &mut ErrorList) {
    match value {
        IntOrString::Int(number) => errors.not_negative(path, *number),
        IntOrString::String(text) => errors.invalid_each(path, text, names::is_valid_percent(text)),
    }
}

/// The number of percent, if it is one.
fn percent(value: &IntOrString) -> Option<i64> {
    match value {
        IntOrString::String(text) if names::is_valid_percent(text).is_empty() => text.strip_suffix('%')?.parse().ok(),
        _ => None,
    }
}

/// The number, or the number of percent; zero for anything else.
pub(crate) fn number(value: &IntOrString) -> i64 {
    match value {
        IntOrString::Int(number) => i64::from(*number),
        IntOrString::String(text) => percent(value).or_else(|| text.parse().ok()).unwrap_or(0),
    }
}

pub(crate) fn validate_at_most_100_percent(value: &IntOrString, path: impl Borrow<Path>, errors: &mut ErrorList) {
    if percent(value).is_some_and(|percent| percent > 100) {
        errors.invalid(path, shown(value), "must not be greater than 100%");
    }
}
