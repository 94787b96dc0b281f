//! core/v1 Pod and the pod templates of other kinds: the spec, creation.
//!
//! Updates are in [`super::pod_update`], the status in [`super::pod_status`], defaults in [`super::pod_defaults`].
//!
//! Behaves as ValidatePodCreate, ValidatePodSpec and ValidatePodTemplateSpec of
//! pkg/apis/core/validation/validation.go, v1.36.

use std::collections::BTreeSet;

use rkube_api::k8s::core::v1::{Binding, Pod, PodDNSConfig, PodSpec, PodTemplate, PodTemplateSpec};
use rkube_api::meta::pkg::apis::meta::v1::ObjectMeta;
use rkube_apimachinery::field::{Error, ErrorList, Path};
use rkube_apimachinery::names;

use super::containers::{
    PodContext, all_containers, validate_containers, validate_ephemeral_containers, validate_image_whitespace,
    validate_init_containers,
};
use super::pod_annotations::{is_mirror, validate_annotations_match_fields, validate_pod_annotations};
use super::pod_options::PodOptions;
use super::resources::{validate_container_resources, validate_pod_resources};
use super::scheduling::{validate_affinity, validate_tolerations, validate_topology_spread_constraints};
use super::security::{
    validate_host_users, validate_linux, validate_pod_security_context, validate_windows, validate_windows_host_process,
};
use super::volume::validate_volumes;
use crate::common::meta::{validate_annotations, validate_labels, validate_object_meta, validate_object_meta_update};
use crate::common::names::{
    dns_subdomain, validate_dns1123_label, validate_dns1123_subdomain, validate_ip, validate_qualified_name,
};
use crate::common::report::{OptList, OptText, Report, shown};

const NAMESERVERS_MAX: usize = 3;
const SEARCH_PATHS_MAX: usize = 32;
const SEARCH_LIST_LENGTH_MAX: usize = 2048;
const HOSTNAME_OVERRIDE_LENGTH_MAX: usize = 64;

/// `Pod` on creation.
pub fn validate(pod: &Pod) -> ErrorList {
    let mut errors = ErrorList::new();
    let options = PodOptions::for_pod(None);
    validate_metadata_and_spec(pod, &options, &mut errors);
    let default = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&default);
    let path = Path::new("spec");
    if !spec.ephemeral_containers.items().is_empty() {
        errors.forbidden(path.child("ephemeralContainers"), "cannot be set on create");
    }
    if !spec.node_name.is_blank() && !spec.scheduling_gates.items().is_empty() {
        errors.forbidden(path.child("nodeName"), "cannot be set until all schedulingGates have been cleared");
    }
    validate_annotations_match_fields(&pod.metadata, spec, &path, &mut errors);
    errors
}

pub(crate) fn validate_metadata_and_spec(pod: &Pod, options: &PodOptions, errors: &mut ErrorList) {
    let (meta_path, spec_path) = (Path::new("metadata"), Path::new("spec"));
    let default = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&default);
    validate_object_meta(&pod.metadata, true, dns_subdomain, &meta_path, errors);
    let annotations = pod.metadata.annotations.as_ref();
    validate_pod_annotations(annotations, spec, &meta_path.child("annotations"), options, errors);
    validate_spec(spec, Some(&pod.metadata), &spec_path, options, errors);
    if spec.service_account_name.is_blank() {
        for (index, volume) in spec.volumes.items().iter().enumerate() {
            let sources = volume.projected.iter().flat_map(|projected| projected.sources.items()).enumerate();
            for (source, _) in sources.filter(|(_, source)| source.service_account_token.is_some()) {
                let path = spec_path.child("volumes").index(index).child("projected").child("sources").index(source);
                let detail = "must not be specified when serviceAccountName is not set";
                errors.forbidden(path.child("serviceAccountToken"), detail);
            }
        }
    }
    for (list, containers) in
        [("containers", spec.containers.as_slice()), ("initContainers", spec.init_containers.items())]
    {
        for (index, container) in containers.iter().enumerate() {
            validate_image_whitespace(container.image.text(), &spec_path.child(list).index(index), errors);
        }
    }
}

