//! `idle`: what processes use while nobody asks anything of them.

use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Args;
use rkube_apimachinery::clock::SharedClock;

use super::check_positive;
use crate::arguments::Output;
use crate::cluster::interruptible;
use crate::process::Usage;
use crate::progress::Progress;
use crate::report::{Report, mib};

#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Seconds to look
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    duration: u64,
}

impl Options {
    pub(crate) fn check(&self, pids: &[u32]) -> Result<()> {
        ensure!(!pids.is_empty(), "idle measures processes: name them with --pid");
        check_positive("--duration", self.duration)
    }
}

pub(crate) async fn run(options: &Options, output: &Output, clock: &SharedClock) -> Result<Report> {
    let _progress = Progress::start("of nothing", clock, output.quiet);
    let before = Usage::read(&output.pids)?;
    let start = clock.monotonic();
    interruptible(async {
        clock.sleep(Duration::from_secs(options.duration)).await;
        Ok(())
    })
    .await?;
    let seconds = clock.monotonic().saturating_sub(start).as_secs_f64();
    let used = Usage::read(&output.pids)?.since(&before);
    let mut report = Report::new("idle");
    report
        .parameter("processes", output.pids.len())
        .parameter("seconds", options.duration)
        .figure("memory (PSS)", mib(used.memory), "MiB")
        .figure("CPU", used.cpu.as_secs_f64() / seconds * 100.0, "% of a core")
        .figure("wake-ups", used.wakeups as f64 / seconds, "/s")
        .figure("written", used.written as f64 / 1024.0 / seconds, "KiB/s")
        .figure("writing calls", used.write_calls as f64 / seconds, "/s");
    Ok(report)
}
