//! The whole scheduler against an API in memory.

mod evictions;
mod flow;
mod oracle;
mod preemption;
mod settings;
mod volumes;
