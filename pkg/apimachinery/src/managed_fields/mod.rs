//! Server-side apply and field ownership.
//!
//! In: the live object, the object a client sent (or the configuration it applies), its type in the schema
//! table, and who writes. Out: the object to store with `metadata.managedFields` in place, or a 409 that
//! names who owns what.
//!
//! Invariant: applying the same configuration again changes nothing, not even a time.
//! Invariant: a field nobody owns any more goes when the last manager that applied it stops applying it; a
//! field set by an update stays.
//! Invariant: every write leaves at most [`MAX_UPDATE_MANAGERS`] update managers.
//! Behaves as apimachinery/pkg/util/managedfields, v1.36, over structured-merge-diff v6.

pub mod encode;
mod entries;
mod last_applied;
#[cfg(test)]
mod properties;
mod scale;
mod set;
#[cfg(test)]
mod tests;
mod types;
mod updater;
mod walk;

use std::borrow::Cow;
use std::sync::OnceLock;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::gvk::GroupVersionKind;
use crate::meta::{Meta, MetaMut};
use crate::schema::{Presence, Scalar, SchemaSet, Shape, TypeId};
use crate::status::{ApiStatus, Reason};

pub use entries::{EntryError, MAX_UPDATE_MANAGERS, ManagerId, Operation};
pub use scale::{from_scale, to_scale};
pub use set::{Filter, PathElement, Set, path_text};
pub use updater::{OneVersion, ResetFields, VersionConverter};

use entries::{Conflict, Managers, Owned};
use types::Types;
use updater::{Failure, Typed, Updater};

/// Longest manager name; longer user agents are cut.
pub const MANAGER_MAX_LENGTH: usize = 128;

const BEFORE_FIRST_APPLY: &str = "before-first-apply";

/// Works out ownership for writes to one resource in one version.
pub struct FieldManager<'a> {
    pub schemas: &'a SchemaSet,
    /// The type of `gvk`.
    pub ty: TypeId,
    /// The kind as the request speaks it. Live and new objects are given in this version.
    pub gvk: &'a GroupVersionKind,
    /// Empty for the resource itself.
    pub subresource: &'a str,
    pub reset_fields: &'a ResetFields,
    pub converter: &'a dyn VersionConverter,
}

