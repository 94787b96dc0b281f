//! The columns of each built-in kind, in one table: name, type, priority, and how a cell is made.
//!
//! Columns with priority 1 are for `-o wide`; the server always sends them and the client hides them.
//! Behaves as `pkg/printers/internalversion/printers.go`, v1.36.

use jiff::Timestamp;
use rkube_apimachinery::time;
use serde_json::{Value, json};

use super::cells::*;
use super::pod;
use super::rows::{binding, job, node};

/// How one kind is printed.
pub(crate) struct Printer {
    pub(crate) columns: &'static [Column],
    pub(crate) cells: fn(&Value, Timestamp) -> Vec<Value>,
}

#[derive(Clone, Copy)]
pub(crate) struct Column {
    pub(crate) name: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) format: &'static str,
    pub(crate) priority: u8,
}

const NAME: Column = Column { name: "Name", kind: "string", format: "name", priority: 0 };
const AGE: Column = text("Age");

const fn text(name: &'static str) -> Column {
    Column { name, kind: "string", format: "", priority: 0 }
}

const fn number(name: &'static str) -> Column {
    Column { name, kind: "integer", format: "", priority: 0 }
}

const fn boolean(name: &'static str) -> Column {
    Column { name, kind: "boolean", format: "", priority: 0 }
}

const fn wide(name: &'static str) -> Column {
    Column { name, kind: "string", format: "", priority: 1 }
}

/// The printer of a resource, if it has one; others show name and time of creation.
pub(crate) fn printer(group: &str, plural: &str) -> Option<&'static Printer> {
    let found = PRINTERS.iter().find(|(known_group, known, _)| *known_group == group && *known == plural);
    found.map(|(_, _, printer)| printer)
}

type Row = (&'static str, &'static str, Printer);

const WORKLOAD_WIDE: [Column; 3] = [wide("Containers"), wide("Images"), wide("Selector")];
const REPLICAS: &[Column] = &[
    NAME,
    number("Desired"),
    number("Current"),
    number("Ready"),
    AGE,
    WORKLOAD_WIDE[0],
    WORKLOAD_WIDE[1],
    WORKLOAD_WIDE[2],
];
const BINDING: &[Column] = &[NAME, text("Role"), AGE, wide("Users"), wide("Groups"), wide("ServiceAccounts")];
const COUNTED_WEBHOOKS: &[Column] = &[NAME, number("Webhooks"), AGE];
const POLICY_BINDING: &[Column] = &[NAME, text("PolicyName"), text("ParamRef"), AGE];

/// Sorted by group, then resource.
pub(crate) static PRINTERS: &[Row] = &[
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
            cells: super::autoscaler::cells,
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
    ("events.k8s.io", "events", Printer { columns: EVENT, cells: |o, now| event(o, now, &NEW_EVENT) }),
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
        "node.k8s.io",
        "runtimeclasses",
        Printer {
            columns: &[NAME, text("Handler"), AGE],
            cells: |o, now| vec![name(o), string(o, "/handler"), age(o, now)],
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
