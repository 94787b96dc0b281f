//! Projected volumes: several sources in one directory.
//!
//! Cluster trust bundles and pod certificates are off by default: the strategies drop them before this runs.
//!
//! Behaves as validateProjectedVolumeSource of pkg/apis/core/validation/validation.go, v1.36.

use std::collections::BTreeSet;

use rkube_api::k8s::core::v1::{ProjectedVolumeSource, ServiceAccountTokenProjection};
use rkube_apimachinery::field::{ErrorList, Path};

use super::pod_options::PodOptions;
use super::volume::{
    validate_default_mode, validate_downward_api_file, validate_key_to_path, validate_local_non_reserved_path,
};
use crate::common::report::{OptList, Report};

/// Paths taken so far in the volume's directory.
struct Taken<'a> {
    paths: BTreeSet<&'a str>,
    volume: &'a Path,
}

impl<'a> Taken<'a> {
    fn add(&mut self, path: &'a str, shown_as: &str, errors: &mut ErrorList) {
        if !self.paths.insert(path) {
            errors.invalid(self.volume, shown_as, "conflicting duplicate paths");
        }
    }
}

pub(crate) fn validate_projected(
    volume: &ProjectedVolumeSource,
    path: &Path,
    options: &PodOptions,
    errors: &mut ErrorList,
) {
    validate_default_mode(volume.default_mode, path, errors);
    let mut taken = Taken { paths: BTreeSet::new(), volume: path };
    for (index, source) in volume.sources.items().iter().enumerate() {
        let source_path = path.child("sources").index(index);
        let mut found = 0;
        let named = [
            ("secret", source.secret.as_ref().map(|source| (&source.name, source.items.items()))),
            ("configMap", source.config_map.as_ref().map(|source| (&source.name, source.items.items()))),
        ];
        for (field, source) in named {
            let Some((name, items)) = source else { continue };
            found += 1;
            let path = source_path.child(field);
            errors.not_empty(path.child("name"), name);
            for (index, item) in items.iter().enumerate() {
                validate_key_to_path(item, &path.child("items").index(index), errors);
                if !item.path.is_empty() {
                    taken.add(&item.path, name, errors);
                }
            }
        }
        if let Some(downward) = &source.downward_api {
            found += 1;
            for file in downward.items.items() {
                validate_downward_api_file(file, &source_path.child("downwardAPI"), errors);
                if !file.path.is_empty() {
                    taken.add(&file.path, &file.path, errors);
                }
            }
        }
        if let Some(token) = &source.service_account_token {
            found += 1;
            validate_token(token, path, &source_path.child("serviceAccountToken"), options, errors);
        }
        if found > 1 {
            errors.forbidden(&source_path, "may not specify more than 1 volume type per source");
        }
    }
}

fn validate_token(
    token: &ServiceAccountTokenProjection,
    volume: &Path,
    path: &Path,
    options: &PodOptions,
    errors: &mut ErrorList,
) {
    let seconds = token.expiration_seconds.unwrap_or(0);
    if seconds < 10 * 60 {
        errors.invalid(path.child("expirationSeconds"), seconds, "may not specify a duration less than 10 minutes");
    }
    if seconds > 1 << 32 {
        errors.invalid(path.child("expirationSeconds"), seconds, "may not specify a duration larger than 2^32 seconds");
    }
    if token.path.is_empty() {
        errors.required(volume.child("path"), "");
    } else if !options.allow_non_local_projected_token_path {
        validate_local_non_reserved_path(&token.path, &volume.child("path"), errors);
    }
}
