//! The binary from outside: commands, exit codes, and what it says to bad input.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod bad_input;
mod bad_machine;
mod commands;
mod datastore;
mod join;
mod process;
