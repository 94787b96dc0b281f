//! One node: its first process, its containerd, its rkube.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use tokio::process::Command;

use crate::service::{Place, Service, launcher};
use crate::spec::{Datastore, Spec};
use crate::{cgroups, fabric};

const INIT_READY: Duration = Duration::from_secs(20);
const CONTAINERD_READY: Duration = Duration::from_secs(60);
/// A debug binary on a busy machine makes its keys in this time too.
const RKUBE_READY: Duration = Duration::from_secs(180);
const STOP_TIMEOUT: Duration = Duration::from_secs(60);
const DISK_BYTES: u64 = 20 << 30;
/// The node's /run is its own, so the default path is.
const RUNTIME: &str = "/run/containerd/containerd.sock";

#[derive(Clone)]
pub(crate) struct Node {
    pub(crate) spec: Spec,
    pub(crate) number: usize,
}

impl Node {
    pub(crate) fn name(&self) -> String {
        self.spec.node_name(self.number)
    }

    pub(crate) fn is_server(&self) -> bool {
        self.number <= self.spec.servers
    }

    fn folder(&self) -> PathBuf {
        self.spec.node_folder(self.number)
    }

    fn kubelet_root(&self) -> PathBuf {
        self.folder().join("disk/kubelet")
    }

    /// The kubelet's folder of pods, by a path that leads there from outside the node.
    pub(crate) fn pods_folder(&self) -> Result<PathBuf> {
        let init = self.init().pid().context("the node does not run")?;
        let inside = self.kubelet_root().join("pods");
        Ok(Path::new("/proc").join(init.to_string()).join("root").join(inside.strip_prefix("/")?))
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.folder().join("data")
    }

    fn place(&self) -> Place {
        Place { netns: self.spec.netns(self.number), init: Some(self.folder().join("init.pid")) }
    }

    fn service(&self, name: &'static str, ready_within: Duration) -> Service {
        Service {
            name,
            place: self.place(),
            folder: self.folder(),
            log: self.spec.logs().join(format!("{}-{name}.log", self.name())),
            ready_within,
        }
    }

    pub(crate) fn init(&self) -> Service {
        self.service("init", INIT_READY)
    }

    pub(crate) fn containerd(&self) -> Service {
        self.service("containerd", CONTAINERD_READY)
    }

    pub(crate) fn rkube(&self) -> Service {
        self.service("rkube", RKUBE_READY)
    }

    /// Boots the node up to its container runtime; what runs already stays.
    pub(crate) async fn boot(&self) -> Result<()> {
        let folder = self.folder();
        for name in ["data/agent/images", "disk", "cni/bin", "cni/conf"] {
            fs::create_dir_all(folder.join(name)).with_context(|| format!("creating folders of {}", self.name()))?;
        }
        if self.init().pid().is_none() {
            fabric::make_node(&self.spec, self.number).await?;
            let this = std::env::current_exe()?.display().to_string();
            let disk = self.make_disk().await?;
            let mount_at = folder.join("disk");
            let command = [
                this,
                "inner".into(),
                "init".into(),
                format!("--hostname={}", self.name()),
                format!("--disk={}", disk.display()),
                format!("--mount-at={}", mount_at.display()),
            ];
            self.init().start(&command, true).await.with_context(|| self.name())?;
        }
        if self.containerd().pid().is_none() {
            let config = folder.join("containerd.toml");
            fs::write(&config, self.containerd_config())?;
            let command = ["containerd".to_owned(), "--config".to_owned(), config.display().to_string()];
            self.containerd().start(&command, false).await.with_context(|| self.name())?;
        }
        Ok(())
    }

