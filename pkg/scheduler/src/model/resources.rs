//! Amounts of resources as integers: milli-cores, bytes, and units of whatever else nodes offer.
//!
//! Behaves as pkg/scheduler/framework/types.go (`Resource`) and pkg/scheduler/util/pod_resources.go, v1.36.

use std::sync::Arc;

use rkube_api::k8s::core::v1::{Container, PodSpec};
use rkube_api::pod_resources::{self, ResourceList, Side, is_sidecar};
use rkube_apimachinery::quantity::Quantity;
use smallvec::SmallVec;

/// What a container without a request counts for when nodes are compared, so that such pods spread.
pub(crate) const DEFAULT_MILLI_CPU: i64 = 100;
pub(crate) const DEFAULT_MEMORY: i64 = 200 * 1024 * 1024;

/// Amounts by resource. Scalars are sorted by name and never zero.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Resources {
    pub(crate) milli_cpu: i64,
    pub(crate) memory: i64,
    pub(crate) ephemeral_storage: i64,
    pub(crate) scalars: SmallVec<[(Arc<str>, i64); 1]>,
}

impl Resources {
    pub(crate) fn from_list(list: &ResourceList) -> Self {
        let mut resources = Self::default();
        for (name, amount) in list {
            match name.as_str() {
                "cpu" => resources.milli_cpu = amount.milli_value(),
                "memory" => resources.memory = amount.value(),
                "ephemeral-storage" => resources.ephemeral_storage = amount.value(),
                "pods" => {}
                name if is_scalar(name) => resources.add_scalar(name, amount.value()),
                _ => {}
            }
        }
        resources
    }

    pub(crate) fn is_zero(&self) -> bool {
        self.milli_cpu == 0 && self.memory == 0 && self.ephemeral_storage == 0 && self.scalars.is_empty()
    }

    /// The amount of a resource by its API name.
    pub(crate) fn get(&self, name: &str) -> i64 {
        match name {
            "cpu" => self.milli_cpu,
            "memory" => self.memory,
            "ephemeral-storage" => self.ephemeral_storage,
            name => self.scalar(name),
        }
    }

    pub(crate) fn scalar(&self, name: &str) -> i64 {
        self.scalars.iter().find(|(known, _)| &**known == name).map_or(0, |(_, amount)| *amount)
    }

    fn add_scalar(&mut self, name: &str, amount: i64) {
        match self.scalars.binary_search_by(|(known, _)| (**known).cmp(name)) {
            Ok(index) => {
                self.scalars[index].1 = self.scalars[index].1.saturating_add(amount);
                if self.scalars[index].1 == 0 {
                    self.scalars.remove(index);
                }
            }
            Err(index) if amount != 0 => self.scalars.insert(index, (name.into(), amount)),
            Err(_) => {}
        }
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.milli_cpu = self.milli_cpu.saturating_add(other.milli_cpu);
        self.memory = self.memory.saturating_add(other.memory);
        self.ephemeral_storage = self.ephemeral_storage.saturating_add(other.ephemeral_storage);
        for (name, amount) in &other.scalars {
            self.add_scalar(name, *amount);
        }
    }

    pub(crate) fn sub(&mut self, other: &Self) {
        self.milli_cpu = self.milli_cpu.saturating_sub(other.milli_cpu);
        self.memory = self.memory.saturating_sub(other.memory);
        self.ephemeral_storage = self.ephemeral_storage.saturating_sub(other.ephemeral_storage);
        for (name, amount) in &other.scalars {
            self.add_scalar(name, -amount);
        }
    }
}

/// Whether a resource is counted by name: extended resources, huge pages, attachable volumes.
pub(crate) fn is_scalar(name: &str) -> bool {
    is_extended(name) || name.starts_with("hugepages-") || name.starts_with("attachable-volumes-") || {
        // `kubernetes.io/...` that is neither of the above is native, and prefixed.
        name.contains("kubernetes.io/")
    }
}

/// A resource of somebody else's domain.
pub(crate) fn is_extended(name: &str) -> bool {
    name.contains('/') && !name.contains("kubernetes.io/") && !name.starts_with("requests.")
}

/// What the pod asks for, as filters count it.
pub(crate) fn requests_of(spec: &PodSpec) -> Resources {
    Resources::from_list(&pod_resources::of_pod(spec, Side::Requests))
}

/// Milli-cores and bytes with the defaults for containers that ask for nothing, as scores count them.
pub(crate) fn non_zero_requests_of(spec: &PodSpec) -> (i64, i64) {
    let milli = |quantity: &Quantity| quantity.milli_value();
    let value = |quantity: &Quantity| quantity.value();
    (total_of(spec, "cpu", milli, DEFAULT_MILLI_CPU), total_of(spec, "memory", value, DEFAULT_MEMORY))
}

fn total_of(spec: &PodSpec, name: &str, unit: impl Fn(&Quantity) -> i64, default: i64) -> i64 {
    let amount = |list: Option<&std::collections::BTreeMap<String, rkube_api::meta::pkg::api::resource::Quantity>>| {
        let text = list.and_then(|list| list.get(name))?;
        Quantity::parse(&text.0).ok().map(|quantity| unit(&quantity))
    };
    let own = |container: &Container| {
        amount(container.resources.as_ref().and_then(|resources| resources.requests.as_ref())).unwrap_or(default)
    };
    let pod_level = amount(spec.resources.as_ref().and_then(|resources| resources.requests.as_ref()));
    let sum = pod_level.unwrap_or_else(|| {
        let mut total: i64 = spec.containers.iter().map(own).sum();
        let (mut sidecars, mut peak) = (0_i64, 0_i64);
        for container in spec.init_containers.iter().flatten() {
            let at_once = sidecars.saturating_add(own(container));
            if is_sidecar(container) {
                total = total.saturating_add(own(container));
                sidecars = at_once;
            }
            peak = peak.max(at_once);
        }
        total.max(peak)
    });
    sum.saturating_add(amount(spec.overhead.as_ref()).unwrap_or(0))
}
