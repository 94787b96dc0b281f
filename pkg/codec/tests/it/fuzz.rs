//! Damaged bodies and patches: whatever is accepted has one meaning, whatever is not is refused, and nothing panics.

use std::path::Path;

use jiff::Timestamp;
use rkube_api::schema;
use rkube_apimachinery::gvk::GroupVersionKind;
use rkube_apimachinery::managed_fields::{FieldManager, OneVersion, ResetFields};
use rkube_apimachinery::meta::Meta;
use rkube_apimachinery::patch::json::JsonPatch;
use rkube_apimachinery::patch::{merge, strategic};
use rkube_apimachinery::schema::TypeId;
use rkube_codec::json::decode::{from_slice, untyped};
use rkube_codec::protobuf::{self, Unknown};
use rkube_codec::{FieldValidation, Media, yaml};
use rkube_testing::fuzz::Fuzz;
use serde_json::Value;

const POD: &str = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p","namespace":"n","labels":{"a":"b"},
"finalizers":["x/y"],"ownerReferences":[{"apiVersion":"v1","kind":"Node","name":"n","uid":"u","controller":true}],
"creationTimestamp":"2026-01-01T00:00:00Z","managedFields":[{"manager":"m","operation":"Update","apiVersion":"v1",
"fieldsType":"FieldsV1","fieldsV1":{"f:spec":{"f:containers":{"k:{\"name\":\"c\"}":{".":{},"f:image":{}}}}}}]},
"spec":{"containers":[{"name":"c","image":"i:1","ports":[{"containerPort":80,"protocol":"TCP"}],
"env":[{"name":"A","value":"b"}],"resources":{"limits":{"cpu":"1500m","memory":"1Gi"}},
"livenessProbe":{"httpGet":{"port":"web"},"periodSeconds":10}}],"volumes":[{"name":"v","emptyDir":{}}],
"tolerations":[{"key":"k","operator":"Exists"}],"nodeSelector":{"a":"b"}}}"#;
const SECRET: &str =
    r#"{"apiVersion":"v1","kind":"Secret","metadata":{"name":"s"},"type":"Opaque","data":{"k":"dmFsdWU="}}"#;
const CRD: &str = r#"{"apiVersion":"apiextensions.k8s.io/v1","kind":"CustomResourceDefinition","metadata":{"name":"a.b"},
"spec":{"group":"b","scope":"Namespaced","names":{"plural":"as","kind":"A"},"versions":[{"name":"v1","served":true,
"storage":true,"schema":{"openAPIV3Schema":{"type":"object","properties":{"x":{"items":{"not":{"enum":[1,"a",null]}},
"additionalProperties":false,"default":{"a":[]}}}}}}]}}"#;
const LEASE: &str = r#"{"apiVersion":"coordination.k8s.io/v1","kind":"Lease","metadata":{"name":"l"},
"spec":{"holderIdentity":"h","leaseDurationSeconds":15,"renewTime":"2026-01-01T00:00:00.123456Z"}}"#;
const HPA: &str = r#"{"apiVersion":"autoscaling/v2","kind":"HorizontalPodAutoscaler","metadata":{"name":"h"},
"spec":{"maxReplicas":3,"scaleTargetRef":{"kind":"D","name":"d"},"metrics":[{"type":"Pods","pods":{"metric":{"name":"m"},
"target":{"type":"AverageValue","averageValue":"1k"}}}]}}"#;
const OBJECTS: [&str; 5] = [POD, SECRET, CRD, LEASE, HPA];

const JSON_WORDS: &[&str] = &[
    "{\"a\":",
    "[",
    "]",
    "}",
    "{}",
    "[]",
    "null",
    "true",
    "-1",
    "1e400",
    "0.1",
    "9223372036854775808",
    "\"\"",
    "\"\\ud800\"",
    "\"\\u0000\"",
    "\"metadata\":",
    "\"name\":",
    "\"spec\":",
    "\"$patch\":\"replace\"",
    "\"$patch\":\"delete\"",
    "\"$retainKeys\":[\"a\"]",
    "\"$setElementOrder/containers\":[{\"name\":\"c\"}]",
    "\"$deleteFromPrimitiveList/finalizers\":",
    "\"f:spec\":{",
    "\"k:{}\":{}",
    "\"v:1\":{}",
    "\"i:0\":{}",
    ",",
    "\u{feff}",
];
const YAML_WORDS: &[&str] = &[
    "- ",
    "&a ",
    "*a",
    "<<: *a",
    "? ",
    "!!binary ",
    "!!str ",
    "|\n ",
    ">-\n ",
    "---\n",
    "...\n",
    "'",
    "\t",
    "{",
    "~",
    ".inf",
    "0x1f",
    "0o7",
    "1_000",
    "yes",
    "#",
];

