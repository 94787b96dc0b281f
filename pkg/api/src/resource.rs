//! The resource table's row: everything generic machinery needs to know of a resource.

use std::borrow::Cow;
use std::sync::Arc;

use rkube_apimachinery::gvk::{GroupKind, GroupResource, GroupVersion, GroupVersionKind, GroupVersionResource};
use rkube_apimachinery::schema::TypeId;

type Text = Cow<'static, str>;

/// One resource in one version. Built-in rows come from the generated table; a custom resource adds
/// rows at run time. Routes, discovery, OpenAPI paths, RBAC names, storage prefixes, informers, garbage
/// collection and namespace deletion read this and nothing else.
#[derive(Clone, Debug)]
pub struct Resource {
    pub group: Text,
    pub version: Text,
    /// The name in URLs: `pods`.
    pub plural: Text,
    pub singular: Text,
    pub short_names: Cow<'static, [Text]>,
    /// `all` and the like.
    pub categories: Cow<'static, [Text]>,
    pub kind: Text,
    pub namespaced: bool,
    /// In discovery's order: `create delete deletecollection get list patch update watch`.
    pub verbs: Cow<'static, [Text]>,
    pub subresources: Cow<'static, [Subresource]>,
    /// The type in the schema set.
    pub schema: TypeId,
    /// The version objects are stored in, which may be of another group (events). `None` for resources
    /// that are answered and never stored (`subjectaccessreviews`).
    pub stored_as: Option<StoredAs>,
    /// Discovery's hash of the version objects are stored in; empty for resources that are not stored.
    pub storage_version_hash: Text,
    /// Fields usable in field selectors beyond `metadata.name` and `metadata.namespace`.
    pub selectable_fields: Cow<'static, [SelectableField]>,
}

/// Where a resource's objects live in storage. All versions of a resource name the same place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredAs {
    /// The first path segments of the storage key, as upstream has them: `deployments`, `services/specs`,
    /// `apiregistration.k8s.io/apiservices`; `GROUP/PLURAL` for custom resources.
    pub prefix: Text,
    pub group: Text,
    pub version: Text,
    pub kind: Text,
}

#[derive(Clone, Debug)]
pub struct Subresource {
    /// `status`, `scale`, `eviction`, `exec`, ...
    pub name: Text,
    /// The kind it speaks, which may be of another group: `autoscaling/v1, Kind=Scale`.
    pub group: Text,
    pub version: Text,
    pub kind: Text,
    pub verbs: Cow<'static, [Text]>,
}

/// A field usable in field selectors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SelectableField {
    /// As written in the selector: `spec.nodeName`, `involvedObject.name`.
    pub label: Text,
    /// Where the value is in the stored JSON, dot-separated, through the first item of lists. `A|B` is the value
    /// at `A`, or if that is empty the one at `B`. `-` is nowhere: the value is always `zero`.
    pub path: Text,
    /// The text of an absent field: empty, `false` or `0`.
    pub zero: Text,
}

impl Resource {
    pub fn group_version(&self) -> GroupVersion {
        GroupVersion::new(self.group.as_ref(), self.version.as_ref())
    }

    pub fn gvr(&self) -> GroupVersionResource {
        GroupVersionResource::new(self.group.as_ref(), self.version.as_ref(), self.plural.as_ref())
    }

    pub fn gvk(&self) -> GroupVersionKind {
        GroupVersionKind::new(self.group.as_ref(), self.version.as_ref(), self.kind.as_ref())
    }

    pub fn group_resource(&self) -> GroupResource {
        GroupResource::new(self.group.as_ref(), self.plural.as_ref())
    }

    pub fn group_kind(&self) -> GroupKind {
        GroupKind::new(self.group.as_ref(), self.kind.as_ref())
    }

    pub fn has_verb(&self, verb: &str) -> bool {
        self.verbs.iter().any(|known| known == verb)
    }

    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|subresource| subresource.name == name)
    }
}

pub type SharedResource = Arc<Resource>;
