//! The typed form of a kind.

use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;

/// A built-in top-level kind with metadata: `Pod`, `Deployment`.
///
/// # Guarantees
/// `from_value(to_value(x)) == x`. `decode` reads what `encode` writes.
/// # Caveats
/// A typed round trip drops fields the struct does not have. What clients send is checked and pruned
/// against the schema table first; what is stored is never rewritten through a typed value alone.
pub trait Kind: Clone + PartialEq + fmt::Debug + Default + Send + Sync + 'static {
    const GROUP: &'static str;
    const VERSION: &'static str;
    const KIND: &'static str;
    /// The plural in URLs: `pods`.
    const PLURAL: &'static str;
    const NAMESPACED: bool;

    fn metadata(&self) -> &ObjectMeta;
    fn metadata_mut(&mut self) -> &mut ObjectMeta;

    fn decode(json: &[u8]) -> Result<Self, DecodeError>;
    fn from_value(value: Value) -> Result<Self, DecodeError>;
    /// With `apiVersion` and `kind`.
    fn to_value(&self) -> Value;
    /// With `apiVersion` and `kind`.
    fn encode(&self) -> Vec<u8>;
}

/// JSON that is not an object of the kind.
#[derive(Debug, thiserror::Error)]
#[error("decoding {kind}")]
pub struct DecodeError {
    pub kind: &'static str,
    #[source]
    pub source: serde_json::Error,
}
