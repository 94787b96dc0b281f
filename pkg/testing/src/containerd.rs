//! A containerd of one's own, for tests against the real thing.
//!
//! It has its own folder, socket, mount namespace and process namespace, so several run side by side and
//! nothing of one outlives it: when its namespaces go, its containers and mounts go with them. It needs root,
//! containerd, runc and a static busybox (`hack/install-deps test` installs them) and panics without.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// What is in every image of these tests.
pub const BUSYBOX: &str = "/usr/bin/busybox";
/// containerd's last line of a start that went well.
const BOOTED: &str = "containerd successfully booted";
/// Stands for the pod network: an address, and nothing behind it.
const CNI_PLUGIN: &str = r#"#!/usr/bin/busybox sh
echo "$CNI_COMMAND $CNI_NETNS" >> "${0%/*}/calls"
case "$CNI_COMMAND" in
  ADD) echo '{"cniVersion":"0.4.0","interfaces":[{"name":"eth0","sandbox":"'"$CNI_NETNS"'"}],"ips":[{"version":"4","address":"192.0.2.9/24","interface":0}]}' ;;
  VERSION) echo '{"cniVersion":"0.4.0","supportedVersions":["0.3.1","0.4.0"]}' ;;
esac
"#;
const CNI_CONFIG: &str = r#"{"cniVersion":"0.4.0","name":"none","plugins":[{"type":"none"}]}"#;

/// A running containerd. Dropping it ends it and everything it ran.
pub struct Containerd {
    folder: PathBuf,
    /// Holds the namespaces open while containerd itself comes and goes.
    holder: Child,
    daemon: Option<Child>,
}

impl Containerd {
    /// Starts one whose files are in `folder`, and waits until it answers.
    pub fn start(folder: &Path) -> Self {
        for program in ["/usr/bin/containerd", "/usr/sbin/runc", BUSYBOX] {
            assert!(Path::new(program).exists(), "{program} is missing: run hack/install-deps test");
        }
        let plugins = folder.join("cni/bin");
        let configuration = folder.join("cni/conf");
        for path in [&plugins, &configuration] {
            std::fs::create_dir_all(path).expect("the folder is writable");
        }
        // containerd also asks for a plugin of the loopback interface.
        for name in ["none", "loopback"] {
            let path = plugins.join(name);
            std::fs::write(&path, CNI_PLUGIN).expect("the folder is writable");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("the folder is writable");
        }
        std::fs::write(configuration.join("10-none.conflist"), CNI_CONFIG).expect("the folder is writable");
        std::fs::write(folder.join("containerd.toml"), config(folder)).expect("the folder is writable");

        let mut holder = Command::new("unshare")
            .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "slave"])
            .args([BUSYBOX, "sh", "-c", "echo ready; exec busybox tail -f /dev/null"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("unshare runs; these tests need root");
        let mut ready = [0; 5];
        let said = holder.stdout.take().expect("the output is a pipe").read_exact(&mut ready);
        assert!(said.is_ok(), "namespaces were not made; these tests need root");
        let mut containerd = Self { folder: folder.to_owned(), holder, daemon: None };
        containerd.start_daemon();
        containerd
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.join("containerd.sock")
    }

    /// Ends containerd as a crash does. Its containers run on.
    pub fn kill_daemon(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            // nsenter forked to be in the process namespace, and ends with its child.
            if let Some(containerd) = child_of(daemon.id()) {
                let _ = kill(Pid::from_raw(containerd), Signal::SIGKILL);
            }
            let _ = daemon.wait();
        }
    }

    /// Starts containerd again over what it left.
    pub fn start_daemon(&mut self) {
        let init = self.init().expect("the namespaces have a first process");
        let log = self.folder.join("containerd.log");
        let mut daemon = Command::new("nsenter")
            .args(["--mount", "--pid", "--target", &init.to_string()])
            .args([BUSYBOX, "sh", "-c", "exec containerd --config \"$0\" 2>&1"])
            .arg(self.folder.join("containerd.toml"))
            .stdout(Stdio::piped())
            .stdin(Stdio::null())
            .spawn()
            .expect("nsenter runs");
        let mut output = BufReader::new(daemon.stdout.take().expect("the output is a pipe"));
        let mut said = String::new();
        while !said.contains(BOOTED) {
            let more = output.read_line(&mut said).expect("containerd's output is text");
            assert!(more > 0, "containerd did not start: {said}");
        }
        // Read on, or containerd blocks when the pipe is full.
        std::thread::spawn(move || {
            let mut file = std::fs::File::create(log)?;
            std::io::copy(&mut output, &mut file)
        });
        self.daemon = Some(daemon);
    }

    /// Network namespaces made for pods and not given back.
    pub fn network_namespaces(&self) -> usize {
        let calls = std::fs::read_to_string(self.folder.join("cni/bin/calls")).unwrap_or_default();
        let mut open = std::collections::BTreeSet::new();
        for call in calls.lines() {
            match call.split_once(' ') {
                Some(("ADD", namespace)) => drop(open.insert(namespace)),
                Some(("DEL", namespace)) => drop(open.remove(namespace)),
                _ => {}
            }
        }
        open.len()
    }

    /// Mounts that containerd and its containers hold, one line each.
    pub fn mounts(&self) -> Vec<String> {
        let Some(init) = self.init() else { return Vec::new() };
        let mounts = std::fs::read_to_string(format!("/proc/{init}/mounts")).unwrap_or_default();
        let ours = self.folder.to_string_lossy().into_owned();
        let mut points: Vec<String> = mounts
            .lines()
            .filter_map(|line| line.split(' ').nth(1))
            .filter(|path| path.starts_with(&ours))
            .map(str::to_owned)
            .collect();
        points.sort();
        points
    }

    /// The first process of the namespaces, by its id outside of them.
    fn init(&self) -> Option<i32> {
        child_of(self.holder.id())
    }
}

