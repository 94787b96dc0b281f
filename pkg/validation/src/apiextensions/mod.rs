//! CustomResourceDefinitions and the schemas in them.

pub mod definition;
mod field_path;
mod schema;
mod structural;
