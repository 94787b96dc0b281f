//! Composes the roles of the rkube process out of components, in dependency order.

pub mod agent;
pub mod component;
pub mod config;
pub mod notify;
pub mod server;
pub mod version;
