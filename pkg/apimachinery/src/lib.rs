//! Names, metadata, selectors, quantities, errors, schemas and patch algorithms: what every
//! Kubernetes component shares, with no kind, socket or disk in it.
//!
//! Behaves as `k8s.io/apimachinery` and `sigs.k8s.io/structured-merge-diff` of v1.36.

pub mod arguments;
pub mod backoff;
pub mod chain;
pub mod clock;
pub mod cron;
pub mod field;
pub mod fields;
pub mod gvk;
pub mod int_or_string;
pub mod key;
pub mod labels;
pub mod managed_fields;
pub mod meta;
pub mod names;
pub mod patch;
pub mod quantity;
pub mod quote;
pub mod random;
pub mod schema;
pub mod status;
pub mod task;
pub mod time;

#[cfg(test)]
mod testing;
