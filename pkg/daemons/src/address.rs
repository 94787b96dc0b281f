//! This machine's own address and name.

use std::io;
use std::net::{IpAddr, Ipv4Addr};

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;

/// The address packets to elsewhere leave from; without a route to elsewhere, the first one that others on a network
/// can reach. Nothing is sent. `None` on a machine that is in no network at all.
pub(crate) fn own() -> io::Result<Option<IpAddr>> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    match socket.connect("192.0.2.1:9") {
        Ok(()) => Ok(Some(socket.local_addr()?.ip())),
        Err(_) => Ok(first_usable(interfaces()?).map(IpAddr::V4)),
    }
}

/// The addresses of interfaces that are up, in the kernel's order.
fn interfaces() -> io::Result<Vec<Ipv4Addr>> {
    let up = |flags: InterfaceFlags| flags.contains(InterfaceFlags::IFF_UP);
    let all = getifaddrs().map_err(io::Error::from)?.filter(|interface| up(interface.flags));
    Ok(all.filter_map(|interface| Some(interface.address?.as_sockaddr_in()?.ip())).collect())
}

fn first_usable(addresses: Vec<Ipv4Addr>) -> Option<Ipv4Addr> {
    addresses.into_iter().find(|address| {
        !(address.is_loopback() || address.is_link_local() || address.is_unspecified() || address.is_multicast())
    })
}

pub(crate) fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_known_by_an_address_that_others_reach() {
        let first = |addresses: &[&str]| {
            first_usable(addresses.iter().map(|address| address.parse().unwrap()).collect()).map(|ip| ip.to_string())
        };
        assert_eq!(first(&["127.0.0.1", "169.254.1.2", "10.1.2.3", "10.1.2.4"]).as_deref(), Some("10.1.2.3"));
        assert_eq!(first(&["127.0.0.1"]), None);
    }
}
