//! What several controllers need: pods, their creation and ranking, hashes, percentages, owners.

pub(crate) mod claims;
pub(crate) mod discovery;
pub(crate) mod enqueue;
pub(crate) mod errors;
pub(crate) mod go_text;
pub(crate) mod hash;
pub(crate) mod history;
pub(crate) mod latest;
pub(crate) mod mapper;
pub(crate) mod migrated_plugins;
pub(crate) mod namespaces;
pub(crate) mod nodes;
pub(crate) mod numbers;
pub(crate) mod pod_control;
pub(crate) mod pods;
pub(crate) mod service_pods;
pub(crate) mod slices;
pub(crate) mod status;
pub(crate) mod trigger_time;
pub(crate) mod written;
