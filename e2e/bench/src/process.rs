//! What processes use, as the kernel counts it: memory, CPU, wake-ups, writes.
//!
//! Reads `/proc/<pid>/{smaps_rollup,stat,io,task/*/status}`. A sum over several processes is exact for PSS, which
//! divides shared pages among those that map them.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

/// `sysconf(_SC_CLK_TCK)`: 100 on every Linux that Rust runs on.
const TICKS_PER_SECOND: u64 = 100;

/// What processes have used since they started, and hold now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Proportional set size, in bytes.
    pub(crate) memory: u64,
    pub(crate) cpu: Duration,
    /// Times a thread left the CPU by itself, which is how often one was woken.
    pub(crate) wakeups: u64,
    /// Bytes that were or will be written to storage.
    pub(crate) written: u64,
    /// Calls that write, to files and sockets alike.
    pub(crate) write_calls: u64,
}

impl Usage {
    /// The time this process has used: what the load generator takes from the server where they share a machine.
    pub(crate) fn own_cpu() -> Result<Duration> {
        cpu_time(&read(std::process::id(), "stat")?)
    }

    /// The sum over `pids`.
    pub(crate) fn read(pids: &[u32]) -> Result<Self> {
        let mut sum = Self::default();
        for pid in pids {
            let one = Self::of(*pid).with_context(|| format!("reading what process {pid} uses"))?;
            sum.memory += one.memory;
            sum.cpu += one.cpu;
            sum.wakeups += one.wakeups;
            sum.written += one.written;
            sum.write_calls += one.write_calls;
        }
        Ok(sum)
    }

    fn of(pid: u32) -> Result<Self> {
        let io = read(pid, "io")?;
        Ok(Self {
            memory: memory(&[pid])?,
            cpu: cpu_time(&read(pid, "stat")?)?,
            wakeups: wakeups(pid)?,
            written: field(&io, "write_bytes:")?,
            write_calls: field(&io, "syscw:")?,
        })
    }

    /// What was used since `earlier`; memory as it is now.
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        Self {
            memory: self.memory,
            cpu: self.cpu.saturating_sub(earlier.cpu),
            wakeups: self.wakeups.saturating_sub(earlier.wakeups),
            written: self.written.saturating_sub(earlier.written),
            write_calls: self.write_calls.saturating_sub(earlier.write_calls),
        }
    }
}

/// The proportional set size of `pids` together, in bytes.
pub(crate) fn memory(pids: &[u32]) -> Result<u64> {
    pids.iter().map(|pid| Ok(field(&read(*pid, "smaps_rollup")?, "Pss:")? * 1024)).sum()
}

fn read(pid: u32, file: &str) -> Result<String> {
    let path = format!("/proc/{pid}/{file}");
    fs::read_to_string(&path).with_context(|| format!("reading {path}"))
}

/// The number after `name` at the start of a line.
fn field(text: &str, name: &str) -> Result<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("finding {name}"))?;
    let number = value.split_whitespace().next().unwrap_or_default();
    number.parse().with_context(|| format!("{name} {number:?}"))
}

/// User and system time: fields 14 and 15. The second field, the name in parentheses, may hold anything.
fn cpu_time(stat: &str) -> Result<Duration> {
    let (_, rest) = stat.rsplit_once(')').context("finding the name in stat")?;
    let ticks: u64 = rest
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(|field| field.parse::<u64>().with_context(|| format!("ticks {field:?}")))
        .sum::<Result<u64>>()?;
    Ok(Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND))
}

fn wakeups(pid: u32) -> Result<u64> {
    let mut sum = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end between the listing and the reading.
        let Ok(status) = fs::read_to_string(task?.path().join("status")) else { continue };
        sum += field(&status, "voluntary_ctxt_switches:")?;
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_found_behind_a_hostile_name() {
        let stat = "12 (a) 1 2 (b)) S 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20 0 3";
        assert_eq!(cpu_time(stat).unwrap(), Duration::from_secs(3));
        assert!(cpu_time("12 nothing").is_err());
    }

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let text = "Pss_Dirty: 7 kB\nPss:   12 kB\n";
        assert_eq!(field(text, "Pss:").unwrap(), 12);
        assert!(field(text, "Rss:").is_err());
    }

    #[test]
    fn this_process_can_be_read_and_a_missing_one_is_named() {
        let own = Usage::read(&[std::process::id()]).unwrap();
        assert!(own.memory > 0);
        let error = Usage::read(&[u32::MAX]).unwrap_err();
        assert_eq!(error.to_string(), "reading what process 4294967295 uses");
    }
}
