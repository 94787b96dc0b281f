//! Discovery: which groups, versions and resources are served, in the old form of one document per group
//! and version and in the aggregated one. All of it is read from the catalog.

pub mod aggregated;
pub mod legacy;

#[cfg(test)]
mod tests;
