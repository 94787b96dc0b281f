//! Everything the kernel tells of one cgroup, of either version, in one form.
//!
//! Behaves as the cgroup handlers of vendored cadvisor (container/libcontainer/handler.go, container/common), v1.36.

use std::path::{Path, PathBuf};

use crate::cm::CgroupVersion;
use crate::kubelet::Inner;
use crate::server::stats::{Usage, usage};

/// Above this a limit is none: version 1 has a number for that.
const LIMIT_MAX: i64 = 1 << 62;
const USER_TICK_NANOS: u64 = 10_000_000;

/// Reads and writes of one device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Io {
    /// `8:0`
    pub(super) device: String,
    pub(super) reads: u64,
    pub(super) writes: u64,
    pub(super) read_bytes: u64,
    pub(super) write_bytes: u64,
}

/// What the cgroup may use. Zero where there is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Spec {
    pub(super) cpu_shares: i64,
    pub(super) cpu_period: i64,
    pub(super) cpu_quota: Option<i64>,
    pub(super) memory_limit: i64,
    pub(super) memory_reservation: i64,
    pub(super) swap_limit: i64,
    pub(super) processes_max: i64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Figures {
    pub(super) usage: Usage,
    pub(super) cpu_user_nanos: u64,
    pub(super) cpu_system_nanos: u64,
    pub(super) periods: i64,
    pub(super) throttled_periods: i64,
    pub(super) throttled_nanos: i64,
    pub(super) memory_cache: i64,
    pub(super) memory_mapped: i64,
    pub(super) memory_swap: i64,
    pub(super) memory_peak: i64,
    pub(super) memory_failures: i64,
    pub(super) oom_kills: i64,
    pub(super) io: Vec<Io>,
    pub(super) spec: Spec,
}

/// A cgroup's files by controller.
struct Files {
    version: CgroupVersion,
    directories: [PathBuf; 4],
}

#[derive(Clone, Copy)]
enum Controller {
    Cpu,
    CpuAcct,
    Memory,
    BlkIo,
}

impl Files {
    fn text(&self, controller: Controller, file: &str) -> String {
        std::fs::read_to_string(self.directories[controller as usize].join(file)).unwrap_or_default()
    }

    /// A file that is one number. Anything else, as `max`, is none.
    fn number(&self, controller: Controller, file: &str) -> Option<i64> {
        self.text(controller, file).trim().parse().ok()
    }

    fn limit(&self, controller: Controller, file: &str) -> i64 {
        self.number(controller, file).filter(|limit| (1..LIMIT_MAX).contains(limit)).unwrap_or(0)
    }
}

/// The number behind a name, in a file of lines `name number`.
fn entry(text: &str, name: &str) -> Option<i64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

fn entry_or_zero(text: &str, name: &str) -> i64 {
    entry(text, name).unwrap_or(0)
}

/// Reads one cgroup, by its name below the hierarchies.
pub(super) fn figures(inner: &Inner, name: &str) -> Figures {
    let cgroups = &inner.cgroups;
    let directories = ["cpu", "cpuacct", "memory", "blkio"].map(|controller| cgroups.directory_of(name, controller));
    let files = Files { version: cgroups.version, directories };
    let processes_max = std::fs::read_to_string(cgroups.directory_of(name, "pids").join("pids.max"));
    let mut figures = read(&files);
    figures.usage = usage(inner, name);
    figures.spec.processes_max = processes_max.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    figures
}

fn read(files: &Files) -> Figures {
    match files.version {
        CgroupVersion::V1 => read_v1(files),
        CgroupVersion::V2 => read_v2(files),
    }
}

