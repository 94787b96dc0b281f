//! The whole scheduler against an API in memory.

mod flow;
mod oracle;
mod preemption;
mod settings;
mod volumes;
