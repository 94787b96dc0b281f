//! Cgroups of pods: the hierarchy by quality of service, on cgroup v1 and v2.
//!
//! ```text
//! /kubepods                      what pods may use of the node
//!   /pod<uid>                    Guaranteed
//!   /burstable/pod<uid>
//!   /besteffort/pod<uid>
//! ```
//! With the systemd driver the names are slices (`kubepods-burstable-pod<uid>.slice` below those of its class), which
//! [`systemd`] makes and limits when it is asked to.
//! Behaves as pkg/kubelet/cm/{cgroup_manager,pod_container_manager,qos_container_manager}_linux.go, v1.36.

pub mod bus;
mod systemd;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rkube_api::k8s::core::v1::Pod;

use crate::pod::{PodExt, PodUid, QosClass, all_limited, pod_limit, pod_request};
use crate::runtime::resources::{QUOTA_PERIOD, quota, shares, weight};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CgroupVersion {
    V1,
    V2,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CgroupDriver {
    Cgroupfs,
    Systemd,
}

/// Controllers of cgroup v1 that pods are limited by. Others are the runtime's.
const V1_CONTROLLERS: [&str; 4] = ["cpu", "memory", "pids", "hugetlb"];
/// All places a v1 cgroup may exist at, for removal.
const V1_HIERARCHIES: [&str; 14] = [
    "cpu",
    "cpuacct",
    "cpu,cpuacct",
    "cpuset",
    "memory",
    "devices",
    "freezer",
    "blkio",
    "pids",
    "hugetlb",
    "net_cls,net_prio",
    "perf_event",
    "systemd",
    "unified",
];
const V2_CONTROLLERS: [&str; 6] = ["cpu", "cpuset", "memory", "pids", "hugetlb", "io"];

/// Limits of one cgroup; `None` leaves the kernel's default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Limits {
    pub cpu_shares: Option<i64>,
    /// Thousandths of a processor.
    pub cpu_milli: Option<i64>,
    pub memory: Option<i64>,
    pub pids: Option<i64>,
}

impl Limits {
    /// These limits where they are higher, else `other`'s: what holds while a pod's containers go from one to the other.
    pub fn or_higher(&self, other: &Self) -> Self {
        // No limit is the highest.
        let higher = |a: Option<i64>, b: Option<i64>| a.zip(b).map(|(a, b)| a.max(b));
        Self {
            cpu_shares: self.cpu_shares.max(other.cpu_shares),
            cpu_milli: higher(self.cpu_milli, other.cpu_milli),
            memory: higher(self.memory, other.memory),
            pids: other.pids,
        }
    }

    /// Whether memory may be used less than under `before`.
    pub fn has_less_memory_than(&self, before: &Self) -> bool {
        self.memory.is_some_and(|limit| before.memory.is_none_or(|before| limit < before))
    }
}

#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    #[error("{operation} cgroup {path}")]
    Io {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{operation} slice {unit}")]
    Slice {
        operation: &'static str,
        unit: String,
        #[source]
        source: bus::BusError,
    },
}

fn slice<'a>(operation: &'static str, name: &'a str) -> impl FnOnce(bus::BusError) -> CgroupError + 'a {
    move |source| CgroupError::Slice { operation, unit: systemd::unit_of(name).to_owned(), source }
}

fn at<'a>(operation: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> CgroupError + 'a {
    move |source| CgroupError::Io { operation, path: path.to_owned(), source }
}

/// The node's pod cgroups.
#[derive(Clone, Debug)]
pub struct Cgroups {
    /// `/sys/fs/cgroup`
    mount: PathBuf,
    pub version: CgroupVersion,
    driver: Arc<OnceLock<CgroupDriver>>,
    slices: Arc<systemd::Slices>,
    /// Where `kubepods` is: `/` by default.
    parent: String,
    pub pids_max: Option<i64>,
}

impl Cgroups {
    pub fn new(mount: &Path, parent: &str, pids_max: Option<i64>) -> Self {
        let version = if mount.join("cgroup.controllers").exists() { CgroupVersion::V2 } else { CgroupVersion::V1 };
        let parent = parent.trim_end_matches('/').to_owned();
        Self { mount: mount.to_owned(), version, driver: Arc::default(), slices: Arc::default(), parent, pids_max }
    }

