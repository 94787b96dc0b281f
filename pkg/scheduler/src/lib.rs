//! The scheduler: framework, plugins, queue, incremental snapshot, binding.
