//! Kinds of the resource.k8s.io group: claims of devices, and slices of what nodes have.

pub mod claim;
mod parts;
pub mod slice;
