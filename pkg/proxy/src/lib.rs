//! The service proxy: Services and their endpoints as elements of one nftables table.
//!
//! [`service`] and [`endpoints`] read the API's objects, [`ruleset`] says what the table should hold and how
//! it gets there from what it holds, [`proxier`] carries that out.
//!
//! **Invariant:** everything but `proxier`, `health` and `status` is pure.

pub mod endpoints;
pub mod service;

pub mod chains;
pub mod ruleset;

pub mod health;
mod http;
pub mod metrics;
pub mod status;

pub mod proxier;
