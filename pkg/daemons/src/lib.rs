//! Composes the roles of the rkube process out of components, in dependency order.

mod address;
pub mod admin;
pub mod agent;
mod balancer;
pub mod component;
pub mod config;
mod fitness;
mod join;
mod node;
pub mod notify;
pub mod server;
pub mod version;

/// This program as a CNI plugin, for a container runtime that calls it by the plugin's name.
pub use rkube_network::cni;
