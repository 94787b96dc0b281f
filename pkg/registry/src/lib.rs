//! The generic store, the watch cache, one strategy per kind and the allocators.
//!
//! A request becomes one call on a [`Store`]: the table row says what the resource is, its [`Strategy`]
//! says what clients may set, [`Admission`] is called in the one write path, and the watch cache
//! answers reads.
//!
//! **Invariant:** this crate knows no HTTP. Nothing outside it touches storage.

pub mod admission;
mod alloc;
mod background;
mod cache;
pub mod context;
mod encode;
mod hooks;
mod managed;
mod metadata;
pub mod metrics;
pub mod options;
pub mod registry;
mod selector;
pub mod store;
pub mod strategy;
mod subresource;

pub use admission::{Admission, Attributes, Operation};
pub use context::{RequestContext, UserInfo};
pub use registry::{Config, Registry, RuntimeStrategies};
pub use store::Store;
pub use strategy::{Strategy, StrategyContext, TypedStrategy};
pub use subresource::scale::{ScalePaths, SelectorPath};
pub use subresource::token::{NameAndUid, TokenPolicy, TokenSigner, TokenToSign};
