//! What a pod asks for as a whole: the sum of its containers, the peak of its init containers, pod-level
//! resources and overhead. Quota, limits, scheduling and eviction must agree on it.
//!
//! Behaves as `component-helpers/resource/helpers.go`, v1.36.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use rkube_apimachinery::quantity::Quantity;

/// Amounts by resource name.
pub type ResourceList = BTreeMap<String, Quantity>;

/// Which half of `resources` to sum up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Requests,
    Limits,
}

/// The pod's requests or limits, pod-level resources and overhead included.
pub fn of_pod(spec: &PodSpec, side: Side) -> ResourceList {
    let mut total = of_containers(spec, side);
    for (name, amount) in of(spec.resources.as_ref(), side) {
        if is_supported_at_pod_level(&name) {
            total.insert(name, amount);
        }
    }
    for (name, amount) in parse(spec.overhead.as_ref()) {
        // A limit that no container has is no limit; overhead does not make it one.
        if side == Side::Requests || total.contains_key(&name) {
            add(&mut total, name, &amount);
        }
    }
    total
}

/// The sum over containers or, where it is larger, the peak while init containers run. Sidecars (init
/// containers that always restart) count in both, from the moment they start.
pub fn of_containers(spec: &PodSpec, side: Side) -> ResourceList {
    let mut total = ResourceList::new();
    for container in &spec.containers {
        add_all(&mut total, &of(container.resources.as_ref(), side));
    }
    let mut sidecars = ResourceList::new();
    let mut peak = ResourceList::new();
    for container in spec.init_containers.iter().flatten() {
        let own = of(container.resources.as_ref(), side);
        let mut at_once = sidecars.clone();
        add_all(&mut at_once, &own);
        if is_sidecar(container) {
            add_all(&mut total, &own);
            sidecars = at_once.clone();
        }
        max_all(&mut peak, at_once);
    }
    max_all(&mut total, peak);
    total
}

/// An init container that runs beside the others.
pub fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// `resources` of a container or pod, parsed.
pub fn of(resources: Option<&ResourceRequirements>, side: Side) -> ResourceList {
    let list = resources.and_then(|resources| match side {
        Side::Requests => resources.requests.as_ref(),
        Side::Limits => resources.limits.as_ref(),
    });
    parse(list)
}

/// Equal in meaning: `1` and `1000m` are one quantity, and nothing is the same as empty.
pub fn is_same(a: Option<&ResourceRequirements>, b: Option<&ResourceRequirements>) -> bool {
    let claims = |side: Option<&ResourceRequirements>| side.and_then(|side| side.claims.clone()).unwrap_or_default();
    let same = |side: Side| of(a, side) == of(b, side);
    same(Side::Limits) && same(Side::Requests) && claims(a) == claims(b)
}

/// Amounts from their API form. Decoding has refused malformed ones; one that slips through counts nothing.
pub fn parse(list: Option<&BTreeMap<String, Text>>) -> ResourceList {
    list.into_iter().flatten().filter_map(|(name, text)| Some((name.clone(), Quantity::parse(&text.0).ok()?))).collect()
}

fn is_supported_at_pod_level(name: &str) -> bool {
    name == "cpu" || name == "memory" || name.starts_with("hugepages-")
}

fn add(total: &mut ResourceList, name: String, amount: &Quantity) {
    match total.get_mut(&name) {
        Some(sum) => sum.add(amount),
        None => {
            total.insert(name, amount.clone());
        }
    }
}

/// Adds every amount of `more` to `total`.
pub fn add_all(total: &mut ResourceList, more: &ResourceList) {
    for (name, amount) in more {
        add(total, name.clone(), amount);
    }
}

/// Raises every amount of `total` to that of `other`.
pub fn max_all(total: &mut ResourceList, other: ResourceList) {
    for (name, amount) in other {
        match total.get_mut(&name) {
            Some(known) if *known >= amount => {}
            _ => {
                total.insert(name, amount);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(cpu: &str, restart_policy: Option<&str>) -> Container {
        let requests = [("cpu".to_owned(), Text(cpu.to_owned()))].into();
        Container {
            resources: Some(ResourceRequirements { requests: Some(requests), ..ResourceRequirements::default() }),
            restart_policy: restart_policy.map(str::to_owned),
            ..Container::default()
        }
    }

    fn cpu(init: Vec<Container>, containers: Vec<Container>, change: impl FnOnce(&mut PodSpec)) -> String {
        let mut spec = PodSpec { containers, init_containers: Some(init), ..PodSpec::default() };
        change(&mut spec);
        of_pod(&spec, Side::Requests)["cpu"].to_string()
    }

    #[test]
    fn the_larger_of_running_and_starting_counts() {
        let keep = |_: &mut PodSpec| {};
        assert_eq!(cpu(vec![], vec![container("1", None), container("500m", None)], keep), "1500m");
        assert_eq!(cpu(vec![container("2", None)], vec![container("1", None)], keep), "2");
        assert_eq!(cpu(vec![container("1", Some("Always"))], vec![container("1", None)], keep), "2");
        let sidecar_then_init = vec![container("1", Some("Always")), container("3", None)];
        assert_eq!(cpu(sidecar_then_init, vec![container("1", None)], keep), "4");
        let init_then_sidecar = vec![container("3", None), container("1", Some("Always"))];
        assert_eq!(cpu(init_then_sidecar, vec![container("1", None)], keep), "3");
    }

    #[test]
    fn pod_level_resources_replace_and_overhead_adds() {
        let with_pod_level = |spec: &mut PodSpec| {
            spec.resources = container("5", None).resources;
            spec.overhead = Some([("cpu".to_owned(), Text("100m".to_owned()))].into());
        };
        assert_eq!(cpu(vec![], vec![container("1", None)], with_pod_level), "5100m");
    }
}
