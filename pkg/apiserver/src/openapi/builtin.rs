//! The documents of built-in kinds, written from the schema table, the resource table and the descriptions.

use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::paths::Paths;
use super::schemas::{Definitions, Dialect};
use super::{Document, Source, gnostic};
use crate::catalog::Catalog;

/// See the module.
pub struct Builtin;

const TITLE: &str = "Kubernetes";

impl Source for Builtin {
    fn v2(&self, catalog: &Catalog) -> Document {
        let mut definitions = Definitions::new(Dialect::V2);
        let mut paths = Map::new();
        let mut writer = Paths { dialect: Dialect::V2, definitions: &mut definitions };
        for row in catalog.rows() {
            writer.add(row, &mut paths);
        }
        let value = json!({
            "swagger": "2.0",
            "info": {"title": TITLE, "version": crate::server::GIT_VERSION},
            "paths": paths,
            "definitions": definitions.finish(),
            "securityDefinitions": security_schemes(),
            "security": [{"BearerToken": []}],
        });
        let protobuf = gnostic::encode(&value).unwrap_or_else(|error| {
            tracing::error!(%error, "Left out the protobuf form of the OpenAPI document");
            Vec::new()
        });
        Document { json: Bytes::from(value.to_string()), protobuf: Bytes::from(protobuf) }
    }

    fn v3_paths(&self, catalog: &Catalog) -> Vec<String> {
        let mut paths = vec!["version".to_owned()];
        for group in catalog.groups() {
            for version in &group.versions {
                paths.push(if group.name.is_empty() {
                    format!("api/{version}")
                } else {
                    format!("apis/{}/{version}", group.name)
                });
            }
        }
        paths
    }

    fn v3(&self, catalog: &Catalog, path: &str) -> Option<Document> {
        if path == "version" {
            let operation =
                json!({"get": {"operationId": "getCodeVersion", "responses": {"200": {"description": "OK"}}}});
            return Some(v3_document(json!({"/version/": operation}), Map::new()));
        }
        let parts: Vec<&str> = path.split('/').collect();
        let (group, version) = match parts.as_slice() {
            ["api", version] => ("", *version),
            ["apis", group, version] => (*group, *version),
            _ => return None,
        };
        if !catalog.serves(group, version) {
            return None;
        }
        let mut definitions = Definitions::new(Dialect::V3);
        let mut paths = Map::new();
        let mut writer = Paths { dialect: Dialect::V3, definitions: &mut definitions };
        for row in catalog.rows_of(group, version) {
            writer.add(row, &mut paths);
        }
        Some(v3_document(Value::Object(paths), definitions.finish()))
    }
}

fn v3_document(paths: Value, schemas: Map<String, Value>) -> Document {
    let value = json!({
        "openapi": "3.0.0",
        "info": {"title": TITLE, "version": crate::server::GIT_VERSION},
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": security_schemes()},
    });
    Document { json: Bytes::from(value.to_string()), protobuf: Bytes::new() }
}

fn security_schemes() -> Value {
    json!({"BearerToken": {
        "type": "apiKey",
        "in": "header",
        "name": "authorization",
        "description": "Bearer Token authentication",
    }})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(document: &Document) -> Value {
        serde_json::from_slice(&document.json).expect("JSON")
    }

    #[test]
    fn every_reference_has_its_definition() {
        let catalog = Catalog::new(rkube_api::resources().to_vec(), rkube_api::groups());
        for path in Builtin.v3_paths(&catalog) {
            let text = Builtin.v3(&catalog, &path).expect("a document");
            let value = parse(&text);
            let schemas = value["components"]["schemas"].as_object().expect("schemas");
            let text = String::from_utf8_lossy(&text.json).into_owned();
            for reference in text.split("\"#/components/schemas/").skip(1) {
                let name = reference.split('"').next().unwrap_or_default();
                assert!(schemas.contains_key(name), "{path}: {name}");
            }
        }
    }

    #[test]
    fn what_kubectl_looks_for_is_there() {
        let catalog = Catalog::new(rkube_api::resources().to_vec(), rkube_api::groups());
        let apps = parse(&Builtin.v3(&catalog, "apis/apps/v1").expect("apps/v1"));
        let patch = &apps["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
        assert_eq!(patch["operationId"], "patchAppsV1NamespacedDeployment");
        assert_eq!(patch["x-kubernetes-group-version-kind"]["kind"], "Deployment");
        let names: Vec<&str> =
            patch["parameters"].as_array().unwrap().iter().filter_map(|one| one["name"].as_str()).collect();
        assert_eq!(names, ["dryRun", "fieldManager", "fieldValidation", "force"]);
        let containers = &apps["components"]["schemas"]["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
        assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
    }

    fn golden() -> Value {
        let path = rkube_testing::golden::folder().join("openapi/swagger.json");
        serde_json::from_slice(&std::fs::read(path).expect("golden data")).expect("JSON")
    }

    /// Every type and field but those of lists is described in upstream's words.
    #[test]
    fn types_and_fields_have_golden_descriptions() {
        let catalog = Catalog::new(rkube_api::resources().to_vec(), rkube_api::groups());
        let document = Builtin.v2(&catalog);
        assert!(!document.protobuf.is_empty());
        let golden = golden();
        let ours = parse(&document);
        for (name, definition) in ours["definitions"].as_object().unwrap() {
            if name.ends_with("List") || name.ends_with(".Patch") {
                continue;
            }
            let none = Map::new();
            let fields = definition["properties"].as_object().unwrap_or(&none);
            let described = fields.iter().map(|(field, property)| (field.as_str(), property));
            for (field, property) in described.chain([("", definition)]) {
                let theirs = &golden["definitions"][name];
                let theirs = if field.is_empty() { theirs } else { &theirs["properties"][field] };
                assert_eq!(property["description"], theirs["description"], "{name} {field}");
            }
        }
    }

    /// Operation ids, kinds and descriptions of every path of ours are upstream's, and so are the names of parameters.
    #[test]
    fn operations_are_golden() {
        let golden = golden();
        let catalog = Catalog::new(rkube_api::resources().to_vec(), rkube_api::groups());
        let ours = parse(&Builtin.v2(&catalog));
        let mut differences = Vec::new();
        for (path, item) in ours["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                if method == "parameters" {
                    continue;
                }
                let theirs = &golden["paths"][path][method];
                const MEMBERS: [&str; 5] =
                    ["operationId", "description", "x-kubernetes-group-version-kind", "x-kubernetes-action", "tags"];
                for member in MEMBERS {
                    if operation[member] != theirs[member] {
                        differences.push(format!("{method} {path} {member}: {} {}", operation[member], theirs[member]));
                    }
                }
            }
            let name_of = |item: &Value| {
                let parameters = item["parameters"].as_array().cloned().unwrap_or_default();
                parameters.into_iter().find(|one| one["name"] == "name").map(|one| one["description"].clone())
            };
            let (name, expected) = (name_of(item), name_of(&golden["paths"][path]));
            if name != expected {
                differences.push(format!("{path}: {name:?} {expected:?}"));
            }
        }
        assert!(differences.is_empty(), "{}", differences.join("\n"));
    }
}
