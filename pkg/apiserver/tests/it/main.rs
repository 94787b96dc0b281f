//! The API server through its sockets and its in-process transport, over memory storage.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod admission;
mod chaos;
mod cluster;
mod controllers;
mod front_proxy;
mod fuzz;
mod identity;
mod kubectl;
mod kubelet;
mod nodes;
mod overload;
mod requests;
mod roles;
mod server;
mod streams;
