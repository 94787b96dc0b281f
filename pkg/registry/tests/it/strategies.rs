//! The table of strategies over every built-in kind.

use bytes::Bytes;
use jiff::Timestamp;
use rkube_api::draft::Draft;
use rkube_api::{Resource, StoredObject};
use rkube_apimachinery::gvk::GroupVersionKind;
use rkube_apimachinery::key::ObjectKey;
use rkube_apimachinery::schema::{Scalar, Shape, TypeId};
use rkube_codec::{FieldValidation, Media};
use rkube_registry::strategy::{Registration, strategies};
use rkube_registry::{RequestContext, Strategy, StrategyContext};
use serde_json::{Value, json};

fn registration<'a>(all: &'a [Registration], row: &Resource) -> Option<&'a Registration> {
    let prefix = row.stored_as.as_ref().map(|stored| &stored.prefix);
    all.iter().find(|registration| {
        rkube_api::resources().iter().any(|other| {
            other.group == registration.group
                && other.plural == registration.plural
                && other.stored_as.as_ref().map(|stored| &stored.prefix) == prefix
        })
    })
}

#[test]
fn every_stored_resource_has_strategies_for_itself_and_its_status() {
    let all = strategies();
    let mut missing = Vec::new();
    for row in rkube_api::resources().iter().filter(|row| row.stored_as.is_some()) {
        let Some(registration) = registration(&all, row) else {
            missing.push(row.gvr().to_string());
            continue;
        };
        let has = |name: &str| registration.subresources.iter().any(|(known, _)| *known == name);
        if row.subresource("status").is_some() && !has("status") {
            missing.push(format!("{}/status", row.gvr()));
        }
    }
    assert_eq!(missing, Vec::<String>::new());
    for registration in &all {
        let known = rkube_api::resources()
            .iter()
            .any(|row| row.group == registration.group && row.plural == registration.plural);
        assert!(known, "{}/{} is no resource", registration.group, registration.plural);
    }
}

/// The object of the golden data that the strategies of a resource work on.
fn fixture(row: &Resource) -> Option<Value> {
    let root = rkube_testing::golden::folder();
    let stored = row.stored_as.as_ref()?;
    let group = if stored.group.is_empty() { "core" } else { &stored.group };
    let file = root.join("objects").join(format!("{group}.{}.{}.json", stored.version, stored.kind));
    // Kinds of the aggregator and of extensions are in no golden data.
    let bytes = std::fs::read(file).ok()?;
    let mut value = serde_json::from_slice(&bytes).expect("golden data is JSON");
    drop_nulls(&mut value);
    Some(value)
}

