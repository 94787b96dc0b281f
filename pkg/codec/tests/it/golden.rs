//! Every golden object: JSON, YAML and protobuf are the same object, and protobuf is equal byte for byte.

use std::fs;
use std::path::{Path, PathBuf};

use rkube_api::schema;
use rkube_apimachinery::schema::TypeId;
use rkube_codec::json::decode::{from_slice, from_value};
use rkube_codec::{canonicalize, protobuf, yaml};
use serde_json::Value;

struct Golden {
    name: String,
    json: Value,
    bytes: Vec<u8>,
    ty: TypeId,
    path: PathBuf,
}

/// All objects.
fn all() -> Vec<Golden> {
    let folder = rkube_testing::golden::folder().join("objects");
    let mut paths: Vec<PathBuf> = fs::read_dir(&folder)
        .expect("golden data is as described")
        .map(|entry| entry.expect("golden data is as described").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .collect();
    paths.sort();
    assert_eq!(paths.len(), 185);
    paths.into_iter().map(|path| load(&path)).collect()
}

fn load(path: &Path) -> Golden {
    let name = path
        .file_stem()
        .expect("golden data is as described")
        .to_str()
        .expect("golden data is as described")
        .to_owned();
    let bytes = fs::read(path).expect("golden data is as described");
    let json: Value = serde_json::from_slice(&bytes).expect("golden data is as described");
    // `apps.v1.Deployment`: not every object says what it is.
    let mut parts = name.rsplitn(3, '.');
    let (kind, version) =
        (parts.next().expect("golden data is as described"), parts.next().expect("golden data is as described"));
    let group = parts.next().filter(|group| *group != "core").unwrap_or_default();
    let ty = rkube_api::schema::type_of_parts(group, version, kind).unwrap_or_else(|| panic!("{name} has no type"));
    Golden { name, json, bytes, ty, path: path.to_owned() }
}

/// Fails with the names of all objects that fail, not just the first.
fn for_each(check: impl Fn(&Golden) -> Result<(), String>) {
    let failures: Vec<String> = all()
        .iter()
        .filter_map(|golden| check(golden).err().map(|error| format!("{}: {error}", golden.name)))
        .collect();
    assert!(failures.is_empty(), "{} failed:\n{}", failures.len(), failures.join("\n"));
}

fn same(found: &Value, expected: &Value) -> Result<(), String> {
    if found == expected { Ok(()) } else { Err(difference("", found, expected)) }
}

/// The first place where two trees differ.
fn difference(at: &str, found: &Value, expected: &Value) -> String {
    match (found, expected) {
        (Value::Object(a), Value::Object(b)) => {
            for (key, value) in b {
                match a.get(key) {
                    None => return format!("{at}.{key} is missing, expected {value}"),
                    Some(other) if other != value => return difference(&format!("{at}.{key}"), other, value),
                    Some(_) => {}
                }
            }
            let extra: Vec<&String> = a.keys().filter(|key| !b.contains_key(*key)).collect();
            format!("{at} has {extra:?} too much")
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            let index = a.iter().zip(b).position(|(a, b)| a != b).expect("golden data is as described");
            difference(&format!("{at}[{index}]"), &a[index], &b[index])
        }
        _ => format!("{at}: {found} instead of {expected}"),
    }
}

#[test]
fn json_is_read_without_complaint_and_unchanged() {
    for_each(|golden| {
        let typed = from_slice(&golden.bytes, schema(), golden.ty, true).map_err(|error| error.to_string())?;
        if !typed.problems.is_empty() {
            return Err(typed.problems.join(", "));
        }
        same(&typed.value, &golden.json)
    });
}

#[test]
fn canonical_form_is_what_is_there() {
    for_each(|golden| {
        let mut value = golden.json.clone();
        canonicalize(&mut value, schema(), golden.ty);
        same(&value, &golden.json)
    });
}

#[test]
fn yaml_is_the_same_object_both_ways() {
    for_each(|golden| {
        let text = fs::read(golden.path.with_extension("yaml")).expect("golden data is as described");
        let parsed = yaml::parse(&text).map_err(|error| error.to_string())?;
        if let Some(duplicate) = parsed.duplicate {
            return Err(duplicate);
        }
        let typed = from_value(&parsed.value, schema(), golden.ty, true).map_err(|error| error.to_string())?;
        same(&typed.value, &golden.json)?;
        let written = yaml::write(&golden.json).map_err(|error| error.to_string())?;
        let again = yaml::parse(written.as_bytes()).map_err(|error| error.to_string())?;
        same(&again.value, &golden.json)
    });
}

#[test]
fn protobuf_is_equal_byte_for_byte() {
    for_each(|golden| {
        let expected = fs::read(golden.path.with_extension("pb")).expect("golden data is as described");
        let found = protobuf::encode_object(&golden.json, schema(), golden.ty).map_err(|error| error.to_string())?;
        if found == expected {
            return Ok(());
        }
        let at = found.iter().zip(&expected).position(|(a, b)| a != b).unwrap_or(found.len().min(expected.len()));
        let around = |bytes: &[u8]| {
            let range = at.saturating_sub(24)..(at + 24).min(bytes.len());
            String::from_utf8_lossy(&bytes[range]).into_owned()
        };
        Err(format!("differs at {at}: {:?} instead of {:?}", around(&found), around(&expected)))
    });
}

#[test]
fn protobuf_is_read_as_the_same_object() {
    for_each(|golden| {
        let bytes = fs::read(golden.path.with_extension("pb")).expect("golden data is as described");
        let value = protobuf::decode_object(&bytes, schema(), golden.ty).map_err(|error| error.to_string())?;
        same(&value, &golden.json)
    });
}

#[test]
fn lists_are_put_together_from_encoded_items() {
    let golden = all();
    let Some(pod) = golden.iter().find(|golden| golden.name == "core.v1.Pod") else { return };
    let encoded = protobuf::encode_object(&pod.json, schema(), pod.ty).expect("golden data is as described");
    let meta = serde_json::json!({"resourceVersion": "7", "continue": "next"});
    let items = [encoded.as_slice(), encoded.as_slice()];
    let list =
        protobuf::list::encode_list("v1", "PodList", &meta, items.into_iter()).expect("golden data is as described");
    let ty = rkube_api::schema::type_of_parts("", "v1", "PodList").expect("golden data is as described");
    let decoded = protobuf::decode_object(&list, schema(), ty).expect("golden data is as described");
    // Encoding the whole gives the same bytes as putting it together.
    assert_eq!(protobuf::encode_object(&decoded, schema(), ty).expect("golden data is as described"), list);
    assert_eq!(decoded["metadata"], meta);
    let mut item = pod.json.clone();
    for name in ["apiVersion", "kind"] {
        item.as_object_mut().expect("golden data is as described").remove(name);
    }
    assert_eq!(decoded["items"], serde_json::json!([item, item]));
}

#[test]
fn watch_frames_hold_the_object_in_its_envelope() {
    let golden = all();
    let Some(pod) = golden.iter().find(|golden| golden.name == "core.v1.Pod") else { return };
    let encoded = protobuf::encode_object(&pod.json, schema(), pod.ty).expect("golden data is as described");
    let frame = protobuf::list::watch_frame("ADDED", &encoded);
    let (length, event) = frame.split_at(4);
    assert_eq!(u32::from_be_bytes(length.try_into().expect("golden data is as described")) as usize, event.len());
    let ty = rkube_api::schema::type_of_parts("", "v1", "WatchEvent").expect("golden data is as described");
    let decoded = protobuf::decode(event, schema(), ty).expect("golden data is as described");
    assert_eq!(decoded["type"], "ADDED");
    assert_eq!(decoded["object"], pod.json);
}
