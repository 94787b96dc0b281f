//! How strictly a pod is validated: an update may keep what an older server accepted.
//!
//! Behaves as GetValidationOptionsFromPodSpecAndMeta of pkg/api/pod/util.go, v1.36, with the default
//! feature gates; what a gate that is on by default allows is not an option here.

use rkube_api::k8s::core::v1::{PodAffinityTerm, PodSpec, PodTemplateSpec};
use rkube_api::meta::pkg::apis::meta::v1::ObjectMeta;
use rkube_apimachinery::field::{ErrorList, Path};

use super::containers::all_containers;
use super::pod_annotations::deletion_cost_is_valid;
use super::resources::huge_page_values_are_divisible;
use super::scheduling::{
    has_invalid_label_value_in_terms, validate_match_label_keys, validate_pod_affinity_term_selectors,
};
use super::security::host_sysctl_error;
use super::volume::validate_local_non_reserved_path;
use crate::common::meta::{SelectorOptions, validate_label_selector};
use crate::common::report::OptList;

#[derive(Clone, Debug, Default)]
pub(crate) struct PodOptions {
    /// A Pod, not a template.
    pub(crate) resource_is_pod: bool,
    pub(crate) allow_invalid_pod_deletion_cost: bool,
    pub(crate) allow_invalid_label_value_in_selector: bool,
    pub(crate) allow_invalid_label_value_in_required_node_affinity: bool,
    pub(crate) allow_indivisible_huge_pages_values: bool,
    pub(crate) allow_invalid_topology_spread_constraint_label_selector: bool,
    pub(crate) allow_non_local_projected_token_path: bool,
    pub(crate) allow_namespaced_sysctls_for_host_net_and_host_ipc: bool,
    /// The stored pod already names a policy other than Recursive.
    pub(crate) allow_any_se_linux_change_policy: bool,
    pub(crate) old_pod_violates_match_label_keys_validation: bool,
    pub(crate) allow_existing_restart_container_for_init_container: bool,
    pub(crate) allow_user_namespaces_with_volume_devices: bool,
}

impl PodOptions {
    /// For a new pod or template.
    pub(crate) fn strict() -> Self {
        Self::default()
    }

    pub(crate) fn for_pod(old: Option<(&PodSpec, &ObjectMeta)>) -> Self {
        Self {
            resource_is_pod: true,
            ..old.map_or_else(Self::default, |(spec, meta)| Self::from_old(spec, Some(meta)))
        }
    }

    pub(crate) fn for_template(old: Option<&PodTemplateSpec>) -> Self {
        old.and_then(|template| template.spec.as_ref().map(|spec| (spec, template.metadata.as_ref())))
            .map_or_else(Self::default, |(spec, meta)| Self::from_old(spec, meta))
    }

    fn from_old(spec: &PodSpec, meta: Option<&ObjectMeta>) -> Self {
        let root = Path::root();
        let security = spec.security_context.as_ref();
        let constraints = || spec.topology_spread_constraints.items().iter();
        let fails = |check: &dyn Fn(&mut ErrorList)| {
            let mut errors = ErrorList::new();
            check(&mut errors);
            !errors.is_empty()
        };
        Self {
            resource_is_pod: false,
            allow_invalid_pod_deletion_cost: meta
                .is_some_and(|meta| !deletion_cost_is_valid(meta.annotations.as_ref())),
            allow_invalid_label_value_in_selector: fails(&|errors| {
                for term in affinity_terms(spec) {
                    validate_pod_affinity_term_selectors(term, SelectorOptions::default(), &root, errors);
                }
            }),
            allow_invalid_label_value_in_required_node_affinity: spec
                .affinity
                .as_ref()
                .and_then(|affinity| affinity.node_affinity.as_ref())
                .and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref())
                .is_some_and(|selector| has_invalid_label_value_in_terms(&selector.node_selector_terms)),
            allow_indivisible_huge_pages_values: !all_containers(spec)
                .iter()
                .filter_map(|container| container.resources)
                .flat_map(|resources| [&resources.limits, &resources.requests])
                .chain([&spec.overhead])
                .all(huge_page_values_are_divisible),
            allow_invalid_topology_spread_constraint_label_selector: fails(&|errors| {
                for constraint in constraints() {
                    let selector = constraint.label_selector.as_ref();
                    validate_label_selector(selector, SelectorOptions::default(), &root, errors);
                }
            }),
            allow_non_local_projected_token_path: fails(&|errors| {
                for volume in spec.volumes.items() {
                    for source in volume.projected.iter().flat_map(|projected| projected.sources.items()) {
                        if let Some(token) = &source.service_account_token {
                            validate_local_non_reserved_path(&token.path, &root, errors);
                        }
                    }
                }
            }),
            allow_namespaced_sysctls_for_host_net_and_host_ipc: security
                .into_iter()
                .flat_map(|security| security.sysctls.items())
                .any(|sysctl| host_sysctl_error(&sysctl.name, spec).is_some()),
            allow_any_se_linux_change_policy: security
                .is_some_and(|security| security.se_linux_change_policy.is_some()),
            old_pod_violates_match_label_keys_validation: fails(&|errors| {
                for constraint in constraints() {
                    let keys = constraint.match_label_keys.items();
                    validate_match_label_keys(keys, &[], constraint.label_selector.as_ref(), &root, errors);
                }
            }),
            allow_existing_restart_container_for_init_container: spec.init_containers.items().iter().any(|container| {
                container.restart_policy.as_deref() != Some("Always")
                    && container.resize_policy.items().iter().any(|policy| policy.restart_policy == "RestartContainer")
            }),
            allow_user_namespaces_with_volume_devices: spec.host_users == Some(false)
                && all_containers(spec).iter().any(|container| container.has_volume_devices),
        }
    }
}

/// Every pod affinity and anti-affinity term, required and preferred.
fn affinity_terms(spec: &PodSpec) -> impl Iterator<Item = &PodAffinityTerm> {
    let affinity = spec.affinity.as_ref();
    let (pod, anti) = (
        affinity.and_then(|affinity| affinity.pod_affinity.as_ref()),
        affinity.and_then(|affinity| affinity.pod_anti_affinity.as_ref()),
    );
    let required = pod
        .into_iter()
        .flat_map(|pod| pod.required_during_scheduling_ignored_during_execution.items())
        .chain(anti.into_iter().flat_map(|anti| anti.required_during_scheduling_ignored_during_execution.items()));
    let preferred = pod
        .into_iter()
        .flat_map(|pod| pod.preferred_during_scheduling_ignored_during_execution.items())
        .chain(anti.into_iter().flat_map(|anti| anti.preferred_during_scheduling_ignored_during_execution.items()));
    required.chain(preferred.map(|term| &term.pod_affinity_term))
}
