//! Patches and field ownership over every built-in kind, with upstream's fully populated objects.

use jiff::Timestamp;
use rkube_api::{schema, type_of};
use rkube_apimachinery::gvk::GroupVersionKind;
use rkube_apimachinery::managed_fields::{FieldManager, OneVersion, ResetFields, encode};
use rkube_apimachinery::meta::{Meta, MetaMut};
use rkube_apimachinery::patch::strategic;
use rkube_apimachinery::schema::TypeId;
use serde_json::{Value, json};

/// Every golden object of a kind with metadata.
fn objects() -> Vec<(GroupVersionKind, TypeId, Value)> {
    let folder = rkube_testing::golden::folder().join("objects");
    let mut out = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let object: Value = serde_json::from_slice(&std::fs::read(&path).expect("a file")).expect("JSON");
        let Some(gvk) = object.gvk() else { continue };
        // What is in no store, a review for example, has no uid.
        let Some(ty) = type_of(&gvk).filter(|_| !object.uid().is_empty()) else { continue };
        out.push((gvk, ty, without_nulls(object)));
    }
    assert!(out.len() > 100, "{} golden objects have metadata", out.len());
    out
}

/// Null is absence to patches, so what golden objects have of it cannot be patched in.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let fields = fields.into_iter().filter(|(_, value)| !value.is_null());
            fields.map(|(key, value)| (key, without_nulls(value))).collect()
        }
        Value::Array(items) => items.into_iter().map(without_nulls).collect(),
        other => other,
    }
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("in range")
}

fn manager<'a>(gvk: &'a GroupVersionKind, ty: TypeId, reset_fields: &'a ResetFields) -> FieldManager<'a> {
    FieldManager { schemas: schema(), ty, gvk, subresource: "", reset_fields, converter: &OneVersion }
}

#[test]
fn golden_objects_can_be_applied_and_applied_again() {
    let none = ResetFields::new();
    for (gvk, ty, mut object) in objects() {
        object.set_managed_fields(Vec::new());
        let manager = manager(&gvk, ty, &none);
        let stored = manager
            .apply(None, &object, "me", false, at(1))
            .unwrap_or_else(|error| panic!("{gvk}: {error}"))
            .unwrap_or_else(|| panic!("{gvk}: a create changed nothing"));
        let mut bare = stored.clone();
        bare.set_managed_fields(Vec::new());
        assert_eq!(bare, object, "{gvk}");
        let again = manager.apply(Some(&stored), &object, "me", false, at(2)).unwrap();
        assert_eq!(again, None, "{gvk}");
        let again = manager.apply(Some(&stored), &object, "other", false, at(2)).unwrap().unwrap();
        assert_eq!(again.managed_fields().len(), 2, "{gvk}");

        // All that is left of a configuration without content is what the server set.
        let empty = json!({
            "apiVersion": gvk.api_version(), "kind": gvk.kind,
            "metadata": {"name": object.name(), "namespace": object.namespace()},
        });
        let emptied = manager.apply(Some(&stored), &empty, "me", false, at(3)).unwrap().unwrap();
        let left: Vec<&String> = emptied.as_object().unwrap().keys().collect();
        assert_eq!(left, ["apiVersion", "kind", "metadata"], "{gvk}");
    }
}

#[test]
fn golden_objects_are_owned_by_their_creator_and_not_by_who_changes_nothing() {
    let none = ResetFields::new();
    for (gvk, ty, mut object) in objects() {
        object.set_managed_fields(Vec::new());
        let manager = manager(&gvk, ty, &none);
        let mut created = object.clone();
        manager.update(None, &mut created, "creator", at(1));
        let [entry] = created.managed_fields() else { panic!("{gvk}: one manager creates") };
        let set = encode::from_json(&entry["fieldsV1"]).unwrap();
        assert!(!set.is_empty(), "{gvk}");
        assert_eq!(encode::to_json(&set), entry["fieldsV1"], "{gvk}");

        let mut same = created.clone();
        manager.update(Some(&created), &mut same, "visitor", at(2));
        assert_eq!(same, created, "{gvk}");

        let mut labelled = created.clone();
        labelled.set_label("new.example.com/label", "x");
        manager.update(Some(&created), &mut labelled, "visitor", at(2));
        assert_eq!(labelled.managed_fields().len(), 2, "{gvk}");
        assert_eq!(
            labelled.managed_fields()[1]["fieldsV1"],
            json!({"f:metadata": {"f:labels": {"f:new.example.com/label": {}}}})
        );
    }
}

#[test]
fn strategic_patches_of_golden_objects_lead_to_their_target() {
    for (gvk, ty, object) in objects() {
        let create = |from: &Value, to: &Value| {
            strategic::create(schema(), ty, from, to).unwrap_or_else(|error| panic!("{gvk}: {error}"))
        };
        assert_eq!(create(&object, &object), json!({}), "{gvk}");
        let empty = json!({"apiVersion": gvk.api_version(), "kind": gvk.kind});
        for (from, to) in [(&empty, &object), (&object, &empty)] {
            let mut patched = from.clone();
            strategic::apply(schema(), ty, &mut patched, create(from, to)).unwrap();
            assert_eq!(&patched, to, "{gvk}");
        }
    }
}

#[test]
fn a_deployment_is_owned_as_upstream_writes_it() {
    let mut deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "web", "namespace": "default", "labels": {"app": "web"}},
        "spec": {
            "progressDeadlineSeconds": 600, "replicas": 1, "revisionHistoryLimit": 10,
            "selector": {"matchLabels": {"app": "web"}},
            "strategy": {"rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}, "type": "RollingUpdate"},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {
                    "containers": [{
                        "image": "nginx", "imagePullPolicy": "Always", "name": "nginx", "resources": {},
                        "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
                    }],
                    "dnsPolicy": "ClusterFirst", "restartPolicy": "Always", "schedulerName": "default-scheduler",
                    "securityContext": {}, "terminationGracePeriodSeconds": 30,
                },
            },
        },
        "status": {},
    });
    let gvk = GroupVersionKind::new("apps", "v1", "Deployment");
    let none = ResetFields::new();
    manager(&gvk, type_of(&gvk).unwrap(), &none).update(None, &mut deployment, "kubectl-create", at(0));
    let expected = json!([{
        "apiVersion": "apps/v1", "fieldsType": "FieldsV1", "manager": "kubectl-create", "operation": "Update",
        "time": "1970-01-01T00:00:00Z",
        "fieldsV1": {
            "f:metadata": {"f:labels": {".": {}, "f:app": {}}},
            "f:spec": {
                "f:progressDeadlineSeconds": {}, "f:replicas": {}, "f:revisionHistoryLimit": {}, "f:selector": {},
                "f:strategy": {"f:rollingUpdate": {".": {}, "f:maxSurge": {}, "f:maxUnavailable": {}}, "f:type": {}},
                "f:template": {
                    "f:metadata": {"f:labels": {".": {}, "f:app": {}}},
                    "f:spec": {
                        "f:containers": {"k:{\"name\":\"nginx\"}": {
                            ".": {}, "f:image": {}, "f:imagePullPolicy": {}, "f:name": {}, "f:resources": {},
                            "f:terminationMessagePath": {}, "f:terminationMessagePolicy": {},
                        }},
                        "f:dnsPolicy": {}, "f:restartPolicy": {}, "f:schedulerName": {}, "f:securityContext": {},
                        "f:terminationGracePeriodSeconds": {},
                    },
                },
            },
        },
    }]);
    assert_eq!(deployment["metadata"]["managedFields"], expected);
}
