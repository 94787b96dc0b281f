//! The tables against upstream's documents, in both directions.

mod discovery;
mod openapi;
mod ownership;

use serde_json::Value;

/// A file of the golden data.
fn fixture(path: &str) -> Value {
    let path = rkube_testing::golden::folder().join(path);
    let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
