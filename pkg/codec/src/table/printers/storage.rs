//! Columns of the groups storage and resource.

use serde_json::json;

use super::{AGE, Column, NAME, NAME_AND_AGE, Printer, Row, boolean, number, text};
use crate::table::cells::*;

pub(super) static PRINTERS: &[Row] = &[
    ("resource.k8s.io", "deviceclasses", Printer { columns: NAME_AND_AGE, cells: |o, now| vec![name(o), age(o, now)] }),
    (
        "resource.k8s.io",
        "resourceclaims",
        Printer {
            columns: &[NAME, text("State"), AGE],
            cells: |o, now| {
                let terminating = !o["metadata"]["deletionTimestamp"].is_null();
                let allocated = !o["status"]["allocation"].is_null();
                let states = [
                    (terminating, "deleted"),
                    (!allocated && !terminating, "pending"),
                    (allocated, "allocated"),
                    (allocated && len(o, "/status/reservedFor") > 0, "reserved"),
                ];
                let states: Vec<&str> = states.into_iter().filter(|(is, _)| *is).map(|(_, state)| state).collect();
                vec![name(o), json!(states.join(",")), age(o, now)]
            },
        },
    ),
    (
        "resource.k8s.io",
        "resourceclaimtemplates",
        Printer { columns: NAME_AND_AGE, cells: |o, now| vec![name(o), age(o, now)] },
    ),
    (
        "resource.k8s.io",
        "resourceslices",
        Printer {
            columns: &[NAME, text("Node"), text("Driver"), text("Pool"), AGE],
            cells: |o, now| {
                let at = |path: &str| string(o, path);
                vec![name(o), at("/spec/nodeName"), at("/spec/driver"), at("/spec/pool/name"), age(o, now)]
            },
        },
    ),
    (
        "storage.k8s.io",
        "csidrivers",
        Printer {
            columns: &[
                NAME,
                boolean("AttachRequired"),
                boolean("PodInfoOnMount"),
                boolean("StorageCapacity"),
                text("TokenRequests"),
                boolean("RequiresRepublish"),
                text("Modes"),
                AGE,
            ],
            cells: |o, now| {
                let flag = |field: &str, default: bool| json!(o["spec"][field].as_bool().unwrap_or(default));
                let modes: Vec<&str> = items(&o["spec"]["volumeLifecycleModes"]).map(str_of).collect();
                let tokens: Vec<&str> =
                    items(&o["spec"]["tokenRequests"]).map(|token| str_of(&token["audience"])).collect();
                let tokens = if o["spec"]["tokenRequests"].is_null() { "<unset>".to_owned() } else { tokens.join(",") };
                vec![
                    name(o),
                    flag("attachRequired", true),
                    flag("podInfoOnMount", false),
                    flag("storageCapacity", false),
                    json!(tokens),
                    flag("requiresRepublish", false),
                    json!(none_if_empty(modes.join(","))),
                    age(o, now),
                ]
            },
        },
    ),
    (
        "storage.k8s.io",
        "csinodes",
        Printer {
            columns: &[NAME, number("Drivers"), AGE],
            cells: |o, now| vec![name(o), json!(len(o, "/spec/drivers")), age(o, now)],
        },
    ),
    (
        "storage.k8s.io",
        "csistoragecapacities",
        Printer {
            columns: &[NAME, text("StorageClassName"), text("Capacity")],
            cells: |o, _| vec![name(o), string(o, "/storageClassName"), or(o, "/capacity", "<unset>")],
        },
    ),
    (
        "storage.k8s.io",
        "storageclasses",
        Printer {
            columns: &[
                NAME,
                text("Provisioner"),
                text("ReclaimPolicy"),
                text("VolumeBindingMode"),
                text("AllowVolumeExpansion"),
                AGE,
            ],
            cells: |o, now| {
                let annotation = &o["metadata"]["annotations"];
                let is_default = annotation["storageclass.kubernetes.io/is-default-class"] == "true"
                    || annotation["storageclass.beta.kubernetes.io/is-default-class"] == "true";
                let shown = if is_default {
                    format!("{} (default)", str_at(o, "/metadata/name"))
                } else {
                    str_at(o, "/metadata/name").to_owned()
                };
                vec![
                    json!(shown),
                    string(o, "/provisioner"),
                    or(o, "/reclaimPolicy", "Delete"),
                    or(o, "/volumeBindingMode", "Immediate"),
                    json!(o["allowVolumeExpansion"].as_bool().unwrap_or(false)),
                    age(o, now),
                ]
            },
        },
    ),
    (
        "storage.k8s.io",
        "volumeattachments",
        Printer {
            columns: &[
                NAME,
                Column { name: "Attacher", kind: "string", format: "name", priority: 0 },
                text("PV"),
                text("Node"),
                boolean("Attached"),
                AGE,
            ],
            cells: |o, now| {
                vec![
                    name(o),
                    string(o, "/spec/attacher"),
                    string(o, "/spec/source/persistentVolumeName"),
                    string(o, "/spec/nodeName"),
                    json!(o["status"]["attached"].as_bool().unwrap_or(false)),
                    age(o, now),
                ]
            },
        },
    ),
    (
        "storage.k8s.io",
        "volumeattributesclasses",
        Printer {
            columns: &[NAME, text("DriverName"), AGE],
            cells: |o, now| vec![name(o), string(o, "/driverName"), age(o, now)],
        },
    ),
];