    /// What the runtime says, before anything is made. The first word counts: names depend on it.
    pub fn set_driver(&self, driver: CgroupDriver) {
        let _ = self.driver.set(driver);
    }

    fn driver(&self) -> CgroupDriver {
        self.driver.get().copied().unwrap_or(CgroupDriver::Cgroupfs)
    }

    /// The parent the runtime puts a pod's sandbox in.
    pub fn parent_of(&self, pod: &Pod) -> String {
        self.name(pod.qos(), Some(&pod.uid()))
    }

    fn name(&self, qos: QosClass, uid: Option<&PodUid>) -> String {
        let class = match qos {
            QosClass::Guaranteed => None,
            QosClass::Burstable => Some("burstable"),
            QosClass::BestEffort => Some("besteffort"),
        };
        let pod = uid.map(|uid| format!("pod{uid}"));
        match self.driver() {
            CgroupDriver::Cgroupfs => {
                let parts: Vec<&str> = ["kubepods"].into_iter().chain(class).chain(pod.as_deref()).collect();
                format!("{}/{}", self.parent, parts.join("/"))
            }
            CgroupDriver::Systemd => {
                // A dash is a level of the hierarchy in a slice's name.
                let pod = pod.map(|pod| pod.replace('-', "_"));
                let (mut slice, mut path) = (String::new(), String::new());
                for part in ["kubepods"].into_iter().chain(class).chain(pod.as_deref()) {
                    slice = if slice.is_empty() { part.to_owned() } else { format!("{slice}-{part}") };
                    path = format!("{path}/{slice}.slice");
                }
                path
            }
        }
    }

    /// The cgroups above those of pods: all, and each class.
    pub fn classes(&self) -> [String; 3] {
        [QosClass::Guaranteed, QosClass::Burstable, QosClass::BestEffort].map(|class| self.name(class, None))
    }

    /// Where the runtime puts a container of a pod.
    pub fn of_container(&self, pod: &Pod, id: &str) -> String {
        match self.driver() {
            CgroupDriver::Cgroupfs => format!("{}/{id}", self.parent_of(pod)),
            // containerd's name; CRI has no way to ask.
            CgroupDriver::Systemd => format!("{}/cri-containerd-{id}.scope", self.parent_of(pod)),
        }
    }

    /// Makes the top of the hierarchy.
    pub fn set_up(&self, allocatable: &Limits) -> Result<(), CgroupError> {
        // The class without a name of its own is the top.
        self.apply(&self.name(QosClass::Guaranteed, None), allocatable)?;
        for class in [QosClass::Burstable, QosClass::BestEffort] {
            self.apply(&self.name(class, None), &Limits { cpu_shares: Some(shares(0)), ..Limits::default() })?;
        }
        Ok(())
    }

