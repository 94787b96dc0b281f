//! `/stats/summary`: what the node and its pods use, as one document.
//!
//! Behaves as pkg/kubelet/server/stats/summary.go and pkg/kubelet/stats/cri_stats_provider.go, v1.36.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::Mutex;
use rkube_api::k8s::core::v1::{Pod, Volume};
use rkube_cri::v1::{FilesystemUsage, ImageFsInfoRequest, ListContainerStatsRequest};
use serde_json::{Value, json};

use crate::eviction::manager::{disk_usage, tree_size};
use crate::kubelet::Inner;
use crate::node::capacity::{FileSystem, file_system, meminfo_value};
use crate::pod::PodExt;
use crate::runtime::state::RuntimeContainer;
use crate::server::stats::{Usage, container_cgroup, interfaces_of, node_usage, pod_network, running, usage};

/// Remembers the last reading of each cgroup, for rates.
#[derive(Default)]
pub(super) struct Sampler(Mutex<HashMap<String, (Duration, u64, u64)>>);

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

    pub(super) async fn summary(self: &Arc<Self>, inner: &Arc<Inner>) -> Value {
        let service = &inner.runtime.service;
        let layers = service.list_container_stats(ListContainerStatsRequest::default()).await;
        let layers = layers.map(|answer| answer.stats).unwrap_or_default();
        let layers: HashMap<String, FilesystemUsage> =
            layers.into_iter().filter_map(|one| Some((one.attributes?.id, one.writable_layer?))).collect();
        let images = inner.runtime.images.service().image_fs_info(ImageFsInfoRequest::default()).await;
        let images = images.ok().and_then(|answer| answer.image_filesystems.into_iter().next());
        // Folders are walked, which takes as long as they are large.
        let (sampler, reading) = (self.clone(), inner.clone());
        let document = tokio::task::spawn_blocking(move || sampler.document(&reading, &layers, images.as_ref())).await;
        document.unwrap_or_default()
    }

    fn document(
        &self,
        inner: &Inner,
        layers: &HashMap<String, FilesystemUsage>,
        images: Option<&FilesystemUsage>,
    ) -> Value {
        let pods = running(inner);
        let [top, ..] = inner.cgroups.classes();
        let live: HashSet<String> = pods.iter().map(|(pod, _)| inner.cgroups.parent_of(pod)).collect();
        let is_live = |key: &str| key == "/" || key == top || live.iter().any(|pod| key.starts_with(pod.as_str()));
        self.0.lock().retain(|key, _| is_live(key));
        let items: Vec<Value> = pods.iter().map(|(pod, containers)| self.pod(inner, pod, containers, layers)).collect();
        let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let kib = |name: &str| meminfo_value(&meminfo, name).unwrap_or(0) * 1024;
        let (cpu, memory) = self.stats(inner, "/", &node_usage(), Some(kib("MemAvailable")));
        let allocatable = inner.node.allocatable();
        let of_pods = usage(inner, &top);
        let free = (allocatable.memory - of_pods.memory_working_set).max(0);
        let (pods_cpu, pods_memory) = self.stats(inner, &top, &of_pods, Some(free));
        let now = time(inner);
        let fs = space(inner, &inner.config.root_dir, None);
        let used = |usage: Option<&FilesystemUsage>| usage.and_then(|usage| Some(usage.used_bytes.as_ref()?.value));
        let place = images.and_then(|images| Some(images.fs_id.as_ref()?.mountpoint.clone()));
        let place = place.unwrap_or_else(|| inner.config.root_dir.to_string_lossy().into_owned());
        let bytes = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        let image_fs = space(inner, Path::new(&place), Some(used(images).map_or(0, bytes)));
        let layers_used: u64 = layers.values().filter_map(|layer| used(Some(layer))).sum();
        let container_fs = space(inner, Path::new(&place), Some(bytes(layers_used)));
        json!({
            "node": {
                "nodeName": inner.config.node_name,
                "systemContainers": [{
                    "name": "pods", "startTime": rkube_apimachinery::time::format(boot_time()),
                    "cpu": pods_cpu, "memory": pods_memory,
                }],
                "startTime": rkube_apimachinery::time::format(boot_time()),
                "cpu": cpu,
                "memory": memory,
                "network": network(inner, &std::fs::read_to_string("/proc/net/dev").unwrap_or_default()),
                "fs": fs,
                "runtime": {"imageFs": image_fs, "containerFs": container_fs},
                "rlimit": limits_of_processes(&now),
                "swap": {
                    "time": now,
                    "swapAvailableBytes": kib("SwapFree"),
                    "swapUsageBytes": kib("SwapTotal") - kib("SwapFree"),
                },
            },
            "pods": items,
        })
    }

    fn pod(
        &self,
        inner: &Inner,
        pod: &Pod,
        containers: &[RuntimeContainer],
        layers: &HashMap<String, FilesystemUsage>,
    ) -> Value {
        let name = inner.cgroups.parent_of(pod);
        let whole = usage(inner, &name);
        let (cpu, memory) = self.stats(inner, &name, &whole, None);
        let items: Vec<Value> =
            containers.iter().map(|container| self.container(inner, pod, container, layers)).collect();
        let disk = disk_usage(inner, pod);
        let started = containers.iter().map(|container| container.created_at).min().unwrap_or(Timestamp::UNIX_EPOCH);
        let volumes = pod.pod_spec().volumes.iter().flatten();
        let volumes: Vec<Value> = volumes.filter_map(|volume| volume_stats(inner, pod, volume)).collect();
        let mut item = json!({
            "podRef": {"name": pod.name(), "namespace": pod.namespace(), "uid": pod.uid().as_str()},
            "startTime": rkube_apimachinery::time::format(started),
            "containers": items,
            "cpu": cpu,
            "memory": memory,
            "volume": volumes,
            "process_stats": {"process_count": whole.processes},
            "ephemeral-storage": space(inner, &inner.config.root_dir, Some(disk)),
        });
        if !pod.is_host_network()
            && let Some(text) = pod_network(inner, pod)
        {
            item["network"] = network(inner, &text);
        }
        item
    }

    fn container(
        &self,
        inner: &Inner,
        pod: &Pod,
        container: &RuntimeContainer,
        layers: &HashMap<String, FilesystemUsage>,
    ) -> Value {
        let name = container_cgroup(inner, pod, container);
        let (cpu, memory) = self.stats(inner, &name, &usage(inner, &name), None);
        let started = container.started_at.unwrap_or(container.created_at);
        let logs = Path::new(&container.log_path).parent().map_or(0, tree_size);
        let mut item = json!({
            "name": container.name,
            "startTime": rkube_apimachinery::time::format(started),
            "cpu": cpu,
            "memory": memory,
            "logs": space(inner, &inner.config.logs_root, Some(logs)),
        });
        if let Some(layer) = layers.get(&container.id) {
            let used = layer.used_bytes.as_ref().map_or(0, |used| used.value);
            let mut root = space(inner, &inner.config.root_dir, Some(i64::try_from(used).unwrap_or(i64::MAX)));
            root["inodesUsed"] = json!(layer.inodes_used.as_ref().map_or(0, |used| used.value));
            item["rootfs"] = root;
        }
        item
    }
}

