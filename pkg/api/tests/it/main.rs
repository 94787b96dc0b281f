//! The tables against upstream's documents, in both directions.

mod discovery;
mod openapi;
mod ownership;

use std::path::PathBuf;

use serde_json::Value;

/// The golden data, or `None` (and one line that says so) where there is none.
pub fn fixture(path: &str) -> Option<Value> {
    let Some(root) = std::env::var_os("RKUBE_FIXTURES") else {
        #[expect(clippy::print_stderr, reason = "the run must say that golden data was not there")]
        {
            eprintln!("RKUBE_FIXTURES is not set: {path} was not compared");
        }
        return None;
    };
    let path = PathBuf::from(root).join(path);
    let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    Some(serde_json::from_slice(&bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
}
