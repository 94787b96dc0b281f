//! rkube-bench: measures any Kubernetes API.
fn main() {}
