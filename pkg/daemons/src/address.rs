//! This machine's own address and name.

use std::net::IpAddr;

/// The address packets to elsewhere leave from. Nothing is sent. A machine without a route is its own world.
pub(crate) fn of_default_route() -> std::io::Result<IpAddr> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    match socket.connect("192.0.2.1:9") {
        Ok(()) => Ok(socket.local_addr()?.ip()),
        Err(_) => Ok(IpAddr::from([127, 0, 0, 1])),
    }
}

pub(crate) fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_ascii_lowercase()
}
