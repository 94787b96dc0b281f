//! Kernel settings of the network namespace of the calling thread.

use std::fs;
use std::io;

/// A setting that could not be made.
#[derive(Debug, thiserror::Error)]
#[error("setting {name} to {value}")]
pub struct SysctlError {
    pub name: String,
    pub value: &'static str,
    #[source]
    pub source: io::Error,
}

/// Sets `name`, with slashes as in `net/ipv4/ip_forward`, unless it has that value: a read-only `/proc/sys`
/// is no obstacle where the administrator has made the setting.
pub fn set(name: &str, value: &'static str) -> Result<(), SysctlError> {
    let path = format!("/proc/sys/{name}");
    if fs::read_to_string(&path).is_ok_and(|present| present.trim() == value) {
        return Ok(());
    }
    fs::write(&path, value).map_err(|source| SysctlError { name: name.to_owned(), value, source })
}
