//! `/api`, `/api/v1`, `/apis`, `/apis/<group>`, `/apis/<group>/<version>`.
//!
//! Behaves as `k8s.io/apiserver/pkg/endpoints/discovery`, v1.36.

use serde_json::{Map, Value, json};

use crate::catalog::{Catalog, Group};

/// `/api`.
pub fn core_versions(server_address: &str) -> Value {
    json!({
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": server_address}],
    })
}

/// `/apis`.
pub fn groups(catalog: &Catalog) -> Value {
    let groups: Vec<Value> = catalog.groups().iter().filter(|group| !group.name.is_empty()).map(group).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `/apis/<group>`.
pub fn one_group(found: &Group) -> Value {
    let mut value = json!({"kind": "APIGroup", "apiVersion": "v1"});
    if let (Value::Object(object), Value::Object(members)) = (&mut value, group(found)) {
        object.extend(members);
    }
    value
}

fn group(group: &Group) -> Value {
    let version = |version: &String| json!({"groupVersion": format!("{}/{version}", group.name), "version": version});
    let versions: Vec<Value> = group.versions.iter().map(version).collect();
    let preferred = versions.first().cloned().unwrap_or_default();
    json!({"name": group.name, "versions": versions, "preferredVersion": preferred})
}

/// `/api/v1` and `/apis/<group>/<version>`.
pub fn resources(catalog: &Catalog, group: &str, version: &str) -> Value {
    let mut resources = Vec::new();
    for row in catalog.rows_of(group, version) {
        let mut resource = Map::new();
        resource.insert("name".to_owned(), json!(row.plural));
        resource.insert("singularName".to_owned(), json!(row.singular));
        resource.insert("namespaced".to_owned(), json!(row.namespaced));
        resource.insert("kind".to_owned(), json!(row.kind));
        resource.insert("verbs".to_owned(), json!(row.verbs));
        if !row.short_names.is_empty() {
            resource.insert("shortNames".to_owned(), json!(row.short_names));
        }
        if !row.categories.is_empty() {
            resource.insert("categories".to_owned(), json!(row.categories));
        }
        if !row.storage_version_hash.is_empty() {
            resource.insert("storageVersionHash".to_owned(), json!(row.storage_version_hash));
        }
        resources.push(Value::Object(resource));
        for subresource in row.subresources.iter() {
            let mut entry = json!({
                "name": format!("{}/{}", row.plural, subresource.name),
                "singularName": "",
                "namespaced": row.namespaced,
                "kind": subresource.kind,
                "verbs": subresource.verbs,
            });
            if subresource.group != row.group || subresource.version != row.version {
                entry["group"] = json!(subresource.group);
                entry["version"] = json!(subresource.version);
            }
            resources.push(entry);
        }
    }
    resources.sort_by(|a, b| a["name"].as_str().cmp(&b["name"].as_str()));
    let group_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    let mut list = json!({"kind": "APIResourceList", "groupVersion": group_version, "resources": resources});
    if !group.is_empty() {
        list["apiVersion"] = json!("v1");
    }
    list
}
