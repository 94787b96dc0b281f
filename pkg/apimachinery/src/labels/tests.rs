//! Selectors: parsing, printing, matching, and the texts of errors.

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn parsed(text: &str) -> String {
    match Selector::parse(text) {
        Ok(selector) => selector.to_string(),
        Err(error) => format!("error: {error}"),
    }
}

#[test]
fn parses_and_prints() {
    for (text, printed) in [
        ("", ""),
        ("x=a,y=b,z=c", "x=a,y=b,z=c"),
        ("z=a,a==b", "a==b,z=a"),
        ("x!=a , y", "x!=a,y"),
        ("!x", "!x"),
        ("x in (b,a)", "x in (a,b)"),
        ("x notin (a,,b)", "x notin (,a,b)"),
        ("x in ()", "x in ()"),
        ("x in (,)", "x in ()"),
        ("x=", "x="),
        ("x=,y", "x=,y"),
        ("x>1,y<2", "x>1,y<2"),
        ("in in (in)", "in in (in)"),
        ("notin=in", "notin=in"),
        ("example.com/a\t= b", "example.com/a=b"),
    ] {
        assert_eq!(parsed(text), printed, "{text:?}");
    }
}

#[test]
fn errors_are_upstreams() {
    let mut out = String::new();
    for text in [
        "x=a||y=b",
        "x==a==b",
        "!x=a",
        "x in a",
        "x in (a",
        "x in (a b)",
        "x,",
        ",",
        "x<a",
        "=",
        "x y",
        "x=a=b",
        "-x",
        "x=%",
        "(",
        "x !! y",
        "x in (=)",
    ] {
        out.push_str(&format!("{text}: {}\n", parsed(text)));
    }
    expect_test::expect![[r#"
        x=a||y=b: error: unable to parse requirement: values[0][x]: Invalid value: "a||y": a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')
        x==a==b: error: found '==', expected: ',' or 'end of string'
        !x=a: error: found '=', expected: ',' or 'end of string'
        x in a: error: unable to parse requirement: found 'a' expected: '('
        x in (a: error: unable to parse requirement: found '', expected: ',' or ')'
        x in (a b): error: unable to parse requirement: found 'b', expected: ',' or ')'
        x,: error: found '', expected: identifier after ','
        ,: error: found ',', expected: !, identifier, or 'end of string'
        x<a: error: unable to parse requirement: values[0]: Invalid value: "a": for 'Gt', 'Lt' operators, the value must be an integer
        =: error: found '=', expected: !, identifier, or 'end of string'
        x y: error: unable to parse requirement: found 'y', expected: in, notin, =, ==, !=, gt, lt
        x=a=b: error: found '=', expected: ',' or 'end of string'
        -x: error: unable to parse requirement: <nil>: Invalid value: "-x": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')
        x=%: error: unable to parse requirement: values[0][x]: Invalid value: "%": a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')
        (: error: found '(', expected: !, identifier, or 'end of string'
        x !! y: error: unable to parse requirement: found '!', expected: in, notin, =, ==, !=, gt, lt
        x in (=): error: unable to parse requirement: found '=', expected: ',', ')' or identifier
    "#]].assert_eq(&out);
}

#[test]
fn matches_as_documented() {
    let labels = json!({"foo": "bar", "baz": "blah", "n": "5"});
    for (text, expected) in [
        ("", true),
        ("foo=bar", true),
        ("foo=bar,baz=blah", true),
        ("foo=blah", false),
        ("foo!=blah,absent!=x", true),
        ("absent=", false),
        ("foo in (bar,x),baz notin (x)", true),
        ("absent notin (x)", true),
        ("foo,!absent", true),
        ("!foo", false),
        ("n>4,n<6", true),
        ("n>5", false),
        ("foo>1", false),
    ] {
        let selector = Selector::parse(text).expect(text);
        assert_eq!(selector.matches(&labels), expected, "{text:?}");
    }
    assert!(!Selector::nothing().matches(&labels));
}

#[test]
fn builds_from_label_selectors() {
    let build =
        |value: Value| Selector::from_json(Some(&value)).map_or_else(|e| format!("error: {e}"), |s| s.to_string());
    assert!(Selector::from_json(None).expect("absent").is_nothing());
    assert!(Selector::from_json(Some(&json!({}))).expect("empty").is_everything());
    assert_eq!(
        build(
            json!({"matchLabels": {"b": "1"}, "matchExpressions": [{"key": "a", "operator": "In", "values": ["y", "x"]}]})
        ),
        "a in (x,y),b=1"
    );
    assert_eq!(
        build(json!({"matchExpressions": [{"key": "a", "operator": "In"}]})),
        "error: values: Invalid value: null: for 'in', 'notin' operators, values set can't be empty"
    );
    assert_eq!(
        build(json!({"matchExpressions": [{"key": "a", "operator": "Gt", "values": ["1"]}]})),
        "error: \"Gt\" is not a valid label selector operator"
    );
}

fn requirement() -> impl Strategy<Value = String> {
    let key = "([a-z]{1,4}/)?[a-zA-Z0-9]{1,5}";
    let value = "([a-z0-9]([a-z0-9._-]{0,4}[a-z0-9])?)?";
    prop_oneof![
        (key, prop_oneof!["=", "==", "!="], value).prop_map(|(key, op, value)| format!("{key}{op}{value}")),
        (key, prop_oneof![" in ", " notin "], prop::collection::vec(value, 1..4))
            .prop_map(|(key, op, values)| format!("{key}{op}({})", values.join(","))),
        (key, prop_oneof![">", "<"], any::<i32>().prop_map(|n| n.unsigned_abs()))
            .prop_map(|(key, op, value)| format!("{key}{op}{value}")),
        key.prop_map(|key| format!("!{key}")),
        key.prop_map(String::from),
    ]
}

proptest! {
    #[test]
    fn printing_then_parsing_changes_nothing(parts in prop::collection::vec(requirement(), 0..5)) {
        let selector = Selector::parse(&parts.join(",")).expect("generated selectors are valid");
        prop_assert_eq!(Selector::parse(&selector.to_string()).expect("printed selectors are valid"), selector);
    }

    #[test]
    fn any_text_parses_or_fails(text in ".{0,40}") {
        let _ = Selector::parse(&text);
    }
}
