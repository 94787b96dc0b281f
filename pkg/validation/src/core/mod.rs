//! Kinds of the core group.

pub mod config_map;
pub mod endpoints;
pub mod event;
pub mod namespace;
pub mod node;
pub mod persistent_volume;
pub mod persistent_volume_claim;
pub mod pod;
pub mod pod_defaults;
pub mod pod_prepare;
pub mod pod_status;
pub mod pod_update;
pub mod pod_warnings;
pub mod qos;
pub mod quota;
pub mod replication_controller;
pub mod secret;
pub mod service;

pub(crate) mod containers;
mod env;
mod pod_annotations;
pub(crate) mod pod_options;
mod probe;
pub(crate) mod resources;
pub(crate) mod scheduling;
mod security;
pub(crate) mod volume;
mod volume_projected;