    /// A file that takes as much room as is used of it. With a disk of its own a node does not see how full the
    /// machine's is, which would make it evict pods.
    async fn make_disk(&self) -> Result<PathBuf> {
        let path = self.folder().join("disk.img");
        if path.exists() {
            return Ok(path);
        }
        let draft = self.folder().join("disk.draft");
        fs::File::create(&draft).and_then(|file| file.set_len(DISK_BYTES)).context("making the disk")?;
        // Nobody takes the power from the machine itself, so a journal would protect from nothing.
        let output = Command::new("mkfs.ext4")
            .args(["-q", "-F", "-O", "^has_journal", "-E", "lazy_itable_init=1,nodiscard"])
            .arg(&draft)
            .output()
            .await
            .context("running mkfs.ext4 (package e2fsprogs)")?;
        if !output.status.success() {
            bail!("mkfs.ext4: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        fs::rename(&draft, &path)?;
        Ok(path)
    }

    fn containerd_config(&self) -> String {
        let folder = self.folder();
        let folder = folder.display();
        // The disk is mounted on the node only. Lowering OOM scores takes a capability that a container lacks.
        format!(
            r#"version = 2
root = "{folder}/disk/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper"]
[grpc]
  address = "{RUNTIME}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{folder}/disk/opt"
[plugins."io.containerd.grpc.v1.cri"]
  restrict_oom_score_adj = true
  sandbox_image = "rkube.local/pause:1"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{folder}/cni/bin"
    conf_dir = "{folder}/cni/conf"
"#
        )
    }

    /// Brings every archive of a folder to the node: into the runtime now, and for rkube's own import later,
    /// which keeps images it knows from being collected.
    pub(crate) async fn import(&self, images: &Path) -> Result<()> {
        let target = self.data_dir().join("agent/images");
        let mut archives: Vec<PathBuf> = fs::read_dir(images)
            .with_context(|| format!("listing --images {}", images.display()))?
            .map(|entry| Ok(entry?.path()))
            .collect::<Result<_>>()?;
        archives.retain(|path| path.extension() == Some(OsStr::new("tar")));
        archives.sort();
        for archive in archives {
            let kept = target.join(archive.file_name().unwrap_or_default());
            let archive = archive.canonicalize().with_context(|| format!("reading {}", archive.display()))?;
            if is_same(&archive, &kept) {
                continue;
            }
            let source = archive.display().to_string();
            self.run(&["ctr", "-n", "k8s.io", "images", "import", &source])
                .await
                .with_context(|| format!("importing {source} on {}", self.name()))?;
            let _ = fs::remove_file(&kept);
            // The archives are large: another name for the file if it can be, a copy if not.
            if fs::hard_link(&archive, &kept).is_err() {
                fs::copy(&archive, &kept).with_context(|| format!("copying {source}"))?;
            }
        }
        Ok(())
    }

    /// Starts rkube and waits until it is ready. What runs already stays.
    pub(crate) async fn start(&self, token: Option<&Path>) -> Result<()> {
        if self.rkube().pid().is_some() {
            return Ok(());
        }
        let command = self.command(token)?;
        self.rkube().start(&command, false).await.with_context(|| self.name())
    }

    fn command(&self, token: Option<&Path>) -> Result<Vec<String>> {
        let folder = self.folder();
        let resolv_conf = folder.join("resolv.conf");
        // Names outside the cluster are not for tests to ask, and a search domain would have pods do it.
        fs::write(&resolv_conf, "# neither servers nor domains\n")?;
        let path = |path: PathBuf| path.display().to_string();
        let mut command = vec![path(self.spec.binary())];
        let mut flag = |name: &str, value: String| command.push(format!("--{name}={value}"));
        if self.is_server() {
            flag("advertise-address", self.spec.node_address(self.number).to_string());
            flag("cluster-cidr", self.spec.cluster_cidr());
            flag("service-cidr", self.spec.service_cidr());
            flag("cluster-dns", self.spec.cluster_dns().to_string());
            flag("write-kubeconfig", path(self.kubeconfig()));
            if self.spec.datastore == Datastore::Etcd {
                flag("datastore-endpoint", self.spec.etcd_url());
            }
        } else {
            // Agents are spread over the servers.
            flag("join", self.spec.api_url((self.number - 1) % self.spec.servers + 1));
        }
        if let Some(token) = token {
            flag("token-file", path(token.to_owned()));
        }
        let group = cgroups::make(&self.spec.prefix(), &self.name())?;
        flag("data-dir", path(self.data_dir()));
        flag("node-name", self.name());
        flag("node-ip", self.spec.node_address(self.number).to_string());
        flag("container-runtime-endpoint", format!("unix://{RUNTIME}"));
        flag("kubelet-root-dir", path(self.kubelet_root()));
        flag("pod-logs-dir", path(folder.join("disk/pods")));
        flag("cni-bin-dir", path(folder.join("cni/bin")));
        flag("cni-conf-dir", path(folder.join("cni/conf")));
        flag("cgroup-root", group);
        flag("resolv-conf", path(resolv_conf));
        let (role, more) = match self.is_server() {
            true => ("server", &self.spec.arguments.server),
            false => ("agent", &self.spec.arguments.agent),
        };
        command.insert(1, role.to_owned());
        command.extend(more.iter().cloned());
        Ok(command)
    }

    /// The admin kubeconfig a server writes, for use on its own node.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.folder().join("admin.yaml")
    }

    /// The token others join this server with.
    pub(crate) fn token_file(&self) -> PathBuf {
        self.data_dir().join("server/token")
    }

    /// Runs a program on the node and returns what it prints.
    pub(crate) async fn run(&self, command: &[&str]) -> Result<String> {
        let output = launcher(&self.place(), false)?
            .arg("--")
            .args(command)
            .output()
            .await
            .with_context(|| format!("running {} on {}", command.join(" "), self.name()))?;
        if !output.status.success() {
            bail!("{}: {}", command.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs a program on the node with this process's input and output, and returns its exit code.
    pub(crate) async fn attach(&self, command: &[String]) -> Result<i32> {
        let status = launcher(&self.place(), false)?.arg("--").args(command).status().await?;
        Ok(status.code().unwrap_or(1))
    }

    /// Stops rkube as a service manager does.
    pub(crate) async fn stop(&self) -> Result<()> {
        self.rkube().stop(Signal::SIGTERM, STOP_TIMEOUT).await
    }

    /// Ends rkube in the middle of whatever it does. Containers go on.
    pub(crate) async fn kill(&self) -> Result<()> {
        self.rkube().stop(Signal::SIGKILL, STOP_TIMEOUT).await
    }

    /// Takes the power away: everything on the node ends at once, and only its disk is left.
    pub(crate) async fn power_off(&self) -> Result<()> {
        self.init().stop(Signal::SIGKILL, STOP_TIMEOUT).await
    }
}

/// Whether one file is the other, or was copied from it.
fn is_same(archive: &Path, kept: &Path) -> bool {
    let (Ok(archive), Ok(kept)) = (fs::metadata(archive), fs::metadata(kept)) else { return false };
    archive.len() == kept.len() && kept.modified().ok() >= archive.modified().ok()
}
