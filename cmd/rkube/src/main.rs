//! The rkube binary: flags, configuration, logging, signals, exit codes.
fn main() {}