fn read_v1(files: &Files) -> Figures {
    use Controller::{BlkIo, Cpu, CpuAcct, Memory};
    let (memory, cpu) = (files.text(Memory, "memory.stat"), files.text(Cpu, "cpu.stat"));
    let account = files.text(CpuAcct, "cpuacct.stat");
    let ticks = |name| u64::try_from(entry_or_zero(&account, name)).unwrap_or(0) * USER_TICK_NANOS;
    let oom = files.text(Memory, "memory.oom_control");
    Figures {
        cpu_user_nanos: ticks("user"),
        cpu_system_nanos: ticks("system"),
        periods: entry_or_zero(&cpu, "nr_periods"),
        throttled_periods: entry_or_zero(&cpu, "nr_throttled"),
        throttled_nanos: entry_or_zero(&cpu, "throttled_time"),
        memory_cache: entry_or_zero(&memory, "total_cache"),
        memory_mapped: entry_or_zero(&memory, "total_mapped_file"),
        memory_swap: entry_or_zero(&memory, "total_swap"),
        memory_peak: files.number(Memory, "memory.max_usage_in_bytes").unwrap_or(0),
        memory_failures: files.number(Memory, "memory.failcnt").unwrap_or(0),
        oom_kills: entry_or_zero(&oom, "oom_kill"),
        io: io_v1(
            &files.text(BlkIo, "blkio.throttle.io_service_bytes_recursive"),
            &files.text(BlkIo, "blkio.throttle.io_serviced_recursive"),
        ),
        spec: Spec {
            cpu_shares: files.number(Cpu, "cpu.shares").unwrap_or(0),
            cpu_period: files.number(Cpu, "cpu.cfs_period_us").unwrap_or(0),
            cpu_quota: files.number(Cpu, "cpu.cfs_quota_us").filter(|quota| *quota > 0),
            memory_limit: files.limit(Memory, "memory.limit_in_bytes"),
            memory_reservation: files.limit(Memory, "memory.soft_limit_in_bytes"),
            swap_limit: files.limit(Memory, "memory.memsw.limit_in_bytes"),
            processes_max: 0,
        },
        ..Figures::default()
    }
}

fn read_v2(files: &Files) -> Figures {
    use Controller::{BlkIo, Cpu, Memory};
    let (memory, cpu) = (files.text(Memory, "memory.stat"), files.text(Cpu, "cpu.stat"));
    let events = files.text(Memory, "memory.events");
    let nanos = |name| u64::try_from(entry_or_zero(&cpu, name)).unwrap_or(0) * 1000;
    let quota = files.text(Cpu, "cpu.max");
    let (quota, period) = quota.trim().split_once(' ').unwrap_or(("max", "0"));
    // cadvisor's own way back to shares, which is not quite the kubelet's way there.
    let shares = files.number(Cpu, "cpu.weight").map_or(0, |weight| 2 + (weight - 1) * 262_142 / 9999);
    Figures {
        cpu_user_nanos: nanos("user_usec"),
        cpu_system_nanos: nanos("system_usec"),
        periods: entry_or_zero(&cpu, "nr_periods"),
        throttled_periods: entry_or_zero(&cpu, "nr_throttled"),
        throttled_nanos: entry_or_zero(&cpu, "throttled_usec") * 1000,
        memory_cache: entry_or_zero(&memory, "file"),
        memory_mapped: entry_or_zero(&memory, "file_mapped"),
        memory_swap: files.number(Memory, "memory.swap.current").unwrap_or(0),
        memory_peak: files.number(Memory, "memory.peak").unwrap_or(0),
        memory_failures: entry_or_zero(&events, "max"),
        oom_kills: entry_or_zero(&events, "oom_kill"),
        io: io_v2(&files.text(BlkIo, "io.stat")),
        spec: Spec {
            cpu_shares: shares,
            cpu_period: period.parse().unwrap_or(0),
            cpu_quota: quota.parse().ok(),
            memory_limit: files.limit(Memory, "memory.max"),
            memory_reservation: files.limit(Memory, "memory.low"),
            swap_limit: files.limit(Memory, "memory.swap.max"),
            processes_max: 0,
        },
        ..Figures::default()
    }
}

/// Lines `8:0 Read 4096`, of bytes and of operations.
fn io_v1(bytes: &str, operations: &str) -> Vec<Io> {
    let mut all: Vec<Io> = Vec::new();
    for (text, are_bytes) in [(bytes, true), (operations, false)] {
        for line in text.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [device, what, number] = words.as_slice() else { continue };
            let Ok(number) = number.parse() else { continue };
            let at = all.iter().position(|io| io.device == *device).unwrap_or_else(|| {
                all.push(Io { device: (*device).to_owned(), ..Io::default() });
                all.len() - 1
            });
            match (*what, are_bytes) {
                ("Read", true) => all[at].read_bytes = number,
                ("Write", true) => all[at].write_bytes = number,
                ("Read", false) => all[at].reads = number,
                ("Write", false) => all[at].writes = number,
                _ => {}
            }
        }
    }
    all
}

