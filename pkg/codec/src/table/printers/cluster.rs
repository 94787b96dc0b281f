//! Columns of the groups that configure a cluster: access, admission, extension, flow control, scheduling.

use rkube_apimachinery::time;
use serde_json::{Value, json};

use super::{AGE, Column, NAME, Printer, Row, boolean, number, text, wide};
use crate::table::cells::*;
use crate::table::rows::binding;

const BINDING: &[Column] = &[NAME, text("Role"), AGE, wide("Users"), wide("Groups"), wide("ServiceAccounts")];

const COUNTED_WEBHOOKS: &[Column] = &[NAME, number("Webhooks"), AGE];

const POLICY_BINDING: &[Column] = &[NAME, text("PolicyName"), text("ParamRef"), AGE];

pub(super) static PRINTERS: &[Row] = &[
    (
        "admissionregistration.k8s.io",
        "mutatingadmissionpolicies",
        Printer {
            columns: &[NAME, number("Mutations"), text("ParamKind"), AGE],
            cells: |o, now| vec![name(o), json!(len(o, "/spec/mutations")), param_kind(o), age(o, now)],
        },
    ),
    (
        "admissionregistration.k8s.io",
        "mutatingadmissionpolicybindings",
        Printer {
            columns: POLICY_BINDING,
            cells: |o, now| vec![name(o), string(o, "/spec/policyName"), param_ref(o), age(o, now)],
        },
    ),
    (
        "admissionregistration.k8s.io",
        "mutatingwebhookconfigurations",
        Printer { columns: COUNTED_WEBHOOKS, cells: |o, now| vec![name(o), json!(len(o, "/webhooks")), age(o, now)] },
    ),
    (
        "admissionregistration.k8s.io",
        "validatingadmissionpolicies",
        Printer {
            columns: &[NAME, number("Validations"), text("ParamKind"), AGE],
            cells: |o, now| vec![name(o), json!(len(o, "/spec/validations")), param_kind(o), age(o, now)],
        },
    ),
    (
        "admissionregistration.k8s.io",
        "validatingadmissionpolicybindings",
        Printer {
            columns: POLICY_BINDING,
            cells: |o, now| vec![name(o), string(o, "/spec/policyName"), param_ref(o), age(o, now)],
        },
    ),
    (
        "admissionregistration.k8s.io",
        "validatingwebhookconfigurations",
        Printer { columns: COUNTED_WEBHOOKS, cells: |o, now| vec![name(o), json!(len(o, "/webhooks")), age(o, now)] },
    ),
    (
        "apiextensions.k8s.io",
        "customresourcedefinitions",
        Printer { columns: &[NAME, text("Created At")], cells: |o, _| vec![name(o), created(o)] },
    ),
    (
        "apiregistration.k8s.io",
        "apiservices",
        Printer {
            columns: &[NAME, text("Service"), text("Available"), AGE],
            cells: |o, now| {
                let service = &o["spec"]["service"];
                let service = match service.is_null() {
                    true => "Local".to_owned(),
                    false => format!("{}/{}", str_of(&service["namespace"]), str_of(&service["name"])),
                };
                let available = match condition(o, "/status/conditions", "Available") {
                    Some(condition) if condition["status"] == "True" => "True".to_owned(),
                    Some(condition) => format!("{} ({})", str_of(&condition["status"]), str_of(&condition["reason"])),
                    None => "Unknown".to_owned(),
                };
                vec![name(o), json!(service), json!(available), age(o, now)]
            },
        },
    ),
    (
        "certificates.k8s.io",
        "certificatesigningrequests",
        Printer {
            columns: &[NAME, AGE, text("SignerName"), text("Requestor"), text("RequestedDuration"), text("Condition")],
            cells: |o, now| {
                let has = |kind: &str| condition(o, "/status/conditions", kind).is_some();
                let mut status = if has("Denied") {
                    "Denied"
                } else if has("Approved") {
                    "Approved"
                } else {
                    "Pending"
                }
                .to_owned();
                if has("Failed") {
                    status.push_str(",Failed");
                }
                if !str_at(o, "/status/certificate").is_empty() {
                    status.push_str(",Issued");
                }
                let asked = o["spec"]["expirationSeconds"].as_i64();
                let asked = asked.map_or_else(
                    || "<none>".to_owned(),
                    |seconds| time::human_duration(jiff::SignedDuration::from_secs(seconds)),
                );
                vec![
                    name(o),
                    age(o, now),
                    or(o, "/spec/signerName", "<none>"),
                    string(o, "/spec/username"),
                    json!(asked),
                    json!(status),
                ]
            },
        },
    ),
    (
        "coordination.k8s.io",
        "leases",
        Printer {
            columns: &[NAME, text("Holder"), AGE],
            cells: |o, now| vec![name(o), string(o, "/spec/holderIdentity"), age(o, now)],
        },
    ),
    (
        "flowcontrol.apiserver.k8s.io",
        "flowschemas",
        Printer {
            columns: &[
                NAME,
                text("PriorityLevel"),
                text("MatchingPrecedence"),
                text("DistinguisherMethod"),
                AGE,
                text("MissingPL"),
            ],
            cells: |o, now| {
                let missing =
                    condition(o, "/status/conditions", "Dangling").map_or("?", |found| str_of(&found["status"]));
                vec![
                    name(o),
                    or(o, "/spec/priorityLevelConfiguration/name", "<none>"),
                    int(o, "/spec/matchingPrecedence"),
                    or(o, "/spec/distinguisherMethod/type", "<none>"),
                    age(o, now),
                    json!(missing),
                ]
            },
        },
    ),
    (
        "flowcontrol.apiserver.k8s.io",
        "prioritylevelconfigurations",
        Printer {
            columns: &[
                NAME,
                text("Type"),
                text("NominalConcurrencyShares"),
                text("Queues"),
                text("HandSize"),
                text("QueueLengthLimit"),
                AGE,
            ],
            cells: |o, now| {
                let limited = &o["spec"]["limited"];
                let queuing = &limited["limitResponse"]["queuing"];
                let shares = match limited.is_null() {
                    true => &o["spec"]["exempt"]["nominalConcurrencyShares"],
                    false => &limited["nominalConcurrencyShares"],
                };
                let number =
                    |value: &Value| value.as_i64().map_or_else(|| "<none>".to_owned(), |number| number.to_string());
                vec![
                    name(o),
                    string(o, "/spec/type"),
                    json!(number(shares)),
                    json!(number(&queuing["queues"])),
                    json!(number(&queuing["handSize"])),
                    json!(number(&queuing["queueLengthLimit"])),
                    age(o, now),
                ]
            },
        },
    ),
    (
        "node.k8s.io",
        "runtimeclasses",
        Printer {
            columns: &[NAME, text("Handler"), AGE],
            cells: |o, now| vec![name(o), string(o, "/handler"), age(o, now)],
        },
    ),
    ("rbac.authorization.k8s.io", "clusterrolebindings", Printer { columns: BINDING, cells: binding }),
    ("rbac.authorization.k8s.io", "rolebindings", Printer { columns: BINDING, cells: binding }),
    (
        "scheduling.k8s.io",
        "priorityclasses",
        Printer {
            columns: &[NAME, number("Value"), boolean("Global-Default"), AGE, text("PreemptionPolicy")],
            cells: |o, now| {
                let default = o["globalDefault"].as_bool().unwrap_or(false);
                vec![name(o), int(o, "/value"), json!(default), age(o, now), string(o, "/preemptionPolicy")]
            },
        },
    ),
];
