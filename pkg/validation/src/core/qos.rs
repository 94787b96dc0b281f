//! The quality of service class of a pod.
//!
//! Behaves as pkg/apis/core/helper/qos/qos.go, v1.36.

use std::collections::BTreeMap;

use rkube_api::k8s::core::v1::{Pod, PodSpec, ResourceRequirements};

use super::resources::ResourceList;
use crate::common::quantity::{Amount, amount, sum as sum_of};
use crate::common::report::{OptList, OptMap, OptText};

/// The class in the status, or the one the spec has.
pub fn get(pod: &Pod) -> &str {
    let stored = pod.status.as_ref().map_or("", |status| status.qos_class.text());
    if !stored.is_empty() {
        return stored;
    }
    pod.spec.as_ref().map_or("BestEffort", compute)
}

/// `Guaranteed`, `Burstable` or `BestEffort`. Only cpu and memory count.
pub fn compute(spec: &PodSpec) -> &'static str {
    let (mut requests, mut limits) = (BTreeMap::new(), BTreeMap::new());
    let mut guaranteed = true;
    let mut collect = |resources: Option<&ResourceRequirements>| {
        let Some(resources) = resources else {
            guaranteed = false;
            return;
        };
        sum(&mut requests, &resources.requests);
        let limited = sum(&mut limits, &resources.limits);
        guaranteed &= limited == 2;
    };
    if spec.resources.as_ref().is_some_and(|resources| resources.requests.count() + resources.limits.count() > 0) {
        collect(spec.resources.as_ref());
    } else {
        for container in spec.containers.iter().chain(spec.init_containers.items()) {
            collect(container.resources.as_ref());
        }
    }
    if requests.is_empty() && limits.is_empty() {
        return "BestEffort";
    }
    let equal =
        requests.len() == limits.len() && requests.iter().all(|(name, request)| limits.get(name) == Some(request));
    if guaranteed && equal { "Guaranteed" } else { "Burstable" }
}

/// Adds what counts, and says how many of the two it were.
fn sum(total: &mut BTreeMap<String, Amount>, list: &ResourceList) -> usize {
    let mut found = 0;
    for (name, value) in list.pairs().filter(|(name, _)| matches!(name.as_str(), "cpu" | "memory")) {
        let value = amount(value);
        if value.is_negative() || value.is_zero() {
            continue;
        }
        found += 1;
        total.entry(name.clone()).and_modify(|total| *total = sum_of(total, &value)).or_insert(value);
    }
    found
}
