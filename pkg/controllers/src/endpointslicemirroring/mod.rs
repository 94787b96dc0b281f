//! EndpointSlice mirroring controller: Endpoints that somebody else maintains, as EndpointSlices, which is what
//! proxies and DNS read.
//!
//! Watches  v1 Endpoints (primary); v1 Service (only those without a selector are mirrored); EndpointSlice (its own)
//! Writes   discovery.k8s.io/v1 EndpointSlice (create, update, delete)
//! Behaves as  pkg/controller/endpointslicemirroring, v1.36
//!
//! Invariant: each combination of ports and address family has one slice. Endpoints are not synced before the
//! cache shows what the last sync wrote for them; otherwise there would be two.

mod controller;
mod plan;
#[cfg(test)]
mod tests;

use crate::context::Descriptor;

const NAME: &str = "endpointslice-mirroring-controller";
/// The value of the managed-by label.
const MANAGED_BY: &str = "endpointslicemirroring-controller.k8s.io";

pub(crate) const ENDPOINTSLICE_MIRRORING: Descriptor =
    Descriptor::new(NAME, "endpointslicemirroring", controller::start);
