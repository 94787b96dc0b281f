//! What the kinds share: reporting, metadata, names, quantities.

pub(crate) mod defaults;
pub(crate) mod diff;
pub(crate) mod int_or_percent;
pub(crate) mod meta;
pub(crate) mod names;
pub(crate) mod quantity;
pub(crate) mod report;
pub(crate) mod workload_warnings;
