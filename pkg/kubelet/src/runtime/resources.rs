//! Requests and limits as numbers for the runtime and for cgroups.
//!
//! Behaves as pkg/kubelet/cm/helpers_linux.go and kuberuntime_container_linux.go, v1.36.

use std::cmp::Ordering;

use rkube_api::k8s::core::v1::{Container, Pod};
use rkube_cri::v1::{HugepageLimit, LinuxContainerResources};

use crate::pod::{PodExt, QosClass, limit, quantity, request};

const MIN_SHARES: i64 = 2;
const MAX_SHARES: i64 = 262_144;
const SHARES_PER_CPU: i64 = 1024;
const MILLI_PER_CPU: i64 = 1000;
/// 100 ms, in microseconds.
pub const QUOTA_PERIOD: i64 = 100_000;
/// 1 ms: the kernel takes no less.
const MIN_QUOTA_PERIOD: i64 = 1000;

/// The OOM killer's view: from -1000, never, to 1000, first.
const GUARANTEED_OOM_SCORE: i64 = -997;
const BEST_EFFORT_OOM_SCORE: i64 = 1000;
pub const KUBELET_OOM_SCORE: i64 = -999;

/// The four numbers that may change while a container runs; `None` is "not given".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ContainerResources {
    pub cpu_request_milli: Option<i64>,
    pub cpu_limit_milli: Option<i64>,
    pub memory_request: Option<i64>,
    pub memory_limit: Option<i64>,
}

/// One of the two that are changed one after the other: they may need another order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resizable {
    Memory,
    Cpu,
}

impl ContainerResources {
    /// A limit of the whole pod holds for each container that has none of its own.
    pub fn of(pod: &Pod, container: &Container) -> Self {
        let whole = pod.pod_spec().resources.as_ref().and_then(|resources| resources.limits.as_ref());
        let bound = |name: &str| {
            let whole = || Some(quantity(Some(whole?.get(name)?)));
            limit(container, name).filter(|own| !own.is_zero()).or_else(whole).or_else(|| limit(container, name))
        };
        Self {
            cpu_request_milli: request(container, "cpu").map(|cpu| cpu.milli_value()),
            cpu_limit_milli: bound("cpu").map(|cpu| cpu.milli_value()),
            memory_request: request(container, "memory").map(|memory| memory.value()),
            memory_limit: bound("memory").map(|memory| memory.value()),
        }
    }

    /// Limit and request of one of the two.
    fn half(&self, of: Resizable) -> (Option<i64>, Option<i64>) {
        match of {
            Resizable::Memory => (self.memory_limit, self.memory_request),
            Resizable::Cpu => (self.cpu_limit_milli, self.cpu_request_milli),
        }
    }

    /// How a change to `to` compares, by the limit if that changes. No limit counts as zero, as upstream has it.
    pub fn compare(&self, to: &Self, of: Resizable) -> Ordering {
        let ((limit, request), (new_limit, new_request)) = (self.half(of), to.half(of));
        let by = |old: Option<i64>, new: Option<i64>| new.unwrap_or(0).cmp(&old.unwrap_or(0));
        by(limit, new_limit).then_with(|| by(request, new_request))
    }

    /// These resources with one of the two as in `to`.
    #[must_use]
    pub fn with(self, to: &Self, of: Resizable) -> Self {
        match of {
            Resizable::Memory => Self { memory_limit: to.memory_limit, memory_request: to.memory_request, ..self },
            Resizable::Cpu => {
                Self { cpu_limit_milli: to.cpu_limit_milli, cpu_request_milli: to.cpu_request_milli, ..self }
            }
        }
    }
}

/// Whether the change touches a resource whose policy is to restart the container.
pub fn resize_needs_restart(container: &Container, from: &ContainerResources, to: &ContainerResources) -> bool {
    let cpu = (from.cpu_request_milli, from.cpu_limit_milli) != (to.cpu_request_milli, to.cpu_limit_milli);
    let memory = (from.memory_request, from.memory_limit) != (to.memory_request, to.memory_limit);
    container.resize_policy.as_deref().unwrap_or_default().iter().any(|policy| {
        policy.restart_policy == "RestartContainer"
            && ((policy.resource_name == "cpu" && cpu) || (policy.resource_name == "memory" && memory))
    })
}

pub fn shares(milli_cpu: i64) -> i64 {
    if milli_cpu == 0 {
        return MIN_SHARES;
    }
    (milli_cpu.saturating_mul(SHARES_PER_CPU) / MILLI_PER_CPU).clamp(MIN_SHARES, MAX_SHARES)
}

/// The request that gave so many shares, rounded up.
pub fn milli_of(shares: i64) -> i64 {
    shares.saturating_mul(MILLI_PER_CPU).saturating_add(SHARES_PER_CPU - 1) / SHARES_PER_CPU
}

