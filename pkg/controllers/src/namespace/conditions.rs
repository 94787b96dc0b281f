//! The conditions of a namespace that is being deleted.
//!
//! Behaves as pkg/controller/namespace/deletion/status_condition_utils.go, v1.36.

use std::collections::BTreeMap;

use jiff::Timestamp;
use rkube_api::k8s::core::v1::NamespaceCondition;
use rkube_api::meta::pkg::apis::meta::v1::Time;
use rkube_api::resource::Resource;
use rkube_apimachinery::time::whole_seconds;

/// Type, reason and message when all is well; in the order they are written.
const FINE: [(&str, &str, &str); 5] = [
    ("NamespaceDeletionDiscoveryFailure", "ResourcesDiscovered", "All resources successfully discovered"),
    ("NamespaceDeletionGroupVersionParsingFailure", "ParsedGroupVersions", "All legacy kube types successfully parsed"),
    (
        "NamespaceDeletionContentFailure",
        "ContentDeleted",
        "All content successfully deleted, may be waiting on finalization",
    ),
    ("NamespaceContentRemaining", "ContentRemoved", "All content successfully removed"),
    ("NamespaceFinalizersRemaining", "ContentHasNoFinalizers", "All content-preserving finalizers finished"),
];

/// What one attempt to empty a namespace found.
#[derive(Default)]
pub(super) struct Report {
    discovery_failure: Option<String>,
    content_failures: Vec<String>,
    /// `pods. has 2 resource instances`.
    remaining: Vec<String>,
    finalizers: BTreeMap<String, usize>,
}

impl Report {
    pub(super) fn discovery_failed(&mut self, text: String) {
        self.discovery_failure = Some(text);
    }

    pub(super) fn content_failed(&mut self, text: String) {
        self.content_failures.push(text);
    }

    pub(super) fn remains(&mut self, resource: &Resource, count: usize, finalizers: &BTreeMap<String, usize>) {
        self.remaining.push(format!("{}.{} has {count} resource instances", resource.plural, resource.group));
        for (finalizer, count) in finalizers {
            *self.finalizers.entry(finalizer.clone()).or_default() += count;
        }
    }

    pub(super) fn has_failures(&self) -> bool {
        self.discovery_failure.is_some() || !self.content_failures.is_empty()
    }

    pub(super) fn failures(&self) -> String {
        let all: Vec<&str> = self.discovery_failure.iter().chain(&self.content_failures).map(String::as_str).collect();
        all.join(", ")
    }

    /// Reason and message of a condition that is true.
    fn trouble(&self, condition_type: &str) -> Option<(&'static str, String)> {
        let sorted = |texts: &[String]| {
            let mut texts = texts.to_vec();
            texts.sort();
            texts.join(", ")
        };
        match condition_type {
            "NamespaceDeletionDiscoveryFailure" => Some(("DiscoveryFailed", self.discovery_failure.clone()?)),
            "NamespaceDeletionContentFailure" if !self.content_failures.is_empty() => {
                let (count, texts) = (self.content_failures.len(), sorted(&self.content_failures));
                let text = format!("Failed to delete all resource types, {count} remaining: {texts}");
                Some(("ContentDeletionFailed", text))
            }
            "NamespaceContentRemaining" if !self.remaining.is_empty() => {
                let text = format!("Some resources are remaining: {}", sorted(&self.remaining));
                Some(("SomeResourcesRemain", text))
            }
            "NamespaceFinalizersRemaining" if !self.finalizers.is_empty() => {
                let each = self.finalizers.iter().map(|(name, count)| format!("{name} in {count} resource instances"));
                let each: Vec<String> = each.collect();
                let text = format!("Some content in the namespace has finalizers remaining: {}", each.join(", "));
                Some(("SomeFinalizersRemain", text))
            }
            _ => None,
        }
    }

    /// The conditions after this attempt; those of others stay, times move with the status.
    pub(super) fn conditions(&self, old: &[NamespaceCondition], now: Timestamp) -> Vec<NamespaceCondition> {
        let mut conditions = old.to_vec();
        for (condition_type, reason, message) in FINE {
            let (status, reason, message) = match self.trouble(condition_type) {
                Some((reason, message)) => ("True", reason, message),
                None => ("False", reason, message.to_owned()),
            };
            let wanted = NamespaceCondition {
                type_: condition_type.to_owned(),
                status: status.to_owned(),
                last_transition_time: Some(Time(whole_seconds(now))),
                reason: Some(reason.to_owned()),
                message: Some(message),
            };
            match conditions.iter_mut().find(|condition| condition.type_ == condition_type) {
                None => conditions.push(wanted),
                Some(known) if known.status == wanted.status => {
                    known.reason = wanted.reason;
                    known.message = wanted.message;
                }
                Some(known) => *known = wanted,
            }
        }
        conditions
    }
}