fn ty_of(object: &Value) -> TypeId {
    rkube_api::type_of(&object.gvk().expect("a seed says what it is")).expect("a built-in kind")
}

fn parse(text: &str) -> Value {
    serde_json::from_str(text).expect("a seed is JSON")
}

/// Type and JSON of the seeds: ours, and where it is at hand upstream's golden data, which is not needed for the claim.
fn seeds() -> Vec<(TypeId, Value)> {
    let folder = std::env::var_os("RKUBE_FIXTURES").map(|root| Path::new(&root).join("objects"));
    let golden = folder.into_iter().flat_map(|folder| std::fs::read_dir(folder).expect("golden data"));
    let paths = golden.map(|entry| entry.expect("golden data").path());
    let golden = paths.filter(|path| path.extension().is_some_and(|extension| extension == "json"));
    let mut found: Vec<(TypeId, Value)> =
        OBJECTS.iter().map(|text| parse(text)).map(|value| (ty_of(&value), value)).collect();
    for path in golden {
        let value: Value = serde_json::from_slice(&std::fs::read(path).expect("golden data")).expect("golden data");
        if let Some(ty) = value.gvk().and_then(|gvk| rkube_api::type_of(&gvk)) {
            found.push((ty, value));
        }
    }
    found
}

/// A decoded object is the same in every form, and decodes to itself.
fn has_one_meaning(value: &Value, ty: TypeId) {
    let text = value.to_string();
    let again = from_slice(text.as_bytes(), schema(), ty, true).expect("what was decoded decodes again");
    assert_eq!((&again.value, again.problems.len()), (value, 0), "JSON");
    let message = protobuf::encode(value, schema(), ty).expect("what was decoded encodes");
    let back = protobuf::decode(&message, schema(), ty).expect("what was encoded decodes");
    let repeated = protobuf::encode(&back, schema(), ty).expect("what was decoded encodes");
    assert_eq!(message, repeated, "protobuf");
}

#[test]
fn json_bodies() {
    for text in OBJECTS {
        let ty = ty_of(&parse(text));
        Fuzz::new("json", JSON_WORDS, OBJECTS).run(|case| {
            let strict = from_slice(case, schema(), ty, true);
            let lax = from_slice(case, schema(), ty, false);
            match (strict, lax) {
                (Ok(strict), Ok(lax)) => {
                    assert_eq!(strict.value, lax.value);
                    if strict.value.is_object() {
                        has_one_meaning(&strict.value, ty);
                    }
                }
                (Err(strict), Err(lax)) => assert_eq!(strict, lax),
                (strict, lax) => panic!("{strict:?} and {lax:?}"),
            }
            let free = untyped(case, true);
            assert_eq!(free.is_ok(), serde_json::from_slice::<Value>(case).is_ok());
        });
    }
}

#[test]
fn yaml_bodies() {
    let seeds: Vec<String> = OBJECTS
        .iter()
        .map(|text| yaml::write(&parse(text)).expect("YAML"))
        .chain(["a: &x [1]\nb: *x\n".to_owned()])
        .collect();
    Fuzz::new("yaml", YAML_WORDS, seeds).run(|case| {
        let Ok(parsed) = yaml::parse(case) else { return };
        // Aliases make more of a body than it is, within limits.
        assert!(parsed.value.to_string().len() < 16 * 1024 * 1024);
        let written = yaml::write(&parsed.value).expect("what was read is written");
        let again = yaml::parse(written.as_bytes()).unwrap_or_else(|error| panic!("{error}: {written}"));
        assert_eq!(again.value, parsed.value, "{written}");
    });
}

#[test]
fn protobuf_bodies() {
    let seeds = seeds();
    let messages: Vec<Vec<u8>> =
        seeds.iter().map(|(ty, value)| protobuf::encode(value, schema(), *ty).expect("a seed encodes")).collect();
    let types: Vec<TypeId> = seeds.iter().map(|(ty, _)| *ty).collect();
    let mut turn = 0;
    Fuzz::new("protobuf", &["\u{8}", "\n", "\u{12}\0", "\u{7f}\u{7f}\u{7f}"], messages).run(|case| {
        // Most bytes are read as their own type by chance only; every type gets its turn with everything.
        turn = (turn + 1) % types.len();
        let Ok(value) = protobuf::decode(case, schema(), types[turn]) else { return };
        let message = protobuf::encode(&value, schema(), types[turn]).expect("what was decoded encodes");
        let again = protobuf::decode(&message, schema(), types[turn]).expect("what was encoded decodes");
        assert_eq!(again, value);
    });
}

