//! EndpointSlice controller: the addresses behind every Service with a selector, at most 100 to a slice.
//!
//! Watches  v1 Service (primary); v1 Pod (by the Services that select it); v1 Node (zones); EndpointSlice (its own)
//! Writes   discovery.k8s.io/v1 EndpointSlice (create, update, delete)
//! Behaves as  staging/endpointslice/reconciler.go and pkg/controller/endpointslice, v1.36
//!
//! Invariant: a Service is not synced before the cache shows what the last sync wrote for it; otherwise the same
//! endpoints would be put into a second slice.

mod controller;
pub(crate) mod endpoints;
mod plan;
#[cfg(test)]
mod tests;
mod topology;

use crate::context::Descriptor;

pub(crate) const NAME: &str = "endpointslice-controller";
/// The value of the managed-by label.
pub(crate) const MANAGED_BY: &str = "endpointslice-controller.k8s.io";

pub(crate) const ENDPOINTSLICE: Descriptor = Descriptor::new(NAME, "endpointslice", controller::start);
