//! Pods and nodes as the scheduler reads them: parsed once, compared often.

pub(crate) use rkube_api::node_affinity;
pub(crate) mod pod;
pub(crate) mod resources;
pub(crate) mod selector;
pub(crate) mod taints;
pub(crate) mod term;