#[test]
fn requests() {
    let pod = parse(POD);
    let kind = GroupVersionKind::new("", "v1", "Pod");
    let ty = ty_of(&pod);
    let object = protobuf::encode_object(&pod, schema(), ty).expect("a seed encodes");
    let seeds =
        [POD.as_bytes().to_vec(), yaml::write(&pod).expect("YAML").into_bytes(), object, SECRET.as_bytes().to_vec()];
    Fuzz::new("requests", JSON_WORDS, seeds).run(|case| {
        for media in Media::ALL {
            for validation in [FieldValidation::Ignore, FieldValidation::Warn, FieldValidation::Strict] {
                match rkube_codec::decode(case, media, &kind, schema(), ty, validation) {
                    Ok(decoded) => assert_eq!(decoded.value.gvk(), Some(kind.clone())),
                    Err(status) => assert_eq!(status.code(), 400, "{}", status.message()),
                }
            }
        }
        if let Ok(unknown) = Unknown::parse(case) {
            assert!(unknown.raw.len() <= case.len());
        }
    });
}

#[test]
fn patches() {
    let pod = parse(POD);
    let ty = ty_of(&pod);
    let seeds = [
        r#"[{"op":"add","path":"/metadata/labels/x","value":"y"},{"op":"remove","path":"/spec/containers/0"}]"#,
        r#"[{"op":"move","from":"/spec","path":"/metadata/x~1y~0z"},{"op":"copy","from":"","path":"/a"},{"op":"test","path":"/-1"}]"#,
        r#"{"metadata":{"labels":{"a":null,"c":{"d":1}}},"spec":{"containers":[{"name":"c","image":null}]}}"#,
        r#"{"spec":{"$setElementOrder/containers":[{"name":"c"},{"name":"d"}],"containers":[{"name":"d","$patch":"delete"},
            {"name":"e","ports":[{"containerPort":1}]},{"$patch":"replace"}],"$retainKeys":["containers"]}}"#,
        r#"{"metadata":{"$deleteFromPrimitiveList/finalizers":["x/y"],"finalizers":["z"],"$patch":"merge"}}"#,
    ];
    Fuzz::new("patches", JSON_WORDS, seeds).run(|case| {
        if let Ok(patch) = JsonPatch::parse(case) {
            let mut document = pod.clone();
            if patch.apply(&mut document).is_ok() {
                // Copies are limited: a patch of a few bytes makes no giant.
                assert!(document.to_string().len() < 8 * 1024 * 1024);
            }
        }
        let Ok(patch) = serde_json::from_slice::<Value>(case) else { return };
        let mut merged = pod.clone();
        if merge::apply(&mut merged, patch.clone()).is_ok() {
            let difference = merge::create(&pod, &merged);
            let mut again = pod.clone();
            merge::apply(&mut again, difference).expect("a difference is a patch");
            assert_eq!(again, merged, "what a merge patch made, a merge patch makes");
        }
        let mut merged = pod.clone();
        if strategic::apply(schema(), ty, &mut merged, patch).is_ok() {
            assert!(merged.to_string().len() < pod.to_string().len() + 4 * case.len() + 64);
        }
    });
}

#[test]
fn server_side_apply() {
    let live = parse(POD);
    let ty = ty_of(&live);
    let gvk = GroupVersionKind::new("", "v1", "Pod");
    let reset = ResetFields::default();
    let manager = FieldManager {
        schemas: schema(),
        ty,
        gvk: &gvk,
        subresource: "",
        reset_fields: &reset,
        converter: &OneVersion,
    };
    let now = Timestamp::UNIX_EPOCH;
    let mut seeds: Vec<String> = OBJECTS.iter().map(|text| (*text).to_owned()).collect();
    seeds.push(r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p"},"spec":{"containers":[{"name":"c","image":"j"},{"name":"d"}]}}"#.to_owned());
    Fuzz::new("server-side apply", JSON_WORDS, seeds).run(|case| {
        let Ok(value) = serde_json::from_slice::<Value>(case) else { return };
        if let Ok(Some(applied)) = manager.apply(Some(&live), &value, "a", true, now) {
            let again = manager.apply(Some(&applied), &value, "a", true, now).expect("what was applied applies again");
            assert_eq!(again, None, "applying again changes nothing");
        }
        // As a live object, with whatever it says of its owners.
        if value.is_object() {
            let mut new = live.clone();
            manager.update(Some(&value), &mut new, "u", now);
            let _ = manager.apply(Some(&value), &live, "a", true, now);
        }
    });
}
