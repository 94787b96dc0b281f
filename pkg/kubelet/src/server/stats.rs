//! What pods and the node use, from cgroups: the summary API, and the figures of the metrics endpoints.
//!
//! Behaves as pkg/kubelet/server/stats and pkg/kubelet/stats/cri_stats_provider.go, v1.36, as far as
//! cgroups and the network namespace's counters tell.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::Mutex;
use rkube_api::k8s::core::v1::Pod;
use rkube_cri::v1::ImageFsInfoRequest;
use serde_json::{Value, json};

use crate::cm::CgroupVersion;
use crate::eviction::manager::{disk_usage, working_set};
use crate::kubelet::Inner;
use crate::node::capacity::{file_system, meminfo_value};
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

/// Remembers the last reading of each cgroup, for rates.
#[derive(Default)]
pub struct Sampler(Mutex<HashMap<String, (Duration, u64, u64)>>);

/// Readings closer together than this give no useful rate; the last rate stands.
const RATE_PERIOD_MIN: Duration = Duration::from_millis(500);

impl Sampler {
    fn rate(&self, key: &str, now: Duration, nanos: u64) -> u64 {
        let mut samples = self.0.lock();
        let Some((at, before, rate)) = samples.get(key).copied() else {
            samples.insert(key.to_owned(), (now, nanos, 0));
            return 0;
        };
        let period = now.saturating_sub(at);
        if period < RATE_PERIOD_MIN {
            return rate;
        }
        let rate = (nanos.saturating_sub(before) as f64 / period.as_secs_f64()) as u64;
        samples.insert(key.to_owned(), (now, nanos, rate));
        rate
    }

    fn stats(&self, inner: &Inner, key: &str, usage: &Usage, available: Option<i64>) -> (Value, Value) {
        let time = rkube_apimachinery::time::format(inner.clock.now());
        let rate = self.rate(key, inner.clock.monotonic(), usage.cpu_nanos);
        let cpu = json!({"time": time, "usageNanoCores": rate, "usageCoreNanoSeconds": usage.cpu_nanos});
        let mut memory = json!({
            "time": time,
            "usageBytes": usage.memory_usage,
            "workingSetBytes": usage.memory_working_set,
            "rssBytes": usage.memory_rss,
            "pageFaults": usage.page_faults,
            "majorPageFaults": usage.major_page_faults,
        });
        if let Some(available) = available {
            memory["availableBytes"] = json!(available);
        }
        (cpu, memory)
    }

    pub async fn summary(&self, inner: &Arc<Inner>) -> Value {
        let pods = running(inner);
        let live: std::collections::HashSet<String> =
            pods.iter().map(|(pod, _)| inner.cgroups.parent_of(pod)).collect();
        self.0.lock().retain(|key, _| key == "/" || live.iter().any(|pod| key.starts_with(pod)));
        let mut items = Vec::new();
        for (pod, containers) in pods {
            items.push(self.pod(inner, &pod, &containers).await);
        }
        let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let available = meminfo_value(&meminfo, "MemAvailable").unwrap_or(0) * 1024;
        let (cpu, memory) = self.stats(inner, "/", &node_usage(), Some(available));
        let image_fs = inner.runtime.images.service().image_fs_info(ImageFsInfoRequest::default()).await.ok();
        let image_used =
            image_fs.and_then(|info| info.image_filesystems.first()?.used_bytes.as_ref().map(|used| used.value));
        let fs = file_system_stats(inner, &inner.config.root_dir, None);
        let mut image_stats = fs.clone();
        image_stats["usedBytes"] = json!(image_used.unwrap_or(0));
        json!({
            "node": {
                "nodeName": inner.config.node_name,
                "startTime": rkube_apimachinery::time::format(boot_time()),
                "cpu": cpu,
                "memory": memory,
                "network": network(inner, &std::fs::read_to_string("/proc/net/dev").unwrap_or_default()),
                "fs": fs,
                "runtime": {"imageFs": image_stats},
                "rlimit": {},
            },
            "pods": items,
        })
    }

    async fn pod(&self, inner: &Arc<Inner>, pod: &Arc<Pod>, containers: &[RuntimeContainer]) -> Value {
        let name = inner.cgroups.parent_of(pod);
        let whole = usage(inner, &name);
        let (cpu, memory) = self.stats(inner, &name, &whole, None);
        let items: Vec<Value> = containers
            .iter()
            .map(|container| {
                let name = container_cgroup(inner, pod, container);
                let (cpu, memory) = self.stats(inner, &name, &usage(inner, &name), None);
                let started = container.started_at.unwrap_or(container.created_at);
                json!({
                    "name": container.name,
                    "startTime": rkube_apimachinery::time::format(started),
                    "cpu": cpu,
                    "memory": memory,
                })
            })
            .collect();
        let (measured, subject) = (inner.clone(), pod.clone());
        let disk = tokio::task::spawn_blocking(move || disk_usage(&measured, &subject)).await.unwrap_or(0);
        let started = containers.iter().map(|container| container.created_at).min().unwrap_or(Timestamp::UNIX_EPOCH);
        let mut item = json!({
            "podRef": {"name": pod.name(), "namespace": pod.namespace(), "uid": pod.uid().as_str()},
            "startTime": rkube_apimachinery::time::format(started),
            "containers": items,
            "cpu": cpu,
            "memory": memory,
            "process_stats": {"process_count": whole.processes},
            "ephemeral-storage": file_system_stats(inner, &inner.config.root_dir, Some(disk)),
        });
        if !pod.is_host_network()
            && let Some(text) = pod_network(inner, pod)
        {
            item["network"] = network(inner, &text);
        }
        item
    }
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

fn file_system_stats(inner: &Inner, path: &Path, used: Option<i64>) -> Value {
    let fs = file_system(path).unwrap_or_default();
    json!({
        "time": rkube_apimachinery::time::format(inner.clock.now()),
        "availableBytes": fs.available,
        "capacityBytes": fs.total,
        "usedBytes": used.unwrap_or(fs.total.saturating_sub(fs.available)),
        "inodesFree": fs.inodes_free,
        "inodes": fs.inodes,
        "inodesUsed": fs.inodes - fs.inodes_free,
    })
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

/// Counters of one network namespace; `eth0` stands for the whole where there is one.
fn network(inner: &Inner, text: &str) -> Value {
    let interfaces: Vec<Value> = interfaces_of(text)
        .into_iter()
        .map(|(name, counters)| {
            json!({
                "name": name, "rxBytes": counters[0], "rxErrors": counters[2],
                "txBytes": counters[8], "txErrors": counters[10],
            })
        })
        .collect();
    let main = interfaces.iter().find(|interface| interface["name"] == "eth0").or(interfaces.first()).cloned();
    let mut network = main.unwrap_or_else(|| json!({"name": ""}));
    network["time"] = json!(rkube_apimachinery::time::format(inner.clock.now()));
    network["interfaces"] = json!(interfaces);
    network
}

fn boot_time() -> Timestamp {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let seconds = stat.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok());
    seconds.and_then(|seconds| Timestamp::from_second(seconds).ok()).unwrap_or(Timestamp::UNIX_EPOCH)
}
