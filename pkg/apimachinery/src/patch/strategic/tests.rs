//! Strategic merge patches: every directive, and patches made from two objects.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::testing::Types;

fn types() -> Types {
    Types::new(json!({
        "Root": {"fields": {
            "name": "string", "value": "int",
            "map": {"map": "string"},
            "maps": {"map": {"ref": "Root"}},
            "items": {"list": {"ref": "Item"}, "keys": ["name"], "patch": "merge", "mergeKey": "name"},
            "ports": {"list": {"ref": "Port"}, "patch": "merge", "mergeKey": "port"},
            "volumes": {"list": {"ref": "Item"}, "patch": "merge,retainKeys", "mergeKey": "name"},
            "finalizers": {"list": "string", "set": true, "patch": "merge"},
            "args": {"list": "string"},
            "whole": {"list": {"ref": "Item"}},
            "strategy": {"ref": "Strategy", "fieldPatch": "retainKeys"},
            "replaced": {"fieldPatch": "replace", "fields": {"a": "string", "b": "string"}},
            "child": {"ref": "Root"},
            "free": "json",
        }},
        "Item": {"fields": {"name": "string", "value": "string", "other": "string", "sub": {"ref": "Root"}}},
        "Port": {"fields": {"port": "int", "protocol": "string", "name": "string"}},
        "Strategy": {"fields": {"type": "string", "rolling": {"fields": {"surge": "int"}}}},
    }))
}

fn applied(document: Value, patch: Value) -> String {
    let types = types();
    let mut document = document;
    let result = apply(&types.set, types.id("Root"), &mut document, patch);
    result.map_or_else(|error| format!("error: {error}"), |()| document.to_string())
}

