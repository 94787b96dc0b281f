//! The resource table: what the server serves, in discovery's order, and look-ups in it.

use std::borrow::Cow;
use std::sync::{Arc, LazyLock};

use base64::Engine;
use rkube_apimachinery::gvk::{GroupVersionKind, GroupVersionResource};
use sha2::Digest;

use crate::generated::resources::{GROUPS, ROWS};
use crate::kind::Kind;
use crate::resource::{Resource, SelectableField, SharedResource, StoredAs, Subresource};
use crate::schema::type_of_parts;

/// A row as it is generated.
pub(crate) struct Row {
    pub(crate) group: &'static str,
    pub(crate) version: &'static str,
    pub(crate) plural: &'static str,
    pub(crate) singular: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) namespaced: bool,
    pub(crate) verbs: &'static [&'static str],
    pub(crate) short_names: &'static [&'static str],
    pub(crate) categories: &'static [&'static str],
    pub(crate) storage_version_hash: &'static str,
    /// Prefix, group and version.
    pub(crate) stored: Option<(&'static str, &'static str, &'static str)>,
    pub(crate) subresources: &'static [SubresourceRow],
    /// Label, path, zero.
    pub(crate) selectable: &'static [(&'static str, &'static str, &'static str)],
}

pub(crate) struct SubresourceRow {
    pub(crate) name: &'static str,
    pub(crate) group: &'static str,
    pub(crate) version: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) verbs: &'static [&'static str],
}

struct Table {
    rows: Vec<SharedResource>,
    /// Positions in `rows`, sorted by group, version and plural.
    by_name: Vec<u16>,
}

static TABLE: LazyLock<Table> = LazyLock::new(|| {
    let rows: Vec<SharedResource> = ROWS.iter().map(|row| Arc::new(resource_from(row))).collect();
    let mut by_name: Vec<u16> = (0..).take(rows.len()).collect();
    by_name.sort_unstable_by_key(|&index| rows.get(usize::from(index)).map(|row| name_of(row)));
    Table { rows, by_name }
});

fn name_of(row: &Resource) -> (&str, &str, &str) {
    (&row.group, &row.version, &row.plural)
}

fn texts(items: &'static [&'static str]) -> Cow<'static, [Cow<'static, str>]> {
    items.iter().map(|&item| Cow::Borrowed(item)).collect()
}

fn resource_from(row: &Row) -> Resource {
    let schema = type_of_parts(row.group, row.version, row.kind).expect("codegen finds the type of every row");
    let subresources = row.subresources.iter().map(|sub| Subresource {
        name: sub.name.into(),
        group: sub.group.into(),
        version: sub.version.into(),
        kind: sub.kind.into(),
        verbs: texts(sub.verbs),
    });
    let selectable_fields = row.selectable.iter().map(|&(label, path, zero)| SelectableField {
        label: label.into(),
        path: path.into(),
        zero: zero.into(),
    });
    Resource {
        group: row.group.into(),
        version: row.version.into(),
        plural: row.plural.into(),
        singular: row.singular.into(),
        short_names: texts(row.short_names),
        categories: texts(row.categories),
        kind: row.kind.into(),
        namespaced: row.namespaced,
        verbs: texts(row.verbs),
        subresources: subresources.collect(),
        schema,
        stored_as: row.stored.map(|(prefix, group, version)| StoredAs {
            prefix: prefix.into(),
            group: group.into(),
            version: version.into(),
            kind: row.kind.into(),
        }),
        storage_version_hash: row.storage_version_hash.into(),
        selectable_fields: selectable_fields.collect(),
    }
}

/// Every built-in resource in every version served, in discovery's order.
pub fn resources() -> &'static [SharedResource] {
    &TABLE.rows
}

/// The groups and their versions in discovery's order: the core group (named "") first, in each the preferred
/// version first.
pub fn groups() -> &'static [(&'static str, &'static [&'static str])] {
    GROUPS
}

/// The resource with this group, version and plural.
pub fn resource(gvr: &GroupVersionResource) -> Option<&'static SharedResource> {
    resource_named(&gvr.group, &gvr.version, &gvr.resource)
}

/// As [`resource`].
pub fn resource_named(group: &str, version: &str, plural: &str) -> Option<&'static SharedResource> {
    let row_at = |index: u16| TABLE.rows.get(usize::from(index));
    let wanted = Some((group, version, plural));
    let found = TABLE.by_name.binary_search_by(|&index| row_at(index).map(|row| name_of(row)).cmp(&wanted)).ok()?;
    row_at(*TABLE.by_name.get(found)?)
}

/// The resource whose objects are of this kind. Kinds that only subresources speak have none.
pub fn by_kind(gvk: &GroupVersionKind) -> Option<&'static SharedResource> {
    resources().iter().find(|row| row.kind == gvk.kind && row.group == gvk.group && row.version == gvk.version)
}

/// The resource of a typed kind.
pub fn resource_of<K: Kind>() -> Option<&'static SharedResource> {
    resource_named(K::GROUP, K::VERSION, K::PLURAL)
}

/// Discovery's `storageVersionHash`, for resources that are not in the generated table.
///
/// Behaves as apiserver/pkg/endpoints/discovery/storageversionhash.go, v1.36.
pub fn storage_version_hash(group: &str, version: &str, kind: &str) -> String {
    let digest = sha2::Sha256::digest(format!("{group}/{version}/{kind}"));
    let (prefix, _) = digest.split_at(8);
    base64::engine::general_purpose::STANDARD.encode(prefix)
}
