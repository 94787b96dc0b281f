//! core/v1 Secret.
//!
//! Behaves as ValidateSecret of pkg/apis/core/validation/validation.go, pkg/registry/core/secret and
//! pkg/api/secret, v1.36.

use rkube_api::k8s::core::v1::Secret;
use rkube_apimachinery::field::{ErrorList, Path};
use rkube_apimachinery::names;

use crate::common::defaults::text_default;
use crate::common::meta::{validate_object_meta, validate_object_meta_update};
use crate::common::names::dns_subdomain;
use crate::common::report::{FIELD_IMMUTABLE, OptMap, OptText, Report};

/// 1 MiB of data, as a request that carries it must fit storage.
pub(crate) const DATA_SIZE_MAX: usize = 1024 * 1024;

pub fn set_defaults(secret: &mut Secret) {
    text_default(&mut secret.type_, "Opaque");
    // `stringData` is write-only: it is folded into `data` when the object is read.
    if let Some(strings) = secret.string_data.take()
        && !strings.is_empty()
    {
        let data = secret.data.get_or_insert_default();
        for (key, value) in strings {
            data.insert(key, rkube_api::ByteString(value.into_bytes()));
        }
    }
}

pub fn validate(secret: &Secret) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta(&secret.metadata, true, dns_subdomain, &Path::new("metadata"), &mut errors);
    let path = Path::new("data");
    let mut size = 0;
    for (key, value) in secret.data.pairs() {
        errors.invalid_each(path.key(key), key, names::is_config_map_key(key));
        size += value.0.len();
    }
    if size > DATA_SIZE_MAX {
        errors.too_long(&path, DATA_SIZE_MAX);
    }
    let value = |key: &str| secret.data.value(key);
    match secret.type_.text() {
        "kubernetes.io/service-account-token" => {
            const KEY: &str = "kubernetes.io/service-account.name";
            if secret.metadata.annotations.value(KEY).is_none_or(String::is_empty) {
                errors.required(Path::new("metadata").child("annotations").key(KEY), "");
            }
        }
        "kubernetes.io/dockercfg" => validate_json(secret, ".dockercfg", &path, &mut errors),
        "kubernetes.io/dockerconfigjson" => validate_json(secret, ".dockerconfigjson", &path, &mut errors),
        "kubernetes.io/basic-auth" if value("username").is_none() && value("password").is_none() => {
            errors.required(path.key("username"), "");
            errors.required(path.key("password"), "");
        }
        "kubernetes.io/ssh-auth" if value("ssh-privatekey").is_none_or(|key| key.0.is_empty()) => {
            errors.required(path.key("ssh-privatekey"), "");
        }
        "kubernetes.io/tls" => {
            for key in ["tls.crt", "tls.key"].into_iter().filter(|key| value(key).is_none()) {
                errors.required(path.key(key), "");
            }
        }
        _ => {}
    }
    errors
}

/// The value must be a JSON object. It is never shown.
fn validate_json(secret: &Secret, key: &str, path: &Path, errors: &mut ErrorList) {
    match secret.data.value(key) {
        None => errors.required(path.key(key), ""),
        Some(value) => {
            if let Err(error) = serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(&value.0) {
                // Only the kind of fault: the parser's own text could quote the secret.
                let detail = match error.classify() {
                    serde_json::error::Category::Eof => "unexpected end of JSON input",
                    _ => "invalid JSON object",
                };
                errors.invalid(path.key(key), "<secret contents redacted>", detail);
            }
        }
    }
}

pub fn validate_update(new: &Secret, old: &Secret) -> ErrorList {
    const DETAIL: &str = "field is immutable when `immutable` is set";
    let mut errors = ErrorList::new();
    validate_object_meta_update(&new.metadata, &old.metadata, &Path::new("metadata"), &mut errors);
    if new.type_.text() != old.type_.text() {
        errors.invalid(Path::new("type"), new.type_.text(), FIELD_IMMUTABLE);
    }
    if old.immutable == Some(true) {
        if new.immutable != Some(true) {
            errors.forbidden(Path::new("immutable"), DETAIL);
        }
        if new.data.pairs().ne(old.data.pairs()) {
            errors.forbidden(Path::new("data"), DETAIL);
        }
    }
    errors.extend(validate(new));
    errors
}

/// An update that leaves the type out keeps it.
pub fn prepare_for_update(new: &mut Secret, old: &Secret) {
    if new.type_.is_blank() {
        new.type_.clone_from(&old.type_);
    }
}
