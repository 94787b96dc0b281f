//! Damaged text in the small formats: selectors, quantities, times, field sets, JSON patches. What is accepted means the
//! same when it is written and read again, and nothing panics.

use rkube_apimachinery::managed_fields::encode;
use rkube_apimachinery::patch::json::JsonPatch;
use rkube_apimachinery::patch::merge;
use rkube_apimachinery::{fields, labels, quantity, time};
use rkube_testing::fuzz::Fuzz;
use serde_json::{Value, json};

fn text(case: &[u8]) -> Option<&str> {
    std::str::from_utf8(case).ok()
}

#[test]
fn label_selectors() {
    let words = &["a", "x.io/y", " in ", " notin ", "(", ")", ",", "=", "==", "!=", "!", ">", "<", "1"];
    let seeds = ["a=b,c!=d", "x.io/y in (a,b,),!z", "a notin (b), c>1,d<2", "exists", "a=", ""];
    Fuzz::new("label selectors", words, seeds).run(|case| {
        let Some(selector) = text(case).and_then(|text| labels::Selector::parse(text).ok()) else { return };
        let written = selector.to_string();
        let again = labels::Selector::parse(&written).unwrap_or_else(|error| panic!("{written}: {error}"));
        assert_eq!(again.to_string(), written);
        let sample = std::collections::BTreeMap::from([("a".to_owned(), "b".to_owned())]);
        assert_eq!(again.matches(&sample), selector.matches(&sample), "{written}");
    });
}

#[test]
fn field_selectors() {
    let words = &["metadata.name", "=", "==", "!=", ",", "\\", "\\,", "\\=", "\\\\"];
    let seeds = ["metadata.name=a,spec.nodeName!=b", r"a=b\,c\=d\\e", "", "status.phase==Running"];
    Fuzz::new("field selectors", words, seeds).run(|case| {
        let Some(selector) = text(case).and_then(|text| fields::Selector::parse(text).ok()) else { return };
        let written = selector.to_string();
        let again = fields::Selector::parse(&written).unwrap_or_else(|error| panic!("{written}: {error}"));
        assert_eq!(again.to_string(), written);
    });
}

#[test]
fn quantities_and_times() {
    let words = &[
        "1",
        "0",
        ".",
        "e",
        "E",
        "Ki",
        "Ei",
        "m",
        "n",
        "u",
        "-",
        "+",
        "9223372036854775807",
        "h",
        "ns",
        "T",
        "Z",
        ":",
    ];
    let seeds = [
        "1500m",
        "1Gi",
        "-0.1",
        "1e3",
        "12E6",
        "0",
        "2026-01-01T00:00:00Z",
        "2026-01-01T00:00:00.123456+02:00",
        "1h2m3.5s",
    ];
    Fuzz::new("quantities and times", words, seeds).run(|case| {
        let Some(text) = text(case) else { return };
        if let Ok(canonical) = quantity::canonicalize(text) {
            let again = quantity::canonicalize(&canonical).expect("a canonical quantity is one");
            assert_eq!(again, canonical, "{text}");
        }
        if let Ok(at) = time::parse(text) {
            assert_eq!(time::parse(&time::format(at)).ok(), Some(time::whole_seconds(at)), "{text}");
        }
        if let Ok(duration) = time::parse_duration(text) {
            let written = time::format_duration(duration);
            assert_eq!(time::parse_duration(&written).ok(), Some(duration), "{text} {written}");
        }
    });
}

#[test]
fn field_sets() {
    let words = &[
        "{\"f:a\":{",
        "}",
        "\".\":{}",
        "\"k:{\\\"a\\\":1}\":{}",
        "\"v:\\\"x\\\"\":{}",
        "\"i:1\":{}",
        ",",
        "\"x:\":{}",
    ];
    let seeds = [
        r#"{"f:metadata":{"f:labels":{".":{},"f:a":{}}},"f:spec":{"f:l":{"k:{\"name\":\"c\",\"p\":1}":{".":{},"f:i":{}}}}}"#,
        r#"{"f:finalizers":{".":{},"v:\"a/b\"":{}},"i:0":{}}"#,
    ];
    Fuzz::new("field sets", words, seeds).run(|case| {
        let Ok(value) = serde_json::from_slice::<Value>(case) else { return };
        let Ok(set) = encode::from_json(&value) else { return };
        let written = encode::to_json(&set);
        let again = encode::from_json(&written).expect("a written set is one");
        assert_eq!(encode::to_json(&again), written);
        assert!(again.is_subset(&set) && set.is_subset(&again));
    });
}

#[test]
fn json_patches() {
    let document = json!({"a": {"b": [1, 2, {"c": null}]}, "~": "x", "/": {}, "": [[]]});
    let words = &[
        "\"op\":\"add\"",
        "\"op\":\"copy\"",
        "\"path\":\"",
        "/-",
        "/~01",
        "/0",
        "-1",
        "\"from\":\"/a\"",
        "\"value\":",
        "{",
        "}",
    ];
    let seeds = [
        r#"[{"op":"add","path":"/a/b/-","value":1},{"op":"copy","from":"/a","path":"/a/d"},{"op":"remove","path":"/a/b/0"}]"#,
        r#"[{"op":"test","path":"/~0","value":"x"},{"op":"move","from":"/a","path":"/~1/z"},{"op":"replace","path":"/a","value":[]}]"#,
    ];
    Fuzz::new("JSON patches", words, seeds).run(|case| {
        if let Ok(patch) = JsonPatch::parse(case) {
            let _ = patch.unknown_members().count();
            let _ = patch.apply(&mut document.clone());
        }
        if let Ok(patch) = serde_json::from_slice::<Value>(case) {
            let _ = merge::apply(&mut document.clone(), patch);
        }
    });
}
