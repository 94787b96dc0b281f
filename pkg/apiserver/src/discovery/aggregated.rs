//! Aggregated discovery: everything in one document, `apidiscovery.k8s.io/v2`, with an ETag.
//!
//! Behaves as `k8s.io/apiserver/pkg/endpoints/discovery/aggregated`, v1.36; `v2beta1` is no longer served.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use rkube_api::resource::Resource;
use rkube_http::body::Body;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha512};

use crate::catalog::{Catalog, Group};
use crate::negotiation::{JSON, parse_accept};

const CONTENT_TYPE: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// An encoded document.
pub struct Document {
    json: Bytes,
    /// Quoted.
    etag: String,
}

impl Document {
    pub(crate) fn new(catalog: &Catalog, wanted: impl Fn(&Group) -> bool) -> Self {
        let items: Vec<Value> =
            catalog.groups().iter().filter(|group| wanted(group)).map(|group| one_group(catalog, group)).collect();
        let document = json!({
            "kind": "APIGroupDiscoveryList",
            "apiVersion": "apidiscovery.k8s.io/v2",
            "metadata": {},
            "items": items,
        });
        let json = Bytes::from(document.to_string());
        let etag =
            Sha512::digest(&json).iter().fold(String::from("\""), |text, byte| format!("{text}{byte:02X}")) + "\"";
        Self { json, etag }
    }

    pub fn json(&self) -> &Bytes {
        &self.json
    }

    /// The document, or 304 when the client has it.
    pub(crate) fn answer(&self, headers: &HeaderMap) -> Response<Body> {
        let same = headers.get(header::IF_NONE_MATCH).is_some_and(|known| known == self.etag.as_str());
        let mut response = if same { Response::new(Body::empty()) } else { Response::new(self.json.clone().into()) };
        let headers = response.headers_mut();
        headers.insert(header::VARY, HeaderValue::from_static("Accept"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("public"));
        if let Ok(etag) = HeaderValue::from_str(&self.etag) {
            headers.insert(header::ETAG, etag);
        }
        if same {
            *response.status_mut() = StatusCode::NOT_MODIFIED;
        } else {
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
        }
        response
    }
}

/// Whether the client's first acceptable choice is the aggregated form.
pub(crate) fn is_asked_for(headers: &HeaderMap) -> bool {
    let accept: Vec<&str> = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    let joined = accept.join(",");
    for clause in parse_accept(&joined) {
        if !clause.covers(JSON) {
            continue;
        }
        let as_list = clause.parameter("as") == Some("APIGroupDiscoveryList");
        if as_list && clause.parameter("g") == Some("apidiscovery.k8s.io") && clause.parameter("v") == Some("v2") {
            return true;
        }
        if clause.parameter("as").is_none() {
            return false;
        }
    }
    false
}

fn one_group(catalog: &Catalog, group: &Group) -> Value {
    let versions: Vec<Value> = group
        .versions
        .iter()
        .map(|version| {
            let mut rows: Vec<&Resource> = catalog.rows_of(&group.name, version).map(|row| row.as_ref()).collect();
            rows.sort_by(|a, b| a.plural.cmp(&b.plural));
            let resources: Vec<Value> = rows.into_iter().map(resource).collect();
            json!({"version": version, "resources": resources, "freshness": "Current"})
        })
        .collect();
    let metadata = if group.name.is_empty() { json!({}) } else { json!({"name": group.name}) };
    json!({"metadata": metadata, "versions": versions})
}

/// The group and version of a kind are left out where they are the list's own.
fn response_kind(row: &Resource, group: &str, version: &str, kind: &str) -> Value {
    if group == row.group && version == row.version {
        json!({"group": "", "version": "", "kind": kind})
    } else {
        json!({"group": group, "version": version, "kind": kind})
    }
}

fn resource(row: &Resource) -> Value {
    let mut entry = Map::new();
    entry.insert("resource".to_owned(), json!(row.plural));
    entry.insert("responseKind".to_owned(), response_kind(row, &row.group, &row.version, &row.kind));
    entry.insert("scope".to_owned(), json!(if row.namespaced { "Namespaced" } else { "Cluster" }));
    entry.insert("singularResource".to_owned(), json!(row.singular));
    entry.insert("verbs".to_owned(), json!(row.verbs));
    if !row.short_names.is_empty() {
        entry.insert("shortNames".to_owned(), json!(row.short_names));
    }
    if !row.categories.is_empty() {
        entry.insert("categories".to_owned(), json!(row.categories));
    }
    if !row.subresources.is_empty() {
        let mut subresources: Vec<Value> = row
            .subresources
            .iter()
            .map(|sub| {
                json!({
                    "subresource": sub.name,
                    "responseKind": response_kind(row, &sub.group, &sub.version, &sub.kind),
                    "verbs": sub.verbs,
                })
            })
            .collect();
        subresources.sort_by(|a, b| a["subresource"].as_str().cmp(&b["subresource"].as_str()));
        entry.insert("subresources".to_owned(), Value::Array(subresources));
    }
    Value::Object(entry)
}
