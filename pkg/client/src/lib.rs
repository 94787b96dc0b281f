//! The client machinery: transport, typed client, reflector, informers, work queue, controller runner,
//! events, leader election.
//!
//! Behaves as `k8s.io/client-go` of v1.36.

pub mod decode;
pub mod transport;

pub mod api;
pub mod client;

mod backoff;
pub mod factory;
pub mod informer;
pub mod reflector;

pub mod batch;
pub mod controller;
pub mod expectations;
pub mod workqueue;

pub mod events;
pub mod leader;
pub mod metrics;
pub mod owner;
mod request_metrics;

pub mod fake;

pub use api::{Api, DeleteOptions, DynamicApi, ListParams, Patch, Propagation};
pub use client::Client;
pub use controller::{Reconciler, Requeue, Runner, SyncError};
pub use events::{EventRecorder, EventType};
pub use expectations::Expectations;
pub use factory::InformerFactory;
pub use informer::{Delta, Informer, Lister};
pub use transport::{ClientError, SharedTransport, Transport};
pub use workqueue::WorkQueue;
