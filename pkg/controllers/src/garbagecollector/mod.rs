//! Garbage collector: deletes objects whose owners are gone, and carries out foreground and orphaning deletes.
//!
//! Watches  every resource that can be listed, watched and deleted, custom ones included, by metadata only;
//!          CustomResourceDefinitions and APIServices, for what there is to watch
//! Writes   deletions, owner references and the finalizers `foregroundDeletion` and `orphan` of any object
//! Behaves as  pkg/controller/garbagecollector, v1.36
//!
//! Invariant: an object is deleted only after the API, not a cache, said that none of its owners exists (or that
//! those that do wait for their dependents to go), and only at the uid and version that answer was about.
//!
//! Invariant: an owner in another namespace does not exist. A reference to it is as good as one to nothing.
//!
//! // Differs from upstream: one graph under one lock, keyed by uid, with edges but no virtual nodes. An owner that
//! the graph has is believed to exist: if it does not, its deletion event is on its way. What there is to watch is
//! read when definitions change instead of every 30 seconds.

mod controller;
mod graph;
mod monitors;
#[cfg(test)]
mod tests;

use crate::context::Descriptor;

pub(crate) const NAME: &str = "garbage-collector-controller";

pub(crate) const GARBAGECOLLECTOR: Descriptor = Descriptor::new(NAME, "garbagecollector", controller::start);
