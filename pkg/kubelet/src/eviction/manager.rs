//! Measures the node and ends pods when it runs short; removes unused images before that.
//!
//! Behaves as pkg/kubelet/eviction/eviction_manager.go and pkg/kubelet/images/image_gc_manager.go, v1.36.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rkube_api::k8s::core::v1::Pod;
use rkube_apimachinery::quantity::{Format, Quantity};
use rkube_cri::v1::{ImageSpec, ListContainersRequest, ListImagesRequest, RemoveImageRequest};
use tokio_util::sync::CancellationToken;

use crate::events::Type;
use crate::eviction::{Candidate, Crossed, Figure, Observation, Pressure, Signal, rank};
use crate::kubelet::Inner;
use crate::node::capacity::{file_system, meminfo_value};
use crate::pod::{PodExt, limit, pod_limit, pod_request, quantity, request};
use crate::status::Verdict;
use crate::worker::{Input, Phase};

const REASON: &str = "Evicted";
/// Upstream's monitoring interval.
const PERIOD: Duration = Duration::from_secs(10);
/// Images that nothing uses are collected this often, and not younger than this.
const IMAGE_PERIOD: Duration = Duration::from_secs(300);
const IMAGE_AGE_MIN: Duration = Duration::from_secs(120);
/// Upstream's grace period of pods that cannot wait.
const HARD_GRACE_SECONDS: i64 = 1;
/// Disk use of pods that have limits of it is walked at every so many periods: it costs input and output.
const DISK_PERIODS: u32 = 2;

#[derive(Default)]
struct State {
    pressure: Pressure,
    images_seen: HashMap<String, Duration>,
    images_collected: Option<Duration>,
    period: u32,
}

pub async fn run(inner: Arc<Inner>, shutdown: CancellationToken) {
    let inner = &inner;
    let mut state = State::default();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = inner.clock.sleep(PERIOD) => {}
        }
        state.period = state.period.wrapping_add(1);
        let observation = observe(inner).await;
        let due = state.pressure.observe(&inner.config.eviction, &observation, inner.clock.monotonic());
        inner.node.set_pressure(state.pressure.conditions());
        // Pods over their own limits go, whatever the node has; when one did, that is enough for a round.
        if (state.period.is_multiple_of(DISK_PERIODS) || !due.is_empty()) && enforce_disk_limits(inner).await {
            continue;
        }
        match due.first() {
            Some(crossed) => relieve(inner, &mut state, crossed).await,
            None => collect_images(inner, &mut state).await,
        }
    }
}

async fn observe(inner: &Inner) -> Observation {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let number = |path: &str| std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<i64>().ok());
    let loadavg = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let tasks = loadavg.split_whitespace().nth(3).and_then(|field| field.split('/').nth(1)?.parse::<i64>().ok());
    let mut observation = Observation::new();
    let mut note = |signal, available, whole| {
        observation.insert(signal, Figure { available, whole });
    };
    if let (Some(available), Some(total)) =
        (meminfo_value(&meminfo, "MemAvailable"), meminfo_value(&meminfo, "MemTotal"))
    {
        note(Signal::MemoryAvailable, available.saturating_mul(1024), total.saturating_mul(1024));
    }
    if let Some(fs) = file_system(&inner.config.root_dir) {
        note(Signal::NodeFsAvailable, fs.available, fs.total);
        note(Signal::NodeFsInodesFree, fs.inodes_free, fs.inodes);
    }
    if let Some(fs) = inner.runtime.images.file_system().await {
        note(Signal::ImageFsAvailable, fs.available, fs.total);
        note(Signal::ImageFsInodesFree, fs.inodes_free, fs.inodes);
    }
    if let (Some(tasks), Some(total)) = (tasks, number("/proc/sys/kernel/pid_max")) {
        note(Signal::PidAvailable, total.saturating_sub(tasks), total);
    }
    observation
}

/// Frees what can be freed without harm, else ends one pod.
async fn relieve(inner: &Arc<Inner>, state: &mut State, crossed: &Crossed) {
    let signal = crossed.threshold.signal;
    inner.events.node(Type::Warning, "EvictionThresholdMet", format!("Attempting to reclaim {}", signal.resource()));
    if signal.condition() == "DiskPressure" {
        remove_unused_images(inner, state, i64::MAX).await;
        let again = observe(inner).await;
        let due = state.pressure.observe(&inner.config.eviction, &again, inner.clock.monotonic());
        if !due.iter().any(|other| other.threshold.signal == signal) {
            return;
        }
    }
    let candidates = inner.workers.all().into_iter().filter(|worker| worker.phase() == Phase::Syncing);
    let candidates = candidates.filter_map(|worker| {
        let pod = inner.allocated(&worker);
        let (usage, request) = match signal {
            Signal::MemoryAvailable => (memory_usage(inner, &pod), pod_request(pod.pod_spec(), "memory").value()),
            Signal::PidAvailable => (process_count(inner, &pod), 0),
            _ => (disk_usage(inner, &pod), pod_request(pod.pod_spec(), "ephemeral-storage").value()),
        };
        let priority = pod.pod_spec().priority.unwrap_or(0);
        // Critical pods are what keeps the node alive.
        (!pod.is_critical()).then_some(Candidate { pod, priority, usage, request })
    });
    let Some(first) = rank(candidates.collect()).into_iter().next() else { return };
    let pod = first.pod;
    let grace_seconds = if crossed.threshold.is_hard() {
        HARD_GRACE_SECONDS
    } else {
        let own = pod.pod_spec().termination_grace_period_seconds.unwrap_or(i64::MAX);
        inner.config.eviction.pod_grace_seconds_max.min(own)
    };
    let message = message(inner, &pod, crossed);
    evict(inner, &pod, Verdict::disruption(REASON, message), grace_seconds);
}

