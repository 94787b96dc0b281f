//! Installing the network for the container runtime: its configuration and the plugin's file.
//!
//! Invariant: the configuration appears last and as a whole, since a runtime takes it as the sign that the
//! network is ready.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use ipnet::Ipv4Net;
use serde_json::json;

use crate::cni::{LOOPBACK_PLUGIN, PLUGIN};

/// Sorts before what other installers write: runtimes take the first file.
pub const FILE_NAME: &str = "05-rkube.conflist";

/// Why the network could not be installed.
#[derive(Debug, thiserror::Error)]
#[error("{action} {}", .path.display())]
pub struct InstallError {
    pub action: &'static str,
    pub path: PathBuf,
    #[source]
    pub source: io::Error,
}

/// What the plugin needs to know.
#[derive(Clone, Debug)]
pub struct Conflist {
    pub pods: Ipv4Net,
    pub bridge: String,
    pub mtu: u32,
    pub data_dir: PathBuf,
}

impl Conflist {
    pub fn to_json(&self) -> String {
        let config = json!({
            // The newest that every supported runtime reads.
            "cniVersion": "1.0.0",
            "name": "rkube",
            "plugins": [{
                "type": PLUGIN,
                "podCIDR": self.pods,
                "bridge": self.bridge,
                "mtu": self.mtu,
                "dataDir": self.data_dir,
                "capabilities": {"portMappings": true},
            }],
        });
        format!("{config:#}\n")
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> InstallError {
    let path = path.to_owned();
    move |source| InstallError { action, path, source }
}

/// Puts links to `executable` into the plugin directory. A `loopback` of someone else stays.
pub fn install_plugin(executable: &Path, bin_dir: &Path) -> Result<(), InstallError> {
    fs::create_dir_all(bin_dir).map_err(failed("creating", bin_dir))?;
    link(executable, &bin_dir.join(PLUGIN))?;
    let loopback = bin_dir.join(LOOPBACK_PLUGIN);
    let is_ours = fs::read_link(&loopback).is_ok_and(|target| target == executable || !loopback.exists());
    if is_ours || fs::symlink_metadata(&loopback).is_err() {
        link(executable, &loopback)?;
    }
    Ok(())
}

fn link(executable: &Path, path: &Path) -> Result<(), InstallError> {
    if fs::read_link(path).is_ok_and(|target| target == executable) {
        return Ok(());
    }
    let new = path.with_extension("new");
    let _ = fs::remove_file(&new);
    symlink(executable, &new).map_err(failed("linking", &new))?;
    fs::rename(&new, path).map_err(failed("linking", path))
}

/// Writes the configuration unless it is there already.
pub fn install(conflist: &Conflist, conf_dir: &Path) -> Result<(), InstallError> {
    fs::create_dir_all(conf_dir).map_err(failed("creating", conf_dir))?;
    let path = conf_dir.join(FILE_NAME);
    let text = conflist.to_json();
    if fs::read_to_string(&path).is_ok_and(|present| present == text) {
        return Ok(());
    }
    // Runtimes read `.conf`, `.conflist` and `.json` only.
    let new = conf_dir.join(".rkube.new");
    fs::write(&new, text).map_err(failed("writing", &new))?;
    fs::rename(&new, &path).map_err(failed("writing", &path))
}

/// Leaves the runtime to another plugin's configuration. Ours for pods that are there, the link to this program, stays.
pub fn withdraw(conf_dir: &Path) -> Result<(), InstallError> {
    let path = conf_dir.join(FILE_NAME);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("removing", &path)(error)),
        _ => Ok(()),
    }
}
