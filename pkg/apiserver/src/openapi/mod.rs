//! `/openapi/v2` and `/openapi/v3`: documents that clients cache by their hash.
//!
//! The bytes come from whoever knows the schemas, once per catalog.
//! Behaves as `k8s.io/kube-openapi/pkg/handler` and `handler3`, as kube-apiserver v1.36 uses them.

mod builtin;
mod descriptions;
mod gnostic;
mod paths;
mod schemas;

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use parking_lot::Mutex;
use rkube_http::body::Body;
use serde_json::json;
use sha2::{Digest, Sha512};

use crate::catalog::Catalog;
use crate::negotiation::{JSON, parse_accept};
use crate::query::Query;
use crate::respond;

pub use builtin::Builtin;

/// Answers `/openapi/v2`, `/openapi/v3` and everything under it.
pub trait OpenApi: Send + Sync + 'static {
    /// `None` for paths there is no document for.
    fn answer(
        &self,
        path: &str,
        query: &Query<'_>,
        headers: &HeaderMap,
        catalog: &Arc<Catalog>,
    ) -> Option<Response<Body>>;
}

/// No documents.
pub struct NoOpenApi;

impl OpenApi for NoOpenApi {
    fn answer(&self, _: &str, _: &Query<'_>, _: &HeaderMap, _: &Arc<Catalog>) -> Option<Response<Body>> {
        None
    }
}

/// A document in the forms it is served in.
#[derive(Clone, Debug, Default)]
pub struct Document {
    pub json: Bytes,
    /// gnostic's form; empty where there is none.
    pub protobuf: Bytes,
}

/// Writes the documents for a set of rows.
pub trait Source: Send + Sync + 'static {
    fn v2(&self, catalog: &Catalog) -> Document;

    /// `api/v1`, `apis/apps/v1`, `version`, ...: everything there is a document for.
    fn v3_paths(&self, catalog: &Catalog) -> Vec<String>;

    fn v3(&self, catalog: &Catalog, path: &str) -> Option<Document>;
}

/// Serves what a source writes, with hashes and caching.
///
/// Only hashes are kept: clients keep the documents, all of which together are some ten megabytes that an
/// idle server has better uses for. A document is written again for each client that does not have it.
pub struct Served {
    source: Arc<dyn Source>,
    hashes: Mutex<Hashes>,
}

#[derive(Default)]
struct Hashes {
    /// The catalog the documents are of.
    of: Weak<Catalog>,
    v2: Option<String>,
    v3: BTreeMap<String, String>,
}

fn hash(document: &Document) -> String {
    let digest = Sha512::digest(&document.json);
    digest.iter().fold(String::with_capacity(128), |text, byte| text + &format!("{byte:02X}"))
}

const V2_PROTOBUF_ACCEPTED: [&str; 2] = [
    "application/com.github.proto-openapi.spec.v2@v1.0+protobuf",
    "application/com.github.proto-openapi.spec.v2.v1.0+protobuf",
];
const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
const V3_PROTOBUF_ACCEPTED: [&str; 2] = [
    "application/com.github.proto-openapi.spec.v3@v1.0+protobuf",
    "application/com.github.proto-openapi.spec.v3.v1.0+protobuf",
];
const V3_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v3.v1.0+protobuf";
/// A document found by its hash never changes: a year, as upstream says.
const IMMUTABLE: &str = "public, immutable, max-age=31536000";

impl Served {
    pub fn new(source: Arc<dyn Source>) -> Self {
        Self { source, hashes: Mutex::default() }
    }

    fn known<T>(&self, catalog: &Arc<Catalog>, read: impl FnOnce(&mut Hashes) -> T) -> T {
        let mut hashes = self.hashes.lock();
        hashes.renew(catalog);
        read(&mut hashes)
    }

    fn v2_hash(&self, catalog: &Arc<Catalog>) -> String {
        if let Some(known) = self.known(catalog, |hashes| hashes.v2.clone()) {
            return known;
        }
        let made = hash(&self.source.v2(catalog));
        self.known(catalog, |hashes| hashes.v2 = Some(made.clone()));
        made
    }

    fn v3_hash(&self, catalog: &Arc<Catalog>, path: &str) -> Option<String> {
        if let Some(known) = self.known(catalog, |hashes| hashes.v3.get(path).cloned()) {
            return Some(known);
        }
        let made = hash(&self.source.v3(catalog, path)?);
        self.known(catalog, |hashes| hashes.v3.insert(path.to_owned(), made.clone()));
        Some(made)
    }

    /// Which documents there are, each under the hash of its content.
    fn index(&self, catalog: &Arc<Catalog>) -> Document {
        let mut paths = serde_json::Map::new();
        for path in self.source.v3_paths(catalog) {
            if let Some(found) = self.v3_hash(catalog, &path) {
                let url = format!("/openapi/v3/{path}?hash={found}");
                paths.insert(path, json!({"serverRelativeURL": url}));
            }
        }
        Document { json: Bytes::from(json!({"paths": paths}).to_string()), protobuf: Bytes::new() }
    }
}

impl Hashes {
    /// Forgets documents of another catalog.
    fn renew(&mut self, catalog: &Arc<Catalog>) {
        if !std::ptr::eq(self.of.as_ptr(), Arc::as_ptr(catalog)) {
            *self = Self { of: Arc::downgrade(catalog), ..Self::default() };
        }
    }
}

