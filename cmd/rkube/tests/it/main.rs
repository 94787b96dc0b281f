//! The binary from outside: commands, exit codes, and what it says to bad input.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod bad_input;
mod bad_machine;
mod caller;
mod canary;
mod commands;
mod datastore;
mod hostile;
mod join;
mod kubectl;
mod process;
mod two_servers;
