//! Names, metadata, selectors, quantities, errors, schemas and patch algorithms: what every
//! Kubernetes component shares, with no kind, socket or disk in it.
//!
//! Behaves as `k8s.io/apimachinery` and `sigs.k8s.io/structured-merge-diff` of v1.36.

pub mod chain;
pub mod clock;
pub mod field;
pub mod gvk;
pub mod key;
pub mod schema;
pub mod status;
pub mod task;