impl OpenApi for Served {
    fn answer(
        &self,
        path: &str,
        query: &Query<'_>,
        headers: &HeaderMap,
        catalog: &Arc<Catalog>,
    ) -> Option<Response<Body>> {
        if path == "/openapi/v2" {
            let write = || Some(self.source.v2(catalog));
            return document(&self.v2_hash(catalog), write, headers, V2_PROTOBUF, &V2_PROTOBUF_ACCEPTED);
        }
        if path == "/openapi/v3" {
            let index = self.index(catalog);
            return document(&hash(&index), || Some(index.clone()), headers, JSON, &[]);
        }
        let name = path.strip_prefix("/openapi/v3/")?;
        let found = self.v3_hash(catalog, name)?;
        let asked = query.get("hash").unwrap_or_default();
        if !asked.is_empty() && asked != found {
            // The client has an old index: what it wants now is elsewhere.
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
            let url = format!("/openapi/v3/{name}?hash={found}");
            response.headers_mut().insert(header::LOCATION, HeaderValue::from_str(&url).ok()?);
            return Some(response);
        }
        let write = || self.source.v3(catalog, name);
        let mut response = document(&found, write, headers, V3_PROTOBUF, &V3_PROTOBUF_ACCEPTED)?;
        if !asked.is_empty() {
            response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static(IMMUTABLE));
        }
        Some(response)
    }
}

/// A document in the form the client wants, or 304 when the client has it. It is written only if it is sent.
fn document(
    hash: &str,
    write: impl FnOnce() -> Option<Document>,
    headers: &HeaderMap,
    protobuf_type: &'static str,
    accepted: &[&str],
) -> Option<Response<Body>> {
    let etag = format!("\"{hash}\"");
    let known = headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let mut response = if known.split(',').any(|tag| tag.trim().trim_start_matches("W/") == etag) {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response
    } else {
        whole(&write()?, headers, protobuf_type, accepted)
    };
    if let Ok(value) = HeaderValue::from_str(&etag) {
        response.headers_mut().insert(header::ETAG, value);
    }
    response.headers_mut().append(header::VARY, HeaderValue::from_static("Accept"));
    Some(response)
}

fn whole(document: &Document, headers: &HeaderMap, protobuf_type: &'static str, accepted: &[&str]) -> Response<Body> {
    let accept: Vec<&str> = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    let accept = accept.join(",");
    let mut form = accept.trim().is_empty().then_some((JSON, &document.json));
    if form.is_none() {
        form = parse_accept(&accept).iter().find_map(|clause| {
            if clause.covers(JSON) {
                return Some((JSON, &document.json));
            }
            let wants_protobuf = accepted.iter().any(|name| clause.covers(name));
            (wants_protobuf && !document.protobuf.is_empty()).then_some((protobuf_type, &document.protobuf))
        });
    }
    match form {
        Some((content_type, body)) => respond::encoded(StatusCode::OK, content_type, body.clone(), headers),
        None => {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::NOT_ACCEPTABLE;
            response
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed;

    impl Source for Fixed {
        fn v2(&self, _: &Catalog) -> Document {
            Document { json: Bytes::from_static(b"{\"swagger\":\"2.0\"}"), protobuf: Bytes::from_static(b"pb") }
        }

        fn v3_paths(&self, _: &Catalog) -> Vec<String> {
            vec!["api/v1".to_owned()]
        }

        fn v3(&self, _: &Catalog, path: &str) -> Option<Document> {
            (path == "api/v1").then(|| Document { json: Bytes::from_static(b"{}"), protobuf: Bytes::new() })
        }
    }

    fn ask(path: &str, query: &str, headers: &[(header::HeaderName, &str)]) -> Option<Response<Body>> {
        let catalog = Catalog::new(Vec::new(), &[]);
        let headers =
            headers.iter().map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap())).collect();
        Served::new(Arc::new(Fixed)).answer(path, &Query::parse(query), &headers, &catalog)
    }

    #[tokio::test]
    async fn documents_are_found_and_cached_by_their_hash() {
        let index = ask("/openapi/v3", "", &[]).unwrap().into_body().read(4096).await.unwrap();
        let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
        let url = index["paths"]["api/v1"]["serverRelativeURL"].as_str().unwrap().to_owned();
        let (path, query) = url.split_once('?').unwrap();
        let found = ask(path, query, &[]).unwrap();
        assert_eq!(found.headers()[header::CACHE_CONTROL], IMMUTABLE);
        let etag = found.headers()[header::ETAG].to_str().unwrap().to_owned();
        assert_eq!(ask(path, query, &[(header::IF_NONE_MATCH, &etag)]).unwrap().status(), 304);
        let moved = ask(path, "hash=OLD", &[]).unwrap();
        assert_eq!((moved.status().as_u16(), moved.headers()[header::LOCATION].to_str().unwrap()), (301, url.as_str()));
        assert!(ask("/openapi/v3/apis/none/v1", "", &[]).is_none());
    }

    #[test]
    fn clients_choose_protobuf_or_json() {
        let content_type = |accept: &str| {
            let response = ask("/openapi/v2", "", &[(header::ACCEPT, accept)]).unwrap();
            response.headers().get(header::CONTENT_TYPE).map(|value| value.to_str().unwrap().to_owned())
        };
        assert_eq!(content_type(V2_PROTOBUF_ACCEPTED[0]).as_deref(), Some(V2_PROTOBUF));
        assert_eq!(content_type("application/json").as_deref(), Some(JSON));
        assert_eq!(content_type("*/*").as_deref(), Some(JSON));
        assert_eq!(content_type("text/html"), None);
    }
}
