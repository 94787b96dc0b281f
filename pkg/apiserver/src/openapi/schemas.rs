//! Definitions of types, written from the schema table.

use std::collections::BTreeMap;

use rkube_api::schema;
use rkube_apimachinery::schema::{Field, ListKind, PatchStrategy, Presence, Scalar, Shape, TypeId};
use serde_json::{Map, Value, json};

use super::descriptions::Descriptions;

/// The two dialects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    V2,
    V3,
}

/// Collects definitions, each with everything it refers to.
pub(super) struct Definitions {
    dialect: Dialect,
    descriptions: Descriptions,
    kinds: BTreeMap<TypeId, Vec<Value>>,
    found: BTreeMap<String, Value>,
    waiting: Vec<TypeId>,
}

impl Definitions {
    pub(super) fn new(dialect: Dialect) -> Self {
        let mut kinds: BTreeMap<TypeId, Vec<Value>> = BTreeMap::new();
        for (group, version, kind, ty) in schema::kinds() {
            let entry = json!({"group": group, "version": version, "kind": kind});
            kinds.entry(ty).or_default().push(entry);
        }
        Self { dialect, descriptions: Descriptions::load(), kinds, found: BTreeMap::new(), waiting: Vec::new() }
    }

    /// A reference to a type, whose definition is collected.
    pub(super) fn reference(&mut self, ty: TypeId) -> Value {
        let name = rkube_api::schema().get(ty).name.clone();
        if !self.found.contains_key(name.as_ref()) {
            self.found.insert(name.to_string(), Value::Null);
            self.waiting.push(ty);
        }
        json!({"$ref": self.path(&name)})
    }

    pub(super) fn reference_named(&mut self, name: &str) -> Value {
        match rkube_api::type_named(name) {
            Some(ty) => self.reference(ty),
            None => {
                // A body that is described and has no structure: a patch.
                self.found.insert(name.to_owned(), json!({"type": "object"}));
                json!({"$ref": self.path(name)})
            }
        }
    }

    fn path(&self, name: &str) -> String {
        match self.dialect {
            Dialect::V2 => format!("#/definitions/{name}"),
            Dialect::V3 => format!("#/components/schemas/{name}"),
        }
    }

    /// Everything collected, and what that refers to.
    pub(super) fn finish(mut self) -> Map<String, Value> {
        while let Some(ty) = self.waiting.pop() {
            let definition = self.define(ty);
            let name = rkube_api::schema().get(ty).name.to_string();
            self.found.insert(name, definition);
        }
        self.found.into_iter().collect()
    }

    fn define(&mut self, ty: TypeId) -> Value {
        let definition = rkube_api::schema().get(ty);
        let mut out = match &definition.shape {
            Shape::Scalar(scalar) => self.scalar(*scalar),
            Shape::List(_) | Shape::Map(_) => json!({"type": "object"}),
            Shape::Object(object) => {
                let mut out = json!({"type": "object"});
                let mut properties = Map::new();
                for field in object.fields.iter() {
                    properties.insert(field.json.to_string(), self.property(&definition.name, field));
                }
                if !properties.is_empty() {
                    out["properties"] = Value::Object(properties);
                }
                let required: Vec<_> =
                    object.fields.iter().filter(|field| field.required).map(|field| &field.json).collect();
                if !required.is_empty() {
                    out["required"] = json!(required);
                }
                if object.atomic {
                    out["x-kubernetes-map-type"] = json!("atomic");
                }
                if let Some(unions) = schema::unions(&definition.name)
                    && let Ok(unions) = serde_json::from_str::<Value>(unions)
                {
                    out["x-kubernetes-unions"] = unions;
                }
                out
            }
        };
        if let Some(text) = self.descriptions.of_type(&definition.name) {
            out["description"] = json!(text);
        }
        if let Some(kinds) = self.kinds.get(&ty) {
            out["x-kubernetes-group-version-kind"] = json!(kinds);
        }
        out
    }