/// The template of a workload. What the workload adds (restart policies, selectors) is checked there.
pub(crate) fn validate_template(template: &PodTemplateSpec, path: &Path, options: &PodOptions, errors: &mut ErrorList) {
    let (default_meta, default_spec) = (ObjectMeta::default(), PodSpec::default());
    let meta = template.metadata.as_ref().unwrap_or(&default_meta);
    let spec = template.spec.as_ref().unwrap_or(&default_spec);
    let spec_path = path.child("spec");
    validate_labels(meta.labels.as_ref(), &path.child("labels"), errors);
    validate_annotations(meta.annotations.as_ref(), &path.child("annotations"), errors);
    validate_pod_annotations(meta.annotations.as_ref(), spec, &path.child("annotations"), options, errors);
    validate_spec(spec, None, &spec_path, options, errors);
    validate_annotations_match_fields(meta, spec, &spec_path, errors);
    if !spec.ephemeral_containers.items().is_empty() {
        let detail = "ephemeral containers not allowed in pod template";
        errors.forbidden(spec_path.child("ephemeralContainers"), detail);
    }
}

/// `PodTemplate` on creation.
pub fn validate_pod_template(object: &PodTemplate) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta(&object.metadata, true, dns_subdomain, &Path::new("metadata"), &mut errors);
    let template = object.template.clone().unwrap_or_default();
    validate_template(&template, &Path::new("template"), &PodOptions::strict(), &mut errors);
    errors
}

pub fn validate_pod_template_update(new: &PodTemplate, old: &PodTemplate) -> ErrorList {
    let mut errors = ErrorList::new();
    validate_object_meta_update(&new.metadata, &old.metadata, &Path::new("metadata"), &mut errors);
    let options = PodOptions::for_template(old.template.as_ref());
    let template = new.template.clone().unwrap_or_default();
    validate_template(&template, &Path::new("template"), &options, &mut errors);
    errors
}

/// What a scheduler posts to `pods/x/binding`.
pub fn validate_binding(binding: &Binding) -> ErrorList {
    let mut errors = ErrorList::new();
    let path = Path::new("target");
    let kind = binding.target.kind.text();
    if !kind.is_empty() && kind != "Node" {
        errors.not_supported(path.child("kind"), kind, &["Node", "<empty>"]);
    }
    errors.not_empty(path.child("name"), binding.target.name.text());
    errors
}

pub(crate) fn validate_spec(
    spec: &PodSpec,
    meta: Option<&ObjectMeta>,
    path: &Path,
    options: &PodOptions,
    errors: &mut ErrorList,
) {
    if spec.termination_grace_period_seconds.is_none() {
        errors.required(path.child("terminationGracePeriodSeconds"), "");
    }
    let volumes = validate_volumes(spec.volumes.items(), meta, &path.child("volumes"), options, errors);
    let claim_names: BTreeSet<&str> =
        spec.resource_claims.items().iter().map(|claim| claim.name.as_str()).filter(|name| !name.is_empty()).collect();
    validate_resource_claims(spec, meta, &path.child("resourceClaims"), errors);
    let context = PodContext { spec, volumes: &volumes, claim_names: &claim_names, options };
    validate_containers(&context, &path.child("containers"), errors);
    validate_init_containers(&context, &path.child("initContainers"), errors);
    validate_ephemeral_containers(&context, &path.child("ephemeralContainers"), errors);
    validate_pod_resources(spec, &claim_names, path, options, errors);
    validate_host_network_ports(spec, &path.child("containers"), options, errors);
    errors.required_one_of(path.child("restartPolicy"), spec.restart_policy.text(), &["Always", "OnFailure", "Never"]);
    errors.required_one_of(
        path.child("dnsPolicy"),
        spec.dns_policy.text(),
        &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"],
    );
    validate_labels(spec.node_selector.as_ref(), &path.child("nodeSelector"), errors);
    validate_pod_security_context(spec, &path.child("securityContext"), options, errors);
    validate_affinity(spec.affinity.as_ref(), options, &path.child("affinity"), errors);
    validate_dns_config(spec.dns_config.as_ref(), spec.dns_policy.text(), &path.child("dnsConfig"), errors);
    for (index, gate) in spec.readiness_gates.items().iter().enumerate() {
        let path = path.child("readinessGates").index(index).child("conditionType");
        validate_qualified_name(&gate.condition_type, path, errors);
    }
    let mut gates = BTreeSet::new();
    for (index, gate) in spec.scheduling_gates.items().iter().enumerate() {
        let path = path.child("schedulingGates").index(index);
        validate_qualified_name(&gate.name, &path, errors);
        if !gates.insert(gate.name.as_str()) {
            errors.duplicate(path, gate.name.as_str());
        }
    }
    let constraints = spec.topology_spread_constraints.items();
    let constraints_path = path.child("topologySpreadConstraints");
    validate_topology_spread_constraints(constraints, options, &constraints_path, errors);
    validate_windows_host_process(spec, path, errors);
    validate_host_users(spec, path, options, errors);
    validate_names(spec, path, errors);
    if let Some(overhead) = &spec.overhead {
        let limits =
            rkube_api::k8s::core::v1::ResourceRequirements { limits: Some(overhead.clone()), ..Default::default() };
        validate_container_resources(&limits, None, &path.child("overhead"), options, errors);
    }
    match spec.os.as_ref().map(|os| os.name.as_str()) {
        None => {}
        Some("") => errors.required(path.child("os").child("name"), ""),
        Some("linux") => validate_linux(spec, path, errors),
        Some("windows") => validate_windows(spec, path, errors),
        Some(other) => errors.not_supported(path.child("os"), other, &["linux", "windows"]),
    }
    validate_file_key_volumes(spec, path, errors);
}

