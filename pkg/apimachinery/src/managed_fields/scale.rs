//! Ownership across the scale subresource: who owns a Scale's `spec.replicas` owns the same field of the
//! resource, wherever that is.
//!
//! In and out: `managedFields` entries. `paths` maps an API version of the resource to the path of its replicas.
//! Behaves as apimachinery/pkg/util/managedfields/scalehandler.go, v1.36.

use std::collections::BTreeMap;

use serde_json::Value;

use super::entries::{self, EntryError, ManagerId, Managers, Operation, Owned};
use super::set::{PathElement, Set};

const SCALE_VERSION: &str = "autoscaling/v1";

fn replicas() -> [PathElement; 2] {
    [PathElement::field("spec"), PathElement::field("replicas")]
}

fn single(path: &[PathElement]) -> Set {
    let mut set = Set::new();
    set.insert(path);
    set
}

/// The entries of a Scale, from those of its resource.
pub fn to_scale(parent: &[Value], paths: &BTreeMap<String, Vec<PathElement>>) -> Result<Vec<Value>, EntryError> {
    let mut scale = Managers::new();
    for (id, owned) in entries::decode(parent)? {
        if paths.get(&owned.api_version).is_some_and(|path| owned.set.has(path)) {
            let api_version = SCALE_VERSION.to_owned();
            scale.insert(id, Owned { set: single(&replicas()), api_version, time: owned.time });
        }
    }
    Ok(entries::encode(&scale))
}

/// The entries of the resource after a write through its Scale, whose entries are `scale`. `api_version` is
/// the resource's.
pub fn from_scale(
    parent: &[Value],
    scale: &[Value],
    api_version: &str,
    paths: &BTreeMap<String, Vec<PathElement>>,
) -> Result<Vec<Value>, EntryError> {
    // The Scale's entries carry its version; who they are of is told by the rest.
    let versionless = |id: ManagerId| ManagerId { api_version: String::new(), ..id };
    let scale: Managers = entries::decode(scale)?.into_iter().map(|(id, owned)| (versionless(id), owned)).collect();
    let mut left = scale.clone();
    let mut out = Managers::new();
    for (id, mut owned) in entries::decode(parent)? {
        let Some(path) = paths.get(&owned.api_version) else { continue };
        let same = versionless(id.clone());
        if owned.set.has(path) && left.remove(&same).is_none() && !scale.contains_key(&same) {
            owned.set = owned.set.difference(&single(path));
            if owned.set.is_empty() {
                continue;
            }
        }
        out.insert(id, owned);
    }
    let Some(path) = paths.get(api_version) else { return Ok(entries::encode(&out)) };
    for (id, gained) in left.into_iter().filter(|(_, owned)| owned.set.has(&replicas())) {
        let version = if id.operation == Operation::Apply { String::new() } else { api_version.to_owned() };
        let id = ManagerId { api_version: version, ..id };
        let api_version = api_version.to_owned();
        let owned = out.entry(id).or_insert_with(|| Owned { set: Set::new(), api_version, time: gained.time });
        owned.set.insert(path);
        owned.time = gained.time;
    }
    Ok(entries::encode(&out))
}
