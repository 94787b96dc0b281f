//! Who owns which fields: the place of managed fields in the write path.

use rkube_apimachinery::meta::Meta;
use rkube_apimachinery::status::ApiStatus;
use serde_json::Value;

use crate::strategy::ResetFields;

/// What managed fields need to know of a write.
pub(crate) struct Write<'a> {
    pub(crate) manager: &'a str,
    pub(crate) subresource: &'a str,
    pub(crate) reset: ResetFields,
}

/// Records the changes of a create, an update or a patch.
pub(crate) fn update(live: Option<&Value>, new: &mut Value, write: &Write<'_>) {
    let _ = (live, new, write);
}

/// Applies a configuration.
pub(crate) fn apply(live: Option<&Value>, config: Value, force: bool, write: &Write<'_>) -> Result<Value, ApiStatus> {
    let _ = (live, force, write);
    Ok(config)
}

/// Keeps the old entries when nothing but their times would change.
pub(crate) fn ignore_timestamps(new: &mut Value, old: &Value) {
    let _ = (new.managed_fields(), old);
}
