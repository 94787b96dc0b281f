//! Warnings that every kind with a pod template gives.

use rkube_api::k8s::core::v1::PodTemplateSpec;
use rkube_api::meta::pkg::apis::meta::v1::ObjectMeta;
use rkube_apimachinery::field::Path;
use rkube_apimachinery::names;

use super::report::OptText;
use crate::core::pod_warnings::template_warnings;

/// For a new object (`old` is none) about its name and template, for an update about a changed template.
pub fn workload_warnings(
    meta: &ObjectMeta,
    template: Option<&PodTemplateSpec>,
    old: Option<&ObjectMeta>,
    path: &Path,
    name_is_hostname: bool,
) -> Vec<String> {
    let mut warnings = Vec::new();
    if old.is_none() && name_is_hostname {
        let messages = names::is_dns1123_label(meta.name.text());
        if !messages.is_empty() {
            warnings.push(format!(
                "metadata.name: this is used in Pod names and hostnames, which can result in surprising behavior; a DNS label is recommended: [{}]",
                messages.join(" ")
            ));
        }
    }
    if old.is_none_or(|old| old.generation != meta.generation)
        && let Some(template) = template
    {
        warnings.extend(template_warnings(template, None, path));
    }
    warnings
}
