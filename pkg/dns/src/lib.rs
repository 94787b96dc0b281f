//! Cluster DNS from the local watch cache.
