//! JSON, YAML, Kubernetes protobuf and Table rendering, and which of them a request speaks.

pub mod json;
pub mod negotiate;
pub mod protobuf;
pub mod request;
pub mod table;
pub mod yaml;

pub use json::canonical::canonicalize;
pub use json::decode::{JsonError, Typed};
pub use negotiate::{Accept, Media};
pub use request::{Decoded, FieldValidation, decode};
