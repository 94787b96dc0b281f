//! What pods and the node use, from cgroups and the counters of network namespaces: for the summary and the metrics.
//!
//! Behaves as pkg/kubelet/stats/cri_stats_provider.go, v1.36.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rkube_api::k8s::core::v1::Pod;

use crate::cm::CgroupVersion;
use crate::eviction::manager::working_set;
use crate::kubelet::Inner;
use crate::node::capacity::meminfo_value;
use crate::pod::PodExt;
use crate::runtime::state::{RuntimeContainer, State};

/// One cgroup's use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub cpu_nanos: u64,
    pub memory_usage: i64,
    pub memory_working_set: i64,
    pub memory_rss: i64,
    pub page_faults: i64,
    pub major_page_faults: i64,
    pub processes: i64,
}

/// Reads the use of one cgroup, by its name below the hierarchies.
pub fn usage(inner: &Inner, name: &str) -> Usage {
    let directory = |controller: &str| inner.cgroups.directory_of(name, controller);
    let memory = directory("memory");
    let number = |path: PathBuf| std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<i64>().ok());
    let stat = std::fs::read_to_string(memory.join("memory.stat")).unwrap_or_default();
    let line = |text: &str, name: &str| {
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse::<i64>().ok())
    };
    let (cpu_nanos, rss, usage) = match inner.cgroups.version {
        CgroupVersion::V1 => (
            number(directory("cpuacct").join("cpuacct.usage")).unwrap_or(0),
            line(&stat, "total_rss"),
            number(memory.join("memory.usage_in_bytes")),
        ),
        CgroupVersion::V2 => {
            let cpu = std::fs::read_to_string(memory.join("cpu.stat")).unwrap_or_default();
            (line(&cpu, "usage_usec").unwrap_or(0) * 1000, line(&stat, "anon"), number(memory.join("memory.current")))
        }
    };
    Usage {
        cpu_nanos: u64::try_from(cpu_nanos).unwrap_or(0),
        memory_usage: usage.unwrap_or(0),
        memory_working_set: working_set(&memory),
        memory_rss: rss.unwrap_or(0),
        page_faults: line(&stat, "total_pgfault").or_else(|| line(&stat, "pgfault")).unwrap_or(0),
        major_page_faults: line(&stat, "total_pgmajfault").or_else(|| line(&stat, "pgmajfault")).unwrap_or(0),
        processes: number(directory("pids").join("pids.current")).unwrap_or(0),
    }
}

/// The whole machine.
pub fn node_usage() -> Usage {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let fields: Vec<u64> = stat
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1)
        .filter_map(|field| field.parse().ok())
        .collect();
    // user nice system idle iowait irq softirq steal, in hundredths of a second.
    let busy: u64 =
        fields.iter().enumerate().filter(|(at, _)| !matches!(at, 3 | 4)).take(6).map(|(_, ticks)| ticks).sum();
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let bytes = |name: &str| meminfo_value(&meminfo, name).unwrap_or(0) * 1024;
    Usage {
        cpu_nanos: busy * 10_000_000,
        memory_usage: bytes("MemTotal") - bytes("MemFree"),
        memory_working_set: bytes("MemTotal") - bytes("MemAvailable"),
        memory_rss: bytes("AnonPages"),
        ..Usage::default()
    }
}

/// The cgroup of a container: its runtime makes it below the pod's, named by its id.
pub fn container_cgroup(inner: &Inner, pod: &Pod, container: &RuntimeContainer) -> String {
    inner.cgroups.of_container(pod, &container.id)
}

/// Pods that run, with their containers that do.
pub fn running(inner: &Inner) -> Vec<(Arc<Pod>, Vec<RuntimeContainer>)> {
    let pods = inner.pods.all().into_iter().filter_map(|pod| {
        let runtime = inner.cache.get(&pod.uid())?;
        let containers: Vec<_> =
            runtime.containers.iter().filter(|container| container.state == State::Running).cloned().collect();
        (!containers.is_empty()).then_some((pod, containers))
    });
    pods.collect()
}

fn first_process(directory: &Path) -> Option<i32> {
    let own = std::fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    if let Some(pid) = own.lines().next().and_then(|line| line.parse().ok()) {
        return Some(pid);
    }
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .find_map(|entry| first_process(&entry.path()))
}

/// Numbers in a line of `/proc/net/dev`.
const COUNTERS: usize = 16;

/// A name and its counters.
pub type Interface = (String, Vec<u64>);

/// The interfaces of one network namespace and their counters, out of `/proc/net/dev`.
pub fn interfaces_of(text: &str) -> Vec<Interface> {
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    let interfaces = lines.map(|(name, counters)| {
        let counters: Vec<u64> = counters.split_whitespace().filter_map(|number| number.parse().ok()).collect();
        (name.trim().to_owned(), counters)
    });
    interfaces.filter(|(name, counters)| name != "lo" && counters.len() >= COUNTERS).collect()
}

/// `/proc/net/dev` as a pod sees it: a process of the pod sees the pod's interfaces.
pub fn pod_network(inner: &Inner, pod: &Pod) -> Option<String> {
    let processes = inner.cgroups.directory_of(&inner.cgroups.parent_of(pod), "memory");
    let first = first_process(&processes)?;
    std::fs::read_to_string(format!("/proc/{first}/net/dev")).ok()
}
