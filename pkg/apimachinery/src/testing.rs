//! Schemas for tests, from a compact description.
//!
//! A type is a scalar's name (`string`, `int`, `bool`, `quantity`, `intstr`, `json`), `{"ref": "Name"}`, or an
//! object with one of `fields`, `list`, `map` and options: `atomic`, `preserve`; for lists `set`, `keys`,
//! `patch` (`merge`, `retainKeys`) and `mergeKey`; on any field's type `fieldPatch`, `default`, `required`,
//! `presence` (`pointer`, `always`).

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde_json::Value;

use crate::schema::{
    Field, List, ListKind, Map, Object, PatchStrategy, Presence, Scalar, SchemaSet, Shape, TypeDef, TypeId,
};

pub(crate) struct Types {
    pub(crate) set: SchemaSet,
    names: BTreeMap<String, TypeId>,
}

impl Types {
    /// `description` maps names to types.
    pub(crate) fn new(description: Value) -> Self {
        let Value::Object(description) = description else { panic!("a map of types") };
        let mut builder = Builder { types: Vec::new(), names: BTreeMap::new() };
        // Names come first, so that types can refer to each other.
        for name in description.keys() {
            let id = builder.place();
            builder.names.insert(name.clone(), id);
        }
        for (name, ty) in &description {
            let shape = builder.shape(ty);
            let id = builder.names[name];
            builder.types[id.0 as usize] = TypeDef { name: Cow::Owned(format!("test.{name}")), shape };
        }
        let mut set = SchemaSet::builtin(&[]);
        for definition in builder.types {
            set.push(definition);
        }
        Self { set, names: builder.names }
    }

    /// The same types as a generated table would hold them.
    pub(crate) fn builtin(description: Value) -> Self {
        let own = Self::new(description);
        let count = u32::try_from(own.set.len()).expect("few types");
        let types: Vec<TypeDef> = (0..count).map(|id| own.set.get(TypeId(id)).clone()).collect();
        Self { set: SchemaSet::builtin(types.leak()), names: own.names }
    }

    pub(crate) fn id(&self, name: &str) -> TypeId {
        self.names[name]
    }
}

struct Builder {
    types: Vec<TypeDef>,
    names: BTreeMap<String, TypeId>,
}

impl Builder {
    fn place(&mut self) -> TypeId {
        self.types.push(TypeDef { name: Cow::Borrowed(""), shape: Shape::Scalar(Scalar::String) });
        TypeId(self.types.len() as u32 - 1)
    }

    fn ty(&mut self, ty: &Value) -> TypeId {
        if let Some(name) = ty.get("ref").and_then(Value::as_str) {
            return self.names[name];
        }
        let id = self.place();
        let shape = self.shape(ty);
        self.types[id.0 as usize].shape = shape;
        id
    }

    fn shape(&mut self, ty: &Value) -> Shape {
        let flag = |name: &str| ty.get(name).and_then(Value::as_bool).unwrap_or(false);
        if let Some(scalar) = ty.as_str().or_else(|| ty.get("type").and_then(Value::as_str)) {
            return Shape::Scalar(match scalar {
                "string" => Scalar::String,
                "int" => Scalar::Int64,
                "bool" => Scalar::Bool,
                "quantity" => Scalar::Quantity,
                "intstr" => Scalar::IntOrString,
                "time" => Scalar::Time,
                "fieldsv1" => Scalar::FieldsV1,
                "json" => Scalar::Json,
                other => panic!("scalar {other}"),
            });
        }
        if let Some(fields) = ty.get("fields").and_then(Value::as_object) {
            let mut fields: Vec<Field> = fields
                .iter()
                .map(|(name, ty)| Field {
                    json: Cow::Owned(name.clone()),
                    number: 0,
                    within: Cow::Borrowed(&[]),
                    ty: self.ty(ty),
                    required: ty.get("required").is_some(),
                    presence: match ty.get("presence").and_then(Value::as_str) {
                        Some("pointer") => Presence::Pointer,
                        Some("always") => Presence::Always,
                        _ => Presence::OmitEmpty,
                    },
                    default: ty.get("default").map(|value| Cow::Owned(value.to_string())),
                    patch: strategy(ty.get("fieldPatch")),
                })
                .collect();
            fields.sort_by(|a, b| a.json.cmp(&b.json));
            return Shape::Object(Object {
                fields: Cow::Owned(fields),
                wire: Cow::Borrowed(&[]),
                preserve_unknown: flag("preserve"),
                atomic: flag("atomic"),
            });
        }
        if let Some(value) = ty.get("map") {
            return Shape::Map(Map { value: self.ty(value), atomic: flag("atomic") });
        }
        let item = self.ty(ty.get("list").expect("a list"));
        let kind = match ty.get("keys").and_then(Value::as_array) {
            Some(keys) => ListKind::Map {
                keys: keys.iter().map(|key| Cow::Owned(key.as_str().expect("a key").to_owned())).collect(),
            },
            None if flag("set") => ListKind::Set,
            None => ListKind::Atomic,
        };
        let merge_key = ty.get("mergeKey").and_then(Value::as_str).unwrap_or_default();
        Shape::List(List {
            item,
            kind,
            patch: strategy(ty.get("patch")),
            patch_merge_key: Cow::Owned(merge_key.to_owned()),
            wrapped: false,
        })
    }
}

fn strategy(text: Option<&Value>) -> PatchStrategy {
    let text = text.and_then(Value::as_str).unwrap_or_default();
    let has = |word: &str| text.split(',').any(|part| part == word);
    PatchStrategy { merge: has("merge"), replace: has("replace"), retain_keys: has("retainKeys") }
}
