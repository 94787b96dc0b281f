//! The generic store, the watch cache, one strategy per kind and the allocators.
