//! Columns of the core group, and of events.k8s.io.

use serde_json::json;

use super::{AGE, Column, NAME, Printer, REPLICAS, Row, text, wide};
use crate::table::cells::*;
use crate::table::pod;
use crate::table::rows::node;

const EVENT: &[Column] = &[
    text("Last Seen"),
    text("Type"),
    text("Reason"),
    text("Object"),
    wide("Subobject"),
    wide("Source"),
    text("Message"),
    wide("First Seen"),
    wide("Count"),
    Column { name: "Name", kind: "string", format: "name", priority: 1 },
];

pub(super) static PRINTERS: &[Row] = &[
    (
        "",
        "componentstatuses",
        Printer {
            columns: &[NAME, text("Status"), text("Message"), text("Error")],
            cells: |o, _| {
                let healthy = condition(o, "/conditions", "Healthy");
                let status = match healthy.and_then(|healthy| healthy["status"].as_str()) {
                    None => "Unknown",
                    Some("True") => "Healthy",
                    Some(_) => "Unhealthy",
                };
                let part = |name: &str| healthy.map_or("", |healthy| str_of(&healthy[name]));
                vec![name(o), json!(status), json!(part("message")), json!(part("error"))]
            },
        },
    ),
    (
        "",
        "configmaps",
        Printer {
            columns: &[NAME, text("Data"), AGE],
            cells: |o, now| vec![name(o), json!(len(o, "/data") + len(o, "/binaryData")), age(o, now)],
        },
    ),
    (
        "",
        "endpoints",
        Printer {
            columns: &[NAME, text("Endpoints"), AGE],
            cells: |o, now| vec![name(o), json!(endpoints(o)), age(o, now)],
        },
    ),
    ("", "events", Printer { columns: EVENT, cells: |o, now| event(o, now, &CORE_EVENT) }),
    ("", "limitranges", Printer { columns: &[NAME, text("Created At")], cells: |o, _| vec![name(o), created(o)] }),
    (
        "",
        "namespaces",
        Printer {
            columns: &[NAME, text("Status"), AGE],
            cells: |o, now| vec![name(o), string(o, "/status/phase"), age(o, now)],
        },
    ),
    (
        "",
        "nodes",
        Printer {
            columns: &[
                NAME,
                text("Status"),
                text("Roles"),
                AGE,
                text("Version"),
                wide("Internal-IP"),
                wide("External-IP"),
                wide("OS-Image"),
                wide("Kernel-Version"),
                wide("Container-Runtime"),
            ],
            cells: node,
        },
    ),
    (
        "",
        "persistentvolumeclaims",
        Printer {
            columns: &[
                NAME,
                text("Status"),
                text("Volume"),
                text("Capacity"),
                text("Access Modes"),
                text("StorageClass"),
                text("VolumeAttributesClass"),
                AGE,
                wide("VolumeMode"),
            ],
            cells: |o, now| {
                let bound = !str_at(o, "/spec/volumeName").is_empty();
                let of_bound = |text: String| if bound { text } else { String::new() };
                vec![
                    name(o),
                    phase(o),
                    string(o, "/spec/volumeName"),
                    json!(of_bound(str_at(o, "/status/capacity/storage").to_owned())),
                    json!(of_bound(access_modes(&o["status"]["accessModes"]))),
                    json!(storage_class(o)),
                    or(o, "/spec/volumeAttributesClassName", "<unset>"),
                    age(o, now),
                    or(o, "/spec/volumeMode", "<unset>"),
                ]
            },
        },
    ),
    (
        "",
        "persistentvolumes",
        Printer {
            columns: &[
                NAME,
                text("Capacity"),
                text("Access Modes"),
                text("Reclaim Policy"),
                text("Status"),
                text("Claim"),
                text("StorageClass"),
                text("VolumeAttributesClass"),
                text("Reason"),
                AGE,
                wide("VolumeMode"),
            ],
            cells: |o, now| {
                let claim = &o["spec"]["claimRef"];
                let claim = match claim.is_null() {
                    true => String::new(),
                    false => format!("{}/{}", str_of(&claim["namespace"]), str_of(&claim["name"])),
                };
                vec![
                    name(o),
                    string(o, "/spec/capacity/storage"),
                    json!(access_modes(&o["spec"]["accessModes"])),
                    string(o, "/spec/persistentVolumeReclaimPolicy"),
                    phase(o),
                    json!(claim),
                    json!(storage_class(o)),
                    or(o, "/spec/volumeAttributesClassName", "<unset>"),
                    string(o, "/status/reason"),
                    age(o, now),
                    or(o, "/spec/volumeMode", "<unset>"),
                ]
            },
        },
    ),
    (
        "",
        "pods",
        Printer {
            columns: &[
                NAME,
                text("Ready"),
                text("Status"),
                text("Restarts"),
                AGE,
                wide("IP"),
                wide("Node"),
                wide("Nominated Node"),
                wide("Readiness Gates"),
            ],
            cells: pod::cells,
        },
    ),
    (
        "",
        "podtemplates",
        Printer {
            columns: &[NAME, text("Containers"), text("Images"), text("Pod Labels")],
            cells: |o, _| {
                let [names, images] = containers(&o["template"]["spec"]);
                vec![name(o), names, images, labels(&o["template"]["metadata"]["labels"])]
            },
        },
    ),
    (
        "",
        "replicationcontrollers",
        Printer {
            columns: REPLICAS,
            cells: |o, now| {
                let [names, images] = containers(&o["spec"]["template"]["spec"]);
                let selector = labels(&o["spec"]["selector"]);
                vec![
                    name(o),
                    int(o, "/spec/replicas"),
                    int(o, "/status/replicas"),
                    int(o, "/status/readyReplicas"),
                    age(o, now),
                    names,
                    images,
                    selector,
                ]
            },
        },
    ),
    (
        "",
        "resourcequotas",
        Printer {
            columns: &[NAME, text("Request"), text("Limit"), AGE],
            cells: |o, now| {
                let hard = o["status"]["hard"].as_object();
                let entry = |name: &String| {
                    let used = o["status"]["used"][name].as_str().unwrap_or("0");
                    format!("{name}: {used}/{}", str_of(&o["status"]["hard"][name]))
                };
                let (limits, requests): (Vec<_>, Vec<_>) =
                    hard.into_iter().flat_map(|hard| hard.keys()).partition(|name| name.contains("limits."));
                let join = |names: Vec<&String>| json!(names.into_iter().map(entry).collect::<Vec<_>>().join(", "));
                vec![name(o), join(requests), join(limits), age(o, now)]
            },
        },
    ),
    (
        "",
        "secrets",
        Printer {
            columns: &[NAME, text("Type"), text("Data"), AGE],
            cells: |o, now| vec![name(o), string(o, "/type"), json!(len(o, "/data")), age(o, now)],
        },
    ),
    ("", "serviceaccounts", Printer { columns: &[NAME, AGE], cells: |o, now| vec![name(o), age(o, now)] }),
    (
        "",
        "services",
        Printer {
            columns: &[
                NAME,
                text("Type"),
                text("Cluster-IP"),
                text("External-IP"),
                text("Port(s)"),
                AGE,
                wide("Selector"),
            ],
            cells: |o, now| {
                let ports = items(&o["spec"]["ports"]).map(|port| match port["nodePort"].as_i64() {
                    Some(node) if node > 0 => format!("{}:{node}/{}", port["port"], str_of(&port["protocol"])),
                    _ => format!("{}/{}", port["port"], str_of(&port["protocol"])),
                });
                let ports: Vec<String> = ports.collect();
                vec![
                    name(o),
                    string(o, "/spec/type"),
                    or(o, "/spec/clusterIPs/0", "<none>"),
                    json!(external_ip(o)),
                    json!(none_if_empty(ports.join(","))),
                    age(o, now),
                    labels(&o["spec"]["selector"]),
                ]
            },
        },
    ),
    ("events.k8s.io", "events", Printer { columns: EVENT, cells: |o, now| event(o, now, &NEW_EVENT) }),
];