#[test]
fn patches_merge_by_type() {
    let text = |value: Value| value.to_string();
    for (what, document, patch, expected) in [
        (
            "fields merge, null removes",
            json!({"name": "a", "value": 1}),
            json!({"value": null, "map": {"k": "v", "n": null}}),
            json!({"name": "a", "map": {"k": "v"}}),
        ),
        (
            "maps merge key by key",
            json!({"map": {"a": "1", "b": "2"}}),
            json!({"map": {"a": null, "c": "3"}}),
            json!({"map": {"b": "2", "c": "3"}}),
        ),
        (
            "maps of structs merge too",
            json!({"maps": {"x": {"name": "n"}}}),
            json!({"maps": {"x": {"value": 1}}}),
            json!({"maps": {"x": {"name": "n", "value": 1}}}),
        ),
        (
            "lists without strategy are replaced",
            json!({"args": ["a"], "whole": [{"name": "x"}]}),
            json!({"args": ["b"], "whole": []}),
            json!({"args": ["b"], "whole": []}),
        ),
        (
            "items merge by key, new ones first",
            json!({"items": [{"name": "a", "value": "1"}, {"name": "b"}]}),
            json!({"items": [{"name": "c"}, {"name": "a", "other": "2"}]}),
            json!({"items": [{"name": "c"}, {"name": "a", "value": "1", "other": "2"}, {"name": "b"}]}),
        ),
        (
            "numbers are keys",
            json!({"ports": [{"port": 80, "name": "x"}]}),
            json!({"ports": [{"port": 80, "protocol": "TCP"}, {"port": 443}]}),
            json!({"ports": [{"port": 80, "name": "x", "protocol": "TCP"}, {"port": 443}]}),
        ),
        (
            "an item is deleted",
            json!({"items": [{"name": "a"}, {"name": "b"}]}),
            json!({"items": [{"$patch": "delete", "name": "a"}]}),
            json!({"items": [{"name": "b"}]}),
        ),
        (
            "deleting and adding in one patch",
            json!({"items": [{"name": "a"}]}),
            json!({"items": [{"$patch": "delete", "name": "a"}, {"name": "b", "value": null}]}),
            json!({"items": [{"name": "b"}]}),
        ),
        (
            "a list is replaced",
            json!({"items": [{"name": "a"}, {"name": "b"}]}),
            json!({"items": [{"name": "c"}, {"$patch": "replace"}]}),
            json!({"items": [{"name": "c"}]}),
        ),
        (
            "an object is replaced",
            json!({"child": {"name": "a", "value": 1}}),
            json!({"child": {"$patch": "replace", "name": "b"}}),
            json!({"child": {"name": "b"}}),
        ),
        (
            "an object is emptied",
            json!({"child": {"name": "a"}}),
            json!({"child": {"$patch": "delete"}}),
            json!({"child": {}}),
        ),
        (
            "a replaced struct",
            json!({"replaced": {"a": "1"}}),
            json!({"replaced": {"b": "2"}}),
            json!({"replaced": {"b": "2"}}),
        ),
        (
            "a directive for what is not there",
            json!({}),
            json!({"child": {"$patch": "delete"}, "items": [{"$patch": "delete", "name": "a"}]}),
            json!({"items": []}),
        ),
        (
            "scalars merge",
            json!({"finalizers": ["a", "b"]}),
            json!({"finalizers": ["c", "a"]}),
            json!({"finalizers": ["c", "a", "b"]}),
        ),
        (
            "scalars are deleted",
            json!({"finalizers": ["a", "b", "c"]}),
            json!({"$deleteFromPrimitiveList/finalizers": ["b"]}),
            json!({"finalizers": ["a", "c"]}),
        ),
        (
            "order of scalars",
            json!({"finalizers": ["a", "b", "c"]}),
            json!({"$setElementOrder/finalizers": ["c", "d", "a"], "finalizers": ["d"]}),
            json!({"finalizers": ["b", "c", "d", "a"]}),
        ),
        (
            "order of items",
            json!({"items": [{"name": "1"}, {"name": "2"}, {"name": "3"}]}),
            json!({"$setElementOrder/items": [{"name": "3"}, {"name": "1"}]}),
            json!({"items": [{"name": "2"}, {"name": "3"}, {"name": "1"}]}),
        ),
        (
            "order with a server's item between",
            json!({"items": [{"name": "a"}, {"name": "server"}, {"name": "b"}]}),
            json!({"$setElementOrder/items": [{"name": "a"}, {"name": "b"}, {"name": "c"}], "items": [{"name": "c"}]}),
            json!({"items": [{"name": "a"}, {"name": "server"}, {"name": "b"}, {"name": "c"}]}),
        ),
        (
            "retained keys",
            json!({"strategy": {"type": "R", "rolling": {"surge": 1}}}),
            json!({"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}),
            json!({"strategy": {"type": "Recreate"}}),
        ),
        (
            "retained keys of an item",
            json!({"volumes": [{"name": "v", "value": "x"}]}),
            json!({"volumes": [{"$retainKeys": ["name", "other"], "name": "v", "other": "y"}]}),
            json!({"volumes": [{"name": "v", "other": "y"}]}),
        ),
        (
            "free-form JSON merges as objects do",
            json!({"free": {"a": {"b": 1}, "l": [1]}}),
            json!({"free": {"a": {"c": 2}, "l": [2]}}),
            json!({"free": {"a": {"b": 1, "c": 2}, "l": [2]}}),
        ),
        ("the whole document", json!({"name": "a"}), json!({"$patch": "replace", "value": 1}), json!({"value": 1})),
    ] {
        assert_eq!(applied(document, patch), text(expected), "{what}");
    }
}

#[test]
fn errors_are_upstreams() {
    for (document, patch, error) in [
        (json!({}), json!([]), "json: cannot unmarshal array into Go value of type map[string]interface {}"),
        (
            json!({"items": [{"name": "a"}]}),
            json!({"items": [{"value": "x"}]}),
            "map: map[value:x] does not contain declared merge key: name",
        ),
        (
            json!({"items": [{"name": "a"}]}),
            json!({"items": [{"$patch": "delete"}]}),
            "map: map[$patch:delete] does not contain declared merge key: name",
        ),
        (
            json!({"items": [{"name": "a"}]}),
            json!({"items": [{"$patch": "merge", "name": "a"}]}),
            "merging lists cannot yet be specified in the patch",
        ),
        (
            json!({"items": [{"name": "a"}]}),
            json!({"items": [{"$patch": "x", "name": "a"}]}),
            "unknown patch type: x in map: map[$patch:x name:a]",
        ),
        (json!({"child": {}}), json!({"child": {"$patch": "x"}}), "unknown patch type: x in map: map[$patch:x]"),
        (
            json!({"items": [{"name": "a"}]}),
            json!({"items": ["a"]}),
            "list element types are not identical: [[map[name:a]] [a]]",
        ),
        (json!({"finalizers": ["a"]}), json!({"finalizers": [1]}), "list element types are not identical: [[a] [1]]"),
        (
            json!({}),
            json!({"$setElementOrder/items": {}}),
            "expected a []interface {}, but received a map[string]interface {}",
        ),
        (json!({}), json!({"$setElementOrder": []}), "invalid patch format of setElementOrder list"),
        (json!({}), json!({"$deleteFromPrimitiveList": ["a"]}), "invalid patch format of primitive list"),
        (json!({}), json!({"$retainKeys": ["name"], "value": 1}), "invalid patch format of retainKeys"),
        (json!({}), json!({"$retainKeys": "name"}), "invalid patch format of retainKeys"),
        (
            json!({}),
            json!({"$setElementOrder/nothing": ["a"]}),
            "unable to find api field in struct Root for the json field \"nothing\"",
        ),
        (
            json!({}),
            json!({"$setElementOrder/items": [{"name": "a"}, {"name": "b"}], "items": [{"name": "b"}, {"name": "a"}]}),
            "The order in patch list:\n[map[name:b] map[name:a]]\n doesn't match $setElementOrder list:\n[map[name:a] map[name:b]]\n",
        ),
    ] {
        assert_eq!(applied(document, patch.clone()), format!("error: {error}"), "{patch}");
    }
}

#[test]
fn created_patches_have_upstreams_form() {
    let types = types();
    for (original, modified, expected) in [
        (json!({"name": "a", "value": 1}), json!({"name": "b"}), json!({"name": "b", "value": null})),
        (json!({"args": ["a"]}), json!({"args": ["b"]}), json!({"args": ["b"]})),
        (
            json!({"items": [{"name": "a", "value": "1"}, {"name": "b"}]}),
            json!({"items": [{"name": "c"}, {"name": "a", "value": "2"}]}),
            json!({
                "$setElementOrder/items": [{"name": "c"}, {"name": "a"}],
                "items": [{"name": "c"}, {"name": "a", "value": "2"}, {"name": "b", "$patch": "delete"}],
            }),
        ),
        (
            json!({"finalizers": ["a", "b"]}),
            json!({"finalizers": ["b", "c"]}),
            json!({"$deleteFromPrimitiveList/finalizers": ["a"], "$setElementOrder/finalizers": ["b", "c"], "finalizers": ["c"]}),
        ),
        (
            json!({"strategy": {"type": "R", "rolling": {"surge": 1}}}),
            json!({"strategy": {"type": "X"}}),
            json!({"strategy": {"$retainKeys": ["type"], "type": "X", "rolling": null}}),
        ),
    ] {
        let patch = create(&types.set, types.id("Root"), &original, &modified).expect("valid");
        assert_eq!(patch, expected, "{original} -> {modified}");
    }
}

#[test]
fn three_ways_keep_what_others_set() {
    let types = types();
    let patch = |original: &Value, modified: &Value, current: &Value, overwrite| {
        create_three_way(&types.set, types.id("Root"), original, modified, current, overwrite)
    };
    let original = json!({"value": 1, "items": [{"name": "a"}, {"name": "b"}]});
    let modified = json!({"value": 2, "items": [{"name": "b", "value": "x"}]});
    let current = json!({"name": "other's", "value": 1, "items": [{"name": "a"}, {"name": "b"}, {"name": "c"}]});
    let mut patched = current.clone();
    let created = patch(&original, &modified, &current, false).expect("no conflict");
    apply(&types.set, types.id("Root"), &mut patched, created).expect("valid");
    assert_eq!(patched, json!({"name": "other's", "value": 2, "items": [{"name": "b", "value": "x"}, {"name": "c"}]}));
    let clash = json!({"value": 3});
    assert!(matches!(patch(&original, &modified, &clash, false), Err(Error::Conflict { .. })));
    assert!(patch(&original, &modified, &clash, true).is_ok());
}

#[test]
fn large_lists_cost_what_they_weigh() {
    // Quadratic work on this many items would take minutes.
    let items =
        |value: &str| -> Value { (0..30_000).map(|n| json!({"name": n.to_string(), "value": value})).collect() };
    let order: Value = (0..30_000).rev().map(|n| json!({"name": n.to_string()})).collect();
    let out = applied(json!({"items": items("a")}), json!({"items": items("b")}));
    assert!(out.contains(r#""name":"29999","value":"b""#));
    let out = applied(json!({"items": items("a")}), json!({"$setElementOrder/items": order}));
    assert!(out.starts_with(r#"{"items":[{"name":"29999""#));
}

fn scalar() -> impl Strategy<Value = Value> {
    prop_oneof!["[a-c]".prop_map(Value::from), "[a-c]".prop_map(Value::from)]
}

fn item() -> impl Strategy<Value = Value> {
    (prop::option::of("[a-c]"), prop::option::of("[a-c]")).prop_map(|(value, other)| {
        let mut item = json!({});
        if let Some(value) = value {
            item["value"] = Value::from(value);
        }
        if let Some(other) = other {
            item["other"] = Value::from(other);
        }
        item
    })
}

fn items() -> impl Strategy<Value = Value> {
    prop::collection::btree_map("[a-f]", item(), 1..5).prop_flat_map(|items| {
        let items: Vec<Value> = items
            .into_iter()
            .map(|(name, mut item)| {
                item["name"] = Value::from(name);
                item
            })
            .collect();
        Just(items).prop_shuffle().prop_map(Value::from)
    })
}

fn document() -> impl Strategy<Value = Value> {
    let field = |name: &'static str, value: BoxedStrategy<Value>| prop::option::of(value).prop_map(move |v| (name, v));
    (
        field("name", scalar().boxed()),
        field("items", items().boxed()),
        field("volumes", items().boxed()),
        field("whole", items().boxed()),
        field("args", prop::collection::vec(scalar(), 0..4).prop_map(Value::from).boxed()),
        field("finalizers", prop::collection::btree_set("[a-f]", 1..5).prop_map(|set| json!(set)).boxed()),
        field("map", prop::collection::btree_map("[a-c]", "[a-c]", 0..3).prop_map(|map| json!(map)).boxed()),
        field("strategy", item().prop_map(|item| json!({"type": item.get("value"), "rolling": {"surge": 1}})).boxed()),
    )
        .prop_map(|(a, b, c, d, e, f, g, h)| {
            let fields = [a, b, c, d, e, f, g, h];
            let mut map: Map<String, Value> =
                fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect();
            if let Some(Value::Object(strategy)) = map.get_mut("strategy") {
                strategy.retain(|_, value| !value.is_null());
            }
            Value::Object(map)
        })
}

proptest! {
    #[test]
    fn a_created_patch_leads_to_the_target(original in document(), modified in document()) {
        let types = types();
        let patch = create(&types.set, types.id("Root"), &original, &modified).expect("documents of the type");
        let mut patched = original.clone();
        apply(&types.set, types.id("Root"), &mut patched, patch.clone()).expect("a created patch applies");
        prop_assert_eq!(&patched, &modified, "{}", patch);
        prop_assert_eq!(create(&types.set, types.id("Root"), &modified, &modified).expect("valid"), json!({}));
    }

    #[test]
    fn a_three_way_patch_keeps_foreign_fields(original in document(), modified in document()) {
        let types = types();
        let mut current = original.clone();
        current["value"] = Value::from(7);
        let patch = create_three_way(&types.set, types.id("Root"), &original, &modified, &current, true).expect("valid");
        apply(&types.set, types.id("Root"), &mut current, patch.clone()).expect("a created patch applies");
        let mut expected = modified.clone();
        expected["value"] = Value::from(7);
        prop_assert_eq!(&current, &expected, "{}", patch);
    }
}