fn child_of(id: u32) -> Option<i32> {
    std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).ok()?.split_whitespace().next()?.parse().ok()
}

impl Drop for Containerd {
    fn drop(&mut self) {
        self.end();
    }
}

impl Containerd {
    /// Ends it and everything it ran.
    pub fn end(&mut self) {
        self.kill_daemon();
        if let Some(init) = self.init() {
            // With the first process of a process namespace all others end, before it is seen to have ended.
            let _ = kill(Pid::from_raw(init), Signal::SIGKILL);
        }
        let _ = self.holder.wait();
    }
}

/// The machine may not let us lower OOM scores (a container without CAP_SYS_RESOURCE), so containerd does not try.
fn config(folder: &Path) -> String {
    let folder = folder.display();
    format!(
        r#"version = 2
root = "{folder}/root"
state = "{folder}/state"
[grpc]
  address = "{folder}/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  restrict_oom_score_adj = true
  sandbox_image = "rkube.local/pause:1"
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "{folder}/certs.d"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{folder}/cni/bin"
    conf_dir = "{folder}/cni/conf"
"#
    )
}

/// Removes the cgroups below `/<name>` in every hierarchy. Nothing may run in them any more.
pub fn remove_cgroups(name: &str) {
    fn remove(directory: &Path) {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                remove(&entry.path());
            }
        }
        let _ = std::fs::remove_dir(directory);
    }
    let name = name.trim_start_matches('/');
    let mount = Path::new("/sys/fs/cgroup");
    remove(&mount.join(name));
    for hierarchy in std::fs::read_dir(mount).into_iter().flatten().flatten() {
        remove(&hierarchy.path().join(name));
    }
}

/// All cgroups below `/<name>`, relative to their hierarchy.
pub fn cgroups(name: &str) -> Vec<String> {
    fn walk(directory: &Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                found.push(entry.path().to_string_lossy().into_owned());
                walk(&entry.path(), found);
            }
        }
    }
    let name = name.trim_start_matches('/');
    let mut found = Vec::new();
    let mount = Path::new("/sys/fs/cgroup");
    walk(&mount.join(name), &mut found);
    for hierarchy in std::fs::read_dir(mount).into_iter().flatten().flatten() {
        walk(&hierarchy.path().join(name), &mut found);
    }
    found.sort();
    found
}
