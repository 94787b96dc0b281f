//! Ownership when an object changes: who loses, who gains, who objects.
//!
//! Behaves as structured-merge-diff v6, merge/update.go. Versions no longer served are forgotten with
//! whoever owned fields in them.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde_json::Value;

use crate::schema::{SchemaSet, TypeId};
use crate::status::ApiStatus;

use super::entries::{Conflict, ManagerId, Managers, Owned};
use super::set::{Filter, Set};
use super::types::{Type, Types};
use super::walk::Comparison;

/// An object in one version.
#[derive(Clone)]
pub(super) struct Typed<'a> {
    pub(super) value: Cow<'a, Value>,
    pub(super) api_version: Cow<'a, str>,
    pub(super) ty: TypeId,
}

/// Turns objects of a kind into its other versions.
pub trait VersionConverter: Sync {
    /// `object` in `api_version` with its type, or `None` if that version is not served.
    fn convert(&self, object: &Value, api_version: &str) -> Result<Option<(Value, TypeId)>, ApiStatus>;
}

/// For kinds with one version.
#[derive(Clone, Copy, Debug, Default)]
pub struct OneVersion;

impl VersionConverter for OneVersion {
    fn convert(&self, _: &Value, _: &str) -> Result<Option<(Value, TypeId)>, ApiStatus> {
        Ok(None)
    }
}

/// Which fields writes cannot own, by API version.
pub type ResetFields = BTreeMap<String, Filter>;

/// Why ownership could not be worked out.
pub(super) enum Failure {
    Conflicts(Vec<Conflict>),
    Status(ApiStatus),
}

impl From<ApiStatus> for Failure {
    fn from(status: ApiStatus) -> Self {
        Self::Status(status)
    }
}

pub(super) struct Updater<'a> {
    pub(super) schemas: &'a SchemaSet,
    pub(super) converter: &'a dyn VersionConverter,
    pub(super) reset_fields: &'a ResetFields,
}

