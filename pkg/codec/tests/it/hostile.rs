//! Input made to hurt: it is refused, quickly and without memory of its choosing.

use rkube_api::schema;
use rkube_apimachinery::schema::TypeId;
use rkube_codec::json::decode::{JsonError, from_slice};
use rkube_codec::protobuf::{self, MessageError};
use rkube_codec::yaml;

fn pod() -> TypeId {
    rkube_api::schema::type_of_parts("", "v1", "Pod").expect("a built-in kind")
}

fn crd() -> TypeId {
    rkube_api::schema::type_of_parts("apiextensions.k8s.io", "v1", "CustomResourceDefinition").expect("a built-in kind")
}

#[test]
fn deep_json_is_refused() {
    for (open, close) in [("{\"a\":", "}"), ("[", "]")] {
        for inside in ["{\"spec\":", "{\"metadata\":{\"managedFields\":[{\"fieldsV1\":"] {
            let body = format!("{inside}{}1{}", open.repeat(100_000), close.repeat(100_000));
            let error = from_slice(body.as_bytes(), schema(), pod(), true).expect_err("too deep");
            assert_eq!(error, JsonError::Syntax("exceeded max depth".to_owned()));
        }
    }
}

#[test]
fn complaints_are_bounded() {
    let unknown: Vec<String> = (0..10_000).map(|index| format!("\"u{index}\":1")).collect();
    let body = format!("{{{}}}", unknown.join(","));
    let typed = from_slice(body.as_bytes(), schema(), pod(), true).expect("unknown fields are no error");
    assert_eq!(typed.problems.len(), 100);
}

#[test]
fn yaml_bombs_are_refused() {
    let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..12 {
        let before = format!("*a{}", level - 1);
        bomb.push_str(&format!("a{level}: &a{level} [{}]\n", vec![before; 10].join(", ")));
    }
    yaml::parse(bomb.as_bytes()).expect_err("a bomb");
    let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
    yaml::parse(deep.as_bytes()).expect_err("too deep");
}

#[test]
fn lengths_beyond_the_message_are_refused() {
    let check = |bytes: &[u8], expected: MessageError| {
        assert_eq!(protobuf::decode(bytes, schema(), pod()).expect_err("not a message"), expected);
    };
    // metadata of 2^63 bytes
    check(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f], MessageError::Truncated);
    // a varint of eleven bytes
    check(&[0x0a, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01], MessageError::Overflow);
    check(&[0x0a], MessageError::Truncated);
    check(&[0x00, 0x00], MessageError::Tag(0));
    check(&[0x0f], MessageError::WireType(7));
    // metadata as a number
    check(&[0x08, 0x01], MessageError::Mismatch("metadata".to_owned()));
    // groups without end
    check(&[0x7b; 1000], MessageError::Truncated);
}

/// Found by fuzzing: Go reads such an entry as empty bytes, which are not null.
#[test]
fn an_entry_without_a_value_is_empty() {
    let secret = rkube_api::schema::type_of_parts("", "v1", "Secret").expect("a built-in kind");
    let decoded = protobuf::decode(&[0x12, 0x03, 0x0a, 0x01, b'k'], schema(), secret).expect("a message");
    assert_eq!(decoded["data"], serde_json::json!({"k": ""}));
}

#[test]
fn deep_protobuf_is_refused() {
    // JSONSchemaProps.not, number 28, in itself.
    let mut message = Vec::new();
    for _ in 0..2_000 {
        let mut outer = vec![0xe2, 0x01];
        let mut length = message.len();
        while length >= 0x80 {
            outer.push(u8::try_from(length & 0x7f).expect("seven bits") | 0x80);
            length >>= 7;
        }
        outer.push(u8::try_from(length).expect("seven bits"));
        outer.extend_from_slice(&message);
        message = outer;
    }
    let ty = rkube_api::type_named("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps");
    let error = protobuf::decode(&message, schema(), ty.expect("a type")).expect_err("too deep");
    assert_eq!(error, MessageError::Depth);
    // As JSON, through the type that holds itself.
    let body = format!(
        "{{\"spec\":{{\"versions\":[{{\"schema\":{{\"openAPIV3Schema\":{}{{}}{}}}}}]}}}}",
        "{\"not\":".repeat(5_000),
        "}".repeat(5_000)
    );
    from_slice(body.as_bytes(), schema(), crd(), true).expect_err("too deep");
}
