//! Which pod has which address and which host ports: one file per address in a directory, under one lock.
//!
//! Walk through one address: `reserve` writes its file under another name and renames it, so a crash leaves
//! either a whole file or one that nobody reads. DEL removes it. If DEL never comes (the node lost power),
//! the file stays while the device it names is gone; `reclaim` removes it then.
//!
//! Invariant: whoever reads or writes the directory holds the lock, and a device is made under the lock of
//! its reservation; so a reservation without a device is a leak, not one in the making.
//!
//! Behaves as the `host-local` plugin, v1.6: addresses are given out in turn, so that one is not reused at once.

use std::fs::{self, File};
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

const LOCK_FILE: &str = "lock";
const LAST_FILE: &str = "last";
const TEMPORARY_FILE: &str = "new";

/// Why an address could not be had or given back.
#[derive(Debug, thiserror::Error)]
pub enum IpamError {
    #[error("{action} {}", .path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("no IP addresses available in {subnet}")]
    Exhausted { subnet: Ipv4Net },
    #[error("host port {host_port} is in use by container {container_id}")]
    HostPortInUse { host_port: u16, container_id: String },
}

/// An interface of a container.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Attachment {
    #[serde(rename = "containerID")]
    pub container_id: String,
    pub ifname: String,
}

/// A port of the host that leads to a port of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostPort {
    /// None for every address of the host.
    pub host_ip: Option<Ipv4Addr>,
    pub protocol: u8,
    pub host_port: u16,
    pub container_port: u16,
}

impl HostPort {
    /// Whether both cannot be open at once.
    fn conflicts(&self, other: &Self) -> bool {
        let same_ip = self.host_ip.is_none() || other.host_ip.is_none() || self.host_ip == other.host_ip;
        same_ip && (self.protocol, self.host_port) == (other.protocol, other.host_port)
    }
}

/// An address in use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Reservation {
    pub address: Ipv4Addr,
    #[serde(flatten)]
    pub attachment: Attachment,
    /// The host's end of the veth pair.
    pub device: String,
    #[serde(default)]
    pub host_ports: Vec<HostPort>,
}

/// The addresses of one node, locked until this is dropped.
#[derive(Debug)]
pub struct Ipam {
    directory: PathBuf,
    reservations: Vec<Reservation>,
    _lock: File,
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> IpamError {
    let path = path.to_owned();
    move |source| IpamError::File { action, path, source }
}

impl Ipam {
    /// Waits for the lock and reads what there is.
    pub fn lock(directory: &Path) -> Result<Self, IpamError> {
        fs::create_dir_all(directory).map_err(failed("creating", directory))?;
        let path = directory.join(LOCK_FILE);
        let options = || File::options().create(true).truncate(false).write(true).open(&path);
        let lock = options().map_err(failed("opening", &path))?;
        lock.lock().map_err(failed("locking", &path))?;
        let mut reservations = Vec::new();
        for entry in fs::read_dir(directory).map_err(failed("reading", directory))? {
            let entry = entry.map_err(failed("reading", directory))?;
            let Some(address) = entry.file_name().to_str().and_then(|name| name.parse::<Ipv4Addr>().ok()) else {
                continue;
            };
            let bytes = fs::read(entry.path()).map_err(failed("reading", &entry.path()))?;
            match serde_json::from_slice::<Reservation>(&bytes) {
                Ok(reservation) if reservation.address == address => reservations.push(reservation),
                // Cut off when the machine went down: whose it was went down too.
                _ => fs::remove_file(entry.path()).map_err(failed("removing", &entry.path()))?,
            }
        }
        reservations.sort_by_key(|reservation| reservation.address);
        Ok(Self { directory: directory.to_owned(), reservations, _lock: lock })
    }

    pub fn reservations(&self) -> &[Reservation] {
        &self.reservations
    }

    pub fn find(&self, attachment: &Attachment) -> Option<&Reservation> {
        self.reservations.iter().find(|reservation| reservation.attachment == *attachment)
    }

    /// The host ports of all pods, with the pods' addresses.
    pub fn host_ports(&self) -> Vec<(Ipv4Addr, HostPort)> {
        let of = |reservation: &Reservation| {
            let address = reservation.address;
            reservation.host_ports.iter().map(move |port| (address, port.clone())).collect::<Vec<_>>()
        };
        self.reservations.iter().flat_map(of).collect()
    }

    /// The next free address of `subnet`, which is neither its first (the network), its second (the
    /// gateway) nor its last (the broadcast).
    pub fn reserve(
        &mut self,
        subnet: Ipv4Net,
        attachment: &Attachment,
        device: &str,
        host_ports: Vec<HostPort>,
    ) -> Result<Reservation, IpamError> {
        for port in &host_ports {
            let taken = |other: &&Reservation| other.host_ports.iter().any(|other| other.conflicts(port));
            if let Some(other) = self.reservations.iter().find(taken) {
                let container_id = other.attachment.container_id.clone();
                return Err(IpamError::HostPortInUse { host_port: port.host_port, container_id });
            }
        }
        let address = self.free_address(subnet).ok_or(IpamError::Exhausted { subnet })?;
        let reservation =
            Reservation { address, attachment: attachment.clone(), device: device.to_owned(), host_ports };
        // Serializing plain data does not fail; if it did, nothing was written.
        let bytes = serde_json::to_vec(&reservation).unwrap_or_default();
        self.write(&address.to_string(), &bytes)?;
        self.write(LAST_FILE, address.to_string().as_bytes())?;
        self.reservations.push(reservation.clone());
        Ok(reservation)
    }

