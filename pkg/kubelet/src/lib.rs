//! The node agent: runs the pods assigned to this node through a CRI runtime.
//!
//! [`kubelet`] composes the rest. [`worker`] is the state machine of a pod, [`pleg`] notices what changed,
//! [`runtime`] acts, [`status`] reports, [`prober`] probes, [`volumes`] mounts, [`node`] speaks for the
//! machine, [`eviction`] keeps it alive.
//! Behaves as pkg/kubelet, v1.36.
//!
//! **Invariant:** the kubelet never removes a Pod object but by finishing a graceful delete.
//! **Invariant:** what runs is found by asking the runtime and the kernel, so a restart restarts nothing.

pub mod admission;
pub mod allocation;
pub mod args;
pub mod backoff;
pub mod cm;
pub mod config;
pub mod downward;
pub mod events;
pub mod eviction;
pub mod folder;
pub mod kubelet;
pub mod log_rotation;
pub mod logs;
pub mod node;
pub mod objects;
pub mod pleg;
pub mod pod;
pub mod pods;
pub mod prober;
pub mod registries;
pub mod runtime;
pub mod server;
pub mod shutdown;
pub mod static_pods;
pub mod status;
pub mod volumes;
pub mod worker;

pub use config::KubeletConfig;
pub use kubelet::{Dependencies, Kubelet};
