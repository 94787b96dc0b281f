//! The request chain: negotiation, authentication, authorization, admission, discovery, OpenAPI, streaming proxies.

pub mod admission;
pub mod rbac;
