//! Tells systemd how the process is doing (`Type=notify`), where there is a systemd.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// The process is ready.
pub const READY: &str = "READY=1";
/// The process is on its way out.
pub const STOPPING: &str = "STOPPING=1";

/// Sends `state` to the socket systemd named, if it did. A lost notification is systemd's to notice.
pub fn notify(state: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    if let Err(error) = send(path.as_encoded_bytes(), state) {
        tracing::debug!(%error, "Could not notify the service manager");
    }
}

fn send(path: &[u8], state: &str) -> std::io::Result<()> {
    let address = match path.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(path))?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address)?;
    Ok(())
}
