//! The registry through its public interface, over memory storage.

mod apply;
mod background;
mod builtin;
mod cluster;
mod deletion;
mod faults;
mod lists;
mod runtime;
mod services;
mod strategies;
mod subresources;
mod watches;
mod writes;
