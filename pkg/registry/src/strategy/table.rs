//! The strategy table: one registration per stored resource.

use super::{SharedStrategy, TypedStrategy, erase};

/// The strategies of one resource, in all its versions.
pub struct Registration {
    /// Group and plural of any one row of the resource; rows that share its storage share the strategies.
    pub group: &'static str,
    pub plural: &'static str,
    pub main: SharedStrategy,
    /// Subresources that speak the kind itself: `status`, `approval`, `finalize`,
    /// `ephemeralcontainers`, `resize`.
    pub subresources: Vec<(&'static str, SharedStrategy)>,
}

impl Registration {
    pub fn new(group: &'static str, plural: &'static str, strategy: impl TypedStrategy) -> Self {
        Self { group, plural, main: erase(strategy), subresources: Vec::new() }
    }

    #[must_use]
    pub fn status(self, strategy: impl TypedStrategy) -> Self {
        self.subresource("status", strategy)
    }

    #[must_use]
    pub fn subresource(mut self, name: &'static str, strategy: impl TypedStrategy) -> Self {
        self.subresources.push((name, erase(strategy)));
        self
    }
}

/// Every built-in resource's strategies. Each group's module contributes `strategies()`.
pub fn strategies() -> Vec<Registration> {
    [
        super::core::strategies,
        super::apps::strategies,
        super::batch::strategies,
        super::networking::strategies,
        super::cluster::strategies,
        super::storage::strategies,
        super::extension::strategies,
        super::resource::strategies,
    ]
    .into_iter()
    .flat_map(|group| group())
    .collect()
}
