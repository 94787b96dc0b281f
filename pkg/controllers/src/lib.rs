//! Every controller of kube-controller-manager, one folder each, in one descriptor table.
//!
//! A controller reads caches, calls a pure plan, and carries it out through the client; queue, back-off, workers,
//! panic guard, metrics and spans are the runner's.
//!
//! **Invariant:** controllers know the cluster through `rkube-client` only.

mod args;
pub mod config;
pub mod context;
mod metrics;
mod run;

mod common;

mod bootstrap;
mod certificate_cleaner;
mod certificates;
pub mod cluster_authentication_trust;
mod clusterrole_aggregation;
mod cronjob;
mod daemonset;
mod deployment;
mod disruption;
mod endpoints;
mod endpointslice;
mod endpointslicemirroring;
mod ephemeral_volume;
mod garbagecollector;
mod job;
pub mod kubernetes_service;
mod namespace;
mod node_ipam;
mod nodelifecycle;
mod persistentvolume;
mod podautoscaler;
mod podgc;
mod replicaset;
mod resourcequota;
mod root_ca;
mod service_cidr;
mod service_lb;
mod serviceaccount;
mod serviceaccount_tokens;
mod statefulset;
mod storageprotection;
mod taint_eviction;
mod ttl_after_finished;
mod volume_expand;

#[cfg(test)]
mod testing;

pub use config::ControllerConfig;
pub use context::{AsAccount, ControllerContext, Descriptor};
pub use metrics::register as register_metrics;
pub use run::{descriptors, run, server_descriptors};