/// Times that Go could not fill in are null, which the codec drops before typed code sees them.
fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(members) => {
            members.retain(|_, member| !member.is_null());
            members.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

fn stored(value: &Value) -> StoredObject {
    let json = Bytes::from(serde_json::to_vec(value).expect("a tree encodes"));
    StoredObject::new(ObjectKey::cluster("x"), 1, json, Default::default())
}

/// Runs what a create runs, and what an update runs that changes nothing.
fn run(strategy: &dyn Strategy, row: &Resource, value: &Value) -> Vec<String> {
    let name = row.gvr().to_string();
    let request = RequestContext::internal();
    let context =
        StrategyContext { request: &request, resource: row, namespace: "namespaceValue", now: Timestamp::UNIX_EPOCH };
    let mut faults = Vec::new();
    let mut once = Draft::new(value.clone());
    strategy.default(&mut once).expect("golden data decodes");
    let once = once.into_value();
    let mut twice = Draft::new(once.clone());
    strategy.default(&mut twice).expect("a defaulted object decodes");
    let twice = twice.into_value();
    if once != twice {
        faults.push(format!("{name}: defaulting again changes the object"));
    }

    let mut new = Draft::new(once.clone());
    strategy.prepare_for_create(&context, &mut new).expect("prepare");
    strategy.validate(&context, &mut new).expect("validate");
    strategy.warnings_on_create(&context, &mut new).expect("warnings");
    strategy.canonicalize(&mut new).expect("canonicalize");

    let old = stored(&once);
    let mut new = Draft::new(once.clone());
    strategy.prepare_for_update(&context, &mut new, &old).expect("prepare");
    let errors = strategy.validate_update(&context, &mut new, &old).expect("validate");
    let immutable = errors.iter().map(ToString::to_string).filter(|error| error.contains("immutable"));
    faults.extend(immutable.map(|error| format!("{name}: unchanged, and yet: {error}")));
    strategy.warnings_on_update(&context, &mut new, &old).expect("warnings");
    let updated = new.into_value();
    if updated.pointer("/metadata/generation") != once.pointer("/metadata/generation") {
        faults.push(format!("{name}: an update without changes is a new generation"));
    }
    faults
}

#[test]
fn golden_objects_pass_through_their_strategies() {
    let all = strategies();
    let (mut faults, mut seen) = (Vec::new(), 0);
    for registration in &all {
        let row = rkube_api::resources()
            .iter()
            .find(|row| row.group == registration.group && row.plural == registration.plural)
            .expect("registrations name resources");
        let Some(value) = fixture(row) else { continue };
        seen += 1;
        faults.extend(run(registration.main.as_ref(), row, &value));
        for (_, strategy) in &registration.subresources {
            faults.extend(run(strategy.as_ref(), row, &value));
        }
    }
    assert_eq!(faults, Vec::<String>::new());
    assert!(seen > 50, "only {seen} golden objects were found");
}

/// Replaces every scalar, or changes every list.
fn spoil(value: &mut Value, change: &impl Fn(&mut Value)) {
    match value {
        Value::Object(members) => members.values_mut().for_each(|member| spoil(member, change)),
        Value::Array(items) => items.iter_mut().for_each(|item| spoil(item, change)),
        _ => {}
    }
    change(value);
}

/// What clients may send and nobody means.
fn spoiled(value: &Value) -> Vec<Value> {
    let mut all = Vec::new();
    let long = "9".repeat(300);
    let texts =
        ["", "é", "a/b/c", "-", "💥=:", "1e999999999", "9223372036854775808Gi", "٣%", "..", "[", "-----BEGIN ", &long];
    for text in texts {
        all.push(spoiled_with(value, &|leaf| {
            if leaf.is_string() {
                *leaf = Value::from(text);
            }
        }));
    }
    for number in [-1, 0, i64::from(i32::MAX), i64::from(i32::MIN), i64::MAX, i64::MIN] {
        all.push(spoiled_with(value, &|leaf| {
            if leaf.is_number() {
                *leaf = Value::from(number);
            }
        }));
    }
    all.push(spoiled_with(value, &|list| {
        if let Value::Array(items) = list {
            items.clear();
        }
    }));
    all.push(spoiled_with(value, &|list| {
        if let Value::Array(items) = list {
            items.extend(items.clone());
        }
    }));
    all.push(spoiled_with(value, &|map| {
        if let Value::Object(members) = map {
            members.retain(|name, _| matches!(name.as_str(), "spec" | "status" | "metadata" | "template"));
        }
    }));
    all
}

fn spoiled_with(value: &Value, change: &impl Fn(&mut Value)) -> Value {
    let mut value = value.clone();
    spoil(&mut value, change);
    value
}

/// Both against what is stored and as what is stored.
fn survive(strategy: &dyn Strategy, row: &Resource, good: &Value, bad: &Value) {
    let request = RequestContext::internal();
    let context =
        StrategyContext { request: &request, resource: row, namespace: "namespaceValue", now: Timestamp::UNIX_EPOCH };
    let mut new = Draft::new(bad.clone());
    // What does not decode is refused before it gets further.
    if strategy.default(&mut new).is_err() {
        return;
    }
    let bad = new.into_value();
    let mut new = Draft::new(bad.clone());
    strategy.prepare_for_create(&context, &mut new).expect("prepare");
    strategy.validate(&context, &mut new).expect("validate");
    strategy.warnings_on_create(&context, &mut new).expect("warnings");
    for (new, old) in [(&bad, good), (good, &bad)] {
        let (mut new, old) = (Draft::new(new.clone()), stored(old));
        strategy.prepare_for_update(&context, &mut new, &old).expect("prepare");
        strategy.validate_update(&context, &mut new, &old).expect("validate");
        strategy.warnings_on_update(&context, &mut new, &old).expect("warnings");
    }
}

/// An object that has everything its type has.
fn full(ty: TypeId, above: &mut Vec<TypeId>) -> Value {
    let schema = rkube_api::schema();
    if above.contains(&ty) {
        return Value::Null;
    }
    above.push(ty);
    let value = match &schema.get(ty).shape {
        Shape::Scalar(scalar) => match scalar {
            Scalar::String => json!("s"),
            Scalar::Bool | Scalar::JsonSchemaPropsOrBool => json!(true),
            Scalar::Int32 | Scalar::Int64 | Scalar::Double | Scalar::IntOrString => json!(1),
            Scalar::Bytes => json!("eA=="),
            Scalar::Time => json!("2020-01-02T03:04:05Z"),
            Scalar::MicroTime => json!("2020-01-02T03:04:05.000006Z"),
            Scalar::Duration => json!("1m0s"),
            Scalar::Quantity => json!("1"),
            Scalar::FieldsV1 | Scalar::RawExtension => json!({"f:a": {}}),
            Scalar::Json => json!(1),
            Scalar::JsonSchemaPropsOrArray | Scalar::JsonSchemaPropsOrStringArray => json!({"type": "object"}),
        },
        Shape::List(list) => json!([full(list.item, above)]),
        Shape::Map(map) => json!({"k": full(map.value, above)}),
        Shape::Object(object) => {
            // The kind of an object within an object is not for anybody to choose.
            let within = above.len() > 1;
            let fields = object.fields.iter().filter(|field| !within || !matches!(&*field.json, "apiVersion" | "kind"));
            Value::Object(fields.map(|field| (field.json.to_string(), full(field.ty, above))).collect())
        }
    };
    above.pop();
    value
}

/// Every member of what is `depth` members down becomes null.
fn null_at(value: &mut Value, depth: usize) {
    match value {
        Value::Object(members) if depth == 0 => members.values_mut().for_each(|member| *member = Value::Null),
        Value::Object(members) => members.values_mut().for_each(|member| null_at(member, depth - 1)),
        Value::Array(items) => items.iter_mut().for_each(|item| null_at(item, depth)),
        _ => {}
    }
}

fn null_leaves(value: &mut Value) {
    match value {
        Value::Object(members) => members.values_mut().for_each(null_leaves),
        Value::Array(items) => items.iter_mut().for_each(null_leaves),
        leaf => *leaf = Value::Null,
    }
}

/// In Go null is the zero value of whatever it stands for, also where a value must be.
#[test]
fn null_is_taken_for_every_field_of_every_kind() {
    let mut faults = Vec::new();
    for registration in &strategies() {
        let row = rkube_api::resources()
            .iter()
            .find(|row| row.group == registration.group && row.plural == registration.plural)
            .expect("registrations name resources");
        let Some(stored) = row.stored_as.as_ref() else { continue };
        let gvk = GroupVersionKind::new(stored.group.as_ref(), stored.version.as_ref(), stored.kind.as_ref());
        let ty = rkube_api::type_of(&gvk).expect("a stored kind has a type");
        let whole = full(ty, &mut Vec::new());
        let variant = |change: &dyn Fn(&mut Value)| {
            let mut value = whole.clone();
            change(&mut value);
            value["apiVersion"] = json!(gvk.api_version());
            value["kind"] = json!(gvk.kind);
            value
        };
        let mut variants = vec![variant(&|_| {}), variant(&null_leaves)];
        variants.extend((1..12).map(|depth| variant(&|value| null_at(value, depth))));
        for value in variants {
            let bytes = Bytes::from(value.to_string());
            let schema = rkube_api::schema();
            let decoded = rkube_codec::decode(&bytes, Media::Json, &gvk, schema, ty, FieldValidation::Strict);
            let result = decoded.map_err(|status| status.message().to_owned()).and_then(|decoded| {
                let mut draft = Draft::new(decoded.value);
                registration.main.default(&mut draft).map_err(|error| format!("{error}: {}", error.source))?;
                let mut value = draft.into_value();
                rkube_codec::canonicalize(&mut value, schema, ty);
                let text = value.to_string();
                if text.contains("0001-01-01") { Err("the zero time is written".to_owned()) } else { Ok(()) }
            });
            faults.extend(result.err().map(|fault| format!("{gvk}: {fault}")));
        }
    }
    faults.dedup();
    assert_eq!(faults, Vec::<String>::new());
}

#[test]
fn spoiled_golden_objects_are_survived() {
    for registration in &strategies() {
        let row = rkube_api::resources()
            .iter()
            .find(|row| row.group == registration.group && row.plural == registration.plural)
            .expect("registrations name resources");
        let Some(good) = fixture(row) else { continue };
        for bad in spoiled(&good) {
            survive(registration.main.as_ref(), row, &good, &bad);
            for (_, strategy) in &registration.subresources {
                survive(strategy.as_ref(), row, &good, &bad);
            }
        }
    }
}
