//! Resource quota controller: what the objects of a namespace use of each of its quotas.
//!
//! Watches  v1 ResourceQuota (primary); every namespaced resource that can be created and deleted, built-in or custom
//! Writes   v1 ResourceQuota status
//! Behaves as  pkg/controller/resourcequota, v1.36
//!
//! Admission charges a quota before an object is stored; this controller sets limits and first counts, gives back what
//! deletions free, and puts right what admission could not see.
//!
//! Invariant: what an object uses is decided by `rkube_api::quota` for admission and here alike.
//!
//! Differs from upstream: no full recount every five minutes. A quota is counted again some time after it was charged
//! or an object came, which is when an object can have slipped past it.

mod controller;
mod monitors;
mod plan;
#[cfg(test)]
mod tests;

use crate::context::Descriptor;

pub(crate) const NAME: &str = "resourcequota-controller";

pub(crate) const RESOURCEQUOTA: Descriptor = Descriptor::new(NAME, "resourcequota", controller::start);
