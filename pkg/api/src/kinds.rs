//! [`Kind`] for the built-in kinds, and with it the one place where their (de)serialization is instantiated.
//! The list of kinds is generated from the resource table.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::DeleteOptions;
use serde_json::Value;

use crate::kind::DecodeError;

macro_rules! kinds {
    ($($type:ty: $group:literal, $version:literal, $kind:literal, $plural:literal, $namespaced:literal;)*) => {$(
        impl crate::kind::Kind for $type {
            const GROUP: &'static str = $group;
            const VERSION: &'static str = $version;
            const KIND: &'static str = $kind;
            const PLURAL: &'static str = $plural;
            const NAMESPACED: bool = $namespaced;

            fn metadata(&self) -> &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
                &self.metadata
            }

            fn metadata_mut(&mut self) -> &mut k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
                &mut self.metadata
            }

            fn decode(json: &[u8]) -> Result<Self, crate::kind::DecodeError> {
                serde_json::from_slice(json).or_else(|source| {
                    // Times that must be there and are null are rare enough to be looked for only then.
                    let mut value = serde_json::from_slice(json).unwrap_or_default();
                    if !crate::zero_times::fill(&mut value, $group, $version, $kind) {
                        return Err(crate::kind::DecodeError { kind: $kind, source });
                    }
                    serde_json::from_value(value).map_err(|source| crate::kind::DecodeError { kind: $kind, source })
                })
            }

            fn from_value(mut value: serde_json::Value) -> Result<Self, crate::kind::DecodeError> {
                crate::zero_times::fill(&mut value, $group, $version, $kind);
                serde_json::from_value(value).map_err(|source| crate::kind::DecodeError { kind: $kind, source })
            }

            fn to_value(&self) -> serde_json::Value {
                serde_json::to_value(self).expect("the types serialize without fail: their maps have string keys")
            }

            fn encode(&self) -> Vec<u8> {
                serde_json::to_vec(self).expect("the types serialize without fail: their maps have string keys")
            }
        }
    )*};
}

pub(crate) use kinds;

/// The options of a delete request in their typed form. They have no metadata, so they are no [`crate::Kind`].
pub fn delete_options(value: Value) -> Result<DeleteOptions, DecodeError> {
    serde_json::from_value(value).map_err(|source| DecodeError { kind: "DeleteOptions", source })
}