    /// Burstable pods together weigh what they ask for together.
    pub fn set_burstable_shares<'a>(&self, pods: impl Iterator<Item = &'a Pod>) -> Result<(), CgroupError> {
        let sum: i64 = pods
            .filter(|pod| pod.qos() == QosClass::Burstable)
            .map(|pod| pod_request(pod.pod_spec(), "cpu").milli_value())
            .sum();
        let limits = Limits { cpu_shares: Some(shares(sum)), ..Limits::default() };
        self.apply(&self.name(QosClass::Burstable, None), &limits)
    }

    /// Makes a pod's cgroup, or brings its limits up to date.
    pub fn ensure(&self, pod: &Pod, limits: &Limits) -> Result<(), CgroupError> {
        self.apply(&self.parent_of(pod), limits)
    }

    /// Bytes of memory that a pod uses, or one container of it.
    pub fn memory_in_use(&self, pod: &Pod, container_id: Option<&str>) -> Option<i64> {
        let name = container_id.map_or_else(|| self.parent_of(pod), |id| self.of_container(pod, id));
        let file = match self.version {
            CgroupVersion::V1 => "memory.usage_in_bytes",
            CgroupVersion::V2 => "memory.current",
        };
        std::fs::read_to_string(self.directory_of(&name, "memory").join(file)).ok()?.trim().parse().ok()
    }

    fn apply(&self, name: &str, limits: &Limits) -> Result<(), CgroupError> {
        if self.driver() == CgroupDriver::Systemd {
            return self.slices.apply(name, self.version, limits).map_err(slice("limiting", name));
        }
        let relative = name.trim_start_matches('/');
        match self.version {
            CgroupVersion::V1 => {
                for controller in V1_CONTROLLERS {
                    let root = self.mount.join(controller);
                    if !root.is_dir() {
                        continue;
                    }
                    let directory = root.join(relative);
                    std::fs::create_dir_all(&directory).map_err(at("creating", &directory))?;
                    for (file, value) in v1_files(controller, limits) {
                        write(&directory.join(file), &value)?;
                    }
                }
            }
            CgroupVersion::V2 => {
                // Controllers are handed down level by level.
                let mut directory = self.mount.clone();
                for part in Path::new(relative).components() {
                    write(&directory.join("cgroup.subtree_control"), &delegated(&directory))?;
                    directory.push(part);
                    match std::fs::create_dir(&directory) {
                        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                            return Err(at("creating", &directory)(error));
                        }
                        _ => {}
                    }
                }
                for (file, value) in v2_files(limits) {
                    write(&directory.join(file), &value)?;
                }
            }
        }
        Ok(())
    }

    /// Removes a pod's cgroups in every class: a restart may not know which it had.
    pub fn remove(&self, uid: &PodUid) -> Result<(), CgroupError> {
        for qos in [QosClass::Guaranteed, QosClass::Burstable, QosClass::BestEffort] {
            let name = self.name(qos, Some(uid));
            if self.driver() == CgroupDriver::Systemd {
                // A slice is there in all hierarchies or in none.
                if self.directory_of(&name, "systemd").is_dir() {
                    self.slices.remove(&name).map_err(slice("stopping", &name))?;
                }
                continue;
            }
            for root in self.roots() {
                let directory = root.join(name.trim_start_matches('/'));
                if directory.is_dir() {
                    kill_all(&directory);
                    remove_tree(&directory).map_err(at("removing", &directory))?;
                }
            }
        }
        Ok(())
    }

    fn roots(&self) -> Vec<PathBuf> {
        match self.version {
            CgroupVersion::V1 => V1_HIERARCHIES.iter().map(|hierarchy| self.mount.join(hierarchy)).collect(),
            CgroupVersion::V2 => vec![self.mount.clone()],
        }
    }

    /// UIDs of pods that have a cgroup.
    pub fn pods(&self) -> Vec<PodUid> {
        let mut pods = std::collections::BTreeSet::new();
        for qos in [QosClass::Guaranteed, QosClass::Burstable, QosClass::BestEffort] {
            let class = self.name(qos, None);
            for entry in std::fs::read_dir(self.directory_of(&class, "memory")).into_iter().flatten().flatten() {
                pods.extend(entry.file_name().to_str().and_then(|name| self.uid_in(&class, name)));
            }
        }
        pods.into_iter().collect()
    }

    /// The pod whose cgroup has this name in its class.
    fn uid_in(&self, class: &str, name: &str) -> Option<PodUid> {
        match self.driver() {
            CgroupDriver::Cgroupfs => name.strip_prefix("pod").map(PodUid::from),
            CgroupDriver::Systemd => {
                let class = systemd::unit_of(class).strip_suffix(".slice")?;
                let uid = name.strip_prefix(class)?.strip_prefix("-pod")?.strip_suffix(".slice")?;
                Some(PodUid::from(uid.replace('_', "-").as_str()))
            }
        }
    }

    /// The directory that tells a pod's use of `controller`.
    pub fn directory(&self, pod: &Pod, controller: &str) -> PathBuf {
        let name = self.parent_of(pod);
        self.directory_of(&name, controller)
    }

    pub fn directory_of(&self, name: &str, controller: &str) -> PathBuf {
        let root = match self.version {
            CgroupVersion::V1 => self.mount.join(controller),
            CgroupVersion::V2 => self.mount.clone(),
        };
        root.join(name.trim_start_matches('/'))
    }
}

/// The controllers to hand down: of those wanted, the ones this cgroup has.
fn delegated(directory: &Path) -> String {
    let available = std::fs::read_to_string(directory.join("cgroup.controllers")).unwrap_or_default();
    let available: Vec<&str> = available.split_whitespace().collect();
    let wanted = V2_CONTROLLERS.into_iter().filter(|controller| available.contains(controller));
    wanted.map(|controller| format!("+{controller}")).collect::<Vec<_>>().join(" ")
}

