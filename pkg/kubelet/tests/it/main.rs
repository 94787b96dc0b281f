//! The kubelet between the in-memory API server and a runtime: the one in memory, or containerd.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod alone;
mod containerd;
mod crash;
mod harness;
mod hostile;
mod lifecycle;
mod real_node;
mod registry;
mod resize;
