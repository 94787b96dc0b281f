//! Columns of the groups of workloads: apps, autoscaling and batch.

use serde_json::json;

use super::{AGE, NAME, Printer, REPLICAS, Row, WORKLOAD_WIDE, boolean, number, text};
use crate::table::autoscaler;
use crate::table::cells::*;
use crate::table::rows::job;

pub(super) static PRINTERS: &[Row] = &[
    (
        "apps",
        "controllerrevisions",
        Printer {
            columns: &[NAME, text("Controller"), text("Revision"), AGE],
            cells: |o, now| {
                let mut owners = items(&o["metadata"]["ownerReferences"]);
                let controller = owners.find(|owner| owner["controller"] == true).map(|owner| {
                    let version = str_of(&owner["apiVersion"]);
                    let kind = str_of(&owner["kind"]).to_ascii_lowercase();
                    match version.split_once('/') {
                        Some((group, _)) => format!("{kind}.{group}/{}", str_of(&owner["name"])),
                        None => format!("{kind}/{}", str_of(&owner["name"])),
                    }
                });
                vec![
                    name(o),
                    json!(controller.unwrap_or_else(|| "<none>".to_owned())),
                    int(o, "/revision"),
                    age(o, now),
                ]
            },
        },
    ),
    (
        "apps",
        "daemonsets",
        Printer {
            columns: &[
                NAME,
                number("Desired"),
                number("Current"),
                number("Ready"),
                number("Up-to-date"),
                number("Available"),
                text("Node Selector"),
                AGE,
                WORKLOAD_WIDE[0],
                WORKLOAD_WIDE[1],
                WORKLOAD_WIDE[2],
            ],
            cells: |o, now| {
                let template = &o["spec"]["template"]["spec"];
                let [names, images] = containers(template);
                vec![
                    name(o),
                    int(o, "/status/desiredNumberScheduled"),
                    int(o, "/status/currentNumberScheduled"),
                    int(o, "/status/numberReady"),
                    int(o, "/status/updatedNumberScheduled"),
                    int(o, "/status/numberAvailable"),
                    labels(&template["nodeSelector"]),
                    age(o, now),
                    names,
                    images,
                    selector(&o["spec"]["selector"]),
                ]
            },
        },
    ),
    (
        "apps",
        "deployments",
        Printer {
            columns: &[
                NAME,
                text("Ready"),
                text("Up-to-date"),
                text("Available"),
                AGE,
                WORKLOAD_WIDE[0],
                WORKLOAD_WIDE[1],
                WORKLOAD_WIDE[2],
            ],
            cells: |o, now| {
                let [names, images] = containers(&o["spec"]["template"]["spec"]);
                vec![
                    name(o),
                    of(o, "/status/readyReplicas", "/spec/replicas"),
                    int(o, "/status/updatedReplicas"),
                    int(o, "/status/availableReplicas"),
                    age(o, now),
                    names,
                    images,
                    selector(&o["spec"]["selector"]),
                ]
            },
        },
    ),
    (
        "apps",
        "replicasets",
        Printer {
            columns: REPLICAS,
            cells: |o, now| {
                let [names, images] = containers(&o["spec"]["template"]["spec"]);
                vec![
                    name(o),
                    int(o, "/spec/replicas"),
                    int(o, "/status/replicas"),
                    int(o, "/status/readyReplicas"),
                    age(o, now),
                    names,
                    images,
                    selector(&o["spec"]["selector"]),
                ]
            },
        },
    ),
    (
        "apps",
        "statefulsets",
        Printer {
            columns: &[NAME, text("Ready"), AGE, WORKLOAD_WIDE[0], WORKLOAD_WIDE[1]],
            cells: |o, now| {
                let [names, images] = containers(&o["spec"]["template"]["spec"]);
                vec![name(o), of(o, "/status/readyReplicas", "/spec/replicas"), age(o, now), names, images]
            },
        },
    ),
    (
        "autoscaling",
        "horizontalpodautoscalers",
        Printer {
            columns: &[
                NAME,
                text("Reference"),
                text("Targets"),
                text("MinPods"),
                text("MaxPods"),
                text("Replicas"),
                AGE,
            ],
            cells: autoscaler::cells,
        },
    ),
    (
        "batch",
        "cronjobs",
        Printer {
            columns: &[
                NAME,
                text("Schedule"),
                text("Timezone"),
                boolean("Suspend"),
                number("Active"),
                text("Last Schedule"),
                AGE,
                WORKLOAD_WIDE[0],
                WORKLOAD_WIDE[1],
                WORKLOAD_WIDE[2],
            ],
            cells: |o, now| {
                let job = &o["spec"]["jobTemplate"]["spec"];
                let [names, images] = containers(&job["template"]["spec"]);
                let last = match str_at(o, "/status/lastScheduleTime") {
                    "" => "<none>".to_owned(),
                    at => since(at, now),
                };
                let suspend = o["spec"]["suspend"].as_bool();
                let suspend = suspend.map_or_else(|| "<unset>".to_owned(), |suspend| title(suspend).to_owned());
                vec![
                    name(o),
                    string(o, "/spec/schedule"),
                    or(o, "/spec/timeZone", "<none>"),
                    json!(suspend),
                    json!(len(o, "/status/active")),
                    json!(last),
                    age(o, now),
                    names,
                    images,
                    selector(&job["selector"]),
                ]
            },
        },
    ),
    (
        "batch",
        "jobs",
        Printer {
            columns: &[
                NAME,
                text("Status"),
                text("Completions"),
                text("Duration"),
                AGE,
                WORKLOAD_WIDE[0],
                WORKLOAD_WIDE[1],
                WORKLOAD_WIDE[2],
            ],
            cells: job,
        },
    ),
];