/// A pod's own limits: bounded only where every container is.
pub fn pod_limits(pod: &Pod, pids_max: Option<i64>) -> Limits {
    let spec = pod.pod_spec();
    let bounded = |name: &str| all_limited(spec, name);
    Limits {
        cpu_shares: Some(match pod.qos() {
            QosClass::BestEffort => shares(0),
            _ => shares(pod_request(spec, "cpu").milli_value()),
        }),
        cpu_milli: bounded("cpu").then(|| pod_limit(spec, "cpu").milli_value()),
        memory: bounded("memory").then(|| pod_limit(spec, "memory").value()),
        pids: pids_max,
    }
}

fn v1_files(controller: &str, limits: &Limits) -> Vec<(&'static str, String)> {
    match controller {
        "cpu" => {
            let mut files = Vec::new();
            files.extend(limits.cpu_shares.map(|shares| ("cpu.shares", shares.to_string())));
            files.extend(limits.cpu_milli.map(|_| ("cpu.cfs_period_us", QUOTA_PERIOD.to_string())));
            files.extend(limits.cpu_milli.map(|milli| ("cpu.cfs_quota_us", quota(milli).to_string())));
            files
        }
        "memory" => limits.memory.map(|bytes| ("memory.limit_in_bytes", bytes.to_string())).into_iter().collect(),
        "pids" => limits.pids.map(|count| ("pids.max", count.to_string())).into_iter().collect(),
        _ => vec![],
    }
}

fn v2_files(limits: &Limits) -> Vec<(&'static str, String)> {
    let mut files = Vec::new();
    files.extend(limits.cpu_shares.map(|shares| ("cpu.weight", weight(shares).to_string())));
    files.extend(limits.cpu_milli.map(|milli| ("cpu.max", format!("{} {QUOTA_PERIOD}", quota(milli)))));
    files.extend(limits.memory.map(|bytes| ("memory.max", bytes.to_string())));
    files.extend(limits.pids.map(|count| ("pids.max", count.to_string())));
    files
}

fn write(path: &Path, value: &str) -> Result<(), CgroupError> {
    match std::fs::write(path, value) {
        Ok(()) => Ok(()),
        // A kernel without this control cannot be made to have it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // A limit below what is in use is refused while it is in use; the next sync tries again.
        Err(error) if error.raw_os_error() == Some(nix::libc::EBUSY) => Ok(()),
        Err(error) => Err(at("writing", path)(error)),
    }
}

/// Ends what is left in a cgroup of a pod whose containers are gone.
fn kill_all(directory: &Path) {
    for process in processes(directory) {
        let pid = nix::unistd::Pid::from_raw(process);
        // It may be gone already.
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
    }
}

fn processes(directory: &Path) -> Vec<i32> {
    let mut pids: Vec<i32> = std::fs::read_to_string(directory.join("cgroup.procs"))
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.parse().ok())
        .collect();
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            pids.extend(processes(&entry.path()));
        }
    }
    pids
}