/// Lines `8:0 rbytes=4096 wbytes=0 rios=1 wios=0`.
fn io_v2(text: &str) -> Vec<Io> {
    let lines = text.lines().filter_map(|line| {
        let (device, rest) = line.split_once(' ')?;
        let of = |name: &str| {
            let word = rest.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
            word.and_then(|number| number.parse().ok()).unwrap_or(0)
        };
        let (reads, writes, read_bytes, write_bytes) = (of("rios"), of("wios"), of("rbytes"), of("wbytes"));
        Some(Io { device: device.to_owned(), reads, writes, read_bytes, write_bytes })
    });
    lines.collect()
}

/// `/dev/sda` of `8:0`; as it is where the kernel has no name for it.
pub(super) fn device_name(number: &str) -> String {
    let event = std::fs::read_to_string(Path::new("/sys/dev/block").join(number).join("uevent")).unwrap_or_default();
    let name = event.lines().find_map(|line| line.strip_prefix("DEVNAME="));
    name.map_or_else(|| number.to_owned(), |name| format!("/dev/{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(version: CgroupVersion, contents: &[(&str, &str)]) -> (tempfile::TempDir, Files) {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in contents {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        let directories = [(); 4].map(|()| folder.path().to_owned());
        (folder, Files { version, directories })
    }

    #[test]
    fn both_versions_tell_the_same() {
        let v1 = files(
            CgroupVersion::V1,
            &[
                ("cpuacct.stat", "user 150\nsystem 50\n"),
                ("cpu.stat", "nr_periods 10\nnr_throttled 3\nthrottled_time 2000000\n"),
                ("memory.stat", "cache 1\ntotal_cache 4096\ntotal_mapped_file 12\ntotal_swap 0\n"),
                ("memory.max_usage_in_bytes", "9000\n"),
                ("memory.failcnt", "2\n"),
                ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n"),
                ("memory.limit_in_bytes", "67108864\n"),
                ("memory.soft_limit_in_bytes", "9223372036854771712\n"),
                ("cpu.shares", "1024\n"),
                ("cpu.cfs_period_us", "100000\n"),
                ("cpu.cfs_quota_us", "20000\n"),
                (
                    "blkio.throttle.io_service_bytes_recursive",
                    "8:0 Read 4096\n8:0 Write 10\n8:0 Total 4106\nTotal 4106\n",
                ),
                ("blkio.throttle.io_serviced_recursive", "8:0 Read 1\n8:0 Write 2\nTotal 3\n"),
            ],
        );
        let v2 = files(
            CgroupVersion::V2,
            &[
                (
                    "cpu.stat",
                    "usage_usec 2000000\nuser_usec 1500000\nsystem_usec 500000\nnr_periods 10\nnr_throttled 3\nthrottled_usec 2000\n",
                ),
                ("memory.stat", "anon 5\nfile 4096\nfile_mapped 12\n"),
                ("memory.peak", "9000\n"),
                ("memory.events", "low 0\nhigh 0\nmax 2\noom 1\noom_kill 1\n"),
                ("memory.max", "67108864\n"),
                ("memory.low", "0\n"),
                ("memory.swap.max", "max\n"),
                ("cpu.weight", "39\n"),
                ("cpu.max", "20000 100000\n"),
                ("io.stat", "8:0 rbytes=4096 wbytes=10 rios=1 wios=2 dbytes=0 dios=0\n"),
            ],
        );
        let (one, mut two) = (read(&v1.1), read(&v2.1));
        assert_eq!(two.spec.cpu_shares, 998, "a weight is coarser than shares");
        two.spec.cpu_shares = 1024;
        assert_eq!(one, two);
        assert_eq!((one.spec.memory_reservation, one.spec.cpu_quota), (0, Some(20_000)));
        let unlimited = files(CgroupVersion::V2, &[("cpu.max", "max 100000\n"), ("memory.max", "max\n")]);
        let unlimited = read(&unlimited.1).spec;
        assert_eq!((unlimited.cpu_quota, unlimited.cpu_period, unlimited.memory_limit), (None, 100_000, 0));
    }
}
