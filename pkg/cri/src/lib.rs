//! The Container Runtime Interface v1: messages, a client over the runtime's Unix socket, the traits the
//! kubelet works against, and fakes of them.
//!
//! [`service`] has the traits, [`remote`] the client, [`fake`] a scripted runtime for tests. [`containerd`]
//! holds what CRI has no call for: importing an image from a file, and events of old containerd releases.
//! Behaves as `k8s.io/cri-client` and `k8s.io/cri-api` of v1.36.
//!
//! **Invariant:** tonic is used here only. Callers see prost messages, [`RuntimeError`] and streams.
//! **Invariant:** this crate does not know Kubernetes: pods are sandboxes with labels here.

mod archive;
mod calls;
pub mod containerd;
mod error;
pub mod fake;
pub mod measured;
pub mod pause;
pub mod remote;
pub mod service;

pub use archive::{ArchiveError, image as image_archive};
pub use error::{Code, RuntimeError};
pub use measured::Measured;
pub use remote::Remote;
pub use service::{EventStream, ImageService, RuntimeService};

/// The messages of CRI v1, generated from `proto/api.proto`.
#[allow(clippy::all, unreachable_pub, reason = "generated code")]
#[rustfmt::skip]
#[path = "gen/runtime.v1.rs"]
pub mod v1;

/// containerd's own messages, generated from `proto/*.proto`.
#[allow(clippy::all, unreachable_pub, dead_code, reason = "generated code")]
#[rustfmt::skip]
#[path = "gen"]
mod wire {
    #[path = "containerd.services.content.v1.rs"]
    pub(crate) mod content;
    #[path = "containerd.services.events.v1.rs"]
    pub(crate) mod events;
    #[path = "containerd.services.images.v1.rs"]
    pub(crate) mod images;
    #[path = "containerd.services.leases.v1.rs"]
    pub(crate) mod leases;
}
