//! A pod as the checks see it: containers of all three kinds alike, and the words of the messages.

use std::collections::BTreeSet;

use rkube_api::k8s::core::v1::{ContainerPort, Lifecycle, PodSpec, Probe, SecurityContext};

/// What the checks look at in a container, an init container or an ephemeral container.
pub(super) struct ContainerView<'a> {
    pub(super) name: &'a str,
    pub(super) security: Option<&'a SecurityContext>,
    pub(super) ports: &'a [ContainerPort],
    pub(super) probes: [Option<&'a Probe>; 3],
    pub(super) lifecycle: Option<&'a Lifecycle>,
}

/// All containers: init, regular, ephemeral.
pub(super) fn containers(spec: &PodSpec) -> impl Iterator<Item = ContainerView<'_>> {
    let regular = spec.init_containers.iter().flatten().chain(&spec.containers).map(|container| ContainerView {
        name: &container.name,
        security: container.security_context.as_ref(),
        ports: container.ports.as_deref().unwrap_or_default(),
        probes: [&container.liveness_probe, &container.readiness_probe, &container.startup_probe].map(Option::as_ref),
        lifecycle: container.lifecycle.as_ref(),
    });
    let ephemeral = spec.ephemeral_containers.iter().flatten().map(|container| ContainerView {
        name: &container.name,
        security: container.security_context.as_ref(),
        ports: container.ports.as_deref().unwrap_or_default(),
        probes: [&container.liveness_probe, &container.readiness_probe, &container.startup_probe].map(Option::as_ref),
        lifecycle: container.lifecycle.as_ref(),
    });
    regular.chain(ephemeral)
}

/// The names of the containers that `is_bad`.
pub(super) fn bad<'a>(spec: &'a PodSpec, mut is_bad: impl FnMut(&ContainerView<'a>) -> bool) -> Vec<&'a str> {
    containers(spec).filter(|container| is_bad(container)).map(|container| container.name).collect()
}

/// `container "a"` or `containers "a", "b"`
pub(super) fn named(names: &[&str]) -> String {
    format!("{} {}", plural("container", "containers", names.len()), quoted(names))
}

/// `pod and containers "a"`: who set something, as far as there is anyone.
pub(super) fn setters(pod: bool, names: &[&str]) -> Option<String> {
    match (pod, names.is_empty()) {
        (false, true) => None,
        (true, true) => Some("pod".to_owned()),
        (false, false) => Some(named(names)),
        (true, false) => Some(format!("pod and {}", named(names))),
    }
}

pub(super) fn plural(one: &'static str, many: &'static str, count: usize) -> &'static str {
    if count == 1 { one } else { many }
}

/// `"a", "b"`, without escapes, as upstream writes them.
pub(super) fn quoted<T: AsRef<str>>(items: &[T]) -> String {
    items.iter().map(|item| format!("\"{}\"", item.as_ref())).collect::<Vec<_>>().join(", ")
}

pub(super) fn list<T: Clone + Ord>(set: &BTreeSet<T>) -> Vec<T> {
    set.iter().cloned().collect()
}

pub(super) fn is_windows(spec: &PodSpec) -> bool {
    spec.os.as_ref().is_some_and(|os| os.name == "windows")
}

/// Root inside a user namespace is nobody outside.
pub(super) fn has_user_namespace(spec: &PodSpec) -> bool {
    spec.host_users == Some(false)
}
