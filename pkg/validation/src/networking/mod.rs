//! Kinds of the networking.k8s.io group.

pub mod ingress;
pub mod network_policy;
pub mod service_cidr;