/// Upstream's words: what ran short, and which containers used more than they asked for.
fn message(inner: &Inner, pod: &Pod, crossed: &Crossed) -> String {
    let bytes = |value: i64| Quantity::new(value, Format::BinarySi);
    let Crossed { threshold, figure } = crossed;
    let resource = threshold.signal.resource();
    let mut message = format!(
        "The node was low on resource: {resource}. Threshold quantity: {}, available: {}. ",
        bytes(threshold.value.of(figure.whole)),
        bytes(figure.available),
    );
    if threshold.signal != Signal::MemoryAvailable {
        return message;
    }
    let running = inner.cache.get(&pod.uid());
    for container in running.iter().flat_map(|running| &running.containers) {
        let Some((_, spec)) = pod.container(&container.name) else { continue };
        let requested = request(&spec, resource).unwrap_or_else(Quantity::zero);
        let cgroup = inner.cgroups.of_container(pod, &container.id);
        let used = working_set(&inner.cgroups.directory_of(&cgroup, "memory"));
        if used > requested.value() {
            // Writing to a string cannot fail.
            let _ = write!(
                message,
                "Container {} was using {}, request is {requested}, has larger consumption of {resource}. ",
                container.name,
                bytes(used),
            );
        }
    }
    message
}

fn process_count(inner: &Inner, pod: &Pod) -> i64 {
    let file = inner.cgroups.directory(pod, "pids").join("pids.current");
    std::fs::read_to_string(file).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

fn evict(inner: &Inner, pod: &Arc<Pod>, verdict: Verdict, grace_seconds: i64) {
    let Some(worker) = inner.workers.get(&pod.uid()) else { return };
    tracing::info!(pod = %pod.key(), message = verdict.message, "Evicting pod");
    inner.events.pod(pod, Type::Warning, REASON, &verdict.message);
    worker.apply(Input::Evicted { verdict, grace_seconds: Some(grace_seconds) });
}

/// The working set: what is used without what the kernel can drop.
pub fn memory_usage(inner: &Inner, pod: &Pod) -> i64 {
    let directory = inner.cgroups.directory(pod, "memory");
    working_set(&directory)
}

pub fn working_set(directory: &Path) -> i64 {
    let number = |file: &str| {
        std::fs::read_to_string(directory.join(file)).ok().and_then(|text| text.trim().parse::<i64>().ok())
    };
    let stat = std::fs::read_to_string(directory.join("memory.stat")).unwrap_or_default();
    let line = |name: &str| {
        stat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse::<i64>().ok())
    };
    let usage = number("memory.current").or_else(|| number("memory.usage_in_bytes")).unwrap_or(0);
    let inactive = line("total_inactive_file").or_else(|| line("inactive_file")).unwrap_or(0);
    (usage - inactive).max(0)
}

/// Bytes a pod has on the node's disk: local volumes, logs. Writable layers are the runtime's to know.
pub fn disk_usage(inner: &Inner, pod: &Pod) -> i64 {
    let uid = pod.uid();
    let logs =
        crate::runtime::sandbox::log_directory(&inner.config.logs_root, pod.namespace(), pod.name(), uid.as_str());
    let empty_dirs = inner.config.root_dir.join("pods").join(uid.as_str()).join("volumes/kubernetes.io~empty-dir");
    tree_size(&logs) + tree_size(&empty_dirs)
}

/// Allocated bytes of a tree on one file system.
pub fn tree_size(path: &Path) -> i64 {
    use std::os::unix::fs::MetadataExt;
    fn walk(path: &Path, device: u64) -> i64 {
        let Ok(metadata) = path.symlink_metadata() else { return 0 };
        if metadata.dev() != device {
            return 0;
        }
        let own = i64::try_from(metadata.blocks()).unwrap_or(0) * 512;
        if !metadata.is_dir() {
            return own;
        }
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
        own + entries.map(|entry| walk(&entry.path(), device)).sum::<i64>()
    }
    path.symlink_metadata().map_or(0, |metadata| walk(path, metadata.dev()))
}