    fn free_address(&self, subnet: Ipv4Net) -> Option<Ipv4Addr> {
        let first = u32::from(subnet.network()).checked_add(2)?;
        let last = u32::from(subnet.broadcast()).checked_sub(1)?;
        let previous = fs::read_to_string(self.directory.join(LAST_FILE)).ok();
        let previous = previous.and_then(|text| text.parse::<Ipv4Addr>().ok()).map(u32::from);
        let start = previous.map_or(first, |address| address.saturating_add(1));
        let start = if (first..=last).contains(&start) { start } else { first };
        let used = |address: &u32| self.reservations.iter().any(|other| u32::from(other.address) == *address);
        (start..=last).chain(first..start).find(|address| *address <= last && !used(address)).map(Ipv4Addr::from)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), IpamError> {
        let (new, path) = (self.directory.join(TEMPORARY_FILE), self.directory.join(name));
        fs::write(&new, bytes).map_err(failed("writing", &new))?;
        fs::rename(&new, &path).map_err(failed("writing", &path))
    }

    /// Gives an address back; a file that is gone is no error.
    pub fn release(&mut self, address: Ipv4Addr) -> Result<(), IpamError> {
        let path = self.directory.join(address.to_string());
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("removing", &path)(error)),
            _ => self.reservations.retain(|reservation| reservation.address != address),
        }
        Ok(())
    }

    /// Releases what is not in use, and returns it.
    pub fn reclaim(&mut self, in_use: impl Fn(&Reservation) -> bool) -> Result<Vec<Reservation>, IpamError> {
        let leaked: Vec<_> = self.reservations.iter().filter(|reservation| !in_use(reservation)).cloned().collect();
        for reservation in &leaked {
            self.release(reservation.address)?;
        }
        Ok(leaked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(id: &str) -> Attachment {
        Attachment { container_id: id.to_owned(), ifname: "eth0".to_owned() }
    }

    fn port(host_ip: Option<[u8; 4]>, host_port: u16) -> HostPort {
        HostPort { host_ip: host_ip.map(Ipv4Addr::from), protocol: 6, host_port, container_port: 80 }
    }

    #[test]
    fn addresses_are_given_in_turn_until_there_are_none() {
        let directory = tempfile::tempdir().unwrap();
        let subnet: Ipv4Net = "10.42.3.0/29".parse().unwrap();
        let take = |id: &str| {
            let mut ipam = Ipam::lock(directory.path()).unwrap();
            ipam.reserve(subnet, &pod(id), "veth", Vec::new()).map(|taken| taken.address.to_string())
        };
        let taken: Vec<_> = ["a", "b", "c"].map(|id| take(id).unwrap()).to_vec();
        assert_eq!(taken, ["10.42.3.2", "10.42.3.3", "10.42.3.4"]);
        Ipam::lock(directory.path()).unwrap().release("10.42.3.2".parse().unwrap()).unwrap();
        assert_eq!(["d", "e", "f"].map(|id| take(id).unwrap()), ["10.42.3.5", "10.42.3.6", "10.42.3.2"]);
        let error = take("g").unwrap_err();
        assert_eq!(error.to_string(), "no IP addresses available in 10.42.3.0/29");
        let leaked = Ipam::lock(directory.path()).unwrap().reclaim(|other| other.attachment != pod("e")).unwrap();
        assert_eq!(leaked.len(), 1);
        assert_eq!(take("g").unwrap(), "10.42.3.6");
    }

    #[test]
    fn a_file_cut_off_by_a_power_failure_is_a_free_address() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("10.42.0.2"), "{\"addr").unwrap();
        let mut ipam = Ipam::lock(directory.path()).unwrap();
        assert!(ipam.reservations().is_empty());
        let taken = ipam.reserve("10.42.0.0/24".parse().unwrap(), &pod("a"), "veth", Vec::new()).unwrap();
        assert_eq!(taken.address.to_string(), "10.42.0.2");
        drop(ipam);
        assert_eq!(Ipam::lock(directory.path()).unwrap().find(&pod("a")), Some(&taken));
    }

    #[test]
    fn host_ports_that_overlap_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let subnet: Ipv4Net = "10.42.0.0/24".parse().unwrap();
        let mut ipam = Ipam::lock(directory.path()).unwrap();
        ipam.reserve(subnet, &pod("a"), "veth", vec![port(Some([127, 0, 0, 1]), 80)]).unwrap();
        ipam.reserve(subnet, &pod("b"), "veth", vec![port(Some([10, 0, 0, 1]), 80)]).unwrap();
        let error = ipam.reserve(subnet, &pod("c"), "veth", vec![port(None, 80)]).unwrap_err();
        assert_eq!(error.to_string(), "host port 80 is in use by container a");
    }
}
