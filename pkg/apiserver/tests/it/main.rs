//! The API server through its sockets and its in-process transport, over memory storage.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod chaos;
mod kubectl;
mod kubelet;
mod requests;
mod server;
mod streams;
