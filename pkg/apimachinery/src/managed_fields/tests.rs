//! Scenarios of writers to one object. Each step prints what was stored; times are the step's number in
//! seconds, so that a time that did not move shows.

use std::fmt::Write as _;

use expect_test::{Expect, expect};

use super::*;
use crate::testing::Types as TestTypes;
use crate::time;

fn types() -> TestTypes {
    TestTypes::builtin(json!({
        "App": {"fields": {
            "apiVersion": "string", "kind": "string", "metadata": {"ref": "Meta"},
            "spec": {"ref": "Spec"}, "status": {"ref": "Status"},
        }},
        "Meta": {"fields": {
            "name": "string", "namespace": "string", "uid": "string", "resourceVersion": "string",
            "creationTimestamp": "time", "generation": "int",
            "labels": {"map": "string"}, "annotations": {"map": "string"},
            "finalizers": {"list": "string", "set": true},
            "managedFields": {"list": {"fields": {"fieldsV1": "fieldsv1"}, "preserve": true}},
        }},
        "Spec": {"fields": {
            "replicas": {"type": "int", "presence": "pointer"},
            "paused": "bool",
            "selector": {"fields": {"matchLabels": {"map": "string"}}, "atomic": true, "presence": "pointer"},
            "strategy": {"fields": {
                "type": "string",
                "rolling": {"fields": {"surge": "intstr"}, "presence": "pointer"},
            }},
            "security": {"fields": {"user": "int"}, "presence": "pointer"},
            "containers": {"list": {"ref": "Container"}, "keys": ["name"], "presence": "always"},
            "args": {"list": "string"},
            "free": "json",
        }},
        "Container": {"fields": {
            "name": {"type": "string", "default": ""}, "image": "string",
            "resources": {"fields": {"limits": {"map": "quantity"}}},
            "ports": {"list": {"ref": "Port"}, "keys": ["port", "protocol"]},
            "env": {"list": {"fields": {"name": "string", "value": "string"}}, "keys": ["name"]},
        }},
        "Port": {"fields": {"port": "int", "protocol": {"type": "string", "default": "TCP"}, "name": "string"}},
        "Status": {"fields": {"ready": {"type": "int", "presence": "always"}, "phase": "string"}},
    }))
}

/// One object and what became of it.
pub(super) struct Scenario {
    types: TestTypes,
    gvk: GroupVersionKind,
    reset: ResetFields,
    pub(super) live: Option<Value>,
    clock: i64,
    pub(super) log: String,
}

impl Scenario {
    pub(super) fn new() -> Self {
        Self {
            types: types(),
            gvk: GroupVersionKind::new("apps", "v1", "App"),
            reset: ResetFields::from([("apps/v1".to_owned(), Filter::exclude(&[&["status"]]))]),
            live: None,
            clock: 0,
            log: String::new(),
        }
    }

    fn object(body: Value) -> Value {
        let mut object = json!({"apiVersion": "apps/v1", "kind": "App", "metadata": {"name": "a"}});
        for (key, value) in body.as_object().expect("an object") {
            if key == "metadata" {
                for (key, value) in value.as_object().expect("an object") {
                    object["metadata"][key] = value.clone();
                }
            } else {
                object[key] = value.clone();
            }
        }
        object
    }