/// What a volume holds. One on the node's own disk is walked; another is asked as a whole.
fn volume_stats(inner: &Inner, pod: &Pod, volume: &Volume) -> Option<Value> {
    let plugin = match volume {
        Volume { empty_dir: Some(_), .. } => "empty-dir",
        Volume { config_map: Some(_), .. } => "configmap",
        Volume { secret: Some(_), .. } => "secret",
        Volume { projected: Some(_), .. } => "projected",
        Volume { downward_api: Some(_), .. } => "downward-api",
        Volume { persistent_volume_claim: Some(_), .. } => return claim_stats(inner, pod, volume),
        _ => return None,
    };
    let folder = inner.volumes.volume_dir(pod, plugin, &volume.name);
    let mut stats = space(inner, &folder, Some(tree_size(&folder)));
    stats["name"] = json!(volume.name);
    Some(stats)
}

fn claim_stats(inner: &Inner, pod: &Pod, volume: &Volume) -> Option<Value> {
    let claim = &volume.persistent_volume_claim.as_ref()?.claim_name;
    let mounted = ["nfs", "local-volume"].into_iter().map(|plugin| inner.volumes.volume_dir(pod, plugin, &volume.name));
    let folder = mounted.into_iter().find(|folder| folder.is_dir())?;
    let mut stats = space(inner, &folder, None);
    stats["name"] = json!(volume.name);
    stats["pvcRef"] = json!({"name": claim, "namespace": pod.namespace()});
    Some(stats)
}

fn limits_of_processes(now: &str) -> Value {
    let maximum = std::fs::read_to_string("/proc/sys/kernel/pid_max").unwrap_or_default();
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    // `0.10 0.20 0.30 1/234 5678`: running and existing tasks.
    let current = load.split_whitespace().nth(3).and_then(|field| field.split('/').nth(1)?.parse::<i64>().ok());
    json!({"time": now, "maxpid": maximum.trim().parse::<i64>().unwrap_or(0), "curproc": current.unwrap_or(0)})
}

fn time(inner: &Inner) -> String {
    rkube_apimachinery::time::format(inner.clock.now())
}

/// The file system of a path; `used` where it is not the whole that counts.
fn space(inner: &Inner, path: &Path, used: Option<i64>) -> Value {
    let fs: FileSystem = file_system(path).unwrap_or_default();
    json!({
        "time": time(inner),
        "availableBytes": fs.available,
        "capacityBytes": fs.total,
        "usedBytes": used.unwrap_or(fs.total.saturating_sub(fs.available)),
        "inodesFree": fs.inodes_free,
        "inodes": fs.inodes,
        "inodesUsed": fs.inodes - fs.inodes_free,
    })
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
