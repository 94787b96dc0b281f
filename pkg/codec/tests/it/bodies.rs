//! Bodies as clients send them, and what they are told.

use expect_test::{Expect, expect};
use rkube_api::schema;
use rkube_apimachinery::gvk::GroupVersionKind;
use rkube_codec::{FieldValidation, Media, decode};

fn kind(group: &str, version: &str, kind: &str) -> GroupVersionKind {
    GroupVersionKind::new(group, version, kind)
}

fn answer(body: &[u8], media: Media, expected: &GroupVersionKind, validation: FieldValidation) -> String {
    let ty = rkube_api::type_of(expected).expect("a built-in kind");
    match decode(body, media, expected, schema(), ty, validation) {
        Ok(decoded) => {
            let warnings: String = decoded.warnings.iter().map(|warning| format!("\nwarning: {warning}")).collect();
            format!("{}{warnings}", decoded.value)
        }
        Err(status) => format!("{} {}", status.code(), status.message()),
    }
}

fn check_as(expected: &GroupVersionKind, body: &str, outcome: Expect) {
    outcome.assert_eq(&answer(body.as_bytes(), Media::Json, expected, FieldValidation::Warn));
}

fn config_map(body: &str, outcome: Expect) {
    check_as(&kind("", "v1", "ConfigMap"), body, outcome);
}

fn deployment(body: &str, outcome: Expect) {
    check_as(&kind("apps", "v1", "Deployment"), body, outcome);
}

#[test]
fn kinds_are_filled_in_and_zero_values_left_out_or_written_as_go_does() {
    config_map(
        r#"{"metadata":{"name":"a","labels":{},"creationTimestamp":null,"generation":0},"data":{"k":"v","n":null},"immutable":false}"#,
        expect![[
            r#"{"apiVersion":"v1","data":{"k":"v","n":""},"immutable":false,"kind":"ConfigMap","metadata":{"name":"a"}}"#
        ]],
    );
    deployment(
        r#"{"spec":{"replicas":0,"paused":false,"template":{"spec":{"containers":[{"name":"c","resources":{"limits":{"cpu":"1000m","memory":1073741824}}}]}}}}"#,
        expect![[
            r#"{"apiVersion":"apps/v1","kind":"Deployment","metadata":{},"spec":{"replicas":0,"selector":null,"strategy":{},"template":{"metadata":{},"spec":{"containers":[{"name":"c","resources":{"limits":{"cpu":"1","memory":"1073741824"}}}]}}},"status":{}}"#
        ]],
    );
}

