//! `rkube uninstall network`: what a node's network put into the kernel and into the container runtime's folders.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rkube_apimachinery::chain::chain;
use rkube_network::removal::{self, Folders};

use super::AdminError;
use crate::config::Paths;

/// One thing that was to be removed.
pub struct Removed {
    pub what: String,
    /// Why it is still there.
    pub problem: Option<String>,
}

/// Where the parts of a node are that `rkube` was run as, by its settings.
pub fn folders(data_dir: &Path, cni_bin: &Path, cni_conf: &Path) -> Folders {
    Folders {
        data: crate::node::network_folder(&Paths::new(data_dir).agent()),
        cni_bin: cni_bin.to_owned(),
        cni_conf: cni_conf.to_owned(),
    }
}

/// What is there, in the order it is removed in. Changes nothing.
pub fn plan(folders: &Folders) -> Result<Vec<String>, AdminError> {
    let traces = removal::find(folders).map_err(|source| AdminError::Network(Box::new(source)))?;
    Ok(traces.iter().map(ToString::to_string).collect())
}

/// Removes it, as much as can be. Refused while an `rkube` runs here, which would put it back.
pub fn network(folders: &Folders) -> Result<Vec<Removed>, AdminError> {
    if let Some(process) = running() {
        return Err(AdminError::Invalid(format!("rkube runs as process {process}: stop it first")));
    }
    let traces = removal::find(folders).map_err(|source| AdminError::Network(Box::new(source)))?;
    let removed = traces.iter().map(|trace| Removed {
        what: trace.to_string(),
        problem: removal::remove(trace).err().map(|error| chain(&error).to_string()),
    });
    Ok(removed.collect())
}

/// A server or agent in this network namespace.
fn running() -> Option<u32> {
    let namespace = |process: &Path| fs::read_link(process.join("ns/net")).ok();
    let own = namespace(Path::new("/proc/self"));
    let is_running = |process: &Path| {
        let words = fs::read(process.join("cmdline")).unwrap_or_default();
        let mut words = words.split(|byte| *byte == 0);
        let program = words.next().map(|word| Path::new(OsStr::from_bytes(word)));
        let is_ours = program.and_then(Path::file_name).is_some_and(|name| name == "rkube");
        is_ours && words.next().is_some_and(|word| word == b"server" || word == b"agent") && namespace(process) == own
    };
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes.filter(|entry| is_running(&entry.path())).find_map(|entry| entry.file_name().to_str()?.parse().ok())
}
