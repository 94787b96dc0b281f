//! Role-based access control: rules, who has them, and the ones every cluster starts with.
//!
//! Pure: [`Policy`] is built from the four kinds of objects and answers from memory. The authorizer
//! rebuilds it when one of them changes.

pub mod authorizer;
pub mod bootstrap;
pub mod policy;
pub mod rule;

pub use authorizer::RbacAuthorizer;
pub use policy::{Policy, Request, Subjects};
