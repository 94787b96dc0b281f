//! Defaulting, validation and warnings of every built-in kind: pure functions of one object, and of its
//! predecessor where there is one.
//!
//! Each kind's module has `set_defaults`, `validate`, `validate_update`, `validate_status_update` and
//! `warnings`, as far as the kind needs them. Faults carry upstream's field paths, reasons and texts, in
//! upstream's order; maps are walked in the order of their keys, where upstream's order is random.
//!
//! **Invariant:** nothing here performs I/O or reads a clock.
//! **Invariant:** feature gates have their v1.36 defaults. Fields behind a gate that is off are dropped by the
//! strategies before validation, so they are not validated.

mod common;
pub mod core;
