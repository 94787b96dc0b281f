//! A program that runs on a node, or beside the nodes, until it is stopped.
//!
//! Readiness is an event: containerd, etcd and rkube speak systemd's notification protocol, so a start waits
//! for `READY=1`, for the end of the process or for the time limit, whichever comes first.

use std::fs;
use std::os::unix::net::UnixDatagram as StdDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use tokio::net::UnixDatagram;
use tokio::process::Command;

use crate::process::{self, Exit};

/// Names the socket a service says on that it is ready.
const NOTIFY_SOCKET: &str = "NOTIFY_SOCKET";
/// Bytes of a notification; longer ones are cut.
const NOTIFICATION_BYTES_MAX: usize = 4096;
const LOG_LINES: usize = 15;

/// Where a service runs.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) netns: String,
    /// File with the number of the node's first process; `None` for what runs beside the nodes.
    pub(crate) init: Option<PathBuf>,
}

#[derive(Clone, Debug)]
pub(crate) struct Service {
    pub(crate) name: &'static str,
    pub(crate) place: Place,
    /// Folder for the process number and the notification socket.
    pub(crate) folder: PathBuf,
    pub(crate) log: PathBuf,
    pub(crate) ready_within: Duration,
}

impl Service {
    fn pid_file(&self) -> PathBuf {
        self.folder.join(format!("{}.pid", self.name))
    }

    /// The number of the running process.
    pub(crate) fn pid(&self) -> Option<i32> {
        pid_in(&self.pid_file()).filter(|&pid| process::runs_in(pid, &self.place.netns))
    }

    /// Starts the program and waits until it says that it is ready. `new_node` makes it a node's first process.
    pub(crate) async fn start(&self, command: &[String], new_node: bool) -> Result<()> {
        fs::create_dir_all(&self.folder).with_context(|| format!("creating {}", self.folder.display()))?;
        let socket_path = self.folder.join(format!("{}.ready", self.name));
        let _ = fs::remove_file(&socket_path);
        let socket = UnixDatagram::bind(&socket_path).with_context(|| {
            format!(
                "making {}: is --dir longer than 60 characters, or on a file system without sockets?",
                socket_path.display()
            )
        })?;
        let outcome = self.start_notifying(command, new_node, &socket, &socket_path).await;
        let _ = fs::remove_file(&socket_path);
        outcome
    }

    async fn start_notifying(
        &self,
        command: &[String],
        new_node: bool,
        socket: &UnixDatagram,
        socket_path: &Path,
    ) -> Result<()> {
        let pid = self.launch(command, new_node, Some(socket_path)).await?;
        let exit = Exit::of(pid)?;
        let starting = async {
            tokio::select! {
                ready = said_ready(socket) => ready,
                ended = exit.wait() => {
                    ended?;
                    bail!("{} stopped before it was ready\n{}", self.name, self.last_words())
                }
            }
        };
        match tokio::time::timeout(self.ready_within, starting).await {
            Ok(outcome) => outcome,
            Err(_) => {
                let limit = self.ready_within.as_secs();
                bail!("{} was not ready within {limit} s\n{}", self.name, self.last_words())
            }
        }
    }

    /// Starts the program and returns its number, without waiting for anything. It says on `socket` that it is ready.
    pub(crate) async fn launch(&self, command: &[String], new_node: bool, socket: Option<&Path>) -> Result<i32> {
        let mut launcher = launcher(&self.place, new_node)?;
        launcher.arg("--detach").arg(&self.log).arg("--").args(command).env_remove(NOTIFY_SOCKET);
        launcher.envs(socket.map(|socket| (NOTIFY_SOCKET, socket)));
        // The cluster is made by its settings alone, not by those of whoever makes it.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"RKUBE_")) {
            launcher.env_remove(name);
        }
        let output = launcher.output().await.with_context(|| format!("launching {}", self.name))?;
        if !output.status.success() {
            bail!("launching {}: {}", self.name, String::from_utf8_lossy(&output.stderr).trim());
        }
        let pid: i32 =
            String::from_utf8_lossy(&output.stdout).trim().parse().context("the launcher names no process")?;
        fs::write(self.pid_file(), format!("{pid}\n"))?;
        Ok(pid)
    }

    /// Sends a signal and waits for the end of the process. What does not run is no error.
    pub(crate) async fn stop(&self, with: Signal, limit: Duration) -> Result<()> {
        if let Some(pid) = self.pid() {
            process::end(pid, with, limit).await.with_context(|| format!("stopping {}", self.name))?;
        }
        let _ = fs::remove_file(self.pid_file());
        Ok(())
    }

    /// The end of the log, for error messages.
    pub(crate) fn last_words(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines.get(lines.len().saturating_sub(LOG_LINES)..).unwrap_or_default();
        format!("  the end of {}:\n    {}", self.log.display(), tail.join("\n    "))
    }
}

/// The process number a file holds.
pub(crate) fn pid_in(file: &Path) -> Option<i32> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// This program as the launcher of something at `place`.
pub(crate) fn launcher(place: &Place, new_node: bool) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("finding this program")?);
    command.args(["inner", "launch", "--netns", &place.netns]);
    if new_node {
        command.arg("--new");
    } else if let Some(file) = &place.init {
        let init = pid_in(file).filter(|&pid| process::runs_in(pid, &place.netns));
        command.arg("--node").arg(init.context("the node does not run")?.to_string());
    }
    Ok(command)
}

async fn said_ready(socket: &UnixDatagram) -> Result<()> {
    let mut buffer = [0; NOTIFICATION_BYTES_MAX];
    loop {
        let length = socket.recv(&mut buffer).await?;
        let said = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default());
        if said.lines().any(|line| line == "READY=1") {
            return Ok(());
        }
    }
}

/// Says that this process is ready to whoever started it as a service.
pub(crate) fn notify_ready() {
    if let Some(path) = std::env::var_os(NOTIFY_SOCKET)
        && let Ok(socket) = StdDatagram::unbound()
    {
        let _ = socket.send_to(b"READY=1", Path::new(&path));
    }
}
