//! The kubelet between the in-memory API server and the in-memory runtime.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod harness;
mod lifecycle;