/// Names, numbers and lists that stand alone in the spec, in upstream's order.
fn validate_names(spec: &PodSpec, path: &Path, errors: &mut ErrorList) {
    if let Some(name) = &spec.hostname_override {
        let path = path.child("hostnameOverride");
        if spec.set_hostname_as_fqdn == Some(true) {
            errors.forbidden(&path, "may not be specified when setHostnameAsFQDN is true");
        }
        if spec.host_network == Some(true) {
            errors.forbidden(&path, "may not be specified when hostNetwork is true");
        }
        if name.len() > HOSTNAME_OVERRIDE_LENGTH_MAX {
            errors.too_long(&path, HOSTNAME_OVERRIDE_LENGTH_MAX);
        }
        validate_dns1123_subdomain(name, &path, errors);
    }
    for (field, name) in [("serviceAccountName", &spec.service_account_name), ("nodeName", &spec.node_name)] {
        if !name.is_blank() {
            errors.invalid_each(path.child(field), name.text(), dns_subdomain(name.text(), false));
        }
    }
    if let Some(seconds) = spec.active_deadline_seconds
        && !(1..=i64::from(i32::MAX)).contains(&seconds)
    {
        let detail = names::inclusive_range_error(1, i64::from(i32::MAX));
        errors.invalid(path.child("activeDeadlineSeconds"), seconds, detail);
    }
    for (field, name) in [("hostname", &spec.hostname), ("subdomain", &spec.subdomain)] {
        if !name.is_blank() {
            validate_dns1123_label(name.text(), path.child(field), errors);
        }
    }
    validate_tolerations(spec.tolerations.items(), &path.child("tolerations"), errors);
    for (index, alias) in spec.host_aliases.items().iter().enumerate() {
        let path = path.child("hostAliases").index(index);
        validate_ip(&alias.ip, &[], path.child("ip"), errors);
        for (index, hostname) in alias.hostnames.items().iter().enumerate() {
            validate_dns1123_subdomain(hostname, path.child("hostnames").index(index), errors);
        }
    }
    let class = spec.priority_class_name.text();
    if !class.is_empty() {
        errors.invalid_each(path.child("priorityClassName"), class, dns_subdomain(class, false));
    }
    if let Some(name) = &spec.runtime_class_name {
        errors.invalid_each(path.child("runtimeClassName"), name, dns_subdomain(name, false));
    }
    if let Some(policy) = &spec.preemption_policy {
        errors.required_one_of(path.child("preemptionPolicy"), policy, &["PreemptLowerPriority", "Never"]);
    }
}

