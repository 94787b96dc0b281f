//! What is served by default equals upstream's golden documents, entry by entry.

use serde_json::Value;

use super::legacy;
use crate::catalog::Catalog;

fn golden(file: &str) -> Value {
    let path = rkube_testing::golden::folder().join("discovery").join(file);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).expect("golden data is JSON")
}

fn builtin() -> std::sync::Arc<Catalog> {
    Catalog::new(rkube_api::resources().to_vec(), rkube_api::groups())
}

#[test]
fn resource_lists_are_golden() {
    let catalog = builtin();
    for group in catalog.groups() {
        for version in &group.versions {
            let file = if group.name.is_empty() {
                format!("api__{version}.json")
            } else {
                format!("apis__{}__{version}.json", group.name)
            };
            let golden = golden(&file);
            let ours = legacy::resources(&catalog, &group.name, version);
            assert_eq!(ours, golden, "{file}");
        }
    }
}

#[test]
fn the_aggregated_document_has_golden_groups_and_resources() {
    let catalog = builtin();
    let golden = golden("aggregated_v2.json");
    let ours: Value = serde_json::from_slice(catalog.documents().groups.json()).unwrap();
    for ours in ours["items"].as_array().unwrap() {
        let name = &ours["metadata"]["name"];
        let theirs = golden["items"].as_array().unwrap().iter().find(|item| &item["metadata"]["name"] == name);
        let theirs = theirs.unwrap_or_else(|| panic!("upstream has no group {name}"));
        for version in ours["versions"].as_array().unwrap() {
            let same = theirs["versions"].as_array().unwrap().iter().find(|item| item["version"] == version["version"]);
            assert_eq!(Some(version), same, "{name}");
        }
    }
    assert!(ours["items"].as_array().unwrap().len() >= 20);
}

#[test]
fn groups_that_are_served_are_golden() {
    let catalog = builtin();
    let golden_groups = golden("apis.json");
    let ours = legacy::groups(&catalog);
    let names = |list: &Value| -> Vec<String> {
        list["groups"].as_array().unwrap().iter().map(|group| group["name"].as_str().unwrap().to_owned()).collect()
    };
    let served = names(&ours);
    let theirs: Vec<String> = names(&golden_groups).into_iter().filter(|name| served.contains(name)).collect();
    assert_eq!(served, theirs);
    assert_eq!(legacy::one_group(catalog.group("apps").unwrap()), golden("apis__apps.json"));
}
