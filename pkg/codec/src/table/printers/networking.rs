//! Columns of the groups discovery, networking and policy.

use serde_json::{Value, json};

use super::{AGE, NAME, Printer, Row, number, text};
use crate::table::cells::*;

pub(super) static PRINTERS: &[Row] = &[
    (
        "discovery.k8s.io",
        "endpointslices",
        Printer {
            columns: &[NAME, text("AddressType"), text("Ports"), text("Endpoints"), AGE],
            cells: |o, now| {
                let ports = items(&o["ports"]).map(|port| match (port["port"].as_i64(), str_of(&port["name"])) {
                    (Some(number), _) => number.to_string(),
                    (None, "") => "*".to_owned(),
                    (None, name) => name.to_owned(),
                });
                let addresses = items(&o["endpoints"]).flat_map(|endpoint| items(&endpoint["addresses"]).map(str_of));
                vec![
                    name(o),
                    string(o, "/addressType"),
                    json!(shortened(ports, 3, "<unset>")),
                    json!(shortened(addresses.map(str::to_owned), 3, "<unset>")),
                    age(o, now),
                ]
            },
        },
    ),
    (
        "networking.k8s.io",
        "ingressclasses",
        Printer {
            columns: &[NAME, text("Controller"), text("Parameters"), AGE],
            cells: |o, now| {
                let parameters = &o["spec"]["parameters"];
                let text = match (parameters.is_null(), str_of(&parameters["apiGroup"])) {
                    (true, _) => "<none>".to_owned(),
                    (false, "") => format!("{}/{}", str_of(&parameters["kind"]), str_of(&parameters["name"])),
                    (false, group) => {
                        format!("{}.{group}/{}", str_of(&parameters["kind"]), str_of(&parameters["name"]))
                    }
                };
                vec![name(o), string(o, "/spec/controller"), json!(text), age(o, now)]
            },
        },
    ),
    (
        "networking.k8s.io",
        "ingresses",
        Printer {
            columns: &[NAME, text("Class"), text("Hosts"), text("Address"), text("Ports"), AGE],
            cells: |o, now| {
                let ports = if len(o, "/spec/tls") > 0 { "80, 443" } else { "80" };
                vec![
                    name(o),
                    or(o, "/spec/ingressClassName", "<none>"),
                    json!(hosts(&o["spec"]["rules"])),
                    json!(load_balancer(o)),
                    json!(ports),
                    age(o, now),
                ]
            },
        },
    ),
    (
        "networking.k8s.io",
        "ipaddresses",
        Printer {
            columns: &[NAME, text("ParentRef")],
            cells: |o, _| {
                let parent = &o["spec"]["parentRef"];
                let parts = ["group", "resource", "namespace", "name"].map(|part| str_of(&parent[part]));
                let parts: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
                vec![name(o), json!(none_if_empty(parts.join("/")))]
            },
        },
    ),
    (
        "networking.k8s.io",
        "networkpolicies",
        Printer {
            columns: &[NAME, text("Pod-Selector"), AGE],
            cells: |o, now| vec![name(o), selector(&o["spec"]["podSelector"]), age(o, now)],
        },
    ),
    (
        "networking.k8s.io",
        "servicecidrs",
        Printer {
            columns: &[NAME, text("CIDRs"), AGE],
            cells: |o, now| {
                let all: Vec<&str> = items(&o["spec"]["cidrs"]).map(str_of).collect();
                vec![name(o), json!(all.join(",")), age(o, now)]
            },
        },
    ),
    (
        "policy",
        "poddisruptionbudgets",
        Printer {
            columns: &[NAME, text("Min Available"), text("Max Unavailable"), number("Allowed Disruptions"), AGE],
            cells: |o, now| {
                let amount = |path: &str| match o.pointer(path) {
                    Some(Value::String(text)) => json!(text),
                    Some(Value::Number(number)) => json!(number.to_string()),
                    _ => json!("N/A"),
                };
                vec![
                    name(o),
                    amount("/spec/minAvailable"),
                    amount("/spec/maxUnavailable"),
                    int(o, "/status/disruptionsAllowed"),
                    age(o, now),
                ]
            },
        },
    ),
];
