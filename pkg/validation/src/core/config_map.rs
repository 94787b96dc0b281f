//! core/v1 ConfigMap.
//!
//! Behaves as ValidateConfigMap of pkg/apis/core/validation/validation.go, v1.36.

use rkube_api::k8s::core::v1::ConfigMap;
use rkube_apimachinery::field::{Error, ErrorList, Path};
use rkube_apimachinery::names;

use super::secret::DATA_SIZE_MAX;
use crate::common::meta::{validate_object_meta, validate_object_meta_update};
use crate::common::names::dns_subdomain;
use crate::common::report::{OptMap, Report};

pub fn validate(config_map: &ConfigMap) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta(&config_map.metadata, true, dns_subdomain, &Path::new("metadata"), &mut errors);
    let mut size = 0;
    for (key, value) in config_map.data.pairs() {
        let path = Path::new("data").key(key);
        errors.invalid_each(&path, key, names::is_config_map_key(key));
        if config_map.binary_data.value(key).is_some() {
            errors.invalid(&path, key.as_str(), "duplicate of key present in binaryData");
        }
        size += value.len();
    }
    for (key, value) in config_map.binary_data.pairs() {
        errors.invalid_each(Path::new("binaryData").key(key), key, names::is_config_map_key(key));
        size += value.0.len();
    }
    if size > DATA_SIZE_MAX {
        let mut error = Error::too_long(&Path::root(), i64::try_from(DATA_SIZE_MAX).unwrap_or(i64::MAX));
        error.field = String::new();
        errors.push(error);
    }
    errors
}

pub fn validate_update(new: &ConfigMap, old: &ConfigMap) -> ErrorList {
    const DETAIL: &str = "field is immutable when `immutable` is set";
    let mut errors = ErrorList::new();
    validate_object_meta_update(&new.metadata, &old.metadata, &Path::new("metadata"), &mut errors);
    if old.immutable == Some(true) {
        if new.immutable != Some(true) {
            errors.forbidden(Path::new("immutable"), DETAIL);
        }
        if new.data.pairs().ne(old.data.pairs()) {
            errors.forbidden(Path::new("data"), DETAIL);
        }
        if new.binary_data.pairs().ne(old.binary_data.pairs()) {
            errors.forbidden(Path::new("binaryData"), DETAIL);
        }
    }
    errors.extend(validate(new));
    errors
}
