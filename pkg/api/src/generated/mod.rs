//! The tables that `cargo xtask codegen` writes.

#[rustfmt::skip]
mod kinds;
#[rustfmt::skip]
pub(crate) mod resources;
#[rustfmt::skip]
pub(crate) mod types;
