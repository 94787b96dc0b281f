//! The resource table equals upstream's discovery documents for the versions served by default.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::fixture;

/// Alpha and beta versions are off by default, and the golden cluster had them on.
fn is_default(version: &str) -> bool {
    !version.contains("alpha") && !version.contains("beta")
}

fn document(group: &str, version: &str) -> Value {
    if group.is_empty() {
        fixture(&format!("discovery/api__{version}.json"))
    } else {
        fixture(&format!("discovery/apis__{group}__{version}.json"))
    }
}

#[test]
fn groups_are_golden_in_their_order() {
    let apis = fixture("discovery/apis.json");
    let mut expected = vec![(String::new(), vec!["v1".to_owned()])];
    for group in apis["groups"].as_array().unwrap() {
        let versions = group["versions"].as_array().unwrap().iter();
        let versions: Vec<String> = versions
            .map(|version| version["version"].as_str().unwrap().to_owned())
            .filter(|version| is_default(version))
            .collect();
        if !versions.is_empty() {
            expected.push((group["name"].as_str().unwrap().to_owned(), versions));
        }
    }
    let found: Vec<(String, Vec<String>)> = rkube_api::groups()
        .iter()
        .map(|(name, versions)| ((*name).to_owned(), versions.iter().map(|&version| version.to_owned()).collect()))
        .collect();
    assert_eq!(found, expected);
}

#[test]
fn every_resource_is_golden() {
    for (group, versions) in rkube_api::groups() {
        for version in *versions {
            let document = document(group, version);
            let mut found = Vec::new();
            for row in rkube_api::resources().iter().filter(|row| row.group == *group && row.version == *version) {
                let mut entry = json!({
                    "name": row.plural, "singularName": row.singular, "namespaced": row.namespaced,
                    "kind": row.kind, "verbs": row.verbs,
                });
                if !row.short_names.is_empty() {
                    entry["shortNames"] = json!(row.short_names);
                }
                if !row.categories.is_empty() {
                    entry["categories"] = json!(row.categories);
                }
                if !row.storage_version_hash.is_empty() {
                    entry["storageVersionHash"] = json!(row.storage_version_hash);
                }
                found.push(entry);
                for sub in row.subresources.iter() {
                    let mut entry = json!({
                        "name": format!("{}/{}", row.plural, sub.name), "singularName": "",
                        "namespaced": row.namespaced, "kind": sub.kind, "verbs": sub.verbs,
                    });
                    if sub.group != *group || sub.version != *version {
                        entry["group"] = json!(sub.group);
                        entry["version"] = json!(sub.version);
                    }
                    found.push(entry);
                }
            }
            assert_eq!(Value::Array(found), document["resources"], "{group}/{version}");
        }
    }
}

#[test]
fn hashes_are_of_the_stored_version() {
    // Upstream stores these in a version that 1.36 does not serve by default.
    let elsewhere = ["mutatingadmissionpolicies", "mutatingadmissionpolicybindings", "customresourcedefinitions"];
    for row in rkube_api::resources() {
        let Some(stored) = &row.stored_as else { continue };
        if !elsewhere.contains(&row.plural.as_ref()) {
            let hash = rkube_api::table::storage_version_hash(&stored.group, &stored.version, &stored.kind);
            assert_eq!(hash, row.storage_version_hash, "{}", row.plural);
        }
    }
}

#[test]
fn every_row_is_found_by_each_of_its_names() {
    let mut prefixes = BTreeSet::new();
    for row in rkube_api::resources() {
        assert_eq!(rkube_api::resource(&row.gvr()).unwrap().gvr(), row.gvr());
        assert_eq!(rkube_api::by_kind(&row.gvk()).unwrap().gvr(), row.gvr());
        assert_eq!(rkube_api::type_of(&row.gvk()), Some(row.schema));
        let Some(stored) = &row.stored_as else { continue };
        // One place per kind of object: versions share it, other resources do not.
        prefixes.insert((stored.prefix.clone(), row.kind.clone()));
    }
    let places: BTreeSet<_> = prefixes.iter().map(|(prefix, _)| prefix).collect();
    assert_eq!(places.len(), prefixes.len());
}
