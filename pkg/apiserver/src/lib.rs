//! The request chain: negotiation, authentication, authorization, admission, discovery, OpenAPI, streaming proxies.
//!
//! [`ApiServer`](server::ApiServer) is the whole: a handler for a listener and a source of in-process
//! transports. A request passes [`chain`], then [`answer`] finds who answers it; resources of every kind are
//! answered by one generic set of handlers over the registry.

pub mod admission;
mod answer;
pub mod auth;
pub mod catalog;
mod chain;
pub mod discovery;
pub mod health;
pub mod metrics;
pub mod negotiation;
pub mod openapi;
pub mod proxy;
pub mod query;
pub mod rbac;
mod references;
pub mod request_info;
mod resources;
mod respond;
mod scope;
pub mod server;
mod transport;
mod wire;

pub use server::{ApiServer, Config};
