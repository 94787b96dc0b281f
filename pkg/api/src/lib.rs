//! The built-in kinds: typed structs, the resource table and the schema table.
//!
//! **Invariant:** k8s-openapi is used here only, and all typed (de)serialization is instantiated here,
//! behind [`Kind`]: a decoder per type costs seconds of compile time in every crate that has one.

pub mod convert;
pub mod draft;
mod generated;
pub mod host_ports;
pub mod image_name;
pub mod kind;
mod kinds;
pub mod node_affinity;
pub mod object;
pub mod pod_references;
pub mod pod_resources;
pub mod quota;
pub mod resource;
pub mod schema;
mod span;
pub mod table;
pub mod taints;
pub mod volumes;
mod zero_times;

pub use k8s_openapi::ByteString;
pub use k8s_openapi::api as k8s;
pub use k8s_openapi::apiextensions_apiserver as apiextensions;
pub use k8s_openapi::apimachinery as meta;
pub use k8s_openapi::kube_aggregator as apiregistration;

pub use kind::Kind;
pub use kinds::delete_options;
pub use object::StoredObject;
pub use resource::{Resource, SharedResource};
pub use schema::{schema, type_named, type_of};
pub use table::{by_kind, groups, resource, resource_named, resource_of, resources};
