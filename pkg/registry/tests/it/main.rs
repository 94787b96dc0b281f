//! The registry through its public interface, over memory storage.

mod apply;
mod cluster;
mod deletion;
mod lists;
mod subresources;
mod watches;
mod writes;