    fn property(&mut self, owner: &str, field: &Field) -> Value {
        let mut out = self.schema_of(field.ty);
        if self.dialect == Dialect::V3 {
            let default = field.default.as_deref().and_then(|text| serde_json::from_str::<Value>(text).ok());
            let is_reference = out.get("$ref").is_some();
            if is_reference {
                // Nothing may stand beside a reference in this dialect.
                out = json!({"allOf": [out]});
                let is_value = matches!(field.presence, Presence::Always | Presence::OmitEmpty);
                if is_value && matches!(rkube_api::schema().get(field.ty).shape, Shape::Object(_)) {
                    out["default"] = json!({});
                }
            }
            if let Some(default) = default {
                out["default"] = default;
            }
        }
        let mut patch = field.patch;
        match &rkube_api::schema().get(field.ty).shape {
            Shape::List(list) => {
                patch = list.patch;
                match &list.kind {
                    ListKind::Map { keys } => {
                        out["x-kubernetes-list-type"] = json!("map");
                        out["x-kubernetes-list-map-keys"] = json!(keys);
                    }
                    ListKind::Set => out["x-kubernetes-list-type"] = json!("set"),
                    ListKind::Atomic if schema::declares_list_type(owner, &field.json) => {
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
        if schema::declares_granular(owner, &field.json) {
            out["x-kubernetes-map-type"] = json!("granular");
        }
        let strategy = strategy_text(patch);
        if !strategy.is_empty() {
            out["x-kubernetes-patch-strategy"] = json!(strategy);
        }
        if let Some(text) = self.descriptions.of_field(owner, &field.json) {
            out["description"] = json!(text);
        }
        if self.dialect == Dialect::V3
            && let Some(all) = out.get("allOf").cloned()
            && out.as_object().is_some_and(|members| members.len() == 1)
            && field.presence == Presence::Pointer
        {
            // Alone, a reference needs no wrapping.
            return all.get(0).cloned().unwrap_or(out);
        }
        out
    }

    fn schema_of(&mut self, ty: TypeId) -> Value {
        let definition = rkube_api::schema().get(ty);
        if !definition.name.is_empty() {
            return self.reference(ty);
        }
        match &definition.shape {
            Shape::List(list) => {
                let items = self.schema_of(list.item);
                json!({"type": "array", "items": items})
            }
            Shape::Map(map) => {
                let values = self.schema_of(map.value);
                json!({"type": "object", "additionalProperties": values})
            }
            Shape::Scalar(scalar) => self.scalar(*scalar),
            Shape::Object(_) => json!({"type": "object"}),
        }
    }

    fn scalar(&self, scalar: Scalar) -> Value {
        match scalar {
            Scalar::String | Scalar::Duration => json!({"type": "string"}),
            Scalar::Bool => json!({"type": "boolean"}),
            Scalar::Int32 => json!({"type": "integer", "format": "int32"}),
            Scalar::Int64 => json!({"type": "integer", "format": "int64"}),
            Scalar::Double => json!({"type": "number", "format": "double"}),
            Scalar::Bytes => json!({"type": "string", "format": "byte"}),
            Scalar::Time | Scalar::MicroTime => json!({"type": "string", "format": "date-time"}),
            Scalar::Quantity if self.dialect == Dialect::V3 => {
                json!({"oneOf": [{"type": "string"}, {"type": "number"}]})
            }
            Scalar::Quantity => json!({"type": "string"}),
            Scalar::IntOrString if self.dialect == Dialect::V3 => {
                json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]})
            }
            Scalar::IntOrString => json!({"type": "string", "format": "int-or-string"}),
            Scalar::FieldsV1 | Scalar::RawExtension => json!({"type": "object"}),
            Scalar::Json
            | Scalar::JsonSchemaPropsOrBool
            | Scalar::JsonSchemaPropsOrArray
            | Scalar::JsonSchemaPropsOrStringArray => json!({}),
        }
    }
}

fn strategy_text(patch: PatchStrategy) -> String {
    let words = [(patch.merge, "merge"), (patch.replace, "replace"), (patch.retain_keys, "retainKeys")];
    let words: Vec<&str> = words.into_iter().filter(|(set, _)| *set).map(|(_, word)| word).collect();
    words.join(",")
}
