//! Cluster IPs and node ports: allocated around the writes of Services, given back when those fail or go.
//!
//! A cluster IP is an IPAddress object that refers to its Service; creating it is what allocates it. Node
//! ports are one bitmap. Both are in storage, so they hold for every server of the cluster.
//!
//! **Invariant:** what a Service holds was allocated before the Service was written, and is given back
//! after it is gone. What a crash leaves between the two, `repair` finds; the Service it was taken for may have it before.
//!
//! Behaves as `pkg/registry/core/service/{storage,ipallocator,portallocator}`, v1.36.

mod addresses;
mod families;
mod ports;
mod range;
pub(crate) mod repair;
mod service;

pub(crate) use addresses::Addresses;
pub(crate) use ports::Ports;
pub(crate) use service::ServiceHooks;

/// Why an address or a port was not allocated. The texts are upstream's.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AllocationError {
    #[error("range is full")]
    Full,
    #[error("provided IP is already allocated")]
    AddressTaken,
    #[error("the provided network does not match the current range")]
    NoSuchRange,
    #[error("allocator not ready")]
    NotReady,
    #[error("the provided IP ({address}) is not in the valid range. The range of valid IPs is {range}")]
    AddressOutOfRange { address: std::net::IpAddr, range: String },
    #[error("provided port is already allocated")]
    PortTaken,
    #[error("provided port is not in the valid range. The range of valid ports is {0}-{1}")]
    PortOutOfRange(u16, u16),
    #[error("{0}")]
    Status(rkube_apimachinery::status::ApiStatus),
}
