//! JSON, YAML, Kubernetes protobuf and Table rendering.
