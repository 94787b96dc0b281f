//! The place of the OpenAPI documents. The bytes come from whoever knows the schemas.

use http::{HeaderMap, Response};
use rkube_http::body::Body;

use crate::catalog::Catalog;
use crate::query::Query;

/// Answers `/openapi/v2`, `/openapi/v3` and everything under it.
pub trait OpenApi: Send + Sync + 'static {
    /// `None` for paths there is no document for.
    fn answer(&self, path: &str, query: &Query<'_>, headers: &HeaderMap, catalog: &Catalog) -> Option<Response<Body>>;
}

/// No documents.
pub struct NoOpenApi;

impl OpenApi for NoOpenApi {
    fn answer(&self, _: &str, _: &Query<'_>, _: &HeaderMap, _: &Catalog) -> Option<Response<Body>> {
        None
    }
}
