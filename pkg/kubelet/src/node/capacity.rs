//! What the machine has.
//!
//! Behaves as vendored cadvisor's machine info and pkg/kubelet/nodestatus, v1.36, as far as a Node shows it.

use std::collections::BTreeMap;
use std::path::Path;

use rkube_api::k8s::core::v1::NodeSystemInfo;

/// Figures of the machine, and what of them pods may use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capacity {
    pub cpu_milli: i64,
    pub memory: i64,
    pub ephemeral_storage: i64,
    /// Bytes by page size.
    pub hugepages: BTreeMap<u64, i64>,
    pub swap: i64,
}

pub fn read(root_dir: &Path) -> Capacity {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = |name: &str| meminfo_value(&meminfo, name).unwrap_or(0) * 1024;
    Capacity {
        cpu_milli: processors() * 1000,
        memory: kib("MemTotal"),
        ephemeral_storage: file_system(root_dir).map_or(0, |fs| fs.total),
        hugepages: hugepages(),
        swap: kib("SwapTotal"),
    }
}

/// Kibibytes of one line of /proc/meminfo.
pub fn meminfo_value(text: &str, name: &str) -> Option<i64> {
    let line = text.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(':')))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// Processors that are online: `0-3,5`.
fn processors() -> i64 {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
    let count = count_list(text.trim());
    if count > 0 { count } else { std::thread::available_parallelism().map_or(1, |count| count.get() as i64) }
}

fn count_list(list: &str) -> i64 {
    let ranges = list.split(',').filter_map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some(last.parse::<i64>().ok()? - first.parse::<i64>().ok()? + 1)
    });
    ranges.sum()
}

fn hugepages() -> BTreeMap<u64, i64> {
    let mut pages = BTreeMap::new();
    for entry in std::fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten() {
        let name = entry.file_name();
        let size =
            name.to_str().and_then(|name| name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse::<u64>().ok());
        let count = std::fs::read_to_string(entry.path().join("nr_hugepages"))
            .ok()
            .and_then(|text| text.trim().parse::<i64>().ok());
        if let (Some(size), Some(count)) = (size, count) {
            let bytes = size * 1024;
            pages.insert(bytes, count.saturating_mul(i64::try_from(bytes).unwrap_or(i64::MAX)));
        }
    }
    pages
}

/// Space and inodes of the file system that holds a path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileSystem {
    pub total: i64,
    pub available: i64,
    pub inodes: i64,
    pub inodes_free: i64,
}

pub fn file_system(path: &Path) -> Option<FileSystem> {
    // A directory that is yet to be made is on its parent's file system.
    let existing = path.ancestors().find(|path| path.exists())?;
    let stat = nix::sys::statvfs::statvfs(existing).ok()?;
    let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let block = number(stat.fragment_size());
    Some(FileSystem {
        total: number(stat.blocks()).saturating_mul(block),
        available: number(stat.blocks_available()).saturating_mul(block),
        inodes: number(stat.files()),
        inodes_free: number(stat.files_free()),
    })
}

pub fn system_info(version: &str, runtime_version: &str) -> NodeSystemInfo {
    let line = |path: &str| std::fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default();
    let release = line("/etc/os-release");
    let pretty = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    let machine_id = [line("/etc/machine-id"), line("/var/lib/dbus/machine-id")].into_iter().find(|id| !id.is_empty());
    let machine_id = machine_id.unwrap_or_default();
    let uuid = line("/sys/class/dmi/id/product_uuid");
    NodeSystemInfo {
        architecture: architecture().to_owned(),
        boot_id: line("/proc/sys/kernel/random/boot_id"),
        container_runtime_version: runtime_version.to_owned(),
        kernel_version: line("/proc/sys/kernel/osrelease"),
        kube_proxy_version: String::new(),
        kubelet_version: version.to_owned(),
        operating_system: "linux".to_owned(),
        os_image: pretty.map_or_else(|| "Linux".to_owned(), |name| name.trim_matches('"').to_owned()),
        system_uuid: if uuid.is_empty() { machine_id.clone() } else { uuid },
        machine_id,
        ..NodeSystemInfo::default()
    }
}

/// As Go names processors.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_processors_are_counted() {
        assert_eq!((count_list("0-3,5"), count_list("0"), count_list("")), (5, 1, 0));
    }

    #[test]
    fn memory_is_read_by_its_whole_name() {
        assert_eq!(meminfo_value("MemTotalX: 1 kB\nMemTotal:       24684 kB\n", "MemTotal"), Some(24684));
    }
}
