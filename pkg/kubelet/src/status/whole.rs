//! Resources of a pod as a whole: what it was given, and what it has. Pure.
//!
//! Behaves as convertToAPIPodLevelResourcesStatus in pkg/kubelet/kubelet_pods.go, v1.36.

use std::collections::BTreeMap;

use rkube_api::k8s::core::v1::ResourceRequirements;
use rkube_api::meta::pkg::api::resource::Quantity as ApiQuantity;
use rkube_api::pod_resources::{ResourceList, Side, of_pod};
use rkube_apimachinery::quantity::{Format, Quantity};

use crate::cm::Limits;
use crate::pod::PodExt;
use crate::runtime::resources::milli_of;
use crate::status::StatusInputs;

/// Shares or thousandths of a processor up to which a request counts as none.
const MIN_SHARES: i64 = 2;
/// The kernel bounds a processor no lower, in thousandths.
const MIN_CPU_LIMIT: i64 = 10;

type List = BTreeMap<String, ApiQuantity>;

fn text(list: &ResourceList) -> Option<List> {
    let texts = list.iter().map(|(name, quantity)| (name.clone(), ApiQuantity(quantity.to_string())));
    (!list.is_empty()).then(|| texts.collect())
}

/// `allocatedResources` and `resources` of the status.
pub(super) fn resources(inputs: &StatusInputs<'_>) -> (Option<List>, Option<ResourceRequirements>) {
    let spec = inputs.pod.pod_spec();
    let requests = of_pod(spec, Side::Requests);
    let allocated = text(&requests);
    let Some(limits) = inputs.limits.filter(|_| inputs.pod.phase() == "Running") else {
        let limits = text(&of_pod(spec, Side::Limits));
        let whole = ResourceRequirements { claims: None, limits, requests: allocated.clone() };
        return (allocated, Some(whole));
    };
    let mut whole = spec.resources.clone().unwrap_or_default();
    in_force(&mut whole, &limits, &requests);
    (allocated, Some(whole))
}

/// Puts what the pod's cgroup says in place of what was asked for.
fn in_force(whole: &mut ResourceRequirements, limits: &Limits, requests: &ResourceList) {
    let milli = |list: &List| list.get("cpu").map_or(0, |cpu| crate::pod::quantity(Some(cpu)).milli_value());
    let put = |list: &mut List, name: &str, quantity: Quantity| {
        list.insert(name.to_owned(), ApiQuantity(quantity.to_string()));
    };
    let mut asked = whole.requests.take().unwrap_or_default();
    if let Some(cpu) = limits.cpu_shares.map(milli_of)
        && (cpu > MIN_SHARES || milli(&asked) > MIN_SHARES)
    {
        put(&mut asked, "cpu", Quantity::milli(cpu, Format::DecimalSi));
    }
    if let Some(memory) = requests.get("memory").filter(|_| !asked.contains_key("memory")) {
        put(&mut asked, "memory", memory.clone());
    }
    let mut bounds = whole.limits.take().unwrap_or_default();
    if let Some(cpu) = limits.cpu_milli
        && (cpu > MIN_CPU_LIMIT || milli(&bounds) > MIN_CPU_LIMIT)
    {
        put(&mut bounds, "cpu", Quantity::milli(cpu, Format::DecimalSi));
    }
    if let Some(memory) = limits.memory {
        put(&mut bounds, "memory", Quantity::new(memory, Format::BinarySi));
    }
    whole.requests = (!asked.is_empty()).then_some(asked);
    whole.limits = (!bounds.is_empty()).then_some(bounds);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_the_cgroup_says_is_told() {
        let check = |whole: serde_json::Value, limits: Limits, expected: serde_json::Value| {
            let mut whole: ResourceRequirements = serde_json::from_value(whole).unwrap();
            let requests = [("memory".to_owned(), Quantity::new(1 << 20, Format::BinarySi))].into();
            in_force(&mut whole, &limits, &requests);
            assert_eq!(serde_json::to_value(whole).unwrap(), expected);
        };
        let limits = Limits { cpu_shares: Some(102), memory: Some(2 << 20), ..Limits::default() };
        let given = json!({"requests": {"cpu": "100m", "memory": "1Mi"}, "limits": {"memory": "2Mi"}});
        check(json!({}), limits, given);
        // The kernel knows no smaller ones, and the spec's stay.
        let least = Limits { cpu_shares: Some(2), cpu_milli: Some(10), ..Limits::default() };
        let asked = json!({"requests": {"cpu": "1m", "memory": "3Mi"}, "limits": {"cpu": "5m"}});
        check(asked.clone(), least, asked);
    }
}
