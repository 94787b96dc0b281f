//! Whatever fits a type comes back from each form, and whatever does not never panics.

use proptest::prelude::*;
use rkube_api::schema;
use rkube_apimachinery::schema::{Scalar, Shape, TypeId};
use rkube_codec::json::decode::{from_slice, from_value};
use rkube_codec::{canonicalize, protobuf, yaml};
use serde_json::{Map, Value, json};

/// A few kinds with every sort of field between them.
const KINDS: [(&str, &str, &str); 8] = [
    ("", "v1", "Pod"),
    ("", "v1", "Secret"),
    ("", "v1", "Service"),
    ("", "v1", "PersistentVolume"),
    ("apps", "v1", "Deployment"),
    ("coordination.k8s.io", "v1", "Lease"),
    ("authorization.k8s.io", "v1", "SubjectAccessReview"),
    ("apiextensions.k8s.io", "v1", "CustomResourceDefinition"),
];

fn ty_of(index: usize) -> TypeId {
    let (group, version, kind) = KINDS[index];
    rkube_api::schema::type_of_parts(group, version, kind).expect("a built-in kind")
}

/// A source of choices: the tree is a function of the bytes, so that a failure shrinks.
struct Choices<'a>(std::slice::Iter<'a, u8>);

impl Choices<'_> {
    fn next(&mut self) -> u8 {
        self.0.next().copied().unwrap_or(0)
    }
}

fn build(ty: TypeId, choices: &mut Choices<'_>, depth: usize) -> Value {
    match &schema().get(ty).shape {
        Shape::Object(object) => {
            let mut members = Map::new();
            for field in object.fields.iter() {
                // Zero bytes (and too much depth) end the tree.
                if depth < 12 && choices.next() % 4 == 1 && field.json != "apiVersion" && field.json != "kind" {
                    members.insert(field.json.to_string(), build(field.ty, choices, depth + 1));
                }
            }
            Value::Object(members)
        }
        Shape::List(list) => {
            // Empty lists are null after protobuf, upstream too.
            let length = 1 + choices.next() % 2;
            (0..length).map(|_| build(list.item, choices, depth + 1)).collect()
        }
        Shape::Map(map) => {
            let length = 1 + choices.next() % 2;
            (0..length).map(|_| (text(choices), build(map.value, choices, depth + 1))).collect()
        }
        Shape::Scalar(scalar) => leaf(*scalar, choices),
    }
}

fn text(choices: &mut Choices<'_>) -> String {
    const TEXTS: [&str; 10] = ["", "a", "yes", "0644", "null", "é\u{1F600}", "a\nb\n", "1e3", " x: y ", "\"\\\u{1}"];
    TEXTS[usize::from(choices.next()) % TEXTS.len()].to_owned()
}

fn leaf(scalar: Scalar, choices: &mut Choices<'_>) -> Value {
    let byte = choices.next();
    let one_of = |values: &[Value]| values[usize::from(byte) % values.len()].clone();
    match scalar {
        Scalar::String => Value::String(text(choices)),
        Scalar::Bool => Value::Bool(byte % 2 == 1),
        Scalar::Int32 => one_of(&[json!(0), json!(7), json!(-1), json!(i32::MAX), json!(i32::MIN)]),
        Scalar::Int64 => one_of(&[json!(0), json!(i64::MAX), json!(i64::MIN), json!(9_007_199_254_740_993_i64)]),
        Scalar::Double => one_of(&[json!(0), json!(1.5), json!(-3)]),
        Scalar::Bytes => one_of(&[json!(""), json!("AAECAw=="), json!("/w==")]),
        Scalar::Time => one_of(&[Value::Null, json!("2024-02-29T23:59:59Z"), json!("1969-12-31T23:59:59Z")]),
        Scalar::MicroTime => {
            one_of(&[Value::Null, json!("2024-02-29T23:59:59.000001Z"), json!("1960-01-01T00:00:00.999999Z")])
        }
        Scalar::Duration => one_of(&[json!("0s"), json!("1h1m1.5s"), json!("-2ms")]),
        Scalar::Quantity => one_of(&[json!("0"), json!("100m"), json!("1Gi"), json!("12e6")]),
        Scalar::IntOrString => one_of(&[json!(0), json!(80), json!("http"), json!("25%"), json!("")]),
        Scalar::FieldsV1 | Scalar::RawExtension | Scalar::Json => {
            one_of(&[json!({}), json!({"f:a": {".": {}}}), json!({"n": 1.5, "l": [null, true]})])
        }
        Scalar::JsonSchemaPropsOrBool => one_of(&[json!(true), json!(false), json!({"type": "string"})]),
        Scalar::JsonSchemaPropsOrArray => one_of(&[json!({"type": "string"}), json!([{"type": "object"}, {}])]),
        Scalar::JsonSchemaPropsOrStringArray => one_of(&[json!({"type": "string"}), json!(["a", "b"])]),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn a_tree_comes_back_from_every_form(kind in 0..KINDS.len(), bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let ty = ty_of(kind);
        let tree = build(ty, &mut Choices(bytes.iter()), 0);
        let typed = from_value(&tree, schema(), ty, true).expect("the tree fits its type");
        prop_assert_eq!(&typed.problems, &Vec::<String>::new());
        let canonical = typed.value;

        // Decoding and canonicalizing agree, and change nothing the second time.
        let mut in_place = tree;
        canonicalize(&mut in_place, schema(), ty);
        prop_assert_eq!(&in_place, &canonical);
        let json = serde_json::to_vec(&canonical).expect("a tree is JSON");
        prop_assert_eq!(&from_slice(&json, schema(), ty, true).expect("its own output").value, &canonical);

        let encoded = protobuf::encode(&canonical, schema(), ty).expect("the tree fits its type");
        let decoded = protobuf::decode(&encoded, schema(), ty).expect("its own output");
        prop_assert_eq!(protobuf::encode(&decoded, schema(), ty).expect("fits"), encoded);
        prop_assert_eq!(&decoded, &canonical);

        let written = yaml::write(&canonical).expect("a tree is YAML");
        let parsed = yaml::parse(written.as_bytes()).expect("its own output");
        prop_assert_eq!(&parsed.value, &canonical);
    }

    #[test]
    fn arbitrary_bytes_never_panic(kind in 0..KINDS.len(), bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let ty = ty_of(kind);
        let _ = protobuf::decode(&bytes, schema(), ty);
        let _ = protobuf::decode_object(&bytes, schema(), ty);
        let _ = from_slice(&bytes, schema(), ty, true);
        let _ = yaml::parse(&bytes);
    }

    #[test]
    fn damaged_messages_never_panic(
        kind in 0..KINDS.len(),
        bytes in prop::collection::vec(any::<u8>(), 0..400),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let ty = ty_of(kind);
        let tree = build(ty, &mut Choices(bytes.iter()), 0);
        let canonical = from_value(&tree, schema(), ty, true).expect("the tree fits its type").value;
        let mut message = protobuf::encode(&canonical, schema(), ty).expect("the tree fits its type");
        for (place, byte) in damage {
            if !message.is_empty() {
                let at = place.index(message.len());
                message[at] = byte;
            }
        }
        if let Ok(value) = protobuf::decode(&message, schema(), ty) {
            // What decodes at all encodes again.
            protobuf::encode(&value, schema(), ty).expect("decoded trees fit their type");
        }
    }
}