/// Pods over their own limits of local storage go. Whether there were any.
async fn enforce_disk_limits(inner: &Arc<Inner>) -> bool {
    let mut any = false;
    for worker in inner.workers.all() {
        if worker.phase() != Phase::Syncing {
            continue;
        }
        let pod = inner.allocated(&worker);
        let (check, subject) = (inner.clone(), pod.clone());
        let over = tokio::task::spawn_blocking(move || over_limit(&check, &subject)).await;
        if let Ok(Some(message)) = over {
            evict(inner, &pod, Verdict::new(REASON, message), HARD_GRACE_SECONDS);
            any = true;
        }
    }
    any
}

fn over_limit(inner: &Inner, pod: &Pod) -> Option<String> {
    let spec = pod.pod_spec();
    for volume in spec.volumes.iter().flatten() {
        let Some(limit) = volume.empty_dir.as_ref().and_then(|source| source.size_limit.as_ref()) else { continue };
        let directory = inner.volumes.volume_dir(pod, "empty-dir", &volume.name);
        if tree_size(&directory) > quantity(Some(limit)).value() {
            return Some(format!("Usage of EmptyDir volume {:?} exceeds the limit {:?}. ", volume.name, limit.0));
        }
    }
    let total = pod_limit(spec, "ephemeral-storage");
    if !total.is_zero() && disk_usage(inner, pod) > total.value() {
        return Some(format!("Pod ephemeral local storage usage exceeds the total limit of containers {total}. "));
    }
    for container in &spec.containers {
        let Some(own) = limit(container, "ephemeral-storage") else { continue };
        let uid = pod.uid();
        let logs =
            crate::runtime::sandbox::log_directory(&inner.config.logs_root, pod.namespace(), pod.name(), uid.as_str());
        if tree_size(&logs.join(&container.name)) > own.value() {
            return Some(format!(
                "Container {} exceeded its local ephemeral storage limit \"{own}\". ",
                container.name
            ));
        }
    }
    None
}

/// When the disk of images is fuller than the high mark, unused images go until it is below the low one.
async fn collect_images(inner: &Inner, state: &mut State) {
    let now = inner.clock.monotonic();
    if state.images_collected.is_some_and(|at| now.saturating_sub(at) < IMAGE_PERIOD) {
        return;
    }
    state.images_collected = Some(now);
    let Some(fs) = inner.runtime.images.file_system().await.filter(|fs| fs.total > 0) else { return };
    let used = 100 - fs.available * 100 / fs.total;
    if used < i64::from(inner.config.image_gc_high_percent) {
        // Seen once, so that age is known when it matters.
        remove_unused_images(inner, state, 0).await;
        return;
    }
    let to_free = fs.total * (100 - i64::from(inner.config.image_gc_low_percent)) / 100 - fs.available;
    let freed = remove_unused_images(inner, state, to_free).await;
    if freed < to_free {
        let message = format!(
            "Failed to garbage collect required amount of images. Attempted to free {to_free} bytes, but only found {freed} bytes eligible to free."
        );
        inner.events.node(Type::Warning, "FreeDiskSpaceFailed", message);
    }
}

/// Removes the images longest unused until so many bytes are free; gives what was freed.
async fn remove_unused_images(inner: &Inner, state: &mut State, to_free: i64) -> i64 {
    let service = inner.runtime.images.service();
    let listed = futures_util::try_join!(
        service.list_images(ListImagesRequest::default()),
        inner.runtime.service.list_containers(ListContainersRequest::default()),
    );
    let Ok((images, containers)) = listed else { return 0 };
    let mut used: HashSet<String> = HashSet::new();
    for container in containers.containers {
        used.insert(container.image_ref);
        used.extend(container.image.map(|image| image.image));
    }
    let now = inner.clock.monotonic();
    let mut unused = Vec::new();
    for image in images.images {
        let by_name = image.repo_tags.iter().chain(&image.repo_digests).any(|name| used.contains(name));
        let in_use = by_name || used.contains(&image.id);
        let imported = inner.imported.lock();
        let keep = image.pinned
            || image.repo_tags.iter().any(|tag| *tag == inner.config.pause_image || imported.contains(tag));
        drop(imported);
        let seen = state.images_seen.entry(image.id.clone()).or_insert(now);
        if in_use || keep {
            *seen = now;
        } else if now.saturating_sub(*seen) >= IMAGE_AGE_MIN {
            unused.push((*seen, image));
        }
    }
    unused.sort_by_key(|(seen, _)| *seen);
    let mut freed = 0i64;
    for (_, image) in unused {
        if freed >= to_free {
            break;
        }
        let spec = ImageSpec { image: image.id.clone(), ..ImageSpec::default() };
        if service.remove_image(RemoveImageRequest { image: Some(spec) }).await.is_ok() {
            tracing::info!(image = image.id, size = image.size, "Removed unused image");
            state.images_seen.remove(&image.id);
            freed = freed.saturating_add(i64::try_from(image.size).unwrap_or(i64::MAX));
        }
    }
    freed
}