impl FieldManager<'_> {
    fn updater(&self) -> Updater<'_> {
        Updater { schemas: self.schemas, converter: self.converter, reset_fields: self.reset_fields }
    }

    fn typed<'v>(&'v self, value: &'v Value, api_version: &'v str) -> Typed<'v> {
        Typed { value: Cow::Borrowed(value), api_version: Cow::Borrowed(api_version), ty: self.ty }
    }

    /// Records a create, update or patch (other than apply) in `new`, whose own `managedFields` count only as
    /// far as a client may edit them. Never fails: a write is worth more than the record of who made it.
    pub fn update(&self, live: Option<&Value>, new: &mut Value, manager: &str, now: Timestamp) {
        if let Some(live) = live
            && self.changes_nothing(live, new)
        {
            new.set_managed_fields(live.managed_fields().to_vec());
            return;
        }
        let managers = self.managers_of_request(live, new);
        new.set_managed_fields(Vec::new());
        let exists = live.is_some_and(|live| !live.uid().is_empty());
        // An object that was stored without owners, or whose owners were just wiped, stays without.
        if managers.is_empty() && exists {
            return;
        }
        let zero;
        let live = match live {
            Some(live) => live,
            None => {
                zero = zero_object(self.schemas, self.ty);
                &zero
            }
        };
        if let Ok(managers) = self.updated(live, new, managers, manager, now) {
            new.set_managed_fields(entries::encode(&managers));
        }
    }

    /// Whether neither the object nor, as far as the client may, the record differs from what is stored. Many
    /// writes are so, and need not read the record.
    fn changes_nothing(&self, live: &Value, new: &Value) -> bool {
        let given = new.meta_field("managedFields");
        let same_record = !self.subresource.is_empty()
            || given.is_none_or(Value::is_null)
            || (!new.managed_fields().is_empty() && new.managed_fields() == live.managed_fields());
        same_record && equal_but_record(live, new)
    }

    fn managers_of_request(&self, live: Option<&Value>, new: &Value) -> Managers {
        let stored = || live.map(|live| entries::decode(live.managed_fields()).unwrap_or_default()).unwrap_or_default();
        if !self.subresource.is_empty() {
            return stored();
        }
        if let Some(Value::Array(entries)) = new.meta_field("managedFields") {
            match entries.as_slice() {
                [] => return Managers::new(),
                [Value::Object(only)] if only.is_empty() => return Managers::new(),
                _ => {}
            }
        }
        match entries::decode(new.managed_fields()) {
            Ok(managers) if !managers.is_empty() => managers,
            _ => stored(),
        }
    }

    fn updated(
        &self,
        live: &Value,
        new: &Value,
        mut managers: Managers,
        manager: &str,
        now: Timestamp,
    ) -> Result<Managers, Failure> {
        let api_version = self.gvk.api_version();
        let (live, new) = (self.typed(live, &api_version), self.typed(new, &api_version));
        let gained = self.updater().update(&live, &new, &mut managers)?.difference(stripped());
        if !gained.is_empty() {
            let id = ManagerId {
                manager: name_or_unknown(manager),
                operation: Operation::Update,
                api_version: api_version.clone(),
                subresource: self.subresource.to_owned(),
            };
            let owned = managers.entry(id).or_insert_with(|| Owned { set: Set::new(), api_version, time: None });
            owned.set = gained.union(std::mem::take(&mut owned.set));
            owned.time = Some(now);
        }
        entries::cap_update_managers(&mut managers);
        Ok(managers)
    }

    /// Merges `applied` into the live object. `None` when neither the object nor its owners change.
    ///
    /// Defaults are for the caller to set in the result. The object is in the version of `gvk`.
    pub fn apply(
        &self,
        live: Option<&Value>,
        applied: &Value,
        manager: &str,
        force: bool,
        now: Timestamp,
    ) -> Result<Option<Value>, ApiStatus> {
        let gvk = applied.gvk().unwrap_or_else(|| GroupVersionKind::new("", "", applied.kind()));
        if gvk != *self.gvk {
            return Err(ApiStatus::bad_request(format!("invalid object type: {gvk}")));
        }
        if applied.meta_field("managedFields").is_some_and(|entries| !entries.is_null()) {
            return Err(ApiStatus::bad_request("metadata.managedFields must be nil"));
        }
        let types = Types(self.schemas);
        let faults = types.validate(applied, types.get(self.ty), false);
        if !faults.is_empty() {
            let text = joined(&faults);
            let named = format!("{}/{}; {gvk}", applied.namespace(), applied.name());
            return Err(unexpected(format!("failed to create typed patch object ({named}): {text}")));
        }
        let stored = live.map_or(&[][..], |live| live.managed_fields());
        let mut managers =
            entries::decode(stored).map_err(|error| unexpected(format!("failed to decode managed fields: {error}")))?;
        if managers.is_empty()
            && let Some(live) = live
        {
            // Whatever is there belongs to nobody in particular, and so may not be overwritten unasked.
            let zero = zero_object(self.schemas, self.ty);
            let mut unmanaged = live.clone();
            unmanaged.set_managed_fields(Vec::new());
            managers = self
                .updated(&zero, &unmanaged, managers, BEFORE_FIRST_APPLY, now)
                .map_err(|failure| self.failed(failure))?;
        }
        let empty = Value::Object(Map::new());
        let base = live.unwrap_or(&empty);
        let (new, managers) = match self.applied(base, applied, managers.clone(), manager, force, now) {
            Err(Failure::Conflicts(conflicts)) if manager == last_applied::KUBECTL => {
                let conflicts = last_applied::without_own(self, base, conflicts);
                if !conflicts.is_empty() {
                    return Err(entries::conflict_status(&conflicts));
                }
                self.applied(base, applied, managers, manager, true, now)
            }
            done => done,
        }
        .map_err(|failure| self.failed(failure))?;
        let changed = new.is_some();
        let mut object = new.unwrap_or_else(|| base.clone());
        if manager == last_applied::KUBECTL {
            last_applied::refresh(&mut object, applied);
        }
        let encoded = entries::encode(&managers);
        if !changed && encoded == stored && live == Some(&object) {
            return Ok(None);
        }
        object.set_managed_fields(encoded);
        Ok(Some(object))
    }

    fn applied(
        &self,
        live: &Value,
        applied: &Value,
        mut managers: Managers,
        manager: &str,
        force: bool,
        now: Timestamp,
    ) -> Result<(Option<Value>, Managers), Failure> {
        let api_version = self.gvk.api_version();
        let id = ManagerId {
            manager: name_or_unknown(manager),
            operation: Operation::Apply,
            api_version: String::new(),
            subresource: self.subresource.to_owned(),
        };
        let (live, config) = (self.typed(live, &api_version), self.typed(applied, &api_version));
        let new = self.updater().apply(&live, &config, &mut managers, &id, force)?;
        if let Some(owned) = managers.get_mut(&id) {
            owned.set = std::mem::take(&mut owned.set).difference(stripped());
            if new.is_some() {
                owned.time = Some(now);
            }
            if owned.set.is_empty() {
                managers.remove(&id);
            }
        }
        Ok((new, managers))
    }

    fn failed(&self, failure: Failure) -> ApiStatus {
        match failure {
            Failure::Conflicts(conflicts) => entries::conflict_status(&conflicts),
            Failure::Status(status) => status,
        }
    }
}

