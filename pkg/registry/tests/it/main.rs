//! The registry through its public interface, over memory storage.

mod cluster;
mod deletion;
mod lists;
mod watches;
mod writes;
