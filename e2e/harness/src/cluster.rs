//! A cluster of real processes: made, found again, taken down.
//!
//! Invariant: `down` needs nothing that `up` wrote. Names follow from the folder and everything else is read
//! from the kernel, so it works after a crash of either and for a cluster that is half there.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures_util::future::try_join_all;
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;
use rkube_api::k8s::core::v1::Node as NodeKind;
use rkube_client::{Client, ListParams};

use crate::api::{self, condition};
use crate::node::Node;
use crate::service::{Place, Service};
use crate::spec::{self, Datastore, Spec};
use crate::{cgroups, fabric, process};

const ETCD_READY: Duration = Duration::from_secs(60);
pub(crate) const NODES_READY: Duration = Duration::from_secs(120);
/// Processes that were killed are gone in this time, or the kernel is stuck.
const DEATH_TIMEOUT: Duration = Duration::from_secs(60);
const LOCK: &str = "lock";

pub(crate) struct Cluster {
    pub(crate) spec: Spec,
}

/// What a new cluster is made with.
pub(crate) struct Options<'a> {
    pub(crate) binary: &'a Path,
    pub(crate) images: Option<&'a Path>,
}

impl Cluster {
    /// Makes the cluster, or completes one that is half there, and waits until all nodes are Ready.
    pub(crate) async fn up(mut spec: Spec, options: &Options<'_>) -> Result<Self> {
        let _lock = lock(&spec.folder).await?;
        match Spec::load(&spec.folder)? {
            Some(old) => {
                spec.slot = old.slot;
                let settings = |spec: &Spec| (spec.datastore, spec.servers, spec.arguments.clone());
                if settings(&old) != settings(&spec) || old.nodes > spec.nodes {
                    bail!(
                        "{} holds a cluster with other settings; take it down first, or choose another --dir",
                        spec.folder.display()
                    );
                }
            }
            None => {
                // What a crash before the first save left has no settings, so it cannot be completed.
                remove_kernel_objects(&spec.folder).await?;
            }
        }
        fs::create_dir_all(spec.logs())?;
        install(options.binary, &spec.binary())?;
        fabric::make(&mut spec).await?;
        spec.save()?;
        let cluster = Self { spec };
        cluster.start(options.images).await?;
        cluster.nodes_ready(cluster.spec.nodes).await?;
        Ok(cluster)
    }

    /// The cluster in a folder.
    pub(crate) fn open(folder: &Path) -> Result<Self> {
        match Spec::load(folder)? {
            Some(spec) => Ok(Self { spec }),
            None => bail!("there is no cluster in {}", folder.display()),
        }
    }

    /// Adds a node that joins the first server, with its images, and waits until it is Ready.
    pub(crate) async fn grow(&mut self) -> Result<()> {
        self.spec.nodes += 1;
        self.spec.save()?;
        let node = self.node(self.spec.nodes);
        node.boot().await?;
        node.import(&self.node(1).data_dir().join("agent/images")).await?;
        self.start_node(&node).await?;
        self.nodes_ready(self.spec.nodes).await
    }

    /// Boots a node that is off, or starts its rkube again.
    pub(crate) async fn start_node(&self, node: &Node) -> Result<()> {
        node.boot().await?;
        // A server has its own token; the first one's is everybody's.
        let token = self.node(1).token_file();
        node.start((node.number > 1).then_some(token.as_path())).await
    }

    async fn start(&self, images: Option<&Path>) -> Result<()> {
        let prepare = async |node: Node| {
            node.boot().await?;
            if let Some(images) = images {
                node.import(images).await?;
            }
            Ok::<_, anyhow::Error>(())
        };
        if self.spec.datastore == Datastore::Etcd {
            self.start_etcd().await?;
        }
        try_join_all(self.nodes().map(prepare)).await?;
        let first = self.node(1);
        first.start(None).await?;
        fs::write(self.spec.kubeconfig(), self.kubeconfig_of(1)?)?;
        let token = first.token_file();
        let token = token.as_path();
        try_join_all(self.nodes().skip(1).map(async |node| node.start(Some(token)).await)).await?;
        Ok(())
    }

    pub(crate) fn node(&self, number: usize) -> Node {
        Node { spec: self.spec.clone(), number }
    }

    pub(crate) fn nodes(&self) -> impl Iterator<Item = Node> {
        (1..=self.spec.nodes).map(|number| self.node(number))
    }

    /// A node by its name.
    pub(crate) fn named(&self, name: &str) -> Result<Node> {
        match self.nodes().find(|node| node.name() == name) {
            Some(node) => Ok(node),
            None => bail!("the cluster has no node {name}; its nodes are node1 to node{}", self.spec.nodes),
        }
    }

    /// A server's admin kubeconfig, with the address others reach it by.
    fn kubeconfig_of(&self, number: usize) -> Result<String> {
        let path = self.node(number).kubeconfig();
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        Ok(text.replace("https://127.0.0.1:6443", &self.spec.api_url(number)))
    }

    /// A kubeconfig of one server, made where the nodes are.
    pub(crate) fn kubeconfig_for(&self, server: usize) -> Result<PathBuf> {
        let path = self.spec.folder.join("nodes").join(format!("admin-{server}.yaml"));
        fs::write(&path, self.kubeconfig_of(server)?)?;
        Ok(path)
    }