/// Whether two objects are equal but for what the record of owners does not cover.
fn equal_but_record(one: &Value, other: &Value) -> bool {
    fn equal_without(one: &Map<String, Value>, other: &Map<String, Value>, ignored: &[&str]) -> bool {
        let relevant = |key: &&String| !ignored.contains(&key.as_str());
        one.keys().filter(relevant).count() == other.keys().filter(relevant).count()
            && one.iter().filter(|(key, _)| relevant(key)).all(|(key, value)| other.get(key) == Some(value))
    }
    match (one, other, one.metadata(), other.metadata()) {
        (Value::Object(one), Value::Object(other), Some(one_metadata), Some(other_metadata)) => {
            equal_without(one_metadata, other_metadata, &["managedFields", "resourceVersion"])
                && equal_without(one, other, &["metadata"])
        }
        _ => false,
    }
}

/// Says why entries a client or webhook wrote are no managed fields.
pub fn validate(entries: &[Value]) -> Result<(), EntryError> {
    entries::decode(entries).map(|_| ())
}

/// Gives the old times back to `new` if nothing but times in `managedFields` changed, so that the write is
/// found to change nothing.
pub fn keep_times_if_unchanged(old: &Value, new: &mut Value) {
    fn without_times(entries: &[Value]) -> Vec<Value> {
        let mut entries = entries.to_vec();
        for entry in &mut entries {
            if let Value::Object(entry) = entry {
                entry.remove("time");
            }
        }
        entries
    }
    let (before, after) = (old.managed_fields(), new.managed_fields());
    if before.is_empty() || before.len() != after.len() || before == after {
        return;
    }
    if without_times(before) != without_times(after) {
        return;
    }
    let kept = std::mem::take(new);
    let mut reverted = kept.clone();
    reverted.set_managed_fields(before.to_vec());
    *new = if reverted == *old { reverted } else { kept };
}

/// The manager of a request that names none: the user agent up to the first slash, without what cannot be
/// printed, cut to [`MANAGER_MAX_LENGTH`].
pub fn manager_from_user_agent(user_agent: &str) -> String {
    let product = user_agent.split('/').next().unwrap_or_default();
    let mut name = String::new();
    for character in product.chars().filter(|character| crate::quote::is_print(*character)) {
        if name.len() + character.len_utf8() > MANAGER_MAX_LENGTH {
            break;
        }
        name.push(character);
    }
    name
}

fn name_or_unknown(manager: &str) -> String {
    if manager.is_empty() { "unknown".to_owned() } else { manager.to_owned() }
}

/// Upstream has no reason for these and answers 500 with the text.
fn unexpected(message: String) -> ApiStatus {
    ApiStatus::failure(Reason::Unknown, message)
}

fn joined(faults: &[String]) -> String {
    match faults {
        [one] => one.clone(),
        many => format!("errors:\n  {}", many.join("\n  ")),
    }
}

/// Fields the server sets, which nobody owns.
fn stripped() -> &'static Set {
    static STRIPPED: OnceLock<Set> = OnceLock::new();
    STRIPPED.get_or_init(|| {
        Set::of_fields(&[
            &["apiVersion"],
            &["kind"],
            &["metadata"],
            &["metadata", "name"],
            &["metadata", "namespace"],
            &["metadata", "creationTimestamp"],
            &["metadata", "selfLink"],
            &["metadata", "uid"],
            &["metadata", "clusterName"],
            &["metadata", "generation"],
            &["metadata", "managedFields"],
            &["metadata", "resourceVersion"],
        ])
    })
}

/// What Go has before a built-in object is filled in: structs that are values are there, and empty. A field
/// inside them is new; they themselves are not. Custom resources begin with nothing.
fn zero_object(schemas: &SchemaSet, ty: TypeId) -> Value {
    if !schemas.is_builtin(ty) {
        return json!({"metadata": {}});
    }
    zero(schemas, ty, 0).unwrap_or_else(|| json!({}))
}

/// `None` for what Go leaves out. Structs that hold themselves by value cannot exist; the depth is a guard
/// against a wrong table.
fn zero(schemas: &SchemaSet, ty: TypeId, depth: usize) -> Option<Value> {
    let Shape::Object(object) = &schemas.get(ty).shape else { return None };
    let mut fields = Map::new();
    for field in object.fields.iter() {
        let value = match (field.presence, &schemas.get(field.ty).shape) {
            (Presence::Pointer, _) => None,
            (Presence::Nullable, _) => Some(Value::Null),
            (_, Shape::Object(_)) if depth < 16 => zero(schemas, field.ty, depth + 1),
            (Presence::Always, Shape::Scalar(Scalar::Bool)) => Some(Value::Bool(false)),
            (Presence::Always, Shape::Scalar(Scalar::Int32 | Scalar::Int64 | Scalar::Double)) => Some(Value::from(0)),
            (Presence::Always, Shape::Scalar(Scalar::String)) => Some(Value::from("")),
            (Presence::Always, _) => Some(Value::Null),
            _ => None,
        };
        if let Some(value) = value {
            fields.insert(field.json.to_string(), value);
        }
    }
    Some(Value::Object(fields))
}
