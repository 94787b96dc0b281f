//! The three patch formats that change an object without knowing who owns its fields. Server-side apply is
//! [`managed_fields`](crate::managed_fields).

pub mod json;
pub mod merge;
pub mod strategic;