    fn manager<'a>(&'a self, subresource: &'a str, none: &'a ResetFields) -> FieldManager<'a> {
        FieldManager {
            schemas: &self.types.set,
            ty: self.types.id("App"),
            gvk: &self.gvk,
            subresource,
            reset_fields: if subresource.is_empty() { &self.reset } else { none },
            converter: &OneVersion,
        }
    }

    fn tick(&mut self) -> Timestamp {
        self.clock += 1;
        Timestamp::from_second(self.clock).expect("in range")
    }

    fn store(mut self, what: &str, mut object: Value) -> Self {
        object["metadata"]["uid"] = Value::from("u");
        let mut shown = object.clone();
        let entries = std::mem::take(&mut shown["metadata"]["managedFields"]);
        let metadata = shown["metadata"].as_object_mut().expect("an object");
        for known in ["name", "uid", "managedFields"] {
            metadata.remove(known);
        }
        let _ = writeln!(self.log, "# {what}");
        for part in ["metadata", "spec", "status"] {
            if shown.get(part).is_some_and(|part| *part != json!({})) {
                let _ = writeln!(self.log, "{part}: {}", shown[part]);
            }
        }
        for entry in entries.as_array().into_iter().flatten() {
            let text = |name: &str| entry[name].as_str().unwrap_or_default().to_owned();
            let time = time::parse(&text("time")).map_or(-1, |time| time.as_second());
            let subresource =
                if text("subresource").is_empty() { String::new() } else { format!("/{}", text("subresource")) };
            let _ = writeln!(
                self.log,
                "{}{subresource} {} @{time} {}",
                text("manager"),
                text("operation"),
                entry["fieldsV1"]
            );
        }
        self.live = Some(object);
        self
    }

    pub(super) fn update(mut self, manager: &str, body: Value) -> Self {
        let now = self.tick();
        let mut new = Self::object(body);
        if let Some(live) = &self.live {
            new["metadata"]["uid"] = live["metadata"]["uid"].clone();
        }
        let none = ResetFields::new();
        self.manager("", &none).update(self.live.as_ref(), &mut new, manager, now);
        self.store(&format!("{manager} updates"), new)
    }

    fn status(mut self, manager: &str, status: Value) -> Self {
        let now = self.tick();
        let mut new = self.live.clone().expect("an object with a status");
        new["status"] = status;
        let none = ResetFields::new();
        self.manager("status", &none).update(self.live.as_ref(), &mut new, manager, now);
        self.store(&format!("{manager} writes status"), new)
    }

    fn apply_as(mut self, manager: &str, body: Value, force: bool) -> Self {
        let now = self.tick();
        let none = ResetFields::new();
        let applied = Self::object(body);
        let done = self.manager("", &none).apply(self.live.as_ref(), &applied, manager, force, now);
        match done {
            Ok(Some(object)) => self.store(&format!("{manager} applies"), object),
            Ok(None) => {
                let _ = writeln!(self.log, "# {manager} applies\nno change");
                self
            }
            Err(status) => {
                let _ = writeln!(self.log, "# {manager} applies\n{} {}", status.code(), status.message());
                for cause in status.status().details.iter().flat_map(|details| &details.causes) {
                    let _ = writeln!(self.log, "cause {} {} {}", cause.reason, cause.field, cause.message);
                }
                self
            }
        }
    }

    pub(super) fn apply(self, manager: &str, body: Value) -> Self {
        self.apply_as(manager, body, false)
    }

    pub(super) fn force(self, manager: &str, body: Value) -> Self {
        self.apply_as(manager, body, true)
    }

    fn shows(self, expected: Expect) {
        expected.assert_eq(&self.log);
    }
}

