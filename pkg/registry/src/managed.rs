//! Who owns which fields: the place of managed fields in the write path.
//!
//! Ownership is recorded in the version that the client speaks; what others own is converted to it to be compared.

use std::collections::{BTreeMap, HashMap};

use jiff::Timestamp;
use rkube_apimachinery::gvk::{GroupVersion, GroupVersionKind};
use rkube_apimachinery::managed_fields::{self, FieldManager, Filter, PathElement, ResetFields, VersionConverter};
use rkube_apimachinery::meta::{Meta, MetaMut};
use rkube_apimachinery::schema::{SchemaSet, TypeId};
use rkube_apimachinery::status::ApiStatus;
use serde_json::Value;

use crate::store::convert::Version;
use crate::strategy::SharedStrategy;
use crate::subresource::scale::ScalePaths;

pub(crate) use managed_fields::keep_times_if_unchanged;

/// What field ownership needs to know of a resource.
pub(crate) struct Ownership {
    /// The stored version.
    gvk: GroupVersionKind,
    ty: TypeId,
    /// By subresource: what its writes cannot own.
    resets: HashMap<String, ResetFields>,
    none: ResetFields,
}

impl Ownership {
    /// `versions` are all that are served, as `apiVersion` has them.
    pub(crate) fn new<'a>(
        gvk: GroupVersionKind,
        ty: TypeId,
        versions: &[String],
        strategies: impl IntoIterator<Item = (&'a str, &'a SharedStrategy)>,
    ) -> Self {
        let reset = |strategy: &SharedStrategy| {
            let fields = strategy.reset_fields();
            let versions = versions.iter().filter(|_| !fields.is_empty());
            versions.map(|version| (version.clone(), Filter::exclude(fields))).collect()
        };
        let resets = strategies.into_iter().map(|(name, strategy)| (name.to_owned(), reset(strategy))).collect();
        Self { gvk, ty, resets, none: ResetFields::new() }
    }

    /// The type of the stored version.
    pub(crate) fn ty(&self) -> TypeId {
        self.ty
    }
}

/// One write, as the owner of fields sees it.
pub(crate) struct Write<'a> {
    pub(crate) ownership: &'a Ownership,
    /// What the client speaks, and its type.
    pub(crate) version: &'a Version,
    pub(crate) ty: TypeId,
    pub(crate) schema: &'a SchemaSet,
    pub(crate) manager: &'a str,
    pub(crate) subresource: &'a str,
    pub(crate) now: Timestamp,
}

impl Write<'_> {
    fn manager(&self) -> FieldManager<'_> {
        let ownership = self.ownership;
        FieldManager {
            schemas: self.schema,
            ty: self.ty,
            gvk: self.version.requested(),
            subresource: self.subresource,
            reset_fields: ownership.resets.get(self.subresource).unwrap_or(&ownership.none),
            converter: &BuiltinVersions,
        }
    }

    /// Records the changes of a create, an update or a patch. Both objects are in the stored version.
    pub(crate) fn update(&self, live: Option<&Value>, new: &mut Value) {
        if self.version.is_stored() {
            self.manager().update(live, new, self.manager, self.now);
            return;
        }
        let live = self.spoken(live);
        let mut spoken = self.version.of_stored(new.clone());
        self.manager().update(live.as_ref(), &mut spoken, self.manager, self.now);
        new.set_managed_fields(spoken.managed_fields().to_vec());
    }

    /// Applies a configuration, which is in the client's version. The result is in the stored one and has no defaults
    /// yet.
    pub(crate) fn apply(&self, live: Option<&Value>, config: &Value, force: bool) -> Result<Value, ApiStatus> {
        let spoken = if self.version.is_stored() { None } else { self.spoken(live) };
        let applied = self.manager().apply(spoken.as_ref().or(live), config, self.manager, force, self.now)?;
        match applied {
            Some(applied) if !self.version.is_stored() => self.version.to_stored(applied),
            applied => Ok(applied.or_else(|| live.cloned()).unwrap_or_default()),
        }
    }

    fn spoken(&self, stored: Option<&Value>) -> Option<Value> {
        stored.map(|stored| self.version.of_stored(stored.clone()))
    }
}

/// A write through the scale of an object: the owners of its replicas are owners of the scale's.
pub(crate) struct ScaleWrite<'a> {
    write: &'a Write<'a>,
    gvk: GroupVersionKind,
    ty: TypeId,
    paths: BTreeMap<String, Vec<PathElement>>,
}

impl<'a> ScaleWrite<'a> {
    pub(crate) fn new(write: &'a Write<'a>, paths: &ScalePaths) -> Result<Self, ApiStatus> {
        let gvk = GroupVersionKind::new("autoscaling", "v1", "Scale");
        let ty = rkube_api::type_of(&gvk).ok_or_else(|| ApiStatus::internal("the schema has no Scale"))?;
        let path = paths.spec_replicas.split('/').filter(|name| !name.is_empty()).map(PathElement::field).collect();
        let paths = BTreeMap::from([(write.ownership.gvk.api_version(), path)]);
        Ok(Self { write, gvk, ty, paths })
    }

    fn manager(&self) -> FieldManager<'_> {
        FieldManager {
            schemas: rkube_api::schema(),
            ty: self.ty,
            gvk: &self.gvk,
            subresource: self.write.subresource,
            reset_fields: &self.write.ownership.none,
            converter: &BuiltinVersions,
        }
    }

    /// Gives a scale the owners it has through its object.
    pub(crate) fn own(&self, scale: &mut Value, object: &Value) -> Result<(), ApiStatus> {
        let entries = managed_fields::to_scale(object.managed_fields(), &self.paths);
        scale.set_managed_fields(entries.map_err(|error| ApiStatus::internal(error.to_string()))?);
        Ok(())
    }

    pub(crate) fn update(&self, current: &Value, new: &mut Value) {
        self.manager().update(Some(current), new, self.write.manager, self.write.now);
    }

    pub(crate) fn apply(&self, current: &Value, config: &Value, force: bool) -> Result<Value, ApiStatus> {
        let applied = self.manager().apply(Some(current), config, self.write.manager, force, self.write.now)?;
        Ok(applied.unwrap_or_else(|| current.clone()))
    }

    /// Gives the object the owners its scale has.
    pub(crate) fn give_back(&self, scale: &Value, object: &mut Value) -> Result<(), ApiStatus> {
        let version = self.write.ownership.gvk.api_version();
        let entries =
            managed_fields::from_scale(object.managed_fields(), scale.managed_fields(), &version, &self.paths);
        object.set_managed_fields(entries.map_err(|error| ApiStatus::internal(error.to_string()))?);
        Ok(())
    }
}

/// The other versions of built-in kinds. Entries in a version nobody serves are dropped.
struct BuiltinVersions;

impl VersionConverter for BuiltinVersions {
    fn convert(&self, object: &Value, api_version: &str) -> Result<Option<(Value, TypeId)>, ApiStatus> {
        let Some(version) = GroupVersion::parse(api_version) else {
            return Ok(None);
        };
        let Some(ty) = rkube_api::by_kind(&version.with_kind(object.kind())).map(|row| row.schema) else {
            return Ok(None);
        };
        Ok(Some((rkube_api::convert::convert(object.clone(), &version.group, &version.version), ty)))
    }
}