/// Microseconds per period; 0 for no limit.
pub fn quota(milli_cpu: i64) -> i64 {
    if milli_cpu == 0 {
        return 0;
    }
    (milli_cpu.saturating_mul(QUOTA_PERIOD) / MILLI_PER_CPU).max(MIN_QUOTA_PERIOD)
}

/// cgroup v2's scale for [`shares`], as the kernel's own conversion in runc and crun since 2025:
/// 1024 shares are a weight of 100.
pub fn weight(shares: i64) -> i64 {
    if shares <= MIN_SHARES {
        return 1;
    }
    if shares >= MAX_SHARES {
        return 10_000;
    }
    // A parabola through (2, 1), (1024, 100) and (262144, 10000) in logarithms.
    let log = (shares as f64).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    10f64.powf(exponent).ceil() as i64
}

/// More memory asked for means a smaller score within Burstable.
pub fn oom_score_adj(pod: &Pod, container: &Container, memory_capacity: i64) -> i64 {
    if pod.is_critical() {
        return GUARANTEED_OOM_SCORE;
    }
    match pod.qos() {
        QosClass::Guaranteed => GUARANTEED_OOM_SCORE,
        QosClass::BestEffort => BEST_EFFORT_OOM_SCORE,
        QosClass::Burstable => {
            let request = request(container, "memory").map_or(0, |memory| memory.value());
            let share = 1000i128 * i128::from(request) / i128::from(memory_capacity.max(1));
            let score = 1000 - i64::try_from(share).unwrap_or(1000);
            // Never as safe as Guaranteed (1000 - 997 = 3), never as exposed as BestEffort.
            score.clamp(1000 + GUARANTEED_OOM_SCORE, BEST_EFFORT_OOM_SCORE - 1)
        }
    }
}

/// The resources of a container for the runtime.
pub fn linux_resources(
    pod: &Pod,
    container: &Container,
    memory_capacity: i64,
    cgroup_v2: bool,
    hugepage_sizes: &[u64],
) -> LinuxContainerResources {
    let mut resources = from_numbers(&ContainerResources::of(pod, container), cgroup_v2);
    resources.oom_score_adj = oom_score_adj(pod, container, memory_capacity);
    resources.hugepage_limits = hugepage_sizes
        .iter()
        .map(|size| {
            let name = format!("hugepages-{}", binary(*size));
            let limit = limit(container, &name).map_or(0, |limit| limit.value());
            HugepageLimit { page_size: page_name(*size), limit: u64::try_from(limit).unwrap_or(0) }
        })
        .collect();
    resources
}

/// Cgroup numbers of the four resources. Without a request the limit counts as one.
pub fn from_numbers(numbers: &ContainerResources, cgroup_v2: bool) -> LinuxContainerResources {
    let cpu_request = numbers.cpu_request_milli.or(numbers.cpu_limit_milli).unwrap_or(0);
    let cpu_quota = numbers.cpu_limit_milli.map_or(0, quota);
    let mut resources = LinuxContainerResources {
        cpu_shares: shares(cpu_request),
        cpu_quota,
        cpu_period: if cpu_quota == 0 { 0 } else { QUOTA_PERIOD },
        memory_limit_in_bytes: numbers.memory_limit.unwrap_or(0),
        ..LinuxContainerResources::default()
    };
    if cgroup_v2 {
        // One task over the limit ends the whole container, not a random process of it.
        resources.unified.insert("memory.oom.group".to_owned(), "1".to_owned());
    }
    resources
}

/// `2Mi`, as in resource names.
fn binary(bytes: u64) -> String {
    for (unit, shift) in [("Gi", 30), ("Mi", 20), ("Ki", 10)] {
        if bytes >= 1 << shift && bytes.is_multiple_of(1 << shift) {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    bytes.to_string()
}

/// `2MB`, as in cgroup file names.
pub fn page_name(bytes: u64) -> String {
    binary(bytes).replace('i', "B")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_becomes_shares_quota_and_weight() {
        let cases: Vec<_> = [0, 1, 10, 100, 1000, 64_000, 1_000_000]
            .map(|milli| (milli, shares(milli), quota(milli), weight(shares(milli))))
            .into();
        assert_eq!(
            cases,
            [
                (0, 2, 0, 1),
                (1, 2, 1000, 1),
                (10, 10, 1000, 4),
                (100, 102, 10_000, 17),
                (1000, 1024, 100_000, 100),
                (64_000, 65_536, 6_400_000, 3023),
                (1_000_000, 262_144, 100_000_000, 10_000),
            ]
        );
    }

    #[test]
    fn page_sizes_have_two_names() {
        assert_eq!(
            (binary(2 << 20), page_name(2 << 20), page_name(1 << 30)),
            ("2Mi".into(), "2MB".into(), "1GB".into())
        );
    }
}
