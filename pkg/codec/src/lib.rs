//! JSON, YAML, Kubernetes protobuf and Table rendering.

pub mod json;
mod media;
pub mod protobuf;
pub mod request;
pub mod table;
pub mod yaml;

pub use json::canonical::canonicalize;
pub use json::decode::{JsonError, Typed};
pub use media::Media;
pub use request::{Decoded, FieldValidation, decode};
