//! The built-in kinds: typed structs, the resource table and the schema table.
//!
//! **Invariant:** k8s-openapi is used here only, and all typed (de)serialization is instantiated here,
//! behind [`Kind`]: a decoder per type costs seconds of compile time in every crate that has one.

pub mod draft;
pub mod kind;
mod kinds;
pub mod object;
pub mod resource;

pub use k8s_openapi::api as k8s;
pub use k8s_openapi::apiextensions_apiserver as apiextensions;
pub use k8s_openapi::apimachinery as meta;
pub use k8s_openapi::kube_aggregator as apiregistration;

pub use kind::Kind;
pub use object::StoredObject;
pub use resource::Resource;