#[test]
fn strict_errors_name_the_place() {
    config_map(
        r#"{"metadata":{"name":"a","name":"b","Name":"c"},"data":{"k":"1","k":"2"},"foo":{"x":1}}"#,
        expect![[r#"
            {"apiVersion":"v1","data":{"k":"2"},"kind":"ConfigMap","metadata":{"name":"b"}}
            warning: duplicate field "metadata.name"
            warning: unknown field "metadata.Name"
            warning: duplicate field "data.k"
            warning: unknown field "foo""#]],
    );
    deployment(
        r#"{"spec":{"selector":{},"template":{"spec":{"containers":[{"name":"c"},{"name":"d","imagePullpolicy":"x"}]}}}}"#,
        expect![[r#"
            {"apiVersion":"apps/v1","kind":"Deployment","metadata":{},"spec":{"selector":{},"strategy":{},"template":{"metadata":{},"spec":{"containers":[{"name":"c","resources":{}},{"name":"d","resources":{}}]}}},"status":{}}
            warning: unknown field "spec.template.spec.containers[1].imagePullpolicy""#]],
    );
    let strict = answer(
        br#"{"metadata":{"name":"a"},"foo":1,"bar":2}"#,
        Media::Json,
        &kind("", "v1", "ConfigMap"),
        FieldValidation::Strict,
    );
    expect![[r#"400 ConfigMap in version "v1" cannot be handled as a ConfigMap: strict decoding error: unknown field "foo", unknown field "bar""#]].assert_eq(&strict);
    let ignored = answer(br#"{"foo":1}"#, Media::Json, &kind("", "v1", "ConfigMap"), FieldValidation::Ignore);
    expect![[r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{}}"#]].assert_eq(&ignored);
}

#[test]
fn wrong_types_are_told_in_gos_words() {
    deployment(
        r#"{"spec":{"replicas":"3"}}"#,
        expect![[
            r#"400 Deployment in version "v1" cannot be handled as a Deployment: json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32"#
        ]],
    );
    deployment(
        r#"{"spec":{"replicas":1.5}}"#,
        expect![[
            r#"400 Deployment in version "v1" cannot be handled as a Deployment: json: cannot unmarshal number 1.5 into Go struct field DeploymentSpec.spec.replicas of type int32"#
        ]],
    );
    deployment(
        r#"{"spec":{"replicas":3000000000}}"#,
        expect![[
            r#"400 Deployment in version "v1" cannot be handled as a Deployment: json: cannot unmarshal number 3000000000 into Go struct field DeploymentSpec.spec.replicas of type int32"#
        ]],
    );
    deployment(
        r#"{"spec":{"template":{"spec":{"containers":[{"env":[{"name":"a","value":1}]}]}}}}"#,
        expect![[
            r#"400 Deployment in version "v1" cannot be handled as a Deployment: json: cannot unmarshal number into Go struct field EnvVar.spec.template.spec.containers.env.value of type string"#
        ]],
    );
    deployment(
        r#"{"spec":{"template":{"spec":{"containers":{}}}}}"#,
        expect![[
            r#"400 Deployment in version "v1" cannot be handled as a Deployment: json: cannot unmarshal object into Go struct field PodSpec.spec.template.spec.containers of type []v1.Container"#
        ]],
    );
    config_map(
        r#"{"data":{"a":1}}"#,
        expect![[
            r#"400 ConfigMap in version "v1" cannot be handled as a ConfigMap: json: cannot unmarshal number into Go struct field ConfigMap.data of type string"#
        ]],
    );
    config_map(
        r#"{"metadata":{"creationTimestamp":"yesterday"}}"#,
        expect![[
            r#"400 ConfigMap in version "v1" cannot be handled as a ConfigMap: parsing time "yesterday" as "2006-01-02T15:04:05Z07:00": cannot parse "yesterday" as "2006""#
        ]],
    );
    config_map(
        r#"{"binaryData":{"a":"%"}}"#,
        expect![[
            r#"400 ConfigMap in version "v1" cannot be handled as a ConfigMap: illegal base64 data at input byte 0"#
        ]],
    );
    deployment(
        r#"{"spec":{"template":{"spec":{"containers":[{"resources":{"limits":{"cpu":"lots"}}}]}}}}"#,
        expect![[
            r#"400 Deployment in version "v1" cannot be handled as a Deployment: quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"#
        ]],
    );
}

#[test]
fn what_is_no_object_is_unrecognized() {
    config_map(
        "{",
        expect![
            "400 the object provided is unrecognized (must be of type ConfigMap): couldn't get version/kind; json parse error: unexpected end of JSON input ({)"
        ],
    );
    config_map(
        "[1]",
        expect![[
            r#"400 the object provided is unrecognized (must be of type ConfigMap): couldn't get version/kind; json parse error: json: cannot unmarshal array into Go value of type struct { APIVersion string "json:\"apiVersion,omitempty\""; Kind string "json:\"kind,omitempty\"" } (5b315d)"#
        ]],
    );
    config_map(
        "",
        expect![
            "400 the object provided is unrecognized (must be of type ConfigMap): couldn't get version/kind; json parse error: unexpected end of JSON input (<empty>)"
        ],
    );
}

#[test]
fn another_kind_is_refused() {
    config_map(
        r#"{"apiVersion":"v1","kind":"Foo","data":1}"#,
        expect![[
            r#"400 Foo in version "v1" cannot be handled as a ConfigMap: no kind "Foo" is registered for version "v1" in scheme "pkg/api/legacyscheme/scheme.go:30""#
        ]],
    );
    config_map(
        r#"{"apiVersion":"apps/v1","kind":"Deployment"}"#,
        expect!["400 the API version in the data (apps/v1) does not match the expected API version (v1)"],
    );
    config_map(
        r#"{"apiVersion":"v1","kind":"Pod"}"#,
        expect![[
            r#"400 Pod in version "v1" cannot be handled as a ConfigMap: converting (v1.Pod) to (v1.ConfigMap): unknown conversion"#
        ]],
    );
}

#[test]
fn yaml_and_protobuf_bodies_are_the_same_objects() {
    let kind = kind("", "v1", "ConfigMap");
    let yaml = "metadata:\n  name: a\ndata:\n  yes: \"1\"\n  k: v\n  k: w\nfoo: 1\n";
    let found = answer(yaml.as_bytes(), Media::Yaml, &kind, FieldValidation::Warn);
    expect![[r#"
        {"apiVersion":"v1","data":{"k":"w","yes":"1"},"kind":"ConfigMap","metadata":{"name":"a"}}
        warning: yaml: unmarshal errors:
          line 6: key "k" already set in map
        warning: unknown field "foo""#]]
    .assert_eq(&found);
    let ty = rkube_api::type_of(&kind).expect("a built-in kind");
    let value =
        serde_json::json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"k": "v"}});
    let bytes = rkube_codec::protobuf::encode_object(&value, schema(), ty).expect("encodes");
    expect![[r#"{"apiVersion":"v1","data":{"k":"v"},"kind":"ConfigMap","metadata":{"name":"a"}}"#]].assert_eq(&answer(
        &bytes,
        Media::Protobuf,
        &kind,
        FieldValidation::Warn,
    ));
    expect![[r#"400 the object provided is unrecognized (must be of type ConfigMap): provided data does not appear to be a protobuf message, expected prefix [107 56 115 0] ({})"#]]
        .assert_eq(&answer(b"{}", Media::Protobuf, &kind, FieldValidation::Warn));
}
