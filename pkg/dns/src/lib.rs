//! Cluster DNS, answered on the node from its own watch cache; other names are forwarded.
//!
//! Read in this order: [`zone`] keeps what names mean, [`answer`] says what a name of ours has, [`respond`] makes a
//! reply of it, [`server`] listens, [`forward`] asks others, [`cache`] remembers what they said.
//!
//! Behaves as the Kubernetes DNS specification 1.1.0 and CoreDNS's `kubernetes` plugin with `pods insecure`.
//!
//! **Invariant:** a query about the cluster is answered from memory; it never waits for anything.

pub mod answer;
mod cache;
mod forward;
mod metrics;
mod respond;
pub mod server;
pub mod zone;

pub use server::{DnsConfig, DnsError, DnsServer};
