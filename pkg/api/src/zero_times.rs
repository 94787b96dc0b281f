//! What a typed object must have and Go writes as null when nobody set it.
//!
//! Go's zero time is null in JSON. Typed objects have it as the first second of the year 1, which is what it is in Go and
//! which encoders make null again; for fields that may be absent it is simply absent. Times and lists that are
//! values of a map are null in Go when they are zero.

use std::collections::HashMap;
use std::sync::LazyLock;

use rkube_apimachinery::gvk::GroupVersionKind;
use rkube_apimachinery::schema::{Scalar, Shape, TypeId};
use serde_json::{Value, json};

use crate::schema::{kinds, schema, type_of};

const ZERO_TIME: &str = "0001-01-01T00:00:00Z";
const ZERO_MICRO_TIME: &str = "0001-01-01T00:00:00.000000Z";

/// The fields whose typed form has no absence: definition, JSON name, and what null stands for.
const REQUIRED: [(&str, &str, &str); 2] = [
    ("io.k8s.apimachinery.pkg.apis.meta.v1.Condition", "lastTransitionTime", ZERO_TIME),
    ("io.k8s.api.events.v1.EventSeries", "lastObservedTime", ZERO_MICRO_TIME),
];

/// Where they are in an object of one kind.
struct Place {
    path: Vec<Step>,
    zero: Value,
}

#[derive(Clone)]
enum Step {
    Member(&'static str),
    /// Every item of a list, or every value of a map.
    Items,
}

static PLACES: LazyLock<HashMap<TypeId, Vec<Place>>> = LazyLock::new(|| {
    let mut places = HashMap::new();
    for (_, _, _, ty) in kinds() {
        let mut found = Vec::new();
        find(ty, &mut Vec::new(), &mut Vec::new(), &mut found);
        if !found.is_empty() {
            places.insert(ty, found);
        }
    }
    places
});

fn find(ty: TypeId, above: &mut Vec<TypeId>, path: &mut Vec<Step>, found: &mut Vec<Place>) {
    // A type that holds itself, like a schema of schemas, is looked at once.
    if above.contains(&ty) {
        return;
    }
    above.push(ty);
    let definition = schema().get(ty);
    let mut below = |step: Step, ty: TypeId, above: &mut Vec<TypeId>| {
        path.push(step);
        find(ty, above, path, found);
        path.pop();
    };
    match &definition.shape {
        Shape::Scalar(_) => {}
        Shape::List(list) => below(Step::Items, list.item, above),
        Shape::Map(map) => {
            below(Step::Items, map.value, above);
            let zero = match &schema().get(map.value).shape {
                Shape::List(_) | Shape::Scalar(Scalar::JsonSchemaPropsOrStringArray) => json!([]),
                Shape::Scalar(Scalar::Time) => json!(ZERO_TIME),
                _ => Value::Null,
            };
            if !zero.is_null() {
                found.push(Place { path: path.iter().cloned().chain([Step::Items]).collect(), zero });
            }
        }
        Shape::Object(object) => {
            for field in object.fields.iter() {
                if let std::borrow::Cow::Borrowed(name) = field.json {
                    below(Step::Member(name), field.ty, above);
                }
            }
            for (_, name, zero) in REQUIRED.into_iter().filter(|(known, ..)| *known == definition.name) {
                let path = path.iter().cloned().chain([Step::Member(name)]).collect();
                found.push(Place { path, zero: json!(zero) });
            }
        }
    }
    above.pop();
}

/// Puts the zero value where an object of a kind has null, or nothing, and must have a value. Whether there are such
/// places at all.
pub(crate) fn fill(value: &mut Value, group: &str, version: &str, kind: &str) -> bool {
    let ty = type_of(&GroupVersionKind::new(group, version, kind));
    let Some(places) = ty.and_then(|ty| PLACES.get(&ty)) else { return false };
    places.iter().for_each(|place| put(value, &place.path, &place.zero));
    true
}

fn put(value: &mut Value, path: &[Step], zero: &Value) {
    match (path, value) {
        ([], value) if value.is_null() => value.clone_from(zero),
        ([Step::Member(name)], Value::Object(members)) => put(members.entry(*name).or_insert(Value::Null), &[], zero),
        ([Step::Member(name), rest @ ..], Value::Object(members)) => {
            if let Some(member) = members.get_mut(*name) {
                put(member, rest, zero);
            }
        }
        ([Step::Items, rest @ ..], Value::Array(items)) => items.iter_mut().for_each(|item| put(item, rest, zero)),
        ([Step::Items, rest @ ..], Value::Object(members)) => {
            members.values_mut().for_each(|member| put(member, rest, zero));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Service;
    use serde_json::json;

    use crate::kind::Kind;

    #[test]
    fn a_condition_without_a_time_is_typed_and_has_the_zero_time() {
        for time in [json!({"lastTransitionTime": null}), json!({})] {
            let mut condition = json!({"type": "A", "status": "True", "reason": "", "message": ""});
            condition.as_object_mut().expect("an object").extend(time.as_object().expect("an object").clone());
            let object =
                json!({"apiVersion": "v1", "kind": "Service", "metadata": {}, "status": {"conditions": [condition]}});
            let typed = Service::from_value(object.clone()).expect("decodes");
            assert_eq!(Service::decode(object.to_string().as_bytes()).expect("decodes"), typed);
            let written = typed.to_value();
            let time = written.pointer("/status/conditions/0/lastTransitionTime");
            assert_eq!(time, Some(&json!(super::ZERO_TIME)));
        }
    }

    #[test]
    fn what_is_really_wrong_is_still_refused() {
        assert!(Service::decode(br#"{"status":{"conditions":[{"lastTransitionTime":5}]}}"#).is_err());
        assert!(Service::decode(b"{").is_err());
    }
}