impl<'a> Updater<'a> {
    pub(super) fn types(&self) -> Types<'a> {
        Types(self.schemas)
    }

    fn root(&self, object: &Typed<'_>) -> Type<'a> {
        self.types().get(object.ty)
    }

    fn filter(&self, set: Set, api_version: &str) -> Set {
        match self.reset_fields.get(api_version) {
            Some(filter) => filter.apply(set),
            None => set,
        }
    }

    fn filtered(&self, comparison: Comparison, api_version: &str) -> Comparison {
        Comparison {
            removed: self.filter(comparison.removed, api_version),
            modified: self.filter(comparison.modified, api_version),
            added: self.filter(comparison.added, api_version),
        }
    }

    fn convert<'o>(&self, object: &Typed<'o>, api_version: &str) -> Result<Option<Typed<'o>>, ApiStatus> {
        if object.api_version == api_version {
            return Ok(Some(object.clone()));
        }
        let converted = self.converter.convert(&object.value, api_version)?;
        Ok(converted.map(|(value, ty)| Typed {
            value: Cow::Owned(value),
            api_version: Cow::Owned(api_version.to_owned()),
            ty,
        }))
    }

    fn compare(&self, old: &Typed<'_>, new: &Typed<'_>) -> Comparison {
        self.types().compare(&old.value, &new.value, self.root(new))
    }

    /// Drops managers of versions that are gone and adapts sets to schemas that changed.
    fn reconciled(&self, live: &Typed<'_>, managers: Managers) -> Result<Managers, ApiStatus> {
        let mut types: BTreeMap<String, Option<TypeId>> = BTreeMap::new();
        types.insert(live.api_version.clone().into_owned(), Some(live.ty));
        let mut kept = Managers::new();
        for (id, mut owned) in managers {
            let ty = match types.get(&owned.api_version) {
                Some(known) => *known,
                None => {
                    let ty = self.convert(live, &owned.api_version)?.map(|converted| converted.ty);
                    types.insert(owned.api_version.clone(), ty);
                    ty
                }
            };
            let Some(ty) = ty else { continue };
            self.types().reconcile(&mut owned.set, self.types().get(ty));
            kept.insert(id, owned);
        }
        Ok(kept)
    }

    /// Takes from all managers but `own` what changed. Without `force` a changed field that another owns is a
    /// conflict. Gives the difference between the objects.
    fn take(
        &self,
        old: &Typed<'_>,
        new: &Typed<'_>,
        managers: &mut Managers,
        own: Option<&ManagerId>,
        force: bool,
    ) -> Result<Comparison, Failure> {
        let comparison = self.filtered(self.compare(old, new), &new.api_version);
        let mut versions: BTreeMap<String, Option<Comparison>> = BTreeMap::new();
        let mut gone = Vec::new();
        let mut conflicts: Vec<(ManagerId, Set)> = Vec::new();
        let mut removed: Vec<(ManagerId, Set)> = Vec::new();
        for (id, owned) in managers.iter().filter(|(id, _)| Some(*id) != own) {
            let versioned = if owned.api_version == new.api_version {
                Some(&comparison)
            } else {
                if !versions.contains_key(&owned.api_version) {
                    let old = self.convert(old, &owned.api_version)?;
                    let new = self.convert(new, &owned.api_version)?;
                    let compared = old.zip(new).map(|(old, new)| self.compare(&old, &new));
                    let compared = compared.map(|compared| self.filtered(compared, &owned.api_version));
                    versions.insert(owned.api_version.clone(), compared);
                }
                versions.get(&owned.api_version).and_then(Option::as_ref)
            };
            let Some(versioned) = versioned else {
                gone.push(id.clone());
                continue;
            };
            if versioned.is_same() {
                continue;
            }
            let touched = |changed: &Set| owned.set.clone().intersection(changed);
            let taken = touched(&versioned.modified).union(touched(&versioned.added));
            if !taken.is_empty() {
                conflicts.push((id.clone(), taken));
            }
            if !versioned.removed.is_empty() {
                removed.push((id.clone(), versioned.removed.clone()));
            }
        }
        if !force && !conflicts.is_empty() {
            let paths = conflicts.into_iter().flat_map(|(manager, set)| {
                set.paths().into_iter().map(move |path| Conflict { manager: manager.clone(), path })
            });
            return Err(Failure::Conflicts(paths.collect()));
        }
        for id in gone {
            managers.remove(&id);
        }
        for (id, set) in conflicts.into_iter().chain(removed) {
            if let Some(owned) = managers.get_mut(&id) {
                owned.set = std::mem::take(&mut owned.set).difference(&set);
            }
        }
        managers.retain(|_, owned| !owned.set.is_empty());
        Ok(comparison)
    }

    /// A write that says what the object shall be: what changed now belongs to the writer. Gives the fields the
    /// writer gains.
    pub(super) fn update(&self, live: &Typed<'_>, new: &Typed<'_>, managers: &mut Managers) -> Result<Set, Failure> {
        *managers = self.reconciled(live, std::mem::take(managers))?;
        let comparison = self.take(live, new, managers, None, true)?;
        Ok(comparison.modified.union(comparison.added))
    }

    /// A write that says what the manager wants. Gives the new object, or `None` if nothing changed.
    pub(super) fn apply(
        &self,
        live: &Typed<'_>,
        config: &Typed<'_>,
        managers: &mut Managers,
        id: &ManagerId,
        force: bool,
    ) -> Result<Option<Value>, Failure> {
        *managers = self.reconciled(live, std::mem::take(managers))?;
        let root = self.root(config);
        let merged =
            Typed { value: Cow::Owned(self.types().merge(&live.value, &config.value, root)), ..config.clone() };
        let set = self.filter(self.types().field_set(&config.value, root), &config.api_version);
        let api_version = config.api_version.clone().into_owned();
        let last = managers.remove(id);
        // What is applied again as it was leaves nothing to prune.
        let last = last.map(|last| (last.api_version != api_version || !last.set.is_subset(&set), last));
        let time = last.as_ref().and_then(|(_, last)| last.time);
        managers.insert(id.clone(), Owned { set, api_version, time });
        let new = match last {
            Some((true, last)) => {
                let pruned = self.pruned(merged, managers, &last, &config.api_version)?;
                // Pruning drops a container with its last field; one that is applied empty stays.
                Typed { value: Cow::Owned(self.types().merge(&pruned.value, &config.value, root)), ..pruned }
            }
            _ => merged,
        };
        self.take(live, &new, managers, Some(id), force)?;
        let new = new.value.into_owned();
        Ok((super::set::compare_values(&live.value, &new).is_ne()).then_some(new))
    }

    /// Removes what the manager applied last time, does not apply now, and nobody else owns.
    fn pruned<'o>(
        &self,
        merged: Typed<'o>,
        managers: &Managers,
        last: &Owned,
        api_version: &str,
    ) -> Result<Typed<'o>, ApiStatus> {
        let Some(merged_then) = self.convert(&merged, &last.api_version)? else { return Ok(merged) };
        let types = self.types();
        let root = self.root(&merged_then);
        let last_set = types.with_named_fields(last.set.clone(), Some(root));
        let without = Typed { value: Cow::Owned(self.without(&merged_then, &last_set)), ..merged_then.clone() };
        let with_owned = self.add_back_owned(merged_then.clone(), without, managers)?;
        let Some(with_owned) = self.convert(&with_owned, &last.api_version)? else { return Ok(merged) };

        // What is left hanging, such as an emptied parent that was never applied, comes back too.
        let pruned_set = types.with_named_fields(types.field_set(&with_owned.value, root), Some(root));
        let merged_set = types.with_named_fields(types.field_set(&merged_then.value, root), Some(root));
        let gone = merged_set.difference(&pruned_set).intersection(&last_set);
        let pruned = Typed { value: Cow::Owned(self.without(&merged_then, &gone)), ..merged_then };
        Ok(self.convert(&pruned, api_version)?.unwrap_or(merged))
    }

    fn without(&self, object: &Typed<'_>, gone: &Set) -> Value {
        let kept = self.types().remove(&object.value, gone, self.root(object));
        kept.unwrap_or_else(|| Value::Object(serde_json::Map::new()))
    }

    fn add_back_owned<'o>(
        &self,
        mut merged: Typed<'o>,
        mut pruned: Typed<'o>,
        managers: &Managers,
    ) -> Result<Typed<'o>, ApiStatus> {
        let mut owned_at: BTreeMap<&str, Set> = BTreeMap::new();
        for owned in managers.values() {
            let at_version = owned_at.entry(owned.api_version.as_str()).or_default();
            *at_version = std::mem::take(at_version).union(owned.set.clone());
        }
        // The version pruned in comes first: it needs no conversion.
        let first = pruned.api_version.clone().into_owned();
        let mut versions: Vec<(&str, &Set)> = owned_at.iter().map(|(version, set)| (*version, set)).collect();
        versions.sort_by_key(|(version, _)| *version != first);
        let types = self.types();
        for (version, owned) in versions {
            let (Some(merged_at), Some(pruned_at)) = (self.convert(&merged, version)?, self.convert(&pruned, version)?)
            else {
                continue;
            };
            let root = Some(self.root(&merged_at));
            let all = types.with_named_fields(types.field_set(&merged_at.value, self.root(&merged_at)), root);
            let left = types.with_named_fields(types.field_set(&pruned_at.value, self.root(&merged_at)), root);
            let gone = all.difference(&left).difference(&types.with_named_fields(owned.clone(), root));
            pruned = Typed { value: Cow::Owned(self.without(&merged_at, &gone)), ..merged_at.clone() };
            merged = merged_at;
        }
        Ok(pruned)
    }
}
