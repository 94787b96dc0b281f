//! Starts processes inside a node, and is a node's first process.
//!
//! A node is a set of kernel namespaces: network (made by [`crate::fabric`]), processes, mounts, host name and
//! System V objects. Its first process holds them; when that process dies, the kernel kills everything else
//! on the node and drops its mounts. So a node can be lost as a machine is, and nothing of it can stay behind.
//!
//! ```text
//! harness ── runs ──► launcher: enters namespaces, starts the child, writes its pid, exits (or waits)
//!                        └──► init, containerd, rkube, or a command to run on the node
//! ```
//! Invariant: everything here runs in a process with one thread; the kernel lets no other change its
//! mount namespace.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

use crate::service::notify_ready;

#[derive(Subcommand)]
pub(crate) enum Inner {
    /// Enters namespaces and runs a command there
    Launch(Launch),
    /// Is the first process of a node
    Init(Init),
}

#[derive(Args)]
pub(crate) struct Launch {
    /// Name of the network namespace
    #[arg(long)]
    netns: String,
    /// First process of the node to enter, by its number on the host
    #[arg(long, conflicts_with = "new")]
    node: Option<i32>,
    /// Make a node's namespaces
    #[arg(long)]
    new: bool,
    /// Leave the command behind: its output goes here, its number is printed
    #[arg(long)]
    detach: Option<PathBuf>,
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

#[derive(Args)]
pub(crate) struct Init {
    #[arg(long)]
    hostname: String,
    /// File with the file system of the node's disk
    #[arg(long)]
    disk: PathBuf,
    /// Where the disk is mounted
    #[arg(long)]
    mount_at: PathBuf,
}

pub(crate) fn run(inner: &Inner) -> Result<ExitCode> {
    match inner {
        Inner::Launch(launch) => launch.run(),
        Inner::Init(init) => init.run(),
    }
}

impl Launch {
    #[allow(clippy::print_stdout, reason = "the process number is this command's answer")]
    fn run(&self) -> Result<ExitCode> {
        let log = match &self.detach {
            Some(path) => {
                nix::unistd::setsid().context("leaving the session")?;
                let log = OpenOptions::new().create(true).append(true).open(path);
                Some(log.with_context(|| format!("opening {}", path.display()))?)
            }
            None => None,
        };
        self.enter()?;
        let [program, arguments @ ..] = self.command.as_slice() else { bail!("nothing to run") };
        let mut command = Command::new(program);
        command.args(arguments);
        let Some(log) = log else {
            let status = command.status().with_context(|| format!("running {program}"))?;
            let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
            return Ok(u8::try_from(code).map_or(ExitCode::FAILURE, ExitCode::from));
        };
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().with_context(|| format!("running {program}"))?;
        println!("{}", child.id());
        Ok(ExitCode::SUCCESS)
    }

    /// The mount namespace comes last: paths of the host are valid until then.
    fn enter(&self) -> Result<()> {
        let open = |path: PathBuf| File::open(&path).with_context(|| format!("opening {}", path.display()));
        let network = open(Path::new("/run/netns").join(&self.netns))?;
        let others = match self.node {
            Some(init) => ["pid", "uts", "ipc", "mnt"]
                .map(|kind| open(PathBuf::from(format!("/proc/{init}/ns/{kind}"))))
                .into_iter()
                .collect::<Result<Vec<_>>>()?,
            None => Vec::new(),
        };
        setns(&network, CloneFlags::CLONE_NEWNET).with_context(|| format!("entering network {}", self.netns))?;
        for namespace in &others {
            setns(namespace, CloneFlags::empty()).context("entering the node")?;
        }
        if self.new {
            let flags = CloneFlags::CLONE_NEWPID
                | CloneFlags::CLONE_NEWNS
                | CloneFlags::CLONE_NEWUTS
                | CloneFlags::CLONE_NEWIPC;
            unshare(flags).context("making a node's namespaces (a kernel without them, or not root)")?;
        }
        Ok(())
    }
}

impl Init {
    fn run(&self) -> Result<ExitCode> {
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGCHLD);
        signals.add(Signal::SIGTERM);
        signals.thread_block()?;

        nix::unistd::sethostname(&self.hostname).context("setting the host name")?;
        let none = None::<&str>;
        // What the host unmounts goes here too; what the node mounts stays here, and its containers see it.
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)?;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SHARED, none)?;
        mount(Some("proc"), "/proc", Some("proc"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, none)
            .context("mounting /proc")?;
        // As after a boot: no sockets and no network namespaces of others.
        for point in mounts_below("/run")?.iter().rev() {
            let _ = umount2(point.as_c_str(), MntFlags::MNT_DETACH);
        }
        mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some("mode=755"))
            .context("mounting /run")?;
        fs::create_dir_all("/run/lock")?;
        let mounted = Command::new("mount").args(["-o", "loop"]).args([&self.disk, &self.mount_at]).status();
        if !mounted.context("running mount")?.success() {
            bail!("mounting {} on {}: are there loop devices?", self.disk.display(), self.mount_at.display());
        }
        notify_ready();

        loop {
            match signals.wait()? {
                Signal::SIGTERM => return Ok(ExitCode::SUCCESS),
                _ => {
                    while matches!(waitpid(None, Some(WaitPidFlag::WNOHANG)), Ok(status) if status != WaitStatus::StillAlive)
                    {
                    }
                }
            }
        }
    }
}

/// Mount points strictly below a folder, in the order they were mounted.
fn mounts_below(folder: &str) -> Result<Vec<CString>> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("reading the mount table")?;
    let prefix = format!("{folder}/");
    let below = mounts.lines().filter_map(|line| line.split(' ').nth(1)).filter(|point| point.starts_with(&prefix));
    Ok(below.filter_map(|point| CString::new(point).ok()).collect())
}
