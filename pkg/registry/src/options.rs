//! The options of each verb, as `metav1` has them, with their validation.
//!
//! Behaves as `apimachinery/pkg/apis/meta/v1/validation` and `.../internalversion/validation`, v1.36.

use rkube_apimachinery::field::{Error, ErrorList, Path};
use rkube_apimachinery::gvk::GroupKind;
use rkube_apimachinery::status::ApiStatus;
use serde::{Deserialize, Serialize};

const FIELD_MANAGER_BYTES_MAX: usize = 128;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GetOptions {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub resource_version: String,
}

/// For lists, watches and collections to delete.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ListOptions {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub label_selector: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub field_selector: String,
    #[serde(skip_serializing_if = "is_false")]
    pub watch: bool,
    #[serde(skip_serializing_if = "is_false")]
    pub allow_watch_bookmarks: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub resource_version: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub resource_version_match: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<i64>,
    #[serde(skip_serializing_if = "is_zero")]
    pub limit: i64,
    #[serde(rename = "continue", skip_serializing_if = "String::is_empty")]
    pub continue_token: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub send_initial_events: Option<bool>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CreateOptions {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dry_run: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub field_manager: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub field_validation: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct UpdateOptions {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dry_run: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub field_manager: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub field_validation: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PatchOptions {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dry_run: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub force: Option<bool>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub field_manager: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub field_validation: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DeleteOptions {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grace_period_seconds: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preconditions: Option<Preconditions>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub orphan_dependents: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub propagation_policy: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dry_run: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ignore_store_read_error_with_cluster_breaking_potential: Option<bool>,
}

/// What must hold of the stored object for an operation to happen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Preconditions {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource_version: Option<String>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_false(value: &bool) -> bool {
    !value
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(value: &i64) -> bool {
    *value == 0
}

impl ListOptions {
    /// A watch that names no version starts with the current objects, as if it had asked for them.
    pub fn default_initial_events(&mut self) {
        if self.send_initial_events.is_some() || !self.resource_version_match.is_empty() {
            return;
        }
        if self.watch && matches!(self.resource_version.as_str(), "" | "0") {
            self.send_initial_events = Some(true);
            self.resource_version_match = "NotOlderThan".to_owned();
        }
    }

    pub fn validate(&self) -> Result<(), ApiStatus> {
        let errors = if self.watch { self.watch_errors() } else { self.list_errors() };
        invalid("ListOptions", &errors)
    }

    fn list_errors(&self) -> ErrorList {
        let mut errors = ErrorList::new();
        let path = Path::new("resourceVersionMatch");
        let chosen = self.resource_version_match.as_str();
        if !chosen.is_empty() {
            if self.resource_version.is_empty() {
                let detail = "resourceVersionMatch is forbidden unless resourceVersion is provided";
                errors.push(Error::forbidden(&path, detail));
            }
            if !self.continue_token.is_empty() {
                errors.push(Error::forbidden(&path, "resourceVersionMatch is forbidden when continue is provided"));
            }
            if !matches!(chosen, "Exact" | "NotOlderThan") {
                errors.push(Error::not_supported(&path, chosen, &["Exact", "NotOlderThan", ""]));
            }
            if chosen == "Exact" && self.resource_version == "0" {
                let detail = "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"";
                errors.push(Error::forbidden(&path, detail));
            }
        }
        if self.send_initial_events.is_some() {
            let path = Path::new("sendInitialEvents");
            errors.push(Error::forbidden(&path, "sendInitialEvents is forbidden for list"));
        }
        errors
    }

    fn watch_errors(&self) -> ErrorList {
        let mut errors = ErrorList::new();
        let path = Path::new("resourceVersionMatch");
        let chosen = self.resource_version_match.as_str();
        if self.send_initial_events.is_some() && chosen != "NotOlderThan" {
            let detail = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
            errors.push(Error::forbidden(&path, detail));
        }
        if chosen.is_empty() {
            return errors;
        }
        if self.send_initial_events.is_none() {
            let detail = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
            errors.push(Error::forbidden(&path, detail));
        }
        if chosen != "NotOlderThan" {
            errors.push(Error::not_supported(&path, chosen, &["NotOlderThan"]));
        }
        if !self.continue_token.is_empty() {
            errors.push(Error::forbidden(&path, "resourceVersionMatch is forbidden when continue is provided"));
        }
        errors
    }
}

impl CreateOptions {
    pub fn validate(&self) -> Result<(), ApiStatus> {
        invalid("CreateOptions", &write_errors(&self.field_manager, &self.dry_run, &self.field_validation))
    }

    pub fn is_dry_run(&self) -> bool {
        !self.dry_run.is_empty()
    }
}

impl UpdateOptions {
    pub fn validate(&self) -> Result<(), ApiStatus> {
        invalid("UpdateOptions", &write_errors(&self.field_manager, &self.dry_run, &self.field_validation))
    }

    pub fn is_dry_run(&self) -> bool {
        !self.dry_run.is_empty()
    }
}

impl PatchOptions {
    pub fn validate(&self, apply: bool) -> Result<(), ApiStatus> {
        let mut errors = ErrorList::new();
        if apply {
            if self.field_manager.is_empty() {
                errors.push(Error::required(&Path::new("fieldManager"), "is required for apply patch"));
            }
        } else if self.force.is_some() {
            errors.push(Error::forbidden(&Path::new("force"), "may not be specified for non-apply patch"));
        }
        errors.extend(write_errors(&self.field_manager, &self.dry_run, &self.field_validation));
        invalid("PatchOptions", &errors)
    }

    pub fn is_dry_run(&self) -> bool {
        !self.dry_run.is_empty()
    }
}

impl DeleteOptions {
    pub fn validate(&self) -> Result<(), ApiStatus> {
        let mut errors = ErrorList::new();
        let path = Path::new("propagationPolicy");
        if let Some(policy) = &self.propagation_policy {
            if self.orphan_dependents.is_some() {
                let detail = "orphanDependents and deletionPropagation cannot be both set";
                errors.push(Error::invalid(&path, policy.as_str(), detail));
            }
            if !matches!(policy.as_str(), "Foreground" | "Background" | "Orphan") {
                errors.push(Error::not_supported(
                    &path,
                    policy.as_str(),
                    &["Foreground", "Background", "Orphan", "nil"],
                ));
            }
        }
        errors.extend(dry_run_errors(&self.dry_run));
        if self.ignore_store_read_error_with_cluster_breaking_potential == Some(true) {
            let path = Path::new("ignoreStoreReadErrorWithClusterBreakingPotential");
            let excluded = [
                (!self.dry_run.is_empty(), ".dryRun"),
                (self.propagation_policy.is_some(), ".propagationPolicy"),
                (self.orphan_dependents.is_some(), ".orphanDependents"),
                (self.grace_period_seconds.is_some(), ".gracePeriodSeconds"),
                (self.preconditions.is_some(), ".preconditions"),
            ];
            for (_, name) in excluded.iter().filter(|(set, _)| *set) {
                errors.push(Error::invalid(&path, true, format!("cannot be set together with {name}")));
            }
        }
        invalid("DeleteOptions", &errors)
    }

    pub fn is_dry_run(&self) -> bool {
        !self.dry_run.is_empty()
    }

    pub fn uid_precondition(&self) -> Option<&str> {
        self.preconditions.as_ref().and_then(|preconditions| preconditions.uid.as_deref())
    }
}

fn write_errors(field_manager: &str, dry_run: &[String], field_validation: &str) -> ErrorList {
    let mut errors = ErrorList::new();
    let path = Path::new("fieldManager");
    if field_manager.len() > FIELD_MANAGER_BYTES_MAX {
        errors.push(Error::too_long(&path, FIELD_MANAGER_BYTES_MAX as i64));
    }
    for (position, character) in field_manager.char_indices() {
        if character.is_control() || (character.is_whitespace() && character != ' ') {
            let detail = format!("invalid character U+{:04X} (at position {position})", u32::from(character));
            errors.push(Error::invalid(&path, field_manager, detail));
        }
    }
    errors.extend(dry_run_errors(dry_run));
    if !matches!(field_validation, "" | "Ignore" | "Warn" | "Strict") {
        let path = Path::new("fieldValidation");
        errors.push(Error::not_supported(&path, field_validation, &["", "Ignore", "Strict", "Warn"]));
    }
    errors
}

fn dry_run_errors(dry_run: &[String]) -> ErrorList {
    if dry_run.iter().all(|value| value == "All") {
        return ErrorList::new();
    }
    vec![Error::not_supported(&Path::new("dryRun"), dry_run.to_vec(), &["All"])]
}

fn invalid(kind: &str, errors: &[Error]) -> Result<(), ApiStatus> {
    if errors.is_empty() { Ok(()) } else { Err(ApiStatus::invalid(&GroupKind::new("meta.k8s.io", kind), "", errors)) }
}
