//! Percentages of replica counts, and zeros that the API does not write.

use rkube_api::meta::pkg::util::intstr::IntOrString;
use rkube_apimachinery::int_or_string::{self, Rounding};

/// A count, or a percentage of `total`; 0 for what is neither.
pub(crate) fn scaled(value: Option<&IntOrString>, total: i32, rounding: Rounding) -> i32 {
    let value = match value {
        None => return 0,
        Some(IntOrString::Int(count)) => return *count,
        Some(IntOrString::String(text)) => int_or_string::IntOrString::parse(text),
    };
    value.scaled(total.into(), rounding).ok().and_then(|count| i32::try_from(count).ok()).unwrap_or(0)
}

/// Go's `omitempty`: a zero count is absent.
pub(crate) fn nonzero<T: Default + PartialEq>(count: T) -> Option<T> {
    (count != T::default()).then_some(count)
}

/// Go's `omitempty`: an empty list is absent.
pub(crate) fn nonempty<T>(list: Vec<T>) -> Option<Vec<T>> {
    (!list.is_empty()).then_some(list)
}

pub(crate) fn count(length: usize) -> i32 {
    i32::try_from(length).unwrap_or(i32::MAX)
}