fn validate_resource_claims(spec: &PodSpec, meta: Option<&ObjectMeta>, path: &Path, errors: &mut ErrorList) {
    let mut taken = BTreeSet::new();
    for (index, claim) in spec.resource_claims.items().iter().enumerate() {
        if meta.is_some_and(is_mirror) {
            let mut error = Error::forbidden(&Path::root(), "static pods do not support resource claims");
            error.field = String::new();
            errors.push(error);
            continue;
        }
        let path = path.index(index);
        if claim.name.is_empty() {
            errors.required(path.child("name"), "");
        } else if taken.contains(claim.name.as_str()) {
            errors.duplicate(path.child("name"), claim.name.as_str());
        } else {
            validate_dns1123_label(&claim.name, path.child("name"), errors);
            taken.insert(claim.name.as_str());
        }
        let (name, template) = (&claim.resource_claim_name, &claim.resource_claim_template_name);
        if name.is_some() && template.is_some() {
            let detail = "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified";
            errors.invalid(&path, shown(claim), detail);
        }
        if name.is_none() && template.is_none() {
            let detail = "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`";
            errors.invalid(&path, shown(claim), detail);
        }
        for (field, name) in [("resourceClaimName", name), ("resourceClaimTemplateName", template)] {
            if let Some(name) = name {
                errors.invalid_each(path.child(field), name, dns_subdomain(name, false));
            }
        }
    }
}

/// On the host's network a container's port is the host's port.
fn validate_host_network_ports(spec: &PodSpec, path: &Path, options: &PodOptions, errors: &mut ErrorList) {
    if spec.host_network != Some(true) {
        return;
    }
    for (index, container) in spec.containers.iter().enumerate() {
        for (port_index, port) in container.ports.items().iter().enumerate() {
            let host_port = port.host_port.unwrap_or(0);
            if (options.resource_is_pod || host_port != 0) && host_port != port.container_port {
                let path = path.index(index).child("ports").index(port_index).child("hostPort");
                errors.invalid(path, host_port, "must match `containerPort` when `hostNetwork` is true");
            }
        }
    }
}

fn validate_dns_config(config: Option<&PodDNSConfig>, policy: &str, path: &Path, errors: &mut ErrorList) {
    if policy == "None" {
        if config.is_none() {
            errors.required(path, "must provide `dnsConfig` when `dnsPolicy` is None");
            return;
        }
        if config.is_some_and(|config| config.nameservers.items().is_empty()) {
            let detail = "must provide at least one DNS nameserver when `dnsPolicy` is None";
            errors.required(path.child("nameservers"), detail);
            return;
        }
    }
    let Some(config) = config else { return };
    let (servers, searches) = (config.nameservers.items(), config.searches.items());
    let servers_path = path.child("nameservers");
    if servers.len() > NAMESERVERS_MAX {
        let detail = format!("must not have more than {NAMESERVERS_MAX} nameservers");
        errors.invalid(&servers_path, servers.to_vec(), detail);
    }
    for (index, server) in servers.iter().enumerate() {
        validate_ip(server, &[], servers_path.index(index), errors);
    }
    let searches_path = path.child("searches");
    if searches.len() > SEARCH_PATHS_MAX {
        let detail = format!("must not have more than {SEARCH_PATHS_MAX} search paths");
        errors.invalid(&searches_path, searches.to_vec(), detail);
    }
    if searches.join(" ").len() > SEARCH_LIST_LENGTH_MAX {
        let detail = format!(
            "must not have more than {SEARCH_LIST_LENGTH_MAX} characters (including spaces) in the search list"
        );
        errors.invalid(&searches_path, searches.to_vec(), detail);
    }
    for (index, search) in searches.iter().enumerate().filter(|(_, search)| *search != ".") {
        let search = search.strip_suffix('.').unwrap_or(search);
        let messages = names::is_dns1123_subdomain_with_underscore(search);
        errors.invalid_each(searches_path.index(index), search, messages);
    }
    for (index, option) in config.options.items().iter().enumerate() {
        if option.name.is_blank() {
            errors.required(path.child("options").index(index), "must not be empty");
        }
    }
}

/// Environment from a file needs the file's volume to be one that a container can write.
fn validate_file_key_volumes(spec: &PodSpec, path: &Path, errors: &mut ErrorList) {
    for container in all_containers(spec) {
        for (index, var) in container.env.iter().enumerate() {
            let Some(file) = var.value_from.as_ref().and_then(|source| source.file_key_ref.as_ref()) else { continue };
            let path = || {
                let env = container.path(path).child("env").index(index);
                env.child("valueFrom").child("fileKeyRef").child("volumeName")
            };
            match spec.volumes.items().iter().rfind(|volume| volume.name == file.volume_name) {
                None => errors.not_found(path(), file.volume_name.as_str()),
                Some(volume) if volume.empty_dir.is_none() => {
                    let detail = "referenced volume must be of type emptyDir";
                    errors.invalid(path(), file.volume_name.as_str(), detail);
                }
                Some(_) => {}
            }
        }
    }
}
