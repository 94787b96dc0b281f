//! Runs the checks of a level and version over a pod.
//!
//! Behaves as `pod-security-admission/policy/registry.go` and `checks.go`, v1.36.

use rkube_api::k8s::core::v1::PodSpec;
use rkube_api::meta::pkg::apis::meta::v1::ObjectMeta;

use super::policy::{Level, LevelVersion, Version};
use super::{baseline, restricted};

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Violation {
    pub(super) reason: String,
    pub(super) detail: String,
}

impl Violation {
    pub(super) fn new(reason: impl Into<String>, detail: impl Into<String>) -> Option<Self> {
        Some(Self { reason: reason.into(), detail: detail.into() })
    }
}

pub(super) type CheckFn = fn(&ObjectMeta, &PodSpec) -> Option<Violation>;

/// One rule of the standard. Its forms apply from their minor version up to the next form's.
pub(super) struct Check {
    pub(super) id: &'static str,
    pub(super) forms: &'static [(u32, CheckFn)],
    /// The baseline check this one replaces at the restricted level.
    pub(super) overrides: Option<&'static str>,
}

impl Check {
    fn form(&self, version: Version) -> Option<CheckFn> {
        let applies = |minimum: u32| match version {
            Version::Latest => true,
            Version::Minor(minor) => minimum <= minor,
        };
        self.forms.iter().rev().find(|(minimum, _)| applies(*minimum)).map(|(_, check)| *check)
    }
}

/// Everything a pod violates, in the order upstream lists it.
pub(super) fn evaluate(standard: LevelVersion, metadata: &ObjectMeta, spec: &PodSpec) -> Vec<Violation> {
    if standard.level == Level::Privileged {
        return Vec::new();
    }
    let strict: &[Check] = if standard.level == Level::Restricted { restricted::CHECKS } else { &[] };
    let is_overridden =
        |id: &str| strict.iter().any(|check| check.overrides == Some(id) && check.form(standard.version).is_some());
    baseline::CHECKS
        .iter()
        .filter(|check| !is_overridden(check.id))
        .chain(strict)
        .filter_map(|check| check.form(standard.version))
        .filter_map(|check| check(metadata, spec))
        .collect()
}

/// `reason (detail), reason`
pub(super) fn details(violations: &[Violation]) -> String {
    let text = |violation: &Violation| match violation.detail.as_str() {
        "" => violation.reason.clone(),
        detail => format!("{} ({detail})", violation.reason),
    };
    violations.iter().map(text).collect::<Vec<_>>().join(", ")
}

pub(super) fn reasons(violations: &[Violation]) -> String {
    violations.iter().map(|violation| violation.reason.as_str()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_are_sorted_as_messages_list_them_and_overrides_exist() {
        for checks in [baseline::CHECKS, restricted::CHECKS] {
            assert!(checks.is_sorted_by_key(|check| check.id));
            assert!(checks.iter().all(|check| check.forms.is_sorted_by_key(|(minimum, _)| *minimum)));
        }
        for id in restricted::CHECKS.iter().filter_map(|check| check.overrides) {
            assert!(baseline::CHECKS.iter().any(|check| check.id == id), "{id}");
        }
    }
}
