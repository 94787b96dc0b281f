//! `metadata.managedFields`: who owns which fields, as stored.
//!
//! Invariant: decoding what was encoded gives the same managers; encoding is ordered, so equal managers
//! give equal bytes.
//! Behaves as apimachinery/pkg/util/managedfields/internal/{managedfields,capmanagers,conflict}.go, v1.36.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Map, Value};

use crate::quote::quote;
use crate::status::{ApiStatus, StatusCause};
use crate::time;

use super::encode::{DecodeError, from_json, to_json};
use super::set::{PathElement, Set, path_text};

/// Update managers beyond this many share one entry.
pub const MAX_UPDATE_MANAGERS: usize = 10;
const ANCIENT: &str = "ancient-changes";

/// What tells entries apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ManagerId {
    pub manager: String,
    pub operation: Operation,
    /// Empty for Apply: a manager applies one configuration, of whatever version.
    pub api_version: String,
    pub subresource: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Operation {
    Apply,
    Update,
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Self::Apply => "Apply",
            Self::Update => "Update",
        }
    }
}

/// As conflicts name it: `"kubectl" with subresource "scale" using apps/v1`.
impl std::fmt::Display for ManagerId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", quote(&self.manager))?;
        if !self.subresource.is_empty() {
            write!(f, " with subresource {}", quote(&self.subresource))?;
        }
        if self.operation == Operation::Update {
            write!(f, " using {}", self.api_version)?;
        }
        Ok(())
    }
}

/// What one manager owns.
#[derive(Clone, Debug)]
pub(super) struct Owned {
    pub(super) set: Set,
    pub(super) api_version: String,
    pub(super) time: Option<Timestamp>,
}

pub(super) type Managers = BTreeMap<ManagerId, Owned>;

/// Why stored entries are no managed fields, in upstream's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    #[error("managed fields entry {0} is not an object")]
    NotAnObject(usize),
    #[error("operation must be `Apply` or `Update`")]
    Operation,
    #[error("apiVersion must not be empty")]
    ApiVersion,
    #[error("missing fieldsType in managed fields entry {0}")]
    MissingFieldsType(usize),
    #[error("invalid fieldsType {} in managed fields entry {index}", quote(.found))]
    FieldsType { found: String, index: usize },
    #[error("error decoding set: {0}")]
    Fields(DecodeError),
}

pub(super) fn decode(entries: &[Value]) -> Result<Managers, EntryError> {
    let mut managers = Managers::new();
    for (index, entry) in entries.iter().enumerate() {
        let entry = entry.as_object().ok_or(EntryError::NotAnObject(index))?;
        let text = |name: &str| entry.get(name).and_then(Value::as_str).unwrap_or_default();
        let operation = match text("operation") {
            "Apply" => Operation::Apply,
            "Update" => Operation::Update,
            _ => return Err(EntryError::Operation),
        };
        let api_version = text("apiVersion").to_owned();
        if api_version.is_empty() {
            return Err(EntryError::ApiVersion);
        }
        match text("fieldsType") {
            "FieldsV1" => {}
            "" => return Err(EntryError::MissingFieldsType(index)),
            other => return Err(EntryError::FieldsType { found: other.to_owned(), index }),
        }
        let set = from_json(entry.get("fieldsV1").unwrap_or(&Value::Null)).map_err(EntryError::Fields)?;
        let id = ManagerId {
            manager: text("manager").to_owned(),
            operation,
            api_version: if operation == Operation::Apply { String::new() } else { api_version.clone() },
            subresource: text("subresource").to_owned(),
        };
        managers.insert(id, Owned { set, api_version, time: time::parse(text("time")).ok() });
    }
    Ok(managers)
}