/// Children first; a cgroup is removed by removing its directory, never its files.
fn remove_tree(directory: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    match std::fs::remove_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use rkube_api::k8s::core::v1::{Container, PodSpec, ResourceRequirements};
    use rkube_api::meta::pkg::api::resource::Quantity;

    use super::*;

    fn pod(limits: &[(&str, &str)]) -> Pod {
        let map = limits.iter().map(|(name, value)| ((*name).to_owned(), Quantity((*value).to_owned()))).collect();
        let resources = Some(ResourceRequirements { limits: Some(map), ..Default::default() });
        let mut pod = Pod::default();
        pod.metadata.uid = Some("a-b".into());
        pod.spec =
            Some(PodSpec { containers: vec![Container { resources, ..Default::default() }], ..Default::default() });
        pod
    }

    #[test]
    fn names_follow_driver_and_class() {
        let folder = tempfile::tempdir().unwrap();
        let cgroups = |driver| {
            let cgroups = Cgroups::new(folder.path(), "/", None);
            cgroups.set_driver(driver);
            cgroups
        };
        let name = |driver, pod: &Pod| cgroups(driver).parent_of(pod);
        let (guaranteed, best_effort) = (pod(&[("cpu", "1"), ("memory", "1Gi")]), pod(&[]));
        assert_eq!(name(CgroupDriver::Cgroupfs, &guaranteed), "/kubepods/poda-b");
        assert_eq!(name(CgroupDriver::Cgroupfs, &best_effort), "/kubepods/besteffort/poda-b");
        assert_eq!(name(CgroupDriver::Systemd, &guaranteed), "/kubepods.slice/kubepods-poda_b.slice");
        let slice = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-poda_b.slice";
        let burstable = pod(&[("cpu", "1")]);
        assert_eq!(name(CgroupDriver::Systemd, &burstable), slice);
        let systemd = cgroups(CgroupDriver::Systemd);
        let class = systemd.name(QosClass::Burstable, None);
        assert_eq!(systemd.uid_in(&class, "kubepods-burstable-poda_b.slice"), Some(PodUid::from("a-b")));
        assert_eq!(systemd.uid_in(&class, "cri-containerd-1.scope"), None);
        let container = cgroups(CgroupDriver::Systemd).of_container(&burstable, "c1");
        assert_eq!(container, format!("{slice}/cri-containerd-c1.scope"));
    }

    #[test]
    fn on_version_2_controllers_are_handed_down_to_the_pod() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("cgroup.controllers"), "cpuset cpu io memory pids rdma\n").unwrap();
        let cgroups = Cgroups::new(folder.path(), "/", Some(64));
        assert_eq!(cgroups.version, CgroupVersion::V2);
        // The kernel gives a new cgroup the controllers of its parent; a folder has to be told.
        for level in ["kubepods", "kubepods/burstable"] {
            std::fs::create_dir(folder.path().join(level)).unwrap();
            std::fs::write(folder.path().join(level).join("cgroup.controllers"), "cpu memory pids").unwrap();
        }
        let subject = pod(&[("cpu", "250m")]);
        cgroups.set_up(&Limits { cpu_shares: Some(2048), memory: Some(1 << 30), ..Limits::default() }).unwrap();
        cgroups.ensure(&subject, &pod_limits(&subject, cgroups.pids_max)).unwrap();
        let read = |path: &str| std::fs::read_to_string(folder.path().join(path)).unwrap_or_default();
        assert_eq!(read("cgroup.subtree_control"), "+cpu +cpuset +memory +pids +io");
        assert_eq!(read("kubepods/cgroup.subtree_control"), "+cpu +memory +pids");
        assert_eq!(read("kubepods/memory.max"), (1 << 30).to_string());
        assert_eq!(read("kubepods/besteffort/cpu.weight"), "1");
        assert_eq!(read("kubepods/burstable/poda-b/cpu.max"), "25000 100000");
        assert_eq!(read("kubepods/burstable/poda-b/pids.max"), "64");
        assert_eq!(read("kubepods/burstable/poda-b/memory.max"), "", "no limit is not a limit of zero");
        assert_eq!(cgroups.pods(), [subject.uid()]);
    }

    #[test]
    fn limits_become_files_of_both_versions() {
        let limits = pod_limits(&pod(&[("cpu", "500m"), ("memory", "1Mi")]), Some(100));
        let text = |files: Vec<(&str, String)>| -> Vec<String> {
            files.into_iter().map(|(f, v)| format!("{f}={v}")).collect()
        };
        assert_eq!(
            text(v2_files(&limits)),
            ["cpu.weight=59", "cpu.max=50000 100000", "memory.max=1048576", "pids.max=100"]
        );
        assert_eq!(
            text(v1_files("cpu", &limits)),
            ["cpu.shares=512", "cpu.cfs_period_us=100000", "cpu.cfs_quota_us=50000"]
        );
    }

    #[test]
    fn directories_are_made_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        for controller in ["cpu", "memory", "pids"] {
            std::fs::create_dir(folder.path().join(controller)).unwrap();
        }
        let cgroups = Cgroups::new(folder.path(), "/top", None);
        let subject = pod(&[]);
        std::fs::create_dir_all(cgroups.directory(&subject, "memory")).unwrap();
        assert_eq!(cgroups.pods(), [subject.uid()]);
        cgroups.remove(&subject.uid()).unwrap();
        assert_eq!(cgroups.pods(), []);
    }
}
