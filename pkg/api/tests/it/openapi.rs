//! The schema table equals the definitions of upstream's OpenAPI v2 document.

use std::collections::{BTreeMap, BTreeSet};

use rkube_api::schema;
use rkube_apimachinery::schema::{Field, ListKind, PatchStrategy, Scalar, Shape, TypeId};
use serde_json::{Map, Value, json};

use crate::fixture;

/// Definitions that describe no type of the API: what `/version` answers, and any body of a patch.
const NOT_TYPES: [&str; 2] = ["io.k8s.apimachinery.pkg.version.Info", "io.k8s.apimachinery.pkg.apis.meta.v1.Patch"];

#[test]
fn definitions_are_golden() {
    let document = fixture("openapi/swagger.json");
    let definitions = document["definitions"].as_object().unwrap();
    for (name, expected) in definitions {
        if NOT_TYPES.contains(&name.as_str()) {
            continue;
        }
        let id = rkube_api::type_named(name).unwrap_or_else(|| panic!("{name} is not in the table"));
        let Shape::Object(object) = &schema().get(id).shape else { continue };
        let mut expected = expected.clone();
        without_descriptions(&mut expected);
        let mut found = json!({"type": "object"});
        let required: Vec<_> = object.fields.iter().filter(|field| field.required).map(|field| &field.json).collect();
        if !required.is_empty() {
            found["required"] = json!(required);
        }
        if object.atomic {
            found["x-kubernetes-map-type"] = json!("atomic");
        }
        if let Some(unions) = rkube_api::schema::unions(name) {
            found["x-kubernetes-unions"] = serde_json::from_str(unions).unwrap();
        }
        let properties: Map<String, Value> =
            object.fields.iter().map(|field| (field.json.to_string(), property(name, field))).collect();
        if !properties.is_empty() {
            found["properties"] = Value::Object(properties);
        }
        let members = expected.as_object_mut().unwrap();
        members.remove("x-kubernetes-group-version-kind");
        if let Some(Value::Array(required)) = members.get_mut("required") {
            required.sort_by(|a, b| a.as_str().cmp(&b.as_str()));
        }
        assert_eq!(found, expected, "{name}");
    }
}

#[test]
fn kinds_are_golden() {
    let document = fixture("openapi/swagger.json");
    let mut by_type: BTreeMap<TypeId, BTreeSet<(&str, &str, &str)>> = BTreeMap::new();
    for (group, version, kind, ty) in rkube_api::schema::kinds() {
        by_type.entry(ty).or_default().insert((group, version, kind));
    }
    for (name, definition) in document["definitions"].as_object().unwrap() {
        let Some(kinds) = definition["x-kubernetes-group-version-kind"].as_array() else { continue };
        let ty = rkube_api::type_named(name).unwrap();
        for kind in kinds {
            let text = |name: &str| kind[name].as_str().unwrap();
            let found = rkube_api::schema::type_of_parts(text("group"), text("version"), text("kind"));
            assert_eq!(found, Some(ty), "{name} as {kind}");
        }
    }
}

fn without_descriptions(value: &mut Value) {
    if let Some(members) = value.as_object_mut() {
        members.remove("description");
        for (name, value) in members.iter_mut() {
            if name == "properties" {
                // A property may be called `description`.
                value.as_object_mut().into_iter().flat_map(Map::values_mut).for_each(without_descriptions);
            } else {
                without_descriptions(value);
            }
        }
    }
}

fn property(name: &str, field: &Field) -> Value {
    let mut out = schema_of(field.ty);
    let mut patch = field.patch;
    match &schema().get(field.ty).shape {
        Shape::List(list) => {
            patch = list.patch;
            match &list.kind {
                ListKind::Map { keys } => {
                    out["x-kubernetes-list-type"] = json!("map");
                    out["x-kubernetes-list-map-keys"] = json!(keys);
                }
                ListKind::Set => out["x-kubernetes-list-type"] = json!("set"),
                ListKind::Atomic if rkube_api::schema::declares_list_type(name, &field.json) => {
                    out["x-kubernetes-list-type"] = json!("atomic");
                }
                ListKind::Atomic => {}
            }
            if !list.patch_merge_key.is_empty() {
                out["x-kubernetes-patch-merge-key"] = json!(list.patch_merge_key);
            }
        }
        Shape::Map(map) if map.atomic => out["x-kubernetes-map-type"] = json!("atomic"),
        _ => {}
    }
    if rkube_api::schema::declares_granular(name, &field.json) {
        out["x-kubernetes-map-type"] = json!("granular");
    }
    if name == "io.k8s.kube-aggregator.pkg.apis.apiregistration.v1.APIServiceSpec" && field.json == "caBundle" {
        // The one place where bytes carry a list type: Go has them as a slice.
        out["x-kubernetes-list-type"] = json!("atomic");
    }
    let strategy = strategy_text(patch);
    if !strategy.is_empty() {
        out["x-kubernetes-patch-strategy"] = json!(strategy);
    }
    out
}

fn strategy_text(patch: PatchStrategy) -> String {
    let words = [(patch.merge, "merge"), (patch.replace, "replace"), (patch.retain_keys, "retainKeys")];
    let words: Vec<&str> = words.into_iter().filter(|(set, _)| *set).map(|(_, word)| word).collect();
    words.join(",")
}

fn schema_of(ty: TypeId) -> Value {
    let definition = schema().get(ty);
    if !definition.name.is_empty() {
        return json!({"$ref": format!("#/definitions/{}", definition.name)});
    }
    match &definition.shape {
        Shape::List(list) => json!({"type": "array", "items": schema_of(list.item)}),
        Shape::Map(map) => json!({"type": "object", "additionalProperties": schema_of(map.value)}),
        Shape::Scalar(scalar) => match scalar {
            Scalar::String | Scalar::Duration => json!({"type": "string"}),
            Scalar::Bool => json!({"type": "boolean"}),
            Scalar::Int32 => json!({"type": "integer", "format": "int32"}),
            Scalar::Int64 => json!({"type": "integer", "format": "int64"}),
            Scalar::Double => json!({"type": "number", "format": "double"}),
            Scalar::Bytes => json!({"type": "string", "format": "byte"}),
            other => panic!("{other:?} has a definition of its own"),
        },
        Shape::Object(_) => panic!("a struct has a name"),
    }
}
