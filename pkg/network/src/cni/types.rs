//! What goes in and out of the plugin.

use std::error::Error;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use ipnet::Ipv4Net;
use rkube_apimachinery::chain::chain;
use serde::Deserialize;
use serde_json::{Value, json};

use super::VERSIONS;
use crate::ipam::{Attachment, HostPort, IpamError};
use crate::netlink::NetlinkError;
use crate::netns::NetnsError;
use crate::nft::{SCTP, TCP, UDP};
use crate::sysctl::SysctlError;

/// The error codes of the specification, and ours from 100.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    IncompatibleVersion = 1,
    InvalidEnvironment = 4,
    Io = 5,
    Decode = 6,
    InvalidConfig = 7,
    NotAvailable = 50,
    Failed = 100,
    AddressesExhausted = 101,
    HostPortInUse = 102,
    CheckFailed = 103,
}

/// What is printed when a call fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub code: Code,
    pub message: String,
}

impl Failure {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    #[must_use]
    pub fn because(mut self, source: &(dyn Error + 'static)) -> Self {
        self.message = format!("{}: {}", self.message, chain(source));
        self
    }

    pub(super) fn to_json(&self, input: &[u8]) -> String {
        let version = version_of(input).unwrap_or_else(|_| "1.0.0".to_owned());
        json!({"cniVersion": version, "code": self.code as u32, "msg": self.message}).to_string()
    }
}

macro_rules! failures {
    ($($error:ty),*) => {$(
        impl From<$error> for Failure {
            fn from(error: $error) -> Self {
                Self::new(Code::Failed, chain(&error).to_string())
            }
        }
    )*};
}

failures!(NetlinkError, NetnsError, SysctlError);

impl From<IpamError> for Failure {
    fn from(error: IpamError) -> Self {
        let code = match error {
            IpamError::Exhausted { .. } => Code::AddressesExhausted,
            IpamError::HostPortInUse { .. } => Code::HostPortInUse,
            IpamError::File { .. } => Code::Io,
        };
        Self::new(code, chain(&error).to_string())
    }
}

/// The configuration, as `conflist` writes it and the runtime completes it.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetConf {
    #[serde(default)]
    pub cni_version: String,
    #[serde(default)]
    pub name: String,
    #[serde(rename = "podCIDR")]
    pub pod_cidr: Ipv4Net,
    pub bridge: String,
    pub mtu: u32,
    pub data_dir: PathBuf,
    #[serde(default)]
    pub runtime_config: RuntimeConfig,
    #[serde(default, rename = "cni.dev/valid-attachments")]
    pub valid_attachments: Option<Vec<Attachment>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RuntimeConfig {
    pub port_mappings: Vec<PortMapping>,
}

/// containerd writes these names with a capital letter, others as the convention has them; the plugins of the
/// project do not care, so neither do we.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PortMapping {
    #[serde(alias = "HostPort")]
    pub host_port: i32,
    #[serde(alias = "ContainerPort")]
    pub container_port: i32,
    #[serde(alias = "Protocol")]
    pub protocol: String,
    #[serde(rename = "hostIP", alias = "HostIP")]
    pub host_ip: String,
}

/// The version a configuration is in. None means the first that had no field for it, which we do not speak.
pub(super) fn version_of(input: &[u8]) -> Result<String, Failure> {
    let decode = |error| Failure::new(Code::Decode, "decoding the configuration").because(&error);
    let value: Value = serde_json::from_slice(input).map_err(decode)?;
    let version = value["cniVersion"].as_str().unwrap_or("0.1.0");
    if VERSIONS.contains(&version) {
        return Ok(version.to_owned());
    }
    Err(Failure::new(Code::IncompatibleVersion, format!("incompatible CNI version {version}")))
}

impl NetConf {
    pub(super) fn parse(input: &[u8]) -> Result<Self, Failure> {
        let cni_version = version_of(input)?;
        let invalid = |error| Failure::new(Code::InvalidConfig, "invalid network configuration").because(&error);
        let config: Self = serde_json::from_slice(input).map_err(invalid)?;
        if !is_interface_name(&config.bridge) {
            return Err(Failure::new(Code::InvalidConfig, format!("invalid bridge name {:?}", config.bridge)));
        }
        Ok(Self { cni_version, ..config })
    }

    /// The host ports that are IPv4's. A mapping without a host port asks for nothing.
    pub(super) fn host_ports(&self) -> Result<Vec<HostPort>, Failure> {
        let mappings = self.runtime_config.port_mappings.iter().filter(|mapping| mapping.host_port != 0);
        mappings.filter_map(|mapping| host_port(mapping).transpose()).collect()
    }

    /// The first address of the pods' network.
    pub(super) fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.pod_cidr.network()).saturating_add(1))
    }
}

fn host_port(mapping: &PortMapping) -> Result<Option<HostPort>, Failure> {
    let invalid = || Failure::new(Code::InvalidConfig, format!("invalid port mapping {mapping:?}"));
    let port = |port: i32| u16::try_from(port).ok().filter(|port| *port != 0).ok_or_else(invalid);
    let protocol = match mapping.protocol.to_ascii_lowercase().as_str() {
        "tcp" | "" => TCP,
        "udp" => UDP,
        "sctp" => SCTP,
        _ => return Err(invalid()),
    };
    let host_ip = match mapping.host_ip.as_str() {
        "" => None,
        text => match text.parse().map_err(|_| invalid())? {
            IpAddr::V4(address) => Some(address).filter(|address| !address.is_unspecified()),
            IpAddr::V6(address) if address.is_unspecified() => None,
            IpAddr::V6(_) => return Ok(None),
        },
    };
    let (host_port, container_port) = (port(mapping.host_port)?, port(mapping.container_port)?);
    Ok(Some(HostPort { host_ip, protocol, host_port, container_port }))
}

/// What the runtime says in the environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Environment {
    pub attachment: Attachment,
    /// Not there any more in some deletions.
    pub netns: Option<PathBuf>,
}

impl Environment {
    pub(super) fn new(variable: &impl Fn(&str) -> Option<String>, needs_netns: bool) -> Result<Self, Failure> {
        let invalid = |message: String| Failure::new(Code::InvalidEnvironment, message);
        let required = |name: &str| {
            let value = variable(name).filter(|value| !value.is_empty());
            value.ok_or_else(|| invalid(format!("required env variables [{name}] missing")))
        };
        let container_id = required("CNI_CONTAINERID")?;
        let ifname = required("CNI_IFNAME")?;
        if !is_container_id(&container_id) {
            return Err(invalid(format!("invalid characters in containerID {container_id:?}")));
        }
        if !is_interface_name(&ifname) {
            return Err(invalid(format!("invalid interface name {ifname:?}")));
        }
        let netns = if needs_netns { Some(required("CNI_NETNS")?) } else { variable("CNI_NETNS") };
        let netns = netns.filter(|path| !path.is_empty()).map(PathBuf::from);
        Ok(Self { attachment: Attachment { container_id, ifname }, netns })
    }
}

fn is_container_id(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.chars().all(|other| other.is_ascii_alphanumeric() || matches!(other, '_' | '.' | '-'))
}

fn is_interface_name(text: &str) -> bool {
    let length_max = 15;
    !text.is_empty()
        && text.len() <= length_max
        && !matches!(text, "." | "..")
        && text.chars().all(|character| character.is_ascii_graphic() && !matches!(character, '/' | ':'))
}
