//! What a cluster is: its settings, its names and its addresses. Saved in the cluster's folder, so that a
//! later command finds the cluster as it was made.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Addresses .11 to .110 of the cluster's network.
pub(crate) const NODES_MAX: usize = 100;
/// Unix sockets have paths of at most 108 bytes, and the longest below the folder takes 44.
const FOLDER_BYTES_MAX: usize = 60;
const FILE: &str = "cluster.json";

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
pub(crate) enum Datastore {
    Embedded,
    Etcd,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Spec {
    pub(crate) folder: PathBuf,
    pub(crate) nodes: usize,
    /// How many of the nodes, the first ones, are servers.
    pub(crate) servers: usize,
    pub(crate) datastore: Datastore,
    /// Which of the networks 10.160 to 10.191 is the cluster's.
    pub(crate) slot: u8,
    /// More arguments of rkube.
    #[serde(default)]
    pub(crate) arguments: Arguments,
}

/// Arguments that rkube gets beside those that make the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, Args)]
pub(crate) struct Arguments {
    /// Another argument for `rkube server`, as --server-arg=--some-flag=value; may be repeated
    #[arg(long = "server-arg", value_name = "ARGUMENT", allow_hyphen_values = true)]
    pub(crate) server: Vec<String>,
    /// Another argument for `rkube agent`; may be repeated
    #[arg(long = "agent-arg", value_name = "ARGUMENT", allow_hyphen_values = true)]
    pub(crate) agent: Vec<String>,
}

impl Spec {
    pub(crate) fn new(folder: &Path, nodes: usize, servers: usize, datastore: Datastore) -> Result<Self> {
        if !(1..=NODES_MAX).contains(&nodes) {
            bail!("--nodes is 1 to {NODES_MAX}");
        }
        if !(1..=nodes).contains(&servers) {
            bail!("--servers is 1 to the number of nodes");
        }
        if servers > 1 && datastore == Datastore::Embedded {
            bail!("more than one server needs --datastore etcd: the embedded store is one machine's");
        }
        fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
        let folder = folder.canonicalize()?;
        if folder.as_os_str().len() > FOLDER_BYTES_MAX || folder.starts_with("/run") {
            bail!(
                "--dir {}: choose a folder outside /run with at most {FOLDER_BYTES_MAX} characters",
                folder.display()
            );
        }
        let mut spec = Self { folder, nodes, servers, datastore, slot: 0, arguments: Arguments::default() };
        spec.slot = spec.digest()[0];
        Ok(spec)
    }

    /// The cluster that was made in this folder, if one was.
    pub(crate) fn load(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(FILE);
        match fs::read(&path) {
            Ok(bytes) => {
                Ok(Some(serde_json::from_slice(&bytes).with_context(|| format!("reading {}", path.display()))?))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
        }
    }

    pub(crate) fn save(&self) -> Result<()> {
        let path = self.folder.join(FILE);
        // A half-written file would hide the cluster from the next command.
        let draft = path.with_extension("draft");
        fs::write(&draft, serde_json::to_vec_pretty(self)?)?;
        fs::rename(&draft, &path).with_context(|| format!("writing {}", path.display()))
    }

    fn digest(&self) -> [u8; 32] {
        digest(&self.folder)
    }

    /// Begins the name of everything this cluster makes on the machine.
    pub(crate) fn prefix(&self) -> String {
        prefix(&self.folder)
    }

    /// The network namespace of the bridge.
    pub(crate) fn fabric(&self) -> String {
        format!("{}-net", self.prefix())
    }

    pub(crate) fn netns(&self, number: usize) -> String {
        format!("{}-{}", self.prefix(), self.node_name(number))
    }

    /// Nodes count from one.
    pub(crate) fn node_name(&self, number: usize) -> String {
        format!("node{number}")
    }

    /// What a slot takes: the nodes' network, the pods' and the Services'.
    pub(crate) fn slot_networks(slot: u8) -> [Ipv4Net; 3] {
        [(160, 24), (192, 16), (224, 16)]
            .map(|(start, length)| Ipv4Net::new_assert(Ipv4Addr::new(10, start + slot, 0, 0), length))
    }

    fn address(&self, last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 160 + self.slot, 0, last)
    }

    pub(crate) fn host_address(&self) -> Ipv4Addr {
        self.address(1)
    }

    /// The bridge: the nodes' default route, and where etcd listens.
    pub(crate) fn gateway(&self) -> Ipv4Addr {
        self.address(2)
    }

    pub(crate) fn node_address(&self, number: usize) -> Ipv4Addr {
        self.address(10 + u8::try_from(number).unwrap_or(u8::MAX - 10))
    }

    pub(crate) fn cluster_cidr(&self) -> String {
        Self::slot_networks(self.slot)[1].to_string()
    }

    pub(crate) fn service_cidr(&self) -> String {
        Self::slot_networks(self.slot)[2].to_string()
    }

    pub(crate) fn cluster_dns(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 224 + self.slot, 0, 10)
    }

    pub(crate) fn api_url(&self, number: usize) -> String {
        format!("https://{}:6443", self.node_address(number))
    }

    pub(crate) fn etcd_url(&self) -> String {
        format!("http://{}:2379", self.gateway())
    }

    pub(crate) fn logs(&self) -> PathBuf {
        self.folder.join("logs")
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.folder.join("admin.yaml")
    }

    pub(crate) fn binary(&self) -> PathBuf {
        self.folder.join("bin/rkube")
    }

    pub(crate) fn node_folder(&self, number: usize) -> PathBuf {
        self.folder.join("nodes").join(self.node_name(number))
    }
}

/// Everything `up` puts into the folder, for `down`.
pub(crate) const CONTENTS: [&str; 7] = ["admin.yaml", "bin", "cluster.draft", FILE, "etcd", "logs", "nodes"];

/// The same for the same folder, so that `down` finds what a crashed `up` made.
pub(crate) fn prefix(folder: &Path) -> String {
    let [a, b, c, ..] = digest(folder);
    format!("e2e{a:02x}{b:02x}{c:02x}")
}

fn digest(folder: &Path) -> [u8; 32] {
    Sha256::digest(folder.as_os_str().as_encoded_bytes()).into()
}