/// Sorted by operation, time, manager, version and subresource.
pub(super) fn encode(managers: &Managers) -> Vec<Value> {
    let mut sorted: Vec<(&ManagerId, &Owned)> = managers.iter().collect();
    sorted.sort_by(|(a, a_owned), (b, b_owned)| {
        let seconds = |owned: &Owned| owned.time.map_or(0, |time| time.as_second());
        (a.operation, seconds(a_owned), &a.manager, &a_owned.api_version, &a.subresource).cmp(&(
            b.operation,
            seconds(b_owned),
            &b.manager,
            &b_owned.api_version,
            &b.subresource,
        ))
    });
    sorted.into_iter().map(|(id, owned)| encode_entry(id, owned)).collect()
}

fn encode_entry(id: &ManagerId, owned: &Owned) -> Value {
    let mut entry = Map::new();
    let mut put = |name: &str, value: Value| entry.insert(name.to_owned(), value);
    if !id.manager.is_empty() {
        put("manager", Value::from(id.manager.as_str()));
    }
    put("operation", Value::from(id.operation.name()));
    put("apiVersion", Value::from(owned.api_version.as_str()));
    if let Some(time) = owned.time {
        put("time", Value::from(time::format(time)));
    }
    put("fieldsType", Value::from("FieldsV1"));
    put("fieldsV1", to_json(&owned.set));
    if !id.subresource.is_empty() {
        put("subresource", Value::from(id.subresource.as_str()));
    }
    Value::Object(entry)
}

/// Folds the oldest update managers of each version into one, until few enough are left.
pub(super) fn cap_update_managers(managers: &mut Managers) {
    let mut updaters: Vec<(i64, ManagerId)> = managers
        .iter()
        .filter(|(id, _)| id.operation == Operation::Update)
        .map(|(id, owned)| (owned.time.map_or(0, |time| time.as_second()), id.clone()))
        .collect();
    let mut count = updaters.len();
    updaters.sort();
    let mut first_of_version: BTreeMap<String, ManagerId> = BTreeMap::new();
    for (_, id) in updaters {
        if count <= MAX_UPDATE_MANAGERS {
            break;
        }
        let Some(version) = managers.get(&id).map(|owned| owned.api_version.clone()) else { continue };
        let Some(first) = first_of_version.get(&version) else {
            first_of_version.insert(version, id);
            continue;
        };
        let bucket = ManagerId {
            manager: ANCIENT.to_owned(),
            operation: Operation::Update,
            api_version: version,
            subresource: String::new(),
        };
        if !managers.contains_key(&bucket)
            && let Some(owned) = managers.remove(first)
        {
            managers.insert(bucket.clone(), owned);
        }
        let Some(owned) = managers.remove(&id) else { continue };
        if let Some(ancient) = managers.get_mut(&bucket) {
            ancient.set = std::mem::take(&mut ancient.set).union(owned.set);
            ancient.time = owned.time;
        } else {
            managers.insert(bucket, owned);
        }
        count -= 1;
    }
}

/// A field that an applied configuration would take from another manager.
#[derive(Clone, Debug)]
pub(super) struct Conflict {
    pub(super) manager: ManagerId,
    pub(super) path: Vec<PathElement>,
}

/// The 409 for conflicts, which come sorted by manager.
pub(super) fn conflict_status(conflicts: &[Conflict]) -> ApiStatus {
    let causes = conflicts
        .iter()
        .map(|conflict| StatusCause {
            reason: "FieldManagerConflict".to_owned(),
            message: format!("conflict with {}", conflict.manager),
            field: path_text(&conflict.path),
        })
        .collect();
    let message = match conflicts {
        [one] => format!("Apply failed with 1 conflict: conflict with {}: {}", one.manager, path_text(&one.path)),
        many => {
            let mut lines = Vec::with_capacity(many.len() + 1);
            let mut last = None;
            for conflict in many {
                if last != Some(&conflict.manager) {
                    lines.push(format!("conflicts with {}:", conflict.manager));
                    last = Some(&conflict.manager);
                }
                lines.push(format!("- {}", path_text(&conflict.path)));
            }
            format!("Apply failed with {} conflicts: {}", many.len(), lines.join("\n"))
        }
    };
    ApiStatus::apply_conflict(causes, message)
}
