//! JSON, YAML, Kubernetes protobuf and Table rendering.

pub mod table;
