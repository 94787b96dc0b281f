//! An object on its way into the store, seen as JSON or as a typed value by whoever needs which.
//!
//! Invariant: the typed form never has `metadata.managedFields`. They are often half of an object, mean nothing to
//! those who look at it typed, and are kept beside it as JSON until the object is JSON again.

use std::any::Any;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use rkube_apimachinery::meta::MetaMut;
use serde_json::{Map, Value};

use crate::kind::{DecodeError, Kind};

/// Holds one object in whichever form was written last and converts when the other is asked for.
/// A create normally converts once each way: to typed for everything from defaulting to validation, and back.
pub struct Draft {
    form: Form,
}

enum Form {
    Value(Value),
    Typed(Typed),
}

struct Typed {
    object: Box<dyn Any + Send + Sync>,
    /// `metadata.managedFields`, if there is such a member.
    managed_fields: Option<Value>,
    kind: &'static Functions,
}

/// What is done to a typed object without knowing its type.
struct Functions {
    name: &'static str,
    to_value: fn(&(dyn Any + Send + Sync)) -> Value,
    metadata: fn(&mut (dyn Any + Send + Sync)) -> &mut ObjectMeta,
}

impl Draft {
    pub fn new(value: Value) -> Self {
        Self { form: Form::Value(value) }
    }

    /// The object as `K`, to change in place.
    pub fn typed<K: Kind>(&mut self) -> Result<&mut K, DecodeError> {
        let is_typed = matches!(&self.form, Form::Typed(typed) if typed.object.is::<K>());
        if !is_typed {
            let mut value = std::mem::take(self.value());
            let managed_fields = take_managed_fields(&mut value);
            let object = Box::new(K::from_value(value)?);
            self.form = Form::Typed(Typed { object, managed_fields, kind: const { &functions::<K>() } });
        }
        match &mut self.form {
            Form::Typed(typed) => Ok(typed.object.downcast_mut::<K>().expect("the form was just made a K")),
            Form::Value(_) => unreachable!("the form was just made typed"),
        }
    }

    /// The object as JSON, to change in place.
    pub fn value(&mut self) -> &mut Value {
        if let Form::Typed(typed) = &mut self.form {
            let managed_fields = typed.managed_fields.take();
            let mut value = typed.to_value();
            put_managed_fields(&mut value, managed_fields);
            self.form = Form::Value(value);
        }
        match &mut self.form {
            Form::Value(value) => value,
            Form::Typed(_) => unreachable!("the form was just made JSON"),
        }
    }

    pub fn into_value(mut self) -> Value {
        std::mem::take(self.value())
    }

    /// Changes the metadata, in the form that the object has. What `change` gets is the object, or an object that has
    /// nothing but its metadata.
    pub fn change_metadata<R>(&mut self, change: impl FnOnce(&mut Value) -> R) -> Result<R, DecodeError> {
        let typed = match &mut self.form {
            Form::Value(value) => return Ok(change(value)),
            Form::Typed(typed) => typed,
        };
        let kind = typed.kind.name;
        let decoding = |source| DecodeError { kind, source };
        let metadata = (typed.kind.metadata)(typed.object.as_mut());
        let tree = serde_json::to_value(std::mem::take(metadata)).map_err(decoding)?;
        let mut value = Value::Object(Map::from_iter([("metadata".to_owned(), tree)]));
        put_managed_fields(&mut value, typed.managed_fields.take());
        let result = change(&mut value);
        typed.managed_fields = take_managed_fields(&mut value);
        let tree = value.get_mut("metadata").map(Value::take).unwrap_or_default();
        *metadata = serde_json::from_value(tree).map_err(decoding)?;
        Ok(result)
    }

    /// Works out `metadata.managedFields` from the whole object. Other changes that `work_out` makes are kept only if
    /// the object is JSON: it is for those who bring the object into the form that it is compared in.
    pub fn own_fields(&mut self, work_out: impl FnOnce(&mut Value)) {
        match &mut self.form {
            Form::Value(value) => work_out(value),
            Form::Typed(typed) => {
                let mut value = typed.to_value();
                put_managed_fields(&mut value, typed.managed_fields.take());
                work_out(&mut value);
                typed.managed_fields = take_managed_fields(&mut value);
            }
        }
    }
}

impl Typed {
    fn to_value(&self) -> Value {
        (self.kind.to_value)(self.object.as_ref())
    }
}

fn take_managed_fields(value: &mut Value) -> Option<Value> {
    value.get_mut("metadata")?.as_object_mut()?.remove("managedFields")
}

fn put_managed_fields(value: &mut Value, entries: Option<Value>) {
    if let Some(entries) = entries {
        value.metadata_mut().insert("managedFields".to_owned(), entries);
    }
}

const fn functions<K: Kind>() -> Functions {
    Functions { name: K::KIND, to_value: to_value::<K>, metadata: metadata::<K> }
}

fn to_value<K: Kind>(object: &(dyn Any + Send + Sync)) -> Value {
    object.downcast_ref::<K>().expect("made together with an object of this type").to_value()
}

fn metadata<K: Kind>(object: &mut (dyn Any + Send + Sync)) -> &mut ObjectMeta {
    object.downcast_mut::<K>().expect("made together with an object of this type").metadata_mut()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;
    use rkube_apimachinery::meta::Meta;
    use serde_json::json;

    use super::*;

    #[test]
    fn owners_stay_beside_a_typed_object() {
        let object = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "data": {"a": "1"},
            "metadata": {"name": "x", "managedFields": [{"manager": "m", "fieldsV1": {"f:data": {}}}]},
        });
        let mut draft = Draft::new(object.clone());
        assert_eq!(draft.typed::<ConfigMap>().expect("decodes").metadata.managed_fields, None);
        let managers = draft.change_metadata(|value| {
            value.set_namespace("n");
            value.managed_fields().len()
        });
        assert_eq!(managers.expect("encodes"), 1);
        draft.own_fields(|value| {
            assert_eq!(value["data"], object["data"]);
            value["metadata"]["managedFields"][0]["manager"] = json!("other");
        });
        let mut expected = object;
        expected["metadata"]["namespace"] = json!("n");
        expected["metadata"]["managedFields"][0]["manager"] = json!("other");
        assert_eq!(draft.into_value(), expected);
    }
}
