//! What holds for every set, and for every sequence of writers.

use proptest::prelude::*;

use super::tests::Scenario;
use super::*;

fn element() -> impl Strategy<Value = PathElement> {
    prop_oneof![
        "[a-c]".prop_map(PathElement::Field),
        (0..3_i64).prop_map(|n| PathElement::Key(vec![("p".to_owned(), Value::from(n * 40))])),
        "[a-b]".prop_map(|text| PathElement::Value(Value::from(text))),
        (0..2_i64).prop_map(PathElement::Index),
    ]
}

fn set() -> impl Strategy<Value = Set> {
    prop::collection::vec(prop::collection::vec(element(), 1..4), 0..8).prop_map(|paths| {
        let mut set = Set::new();
        paths.iter().for_each(|path| set.insert(path));
        set
    })
}

proptest! {
    #[test]
    fn sets_obey_their_algebra(a in set(), b in set(), c in set()) {
        let union = |a: &Set, b: &Set| a.clone().union(b.clone());
        let intersection = |a: &Set, b: &Set| a.clone().intersection(b);
        let difference = |a: &Set, b: &Set| a.clone().difference(b);
        prop_assert_eq!(union(&a, &b), union(&b, &a));
        prop_assert_eq!(intersection(&a, &b), intersection(&b, &a));
        prop_assert_eq!(union(&a, &union(&b, &c)), union(&union(&a, &b), &c));
        prop_assert_eq!(intersection(&a, &union(&b, &c)), union(&intersection(&a, &b), &intersection(&a, &c)));
        prop_assert_eq!(union(&difference(&a, &b), &intersection(&a, &b)), a.clone());
        prop_assert!(intersection(&difference(&a, &b), &b).is_empty());
        prop_assert_eq!(union(&a, &a), a.clone());
        prop_assert!(difference(&a, &a).is_empty());
        prop_assert_eq!(a.is_subset(&b), difference(&a, &b).is_empty());
        prop_assert!(intersection(&a, &b).is_subset(&a) && a.is_subset(&union(&a, &b)));
        let below = a.clone().recursive_difference(&b);
        for path in a.paths() {
            let covered = (1..=path.len()).any(|length| b.has(&path[..length]));
            prop_assert_eq!(below.has(&path), !covered);
        }
        prop_assert_eq!(union(&a, &b).len() + intersection(&a, &b).len(), a.len() + b.len());
    }

    #[test]
    fn encoded_sets_decode_to_themselves(set in set()) {
        prop_assert_eq!(encode::from_json(&encode::to_json(&set)), Ok(set.clone()));
        let text: Value = serde_json::from_str(&encode::to_text(&set)).expect("JSON");
        prop_assert_eq!(text, encode::to_json(&set));
    }
}

fn config() -> impl Strategy<Value = Value> {
    let labels = prop::option::of(prop::collection::btree_map("[a-c]", "[x-z]", 0..3));
    let env = prop::collection::btree_map("[E-G]", prop::option::of("[x-z]"), 0..3);
    let container = (prop::option::of("[x-z]"), env);
    let containers = prop::option::of(prop::collection::btree_map("[c-f]", container, 1..4));
    let finalizers = prop::option::of(prop::collection::btree_set("[a-d]", 1..3));
    let rest = (prop::option::of(0..3_i64), prop::option::of(any::<bool>()), prop::option::of(0..3_i64));
    (labels, containers, finalizers, rest).prop_map(|(labels, containers, finalizers, (replicas, paused, surge))| {
        let mut object = json!({"metadata": {}, "spec": {}});
        if let Some(labels) = labels {
            object["metadata"]["labels"] = json!(labels);
        }
        if let Some(finalizers) = finalizers {
            object["metadata"]["finalizers"] = json!(finalizers);
        }
        if let Some(containers) = containers {
            let containers = containers.into_iter().map(|(name, (image, env))| {
                let env: Vec<Value> = env
                    .into_iter()
                    .map(|(name, value)| match value {
                        Some(value) => json!({"name": name, "value": value}),
                        None => json!({"name": name}),
                    })
                    .collect();
                let mut container = json!({"name": name});
                if let Some(image) = image {
                    container["image"] = Value::from(image);
                }
                if !env.is_empty() {
                    container["env"] = Value::from(env);
                }
                container
            });
            object["spec"]["containers"] = containers.collect();
        }
        for (name, value) in [("replicas", replicas.map(Value::from)), ("paused", paused.map(Value::from))] {
            if let Some(value) = value {
                object["spec"][name] = value;
            }
        }
        if let Some(surge) = surge {
            object["spec"]["strategy"] = json!({"rolling": {"surge": surge}});
        }
        object
    })
}

/// Whether every leaf of `part` is in `whole`, list items matched by name.
fn contains(whole: &Value, part: &Value) -> bool {
    match (whole, part) {
        (Value::Object(whole), Value::Object(part)) => part
            .iter()
            .all(|(key, part)| whole.get(key).is_some_and(|whole| contains(whole, part)) || *part == json!({})),
        (Value::Array(whole), Value::Array(part)) => part.iter().all(|part| {
            whole.iter().any(|whole| {
                whole == part
                    || (whole.get("name").is_some() && whole.get("name") == part.get("name") && contains(whole, part))
            })
        }),
        (whole, part) => whole == part,
    }
}

proptest! {
    #[test]
    fn apply_does_what_it_says(steps in prop::collection::vec((0..3_usize, any::<bool>(), config()), 1..8)) {
        let names = ["a", "b", "c"];
        let mut scenario = Scenario::new();
        let mut last: [Option<Value>; 3] = Default::default();
        for (who, by_update, config) in steps {
            if by_update && let Some(live) = scenario.live.clone() {
                // An update keeps what is there and sets one thing.
                let mut body = live;
                body["spec"]["paused"] = config["spec"].get("paused").cloned().unwrap_or(Value::Bool(true));
                scenario = scenario.update(names[who], json!({"metadata": body["metadata"], "spec": body["spec"]}));
                continue;
            }
            scenario = scenario.force(names[who], config.clone());
            let live = scenario.live.clone().expect("stored");
            // Everything applied is there.
            prop_assert!(contains(&live["spec"], &config["spec"]), "{live} {config}");
            prop_assert!(contains(&live["metadata"], &config["metadata"]), "{live} {config}");
            // Doing it again changes nothing.
            scenario = scenario.force(names[who], config.clone());
            prop_assert!(scenario.log.ends_with("no change\n"), "{}", scenario.log);
            // A label applied before and by nobody now is gone.
            let before = last[who].replace(config.clone());
            if let Some(before) = before {
                let label = |config: &Value, key: &str| config["metadata"]["labels"].get(key).is_some();
                for key in ["a", "b", "c"] {
                    let applied_now = last.iter().flatten().any(|config| label(config, key));
                    if label(&before, key) && !applied_now {
                        prop_assert!(!label(&live, key), "{key} is left: {}", scenario.log);
                    }
                }
            }
        }
    }

    #[test]
    fn hostile_records_never_break_a_write(text in r#"\{("[fkvi.]:?(a|\{|1|)":(\{\}|\{"f:b":\{\}\}|1),?){0,3}\}?"#) {
        let Ok(fields) = serde_json::from_str::<Value>(&text) else { return Ok(()) };
        let entry = json!({"manager": "m", "operation": "Update", "apiVersion": "apps/v1", "fieldsType": "FieldsV1", "fieldsV1": fields});
        let scenario = Scenario::new().update("a", json!({"metadata": {"managedFields": [entry]}, "spec": {"replicas": 1}}));
        scenario.apply("b", json!({"spec": {"replicas": 2}}));
    }
}
