//! What the server serves, custom resources included.
//!
//! Reads the aggregated discovery documents: two requests, whatever the number of groups.
//! Behaves as `ServerPreferredResources` of k8s.io/client-go/discovery, v1.36.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use http::header::ACCEPT;
use rkube_api::resource::{Resource, SharedResource, Subresource};
use rkube_apimachinery::schema::TypeId;
use rkube_client::{Client, ClientError};
use serde_json::Value;

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// The resources of the server, each in its preferred version.
pub(crate) struct Discovered {
    pub(crate) resources: Vec<SharedResource>,
    /// Group versions that could not be asked: an extension server that does not answer.
    pub(crate) stale: Vec<String>,
}

pub(crate) async fn discover(client: &Client) -> Result<Discovered, ClientError> {
    let mut found = Discovered { resources: Vec::new(), stale: Vec::new() };
    for path in ["/api", "/apis"] {
        let document = fetch(client, path).await?;
        for group in document["items"].as_array().into_iter().flatten() {
            read_group(group, &mut found);
        }
    }
    Ok(found)
}

async fn fetch(client: &Client, path: &str) -> Result<Value, ClientError> {
    let request = http::Request::builder()
        .uri(path)
        .header(ACCEPT, AGGREGATED)
        .body(Bytes::new())
        .map_err(|source| ClientError::Request { path: path.to_owned(), source: Box::new(source) })?;
    let response = client.raw(request).await?;
    serde_json::from_slice(response.body())
        .map_err(|source| ClientError::Decode { path: path.to_owned(), source: Box::new(source) })
}

/// Versions come in order of preference; the first that has a resource counts.
fn read_group(group: &Value, found: &mut Discovered) {
    let name = text(&group["metadata"]["name"]);
    let mut seen = HashSet::new();
    for version in group["versions"].as_array().into_iter().flatten() {
        let version_name = text(&version["version"]);
        if text(&version["freshness"]) == "Stale" {
            found.stale.push(format!("{name}/{version_name}"));
        }
        for resource in version["resources"].as_array().into_iter().flatten() {
            let plural = text(&resource["resource"]);
            if seen.insert(plural.to_owned()) {
                found.resources.push(read_resource(name, version_name, resource));
            }
        }
    }
}

fn read_resource(group: &str, version: &str, resource: &Value) -> SharedResource {
    let plural = text(&resource["resource"]);
    // The row of a built-in kind, so that its informer is the one that others share.
    if let Some(known) = rkube_api::resource_named(group, version, plural) {
        return Arc::clone(known);
    }
    let verbs = resource["verbs"].as_array().into_iter().flatten().filter_map(Value::as_str);
    Arc::new(Resource {
        group: group.to_owned().into(),
        version: version.to_owned().into(),
        plural: plural.to_owned().into(),
        singular: text(&resource["singularResource"]).to_owned().into(),
        short_names: (&[]).into(),
        categories: (&[]).into(),
        kind: text(&resource["responseKind"]["kind"]).to_owned().into(),
        namespaced: text(&resource["scope"]) == "Namespaced",
        verbs: verbs.map(|verb| verb.to_owned().into()).collect(),
        subresources: resource["subresources"].as_array().into_iter().flatten().map(read_subresource).collect(),
        schema: TypeId(u32::MAX),
        stored_as: None,
        storage_version_hash: "".into(),
        selectable_fields: (&[]).into(),
    })
}

fn read_subresource(subresource: &Value) -> Subresource {
    let kind = &subresource["responseKind"];
    let verbs = subresource["verbs"].as_array().into_iter().flatten().filter_map(Value::as_str);
    Subresource {
        name: text(&subresource["subresource"]).to_owned().into(),
        group: text(&kind["group"]).to_owned().into(),
        version: text(&kind["version"]).to_owned().into(),
        kind: text(&kind["kind"]).to_owned().into(),
        verbs: verbs.map(|verb| verb.to_owned().into()).collect(),
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
