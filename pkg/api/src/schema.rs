//! The built-in types: the generated schema table and look-ups in it.
//!
//! Every version upstream has is in the table, also those the resource table does not serve, and with them the
//! machinery types (`Status`, `DeleteOptions`, `WatchEvent`, `Table`, `PartialObjectMetadata`).

use std::sync::LazyLock;

use rkube_apimachinery::gvk::GroupVersionKind;
use rkube_apimachinery::schema::{SchemaSet, TypeId};

use crate::generated::types::{GRANULAR, KINDS, NAMED, TYPES, UNDECLARED, UNIONS};

static SET: LazyLock<SchemaSet> = LazyLock::new(|| SchemaSet::builtin(&TYPES));

/// The group whose types every group has: `DeleteOptions` may come as `policy/v1`.
const META_GROUP: &str = "meta.k8s.io";

/// All built-in types.
pub fn schema() -> &'static SchemaSet {
    &SET
}

/// The type of a kind. The machinery kinds (`DeleteOptions`, `Status`, `WatchEvent`, ..) are found under every
/// group and version.
pub fn type_of(gvk: &GroupVersionKind) -> Option<TypeId> {
    type_of_parts(&gvk.group, &gvk.version, &gvk.kind)
}

/// As [`type_of`].
pub fn type_of_parts(group: &str, version: &str, kind: &str) -> Option<TypeId> {
    let find = |group: &str, version: &str| {
        let found = KINDS.binary_search_by(|entry| (entry.0, entry.1, entry.2).cmp(&(group, version, kind)));
        found.ok().and_then(|index| KINDS.get(index)).map(|entry| TypeId(entry.3))
    };
    let machinery = || match kind {
        "DeleteOptions" | "CreateOptions" | "UpdateOptions" | "PatchOptions" | "GetOptions" | "ListOptions"
        | "Status" | "WatchEvent" => meta_type(kind),
        "Table" | "PartialObjectMetadata" | "PartialObjectMetadataList" if group == META_GROUP => meta_type(kind),
        "APIGroup" | "APIGroupList" | "APIResourceList" | "APIVersions" if group.is_empty() => meta_type(kind),
        _ => None,
    };
    find(group, version).or_else(machinery)
}

fn meta_type(kind: &str) -> Option<TypeId> {
    type_named(&format!("io.k8s.apimachinery.pkg.apis.meta.v1.{kind}"))
}

/// The type with this OpenAPI definition name: `io.k8s.api.core.v1.PodSpec`.
pub fn type_named(definition: &str) -> Option<TypeId> {
    let named = TYPES.get(..NAMED)?;
    let index = named.binary_search_by(|known| known.name.as_ref().cmp(definition)).ok()?;
    u32::try_from(index).ok().map(TypeId)
}

/// Group, version, kind and type of every kind in the schema table, sorted.
pub fn kinds() -> impl Iterator<Item = (&'static str, &'static str, &'static str, TypeId)> {
    KINDS.iter().map(|&(group, version, kind, ty)| (group, version, kind, TypeId(ty)))
}

/// The `x-kubernetes-unions` of a definition, as JSON.
pub fn unions(definition: &str) -> Option<&'static str> {
    UNIONS.iter().find(|(name, _)| *name == definition).map(|(_, json)| *json)
}

/// Whether OpenAPI says the list type of this field. Where it does not the list is atomic.
pub fn declares_list_type(definition: &str, field: &str) -> bool {
    UNDECLARED.binary_search(&(definition, field)).is_err()
}

/// Whether OpenAPI says that this map or struct is merged member by member, which is so anyway without a word.
pub fn declares_granular(definition: &str, field: &str) -> bool {
    GRANULAR.binary_search(&(definition, field)).is_ok()
}

/// Short constructors for the generated table.
pub(crate) mod build {
    use std::borrow::Cow;

    use rkube_apimachinery::schema::{
        Field, List, ListKind, Map, Object, PatchStrategy, Presence, Scalar, Shape, TypeDef, TypeId,
    };

    pub(crate) const P: Presence = Presence::Pointer;
    pub(crate) const N: Presence = Presence::Nullable;
    pub(crate) const O: Presence = Presence::OmitEmpty;
    pub(crate) const A: Presence = Presence::Always;

    pub(crate) const NONE: PatchStrategy = PatchStrategy { merge: false, replace: false, retain_keys: false };
    pub(crate) const MERGE: PatchStrategy = PatchStrategy { merge: true, ..NONE };
    pub(crate) const REPLACE: PatchStrategy = PatchStrategy { replace: true, ..NONE };
    pub(crate) const RETAIN: PatchStrategy = PatchStrategy { retain_keys: true, ..NONE };
    pub(crate) const MERGE_RETAIN: PatchStrategy = PatchStrategy { merge: true, replace: false, retain_keys: true };

    #[expect(clippy::too_many_arguments, reason = "one call per field of the generated table, written by a program")]
    pub(crate) const fn f(
        json: &'static str,
        number: u32,
        within: &'static [u32],
        ty: u32,
        presence: Presence,
        required: bool,
        default: &'static str,
        patch: PatchStrategy,
    ) -> Field {
        Field {
            json: Cow::Borrowed(json),
            number,
            within: Cow::Borrowed(within),
            ty: TypeId(ty),
            required,
            presence,
            default: if default.is_empty() { None } else { Some(Cow::Borrowed(default)) },
            patch,
        }
    }

    pub(crate) const fn object(
        name: &'static str,
        fields: &'static [Field],
        wire: &'static [u16],
        atomic: bool,
    ) -> TypeDef {
        let object =
            Object { fields: Cow::Borrowed(fields), wire: Cow::Borrowed(wire), preserve_unknown: false, atomic };
        TypeDef { name: Cow::Borrowed(name), shape: Shape::Object(object) }
    }

    pub(crate) const fn scalar(name: &'static str, scalar: Scalar) -> TypeDef {
        TypeDef { name: Cow::Borrowed(name), shape: Shape::Scalar(scalar) }
    }

    pub(crate) const fn list(
        item: u32,
        kind: ListKind,
        patch: PatchStrategy,
        patch_merge_key: &'static str,
        wrapped: bool,
    ) -> TypeDef {
        let list = List { item: TypeId(item), kind, patch, patch_merge_key: Cow::Borrowed(patch_merge_key), wrapped };
        TypeDef { name: Cow::Borrowed(""), shape: Shape::List(list) }
    }

    pub(crate) const fn map(value: u32, atomic: bool) -> TypeDef {
        TypeDef { name: Cow::Borrowed(""), shape: Shape::Map(Map { value: TypeId(value), atomic }) }
    }
}
