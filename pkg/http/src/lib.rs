//! HTTP as every rkube server and client needs it: a TLS listener with limits and graceful shutdown,
//! bodies, WebSocket and SPDY/3.1 with the channel protocols of exec, attach and port-forward, an HTTP
//! client, a proxy that passes upgrades on, and the remote implementation of the client's transport.
//!
//! **Invariant:** this crate knows no kinds. It moves bytes, frames and certificates.

pub mod body;
pub mod client;
pub mod connect;
pub mod listener;
pub mod mux;
pub mod port_forward;
pub mod proxy;
pub mod remote_command;
pub mod router;
pub mod spdy;
pub mod tls;
pub mod transport;
pub mod upgrade;
pub mod websocket;

#[cfg(test)]
mod fuzz;