#[test]
fn creating_owns_what_was_not_there() {
    Scenario::new()
        .update("kubectl-create", json!({
            "metadata": {"labels": {"app": "a"}},
            "spec": {
                "replicas": 1,
                "selector": {"matchLabels": {"app": "a"}},
                "strategy": {"type": "R", "rolling": {"surge": "25%"}},
                "security": {},
                "containers": [{"name": "web", "image": "i", "resources": {}, "ports": [{"port": 80}, {"port": 443, "protocol": "UDP"}]}],
                "args": ["x"],
                "free": {"a": {"b": 1}, "l": [1]},
            },
            "status": {"ready": 0},
        }))
        .shows(expect![[r##"
            # kubectl-create updates
            metadata: {"labels":{"app":"a"}}
            spec: {"args":["x"],"containers":[{"image":"i","name":"web","ports":[{"port":80},{"port":443,"protocol":"UDP"}],"resources":{}}],"free":{"a":{"b":1},"l":[1]},"replicas":1,"security":{},"selector":{"matchLabels":{"app":"a"}},"strategy":{"rolling":{"surge":"25%"},"type":"R"}}
            status: {"ready":0}
            kubectl-create Update @1 {"f:metadata":{"f:labels":{".":{},"f:app":{}}},"f:spec":{"f:args":{},"f:containers":{"k:{\"name\":\"web\"}":{".":{},"f:image":{},"f:name":{},"f:ports":{".":{},"k:{\"port\":443,\"protocol\":\"UDP\"}":{".":{},"f:port":{},"f:protocol":{}},"k:{\"port\":80,\"protocol\":\"TCP\"}":{".":{},"f:port":{}}},"f:resources":{}}},"f:free":{".":{},"f:a":{".":{},"f:b":{}},"f:l":{}},"f:replicas":{},"f:security":{},"f:selector":{},"f:strategy":{"f:rolling":{".":{},"f:surge":{}},"f:type":{}}}}
        "##]]);
}

#[test]
fn updates_own_what_they_change() {
    Scenario::new()
        .update("a", json!({"spec": {"replicas": 1, "args": ["x"]}}))
        .update("b", json!({"spec": {"replicas": 2, "args": ["x"]}}))
        .update("b", json!({"spec": {"replicas": 2, "args": ["x"]}}))
        .update("a", json!({"spec": {"args": ["x"]}}))
        .status("controller", json!({"ready": 1, "phase": "Running"}))
        .update("b", json!({"spec": {"args": ["x"]}, "status": {"ready": 1, "phase": "Failed"}}))
        .shows(expect![[r##"
            # a updates
            spec: {"args":["x"],"replicas":1}
            a Update @1 {"f:spec":{"f:args":{},"f:replicas":{}}}
            # b updates
            spec: {"args":["x"],"replicas":2}
            a Update @1 {"f:spec":{"f:args":{}}}
            b Update @2 {"f:spec":{"f:replicas":{}}}
            # b updates
            spec: {"args":["x"],"replicas":2}
            a Update @1 {"f:spec":{"f:args":{}}}
            b Update @2 {"f:spec":{"f:replicas":{}}}
            # a updates
            spec: {"args":["x"]}
            a Update @1 {"f:spec":{"f:args":{}}}
            # controller writes status
            spec: {"args":["x"]}
            status: {"phase":"Running","ready":1}
            a Update @1 {"f:spec":{"f:args":{}}}
            controller/status Update @5 {"f:status":{".":{},"f:phase":{},"f:ready":{}}}
            # b updates
            spec: {"args":["x"]}
            status: {"phase":"Failed","ready":1}
            a Update @1 {"f:spec":{"f:args":{}}}
            controller/status Update @5 {"f:status":{".":{},"f:phase":{},"f:ready":{}}}
        "##]]);
}

#[test]
fn applying_again_changes_nothing() {
    let config = json!({"metadata": {"labels": {"a": "1"}}, "spec": {"replicas": 3, "containers": [{"name": "c", "image": "x"}]}});
    Scenario::new().apply("me", config.clone()).apply("me", config).shows(expect![[r##"
        # me applies
        metadata: {"labels":{"a":"1"}}
        spec: {"containers":[{"image":"x","name":"c"}],"replicas":3}
        me Apply @1 {"f:metadata":{"f:labels":{"f:a":{}}},"f:spec":{"f:containers":{"k:{\"name\":\"c\"}":{".":{},"f:image":{},"f:name":{}}},"f:replicas":{}}}
        # me applies
        no change
    "##]]);
}

#[test]
fn fields_no_longer_applied_go() {
    Scenario::new()
        .apply("me", json!({
            "metadata": {"labels": {"a": "1", "b": "2"}, "finalizers": ["x", "y"]},
            "spec": {"replicas": 3, "paused": true, "containers": [{"name": "c", "image": "x", "env": [{"name": "E", "value": "1"}]}, {"name": "d"}]},
        }))
        .apply("other", json!({"metadata": {"labels": {"b": "2"}}, "spec": {"paused": true}}))
        .apply("me", json!({"metadata": {"finalizers": ["y"]}, "spec": {"containers": [{"name": "c", "image": "y"}]}}))
        .apply("me", json!({}))
        .shows(expect![[r##"
            # me applies
            metadata: {"finalizers":["x","y"],"labels":{"a":"1","b":"2"}}
            spec: {"containers":[{"env":[{"name":"E","value":"1"}],"image":"x","name":"c"},{"name":"d"}],"paused":true,"replicas":3}
            me Apply @1 {"f:metadata":{"f:finalizers":{"v:\"x\"":{},"v:\"y\"":{}},"f:labels":{"f:a":{},"f:b":{}}},"f:spec":{"f:containers":{"k:{\"name\":\"c\"}":{".":{},"f:env":{"k:{\"name\":\"E\"}":{".":{},"f:name":{},"f:value":{}}},"f:image":{},"f:name":{}},"k:{\"name\":\"d\"}":{".":{},"f:name":{}}},"f:paused":{},"f:replicas":{}}}
            # other applies
            metadata: {"finalizers":["x","y"],"labels":{"a":"1","b":"2"}}
            spec: {"containers":[{"env":[{"name":"E","value":"1"}],"image":"x","name":"c"},{"name":"d"}],"paused":true,"replicas":3}
            other Apply @-1 {"f:metadata":{"f:labels":{"f:b":{}}},"f:spec":{"f:paused":{}}}
            me Apply @1 {"f:metadata":{"f:finalizers":{"v:\"x\"":{},"v:\"y\"":{}},"f:labels":{"f:a":{},"f:b":{}}},"f:spec":{"f:containers":{"k:{\"name\":\"c\"}":{".":{},"f:env":{"k:{\"name\":\"E\"}":{".":{},"f:name":{},"f:value":{}}},"f:image":{},"f:name":{}},"k:{\"name\":\"d\"}":{".":{},"f:name":{}}},"f:paused":{},"f:replicas":{}}}
            # me applies
            metadata: {"finalizers":["y"],"labels":{"b":"2"}}
            spec: {"containers":[{"image":"y","name":"c"}],"paused":true}
            other Apply @-1 {"f:metadata":{"f:labels":{"f:b":{}}},"f:spec":{"f:paused":{}}}
            me Apply @3 {"f:metadata":{"f:finalizers":{"v:\"y\"":{}}},"f:spec":{"f:containers":{"k:{\"name\":\"c\"}":{".":{},"f:image":{},"f:name":{}}}}}
            # me applies
            metadata: {"labels":{"b":"2"}}
            spec: {"paused":true}
            other Apply @-1 {"f:metadata":{"f:labels":{"f:b":{}}},"f:spec":{"f:paused":{}}}
        "##]]);
}

#[test]
fn conflicts_name_managers_and_fields() {
    Scenario::new()
        .update("scaler", json!({"spec": {"replicas": 5, "containers": [{"name": "c", "image": "x"}]}}))
        .apply("me", json!({"spec": {"replicas": 3}}))
        .apply("other", json!({"spec": {"paused": true}}))
        .apply("me", json!({"spec": {"replicas": 3, "paused": false, "containers": [{"name": "c", "image": "y"}]}}))
        .force("me", json!({"spec": {"replicas": 3, "paused": false}}))
        .apply("other", json!({"spec": {"paused": true}}))
        .shows(expect![[r##"
            # scaler updates
            spec: {"containers":[{"image":"x","name":"c"}],"replicas":5}
            scaler Update @1 {"f:spec":{"f:containers":{"k:{\"name\":\"c\"}":{".":{},"f:image":{},"f:name":{}}},"f:replicas":{}}}
            # me applies
            409 Apply failed with 1 conflict: conflict with "scaler" using apps/v1: .spec.replicas
            cause FieldManagerConflict .spec.replicas conflict with "scaler" using apps/v1
            # other applies
            spec: {"containers":[{"image":"x","name":"c"}],"paused":true,"replicas":5}
            other Apply @3 {"f:spec":{"f:paused":{}}}
            scaler Update @1 {"f:spec":{"f:containers":{"k:{\"name\":\"c\"}":{".":{},"f:image":{},"f:name":{}}},"f:replicas":{}}}
            # me applies
            409 Apply failed with 3 conflicts: conflicts with "other":
            - .spec.paused
            conflicts with "scaler" using apps/v1:
            - .spec.replicas
            - .spec.containers[name="c"].image
            cause FieldManagerConflict .spec.paused conflict with "other"
            cause FieldManagerConflict .spec.replicas conflict with "scaler" using apps/v1
            cause FieldManagerConflict .spec.containers[name="c"].image conflict with "scaler" using apps/v1
            # me applies
            spec: {"containers":[{"image":"x","name":"c"}],"paused":false,"replicas":3}
            me Apply @5 {"f:spec":{"f:paused":{},"f:replicas":{}}}
            scaler Update @1 {"f:spec":{"f:containers":{"k:{\"name\":\"c\"}":{".":{},"f:image":{},"f:name":{}}}}}
            # other applies
            409 Apply failed with 1 conflict: conflict with "me": .spec.paused
            cause FieldManagerConflict .spec.paused conflict with "me"
        "##]]);
}

#[test]
fn same_values_are_shared_not_contested() {
    Scenario::new()
        .apply("a", json!({"spec": {"replicas": 3, "paused": true}}))
        .apply("b", json!({"spec": {"replicas": 3}}))
        .apply("a", json!({"spec": {"paused": true}}))
        .apply("b", json!({"spec": {}}))
        .shows(expect![[r##"
            # a applies
            spec: {"paused":true,"replicas":3}
            a Apply @1 {"f:spec":{"f:paused":{},"f:replicas":{}}}
            # b applies
            spec: {"paused":true,"replicas":3}
            b Apply @-1 {"f:spec":{"f:replicas":{}}}
            a Apply @1 {"f:spec":{"f:paused":{},"f:replicas":{}}}
            # a applies
            spec: {"paused":true,"replicas":3}
            b Apply @-1 {"f:spec":{"f:replicas":{}}}
            a Apply @1 {"f:spec":{"f:paused":{}}}
            # b applies
            spec: {"paused":true}
            a Apply @1 {"f:spec":{"f:paused":{}}}
            b Apply @4 {"f:spec":{}}
        "##]]);
}

#[test]
fn list_items_merge_by_key_and_keep_places() {
    let port = |port: i64| json!({"port": port, "protocol": "TCP"});
    Scenario::new()
        .apply("a", json!({"spec": {"containers": [{"name": "c", "ports": [port(1), port(2)]}]}}))
        .apply(
            "b",
            json!({"spec": {"containers": [{"name": "sidecar"}, {"name": "c", "ports": [port(3), {"port": 1}]}]}}),
        )
        .apply("a", json!({"spec": {"containers": [{"name": "c", "ports": [port(2)]}]}}))
        .shows(expect![[r##"
            # a applies
            spec: {"containers":[{"name":"c","ports":[{"port":1,"protocol":"TCP"},{"port":2,"protocol":"TCP"}]}]}
            a Apply @1 {"f:spec":{"f:containers":{"k:{\"name\":\"c\"}":{".":{},"f:name":{},"f:ports":{"k:{\"port\":1,\"protocol\":\"TCP\"}":{".":{},"f:port":{},"f:protocol":{}},"k:{\"port\":2,\"protocol\":\"TCP\"}":{".":{},"f:port":{},"f:protocol":{}}}}}}}
            # b applies
            spec: {"containers":[{"name":"sidecar"},{"name":"c","ports":[{"port":3,"protocol":"TCP"},{"port":1,"protocol":"TCP"},{"port":2,"protocol":"TCP"}]}]}
            a Apply @1 {"f:spec":{"f:containers":{"k:{\"name\":\"c\"}":{".":{},"f:name":{},"f:ports":{"k:{\"port\":1,\"protocol\":\"TCP\"}":{".":{},"f:port":{},"f:protocol":{}},"k:{\"port\":2,\"protocol\":\"TCP\"}":{".":{},"f:port":{},"f:protocol":{}}}}}}}
            b Apply @2 {"f:spec":{"f:containers":{"k:{\"name\":\"c\"}":{".":{},"f:name":{},"f:ports":{"k:{\"port\":1,\"protocol\":\"TCP\"}":{".":{},"f:port":{}},"k:{\"port\":3,\"protocol\":\"TCP\"}":{".":{},"f:port":{},"f:protocol":{}}}},"k:{\"name\":\"sidecar\"}":{".":{},"f:name":{}}}}}
            # a applies
            spec: {"containers":[{"name":"sidecar"},{"name":"c","ports":[{"port":3,"protocol":"TCP"},{"port":1},{"port":2,"protocol":"TCP"}]}]}
            b Apply @2 {"f:spec":{"f:containers":{"k:{\"name\":\"c\"}":{".":{},"f:name":{},"f:ports":{"k:{\"port\":1,\"protocol\":\"TCP\"}":{".":{},"f:port":{}},"k:{\"port\":3,\"protocol\":\"TCP\"}":{".":{},"f:port":{},"f:protocol":{}}}},"k:{\"name\":\"sidecar\"}":{".":{},"f:name":{}}}}}
            a Apply @3 {"f:spec":{"f:containers":{"k:{\"name\":\"c\"}":{".":{},"f:name":{},"f:ports":{"k:{\"port\":2,\"protocol\":\"TCP\"}":{".":{},"f:port":{},"f:protocol":{}}}}}}}
        "##]]);
}

#[test]
fn atomics_are_owned_whole() {
    Scenario::new()
        .apply("a", json!({"spec": {"args": ["x", "y"], "selector": {"matchLabels": {"a": "1"}}, "free": {"k": [1], "m": {"n": 1}}}}))
        .apply("b", json!({"spec": {"args": ["z"], "selector": {"matchLabels": {"a": "1"}}, "free": {"k": [1, 2], "m": {"o": 1}}}}))
        .shows(expect![[r##"
            # a applies
            spec: {"args":["x","y"],"free":{"k":[1],"m":{"n":1}},"selector":{"matchLabels":{"a":"1"}}}
            a Apply @1 {"f:spec":{"f:args":{},"f:free":{"f:k":{},"f:m":{".":{},"f:n":{}}},"f:selector":{}}}
            # b applies
            409 Apply failed with 2 conflicts: conflicts with "a":
            - .spec.args
            - .spec.free.k
            cause FieldManagerConflict .spec.args conflict with "a"
            cause FieldManagerConflict .spec.free.k conflict with "a"
        "##]]);
}

#[test]
fn objects_without_owners_get_one_before_the_first_apply() {
    let mut scenario = Scenario::new();
    scenario.live = Some(Scenario::object(json!({"metadata": {"uid": "u"}, "spec": {"replicas": 1, "paused": true}})));
    scenario
        .update("nobody", json!({"spec": {"replicas": 1, "paused": true}}))
        .apply("me", json!({"spec": {"replicas": 1}}))
        .apply("me", json!({"spec": {"replicas": 2}}))
        .shows(expect![[r##"
            # nobody updates
            spec: {"paused":true,"replicas":1}
            # me applies
            spec: {"paused":true,"replicas":1}
            me Apply @-1 {"f:spec":{"f:replicas":{}}}
            before-first-apply Update @2 {"f:spec":{"f:paused":{},"f:replicas":{}}}
            # me applies
            409 Apply failed with 1 conflict: conflict with "before-first-apply" using apps/v1: .spec.replicas
            cause FieldManagerConflict .spec.replicas conflict with "before-first-apply" using apps/v1
        "##]]);
}

#[test]
fn clients_may_edit_the_record() {
    Scenario::new()
        .update("a", json!({"spec": {"replicas": 1}}))
        .update("b", json!({"metadata": {"managedFields": [{"manager": "bad"}]}, "spec": {"replicas": 2}}))
        .update("c", json!({"metadata": {"managedFields": [{}]}, "spec": {"replicas": 2}}))
        .update("d", json!({"spec": {"replicas": 3}}))
        .shows(expect![[r##"
            # a updates
            spec: {"replicas":1}
            a Update @1 {"f:spec":{"f:replicas":{}}}
            # b updates
            spec: {"replicas":2}
            b Update @2 {"f:spec":{"f:replicas":{}}}
            # c updates
            spec: {"replicas":2}
            # d updates
            spec: {"replicas":3}
        "##]]);
}

#[test]
fn kubectl_takes_over_what_it_applied_from_the_client() {
    let last = r#"{"apiVersion":"apps/v1","kind":"App","metadata":{"name":"a"},"spec":{"replicas":1,"args":["<x>"]}}"#;
    let annotations = json!({"annotations": {"kubectl.kubernetes.io/last-applied-configuration": last}});
    Scenario::new()
        .update("kubectl-client-side-apply", json!({"metadata": annotations, "spec": {"replicas": 1, "args": ["<x>"]}}))
        .apply("other", json!({"spec": {"replicas": 2}}))
        .apply("kubectl", json!({"spec": {"replicas": 2, "args": ["<y>"]}}))
        .update("editor", json!({"metadata": annotations, "spec": {"replicas": 7, "args": ["<y>"]}}))
        .apply("kubectl", json!({"spec": {"replicas": 3, "args": ["<y>"]}}))
        .shows(expect![[r##"
            # kubectl-client-side-apply updates
            metadata: {"annotations":{"kubectl.kubernetes.io/last-applied-configuration":"{\"apiVersion\":\"apps/v1\",\"kind\":\"App\",\"metadata\":{\"name\":\"a\"},\"spec\":{\"replicas\":1,\"args\":[\"<x>\"]}}"}}
            spec: {"args":["<x>"],"replicas":1}
            kubectl-client-side-apply Update @1 {"f:metadata":{"f:annotations":{".":{},"f:kubectl.kubernetes.io/last-applied-configuration":{}}},"f:spec":{"f:args":{},"f:replicas":{}}}
            # other applies
            409 Apply failed with 1 conflict: conflict with "kubectl-client-side-apply" using apps/v1: .spec.replicas
            cause FieldManagerConflict .spec.replicas conflict with "kubectl-client-side-apply" using apps/v1
            # kubectl applies
            metadata: {"annotations":{"kubectl.kubernetes.io/last-applied-configuration":"{\"apiVersion\":\"apps/v1\",\"kind\":\"App\",\"metadata\":{\"name\":\"a\"},\"spec\":{\"args\":[\"\\u003cy\\u003e\"],\"replicas\":2}}\n"}}
            spec: {"args":["<y>"],"replicas":2}
            kubectl Apply @3 {"f:spec":{"f:args":{},"f:replicas":{}}}
            kubectl-client-side-apply Update @1 {"f:metadata":{"f:annotations":{".":{},"f:kubectl.kubernetes.io/last-applied-configuration":{}}}}
            # editor updates
            metadata: {"annotations":{"kubectl.kubernetes.io/last-applied-configuration":"{\"apiVersion\":\"apps/v1\",\"kind\":\"App\",\"metadata\":{\"name\":\"a\"},\"spec\":{\"replicas\":1,\"args\":[\"<x>\"]}}"}}
            spec: {"args":["<y>"],"replicas":7}
            kubectl Apply @3 {"f:spec":{"f:args":{}}}
            kubectl-client-side-apply Update @1 {"f:metadata":{"f:annotations":{}}}
            editor Update @4 {"f:metadata":{"f:annotations":{"f:kubectl.kubernetes.io/last-applied-configuration":{}}},"f:spec":{"f:replicas":{}}}
            # kubectl applies
            409 Apply failed with 1 conflict: conflict with "editor" using apps/v1: .spec.replicas
            cause FieldManagerConflict .spec.replicas conflict with "editor" using apps/v1
        "##]]);
}

#[test]
fn bad_configurations_are_refused() {
    let twice = json!([{"name": "c"}, {"name": "c"}]);
    let mut scenario = Scenario::new()
        .apply("me", json!({"spec": {"replcas": 1}}))
        .apply("me", json!({"spec": {"replicas": "1", "containers": twice, "args": {}, "paused": "yes"}}))
        .apply(
            "me",
            json!({"spec": {"containers": [{"image": "x"}], "strategy": []}, "metadata": {"labels": {"a": 1}}}),
        )
        .apply("me", json!({"spec": {"containers": [7]}, "metadata": {"finalizers": [{}]}}))
        .apply("me", json!({"metadata": {"managedFields": []}}));
    scenario.gvk.version = "v2".to_owned();
    scenario.apply("me", json!({})).shows(expect![[r##"
        # me applies
        500 failed to create typed patch object (/a; apps/v1, Kind=App): .spec.replcas: field not declared in schema
        # me applies
        500 failed to create typed patch object (/a; apps/v1, Kind=App): errors:
          .spec.args: expected list, got &{map[]}
          .spec.containers: duplicate entries for key [name="c"]
          .spec.paused: expected boolean, got &{yes}
          .spec.replicas: expected numeric (int or float), got string
        # me applies
        500 failed to create typed patch object (/a; apps/v1, Kind=App): errors:
          .metadata.labels.a: expected string, got &value.valueUnstructured{Value:1}
          .spec.strategy: expected map, got &{[]}
        # me applies
        500 failed to create typed patch object (/a; apps/v1, Kind=App): errors:
          .metadata.finalizers: element 0: associative list without keys has an element that's a map type
          .spec.containers: element 0: associative list with keys may not have non-map elements
        # me applies
        400 metadata.managedFields must be nil
        # me applies
        400 invalid object type: apps/v1, Kind=App
    "##]]);
}

#[test]
fn update_managers_are_capped() {
    let mut scenario = Scenario::new().apply("applier", json!({"metadata": {"labels": {"x": "1"}}}));
    let mut labels = json!({"x": "1"});
    for index in 0..14 {
        labels[format!("l{index:02}")] = Value::from("v");
        scenario = scenario.update(&format!("m{index:02}"), json!({"metadata": {"labels": labels}}));
    }
    scenario.log = scenario.log.split("# ").last().unwrap_or_default().to_owned();
    scenario.shows(expect![[r#"
        m13 updates
        metadata: {"labels":{"l00":"v","l01":"v","l02":"v","l03":"v","l04":"v","l05":"v","l06":"v","l07":"v","l08":"v","l09":"v","l10":"v","l11":"v","l12":"v","l13":"v","x":"1"}}
        applier Apply @1 {"f:metadata":{"f:labels":{"f:x":{}}}}
        ancient-changes Update @6 {"f:metadata":{"f:labels":{"f:l00":{},"f:l01":{},"f:l02":{},"f:l03":{},"f:l04":{}}}}
        m05 Update @7 {"f:metadata":{"f:labels":{"f:l05":{}}}}
        m06 Update @8 {"f:metadata":{"f:labels":{"f:l06":{}}}}
        m07 Update @9 {"f:metadata":{"f:labels":{"f:l07":{}}}}
        m08 Update @10 {"f:metadata":{"f:labels":{"f:l08":{}}}}
        m09 Update @11 {"f:metadata":{"f:labels":{"f:l09":{}}}}
        m10 Update @12 {"f:metadata":{"f:labels":{"f:l10":{}}}}
        m11 Update @13 {"f:metadata":{"f:labels":{"f:l11":{}}}}
        m12 Update @14 {"f:metadata":{"f:labels":{"f:l12":{}}}}
        m13 Update @15 {"f:metadata":{"f:labels":{"f:l13":{}}}}
    "#]]);
}

/// Two versions of a kind: `v2` has `count` where `v1` has `replicas`.
struct TwoVersions(TypeId);

impl VersionConverter for TwoVersions {
    fn convert(&self, object: &Value, api_version: &str) -> Result<Option<(Value, TypeId)>, ApiStatus> {
        let (from, to) = match api_version {
            "apps/v2" => ("replicas", "count"),
            "apps/v1" => ("count", "replicas"),
            _ => return Ok(None),
        };
        let mut object = object.clone();
        object["apiVersion"] = Value::from(api_version);
        if let Some(Value::Object(spec)) = object.get_mut("spec")
            && let Some(value) = spec.remove(from)
        {
            spec.insert(to.to_owned(), value);
        }
        Ok(Some((object, self.0)))
    }
}

#[test]
fn owners_in_other_versions_keep_what_they_own() {
    let types = TestTypes::builtin(json!({"App": {"fields": {
        "apiVersion": "string", "kind": "string", "metadata": {"fields": {"name": "string"}, "preserve": true},
        "spec": {"fields": {
            "replicas": {"type": "int", "presence": "pointer"}, "count": {"type": "int", "presence": "pointer"},
            "paused": "bool",
        }},
    }}}));
    let (ty, none) = (types.id("App"), ResetFields::new());
    let converter = TwoVersions(ty);
    let at = |second| Timestamp::from_second(second).expect("in range");
    let (v1, v2) = (GroupVersionKind::new("apps", "v1", "App"), GroupVersionKind::new("apps", "v2", "App"));
    let manager = |gvk| FieldManager {
        schemas: &types.set,
        ty,
        gvk,
        subresource: "",
        reset_fields: &none,
        converter: &converter,
    };
    let config = |gvk: &GroupVersionKind, spec: Value| json!({"apiVersion": gvk.api_version(), "kind": "App", "metadata": {"name": "a"}, "spec": spec});
    let mut out = String::new();
    let mut show = |what: &str, object: &Value| {
        let _ = writeln!(out, "# {what}\n{}", object["spec"]);
        for entry in object.managed_fields() {
            let _ = writeln!(out, "{} {} {}", entry["manager"], entry["apiVersion"], entry["fieldsV1"]);
        }
    };
    let applied = config(&v1, json!({"replicas": 1, "paused": true}));
    let first = manager(&v1).apply(None, &applied, "a", false, at(1)).expect("no conflict").expect("a change");
    show("a applies v1", &first);
    let (in_v2, _) = converter.convert(&first, "apps/v2").expect("converts").expect("served");
    let conflict = manager(&v2).apply(Some(&in_v2), &config(&v2, json!({"count": 2})), "b", false, at(2));
    let conflict = conflict.expect_err("a owns it under its other name");
    assert_eq!(conflict.message(), "Apply failed with 1 conflict: conflict with \"a\": .spec.replicas");
    let second = manager(&v2).apply(Some(&in_v2), &config(&v2, json!({"count": 2})), "b", true, at(3));
    let second = second.expect("forced").expect("a change");
    show("b forces v2", &second);
    let third = manager(&v2).apply(Some(&second), &config(&v2, json!({})), "a", false, at(4));
    let mut third = third.expect("no conflict").expect("a change");
    show("a applies nothing in v2", &third);
    third["metadata"]["managedFields"][0]["apiVersion"] = Value::from("apps/v0");
    let fourth = manager(&v2).apply(Some(&third), &config(&v2, json!({"paused": false})), "c", false, at(5));
    show("c applies when v0 is gone", &fourth.expect("no conflict").expect("a change"));
    expect![[r##"
        # a applies v1
        {"paused":true,"replicas":1}
        "a" "apps/v1" {"f:spec":{"f:paused":{},"f:replicas":{}}}
        # b forces v2
        {"count":2,"paused":true}
        "a" "apps/v1" {"f:spec":{"f:paused":{}}}
        "b" "apps/v2" {"f:spec":{"f:count":{}}}
        # a applies nothing in v2
        {"count":2}
        "b" "apps/v2" {"f:spec":{"f:count":{}}}
        "a" "apps/v2" {"f:spec":{}}
        # c applies when v0 is gone
        {"count":2,"paused":false}
        "a" "apps/v2" {"f:spec":{}}
        "c" "apps/v2" {"f:spec":{"f:paused":{}}}
    "##]]
    .assert_eq(&out);
}

#[test]
fn times_alone_are_no_change() {
    let old = Scenario::new().update("a", json!({"spec": {"replicas": 1}})).live.expect("stored");
    let mut new = old.clone();
    new["metadata"]["managedFields"][0]["time"] = Value::from("2030-01-01T00:00:00Z");
    let mut changed = new.clone();
    changed["spec"]["replicas"] = Value::from(2);
    keep_times_if_unchanged(&old, &mut new);
    assert_eq!(new, old);
    let before = changed.clone();
    keep_times_if_unchanged(&old, &mut changed);
    assert_eq!(changed, before);
}

#[test]
fn user_agents_name_managers() {
    assert_eq!(manager_from_user_agent("kubectl/v1.36 (linux/amd64)"), "kubectl");
    assert_eq!(manager_from_user_agent("a\u{1}b c"), "ab c");
    assert_eq!(manager_from_user_agent(&"ż".repeat(100)).len(), 128);
    assert_eq!(manager_from_user_agent(""), "");
}

#[test]
fn a_scale_carries_ownership_both_ways() {
    let path = vec![PathElement::field("spec"), PathElement::field("replicas")];
    let paths = std::collections::BTreeMap::from([("apps/v1".to_owned(), path)]);
    let entry = |manager: &str, operation: &str, version: &str, subresource: &str, fields: Value| {
        let mut entry = json!({"manager": manager, "operation": operation, "apiVersion": version, "fieldsType": "FieldsV1", "fieldsV1": fields});
        if !subresource.is_empty() {
            entry["subresource"] = Value::from(subresource);
        }
        entry
    };
    let replicas = json!({"f:spec": {"f:replicas": {}}});
    let parent = [
        entry("applier", "Apply", "apps/v1", "", json!({"f:spec": {"f:replicas": {}, "f:paused": {}}})),
        entry("other", "Update", "apps/v1", "", json!({"f:spec": {"f:paused": {}}})),
    ];
    let scale = to_scale(&parent, &paths).expect("valid");
    assert_eq!(scale, [entry("applier", "Apply", "autoscaling/v1", "", replicas.clone())]);
    // Unchanged through the Scale, unchanged in the resource.
    assert_eq!(from_scale(&parent, &scale, "apps/v1", &paths).expect("valid"), parent);
    let scaled = [entry("hpa", "Update", "autoscaling/v1", "scale", replicas.clone())];
    assert_eq!(
        from_scale(&parent, &scaled, "apps/v1", &paths).expect("valid"),
        [
            entry("applier", "Apply", "apps/v1", "", json!({"f:spec": {"f:paused": {}}})),
            entry("hpa", "Update", "apps/v1", "scale", replicas),
            entry("other", "Update", "apps/v1", "", json!({"f:spec": {"f:paused": {}}})),
        ]
    );
}

#[test]
fn sets_encode_in_order() {
    let json = json!({"f:b": {".": {}, "f:c": {}}, "f:a": {}, "k:{\"port\":443,\"protocol\":\"TCP\"}": {}, "k:{\"port\":80}": {"f:x": {}}, "v:\"s\"": {}, "v:3": {}, "i:2": {}, "q:later": {}});
    let set = encode::from_json(&json).expect("valid");
    assert_eq!(
        encode::to_text(&set),
        r#"{"f:a":{},"f:b":{".":{},"f:c":{}},"k:{\"port\":80}":{"f:x":{}},"k:{\"port\":443,\"protocol\":\"TCP\"}":{},"v:3":{},"v:\"s\"":{},"i:2":{}}"#
    );
    assert_eq!(set.to_string(), ".a\n.b\n[port=443,protocol=\"TCP\"]\n[=3]\n[=\"s\"]\n[2]\n.b.c\n[port=80].x");
    for bad in [
        json!([]),
        json!({"f": {}}),
        json!({"fx": {}}),
        json!({"f:a": 1}),
        json!({"k:{": {}}),
        json!({"v:": {}}),
        json!({"i:x": {}}),
    ] {
        assert!(encode::from_json(&bad).is_err(), "{bad}");
    }
}