    /// A client of one server.
    pub(crate) fn client_of(&self, server: usize) -> Result<Client> {
        api::connect(&self.kubeconfig_for(server)?)
    }

    pub(crate) fn client(&self) -> Result<Client> {
        api::connect(&self.spec.kubeconfig())
    }

    pub(crate) async fn nodes_ready(&self, count: usize) -> Result<()> {
        let nodes = self.client()?.all::<NodeKind>();
        api::wait(nodes.dynamic(), &ListParams::default(), NODES_READY, "all nodes Ready", |nodes| {
            let ready: Vec<&str> = nodes
                .iter()
                .filter(|(_, node)| condition(node, "Ready") == "True")
                .map(|(name, _)| name.as_str())
                .collect();
            if ready.len() == count {
                return Ok(());
            }
            Err(format!("{} nodes, of them Ready: {}", nodes.len(), ready.join(" ")))
        })
        .await
    }

    pub(crate) fn etcd(&self) -> Service {
        Service {
            name: "etcd",
            place: Place { netns: self.spec.fabric(), init: None },
            folder: self.spec.folder.join("etcd"),
            log: self.spec.logs().join("etcd.log"),
            ready_within: ETCD_READY,
        }
    }

    async fn start_etcd(&self) -> Result<()> {
        if self.etcd().pid().is_some() {
            return Ok(());
        }
        let url = self.spec.etcd_url();
        let data = self.spec.folder.join("etcd/data");
        let command = [
            "etcd".to_owned(),
            "--name=default".to_owned(),
            format!("--data-dir={}", data.display()),
            format!("--listen-client-urls={url}"),
            format!("--advertise-client-urls={url}"),
            "--listen-peer-urls=http://127.0.0.1:2380".to_owned(),
        ];
        self.etcd().start(&command, false).await.context("etcd (package etcd-server)")
    }
}

/// Removes everything a cluster of this folder has on the machine, and the folder's contents that are ours.
pub(crate) async fn down(folder: &Path) -> Result<()> {
    // A folder that is gone may still have a cluster: its name is what counts.
    let folder = canonical(folder)?;
    if !folder.exists() {
        return remove_kernel_objects(&folder).await;
    }
    let lock = lock(&folder).await?;
    remove_kernel_objects(&folder).await?;
    unmount_below(&folder)?;
    for name in spec::CONTENTS {
        remove(&folder.join(name))?;
    }
    remove(&folder.join(LOCK))?;
    drop(lock);
    // Other files in it are not ours.
    let _ = fs::remove_dir(&folder);
    Ok(())
}

/// The path with the links of its existing part resolved.
fn canonical(folder: &Path) -> Result<PathBuf> {
    if let Ok(resolved) = folder.canonicalize() {
        return Ok(resolved);
    }
    let absolute = std::path::absolute(folder)?;
    match (absolute.parent(), absolute.file_name()) {
        (Some(parent), Some(name)) => Ok(canonical(parent)?.join(name)),
        _ => Ok(absolute),
    }
}

/// Processes, then what they held: namespaces with their links and mounts, and cgroups.
async fn remove_kernel_objects(folder: &Path) -> Result<()> {
    let prefix = spec::prefix(folder);
    let namespaces = fabric::all(&prefix);
    // A process that was just being started when the others died is found in the next round.
    loop {
        let mut found = Vec::new();
        for namespace in &namespaces {
            found.extend(process::all_in(namespace)?);
        }
        if found.is_empty() {
            break;
        }
        try_join_all(found.into_iter().map(|pid| process::end(pid, Signal::SIGKILL, DEATH_TIMEOUT))).await?;
    }
    for namespace in &namespaces {
        fabric::remove(namespace).await?;
    }
    cgroups::remove(&prefix).await
}

/// Nothing mounts there outside the nodes, but a mount that did would make the removal delete what is on it.
fn unmount_below(folder: &Path) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("reading the mount table")?;
    let points = mounts.lines().rev().filter_map(|line| line.split(' ').nth(1)).map(Path::new);
    for point in points.filter(|point| *point != folder && point.starts_with(folder)) {
        umount2(point, MntFlags::MNT_DETACH).with_context(|| format!("unmounting {}", point.display()))?;
    }
    Ok(())
}

fn remove(path: &Path) -> Result<()> {
    let outcome = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(_) => return Ok(()),
    };
    outcome.with_context(|| format!("removing {}", path.display()))
}

/// One command at a time works on a cluster.
async fn lock(folder: &Path) -> Result<File> {
    let path = folder.join(LOCK);
    let file = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
    tokio::task::spawn_blocking(move || file.lock().map(|()| file)).await?.context("waiting for the lock")
}

/// Puts the program where the nodes run it, in one step: a running one goes on with its old file.
pub(crate) fn install(binary: &Path, target: &Path) -> Result<()> {
    let folder = target.parent().context("the program has a folder")?;
    fs::create_dir_all(folder)?;
    let draft = target.with_extension("draft");
    let _ = fs::remove_file(&draft);
    if fs::hard_link(binary, &draft).is_err() {
        fs::copy(binary, &draft).with_context(|| format!("copying {}", binary.display()))?;
    }
    fs::rename(&draft, target).with_context(|| format!("installing {}", target.display()))
}
