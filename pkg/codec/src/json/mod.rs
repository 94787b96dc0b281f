//! JSON in Go's reading of it: strict, checked against the schema table, in one pass over the bytes.

pub(crate) mod any;
pub mod canonical;
pub mod decode;
pub(crate) mod scalar;
pub(crate) mod syntax;
