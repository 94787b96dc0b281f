//! Cells: texts made of the fields of an object.

use jiff::{SignedDuration, Timestamp};
use rkube_apimachinery::time;
use serde_json::{Value, json};

const HOSTS_MAX: usize = 3;

pub(super) fn str_of(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

pub(super) fn str_at<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

pub(super) fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

pub(super) fn name(object: &Value) -> Value {
    json!(str_at(object, "/metadata/name"))
}

pub(super) fn string(object: &Value, pointer: &str) -> Value {
    json!(str_at(object, pointer))
}

/// The text at `pointer`, or `default` where there is none.
pub(super) fn or(object: &Value, pointer: &str, default: &str) -> Value {
    match str_at(object, pointer) {
        "" => json!(default),
        text => json!(text),
    }
}

pub(super) fn none_if_empty(text: String) -> String {
    if text.is_empty() { "<none>".to_owned() } else { text }
}

pub(super) fn int(object: &Value, pointer: &str) -> Value {
    json!(object.pointer(pointer).and_then(Value::as_i64).unwrap_or(0))
}

/// `2/3`
pub(super) fn of(object: &Value, part: &str, whole: &str) -> Value {
    json!(format!("{}/{}", int(object, part), int(object, whole)))
}

/// Entries of a list or map.
pub(super) fn len(object: &Value, pointer: &str) -> usize {
    match object.pointer(pointer) {
        Some(Value::Array(list)) => list.len(),
        Some(Value::Object(map)) => map.len(),
        _ => 0,
    }
}

pub(super) fn title(value: bool) -> &'static str {
    if value { "True" } else { "False" }
}

pub(super) fn created(object: &Value) -> Value {
    string(object, "/metadata/creationTimestamp")
}

pub(super) fn age(object: &Value, now: Timestamp) -> Value {
    json!(since(str_at(object, "/metadata/creationTimestamp"), now))
}

/// How long ago a time was: `5m`, `<unknown>` for none.
pub(super) fn since(at: &str, now: Timestamp) -> String {
    match at.parse::<Timestamp>() {
        Ok(at) => time::human_duration(now.duration_since(at)),
        Err(_) => "<unknown>".to_owned(),
    }
}

pub(super) fn between(start: &str, end: &str) -> String {
    match (start.parse::<Timestamp>(), end.parse::<Timestamp>()) {
        (Ok(start), Ok(end)) => time::human_duration(end.duration_since(start)),
        _ => time::human_duration(SignedDuration::ZERO),
    }
}

/// The condition of a type, in the list at `pointer`.
pub(super) fn condition<'a>(object: &'a Value, pointer: &str, kind: &str) -> Option<&'a Value> {
    items(object.pointer(pointer)?).find(|condition| condition["type"] == kind)
}

/// The phase, or that the object is going away.
pub(super) fn phase(object: &Value) -> Value {
    if object["metadata"]["deletionTimestamp"].is_null() {
        string(object, "/status/phase")
    } else {
        json!("Terminating")
    }
}

/// `RWO,ROX`, in upstream's order.
pub(super) fn access_modes(modes: &Value) -> String {
    let known =
        [("ReadWriteOnce", "RWO"), ("ReadOnlyMany", "ROX"), ("ReadWriteMany", "RWX"), ("ReadWriteOncePod", "RWOP")];
    let has = |name: &str| items(modes).any(|mode| mode == name);
    let short: Vec<&str> = known.into_iter().filter(|(name, _)| has(name)).map(|(_, short)| short).collect();
    short.join(",")
}

pub(super) fn storage_class(object: &Value) -> String {
    let annotation = &object["metadata"]["annotations"]["volume.beta.kubernetes.io/storage-class"];
    annotation.as_str().unwrap_or_else(|| str_at(object, "/spec/storageClassName")).to_owned()
}

/// Names and images of a pod spec's containers.
pub(super) fn containers(spec: &Value) -> [Value; 2] {
    let column = |field: &str| {
        let parts: Vec<&str> = items(&spec["containers"]).map(|container| str_of(&container[field])).collect();
        json!(parts.join(","))
    };
    [column("name"), column("image")]
}

/// `a=1,b=2`
pub(super) fn labels(map: &Value) -> Value {
    let pairs = map.as_object().into_iter().flatten().map(|(name, value)| format!("{name}={}", str_of(value)));
    json!(none_if_empty(pairs.collect::<Vec<_>>().join(",")))
}

/// A label selector as text.
pub(super) fn selector(selector: &Value) -> Value {
    let equal = selector["matchLabels"].as_object().into_iter().flatten();
    let mut parts: Vec<(String, String)> =
        equal.map(|(name, value)| (name.clone(), format!("{name}={}", str_of(value)))).collect();
    for requirement in items(&selector["matchExpressions"]) {
        let key = str_of(&requirement["key"]);
        let mut values: Vec<&str> = items(&requirement["values"]).map(str_of).collect();
        values.sort_unstable();
        let text = match str_of(&requirement["operator"]) {
            "In" => format!("{key} in ({})", values.join(",")),
            "NotIn" => format!("{key} notin ({})", values.join(",")),
            "DoesNotExist" => format!("!{key}"),
            _ => key.to_owned(),
        };
        parts.push((key.to_owned(), text));
    }
    parts.sort();
    json!(none_if_empty(parts.into_iter().map(|(_, text)| text).collect::<Vec<_>>().join(",")))
}

/// The first of many, and how many more there are.
pub(super) fn shortened(all: impl Iterator<Item = String>, max: usize, none: &str) -> String {
    let all: Vec<String> = all.collect();
    match all.len() {
        0 => none.to_owned(),
        count if count > max => format!("{} + {} more...", all[..max].join(","), count - max),
        _ => all.join(","),
    }
}

/// `10.0.0.1:80,10.0.0.2:80 + 3 more...`
pub(super) fn endpoints(object: &Value) -> String {
    let all = items(&object["subsets"]).flat_map(|subset| {
        let addresses: Vec<&str> = items(&subset["addresses"]).map(|address| str_of(&address["ip"])).collect();
        let ports: Vec<i64> = items(&subset["ports"]).filter_map(|port| port["port"].as_i64()).collect();
        let joined = |address: &str| match ports.is_empty() {
            true => vec![address.to_owned()],
            false => ports.iter().map(|port| host_port(address, *port)).collect(),
        };
        addresses.into_iter().flat_map(joined).collect::<Vec<_>>()
    });
    shortened(all, 3, "<none>")
}

fn host_port(address: &str, port: i64) -> String {
    if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}

/// The addresses of a load balancer, sorted.
pub(super) fn load_balancer(object: &Value) -> String {
    let mut all: Vec<&str> = items(&object["status"]["loadBalancer"]["ingress"])
        .map(|ingress| match str_of(&ingress["ip"]) {
            "" => str_of(&ingress["hostname"]),
            ip => ip,
        })
        .filter(|text| !text.is_empty())
        .collect();
    all.sort_unstable();
    all.dedup();
    all.join(",")
}

pub(super) fn external_ip(service: &Value) -> String {
    let own: Vec<&str> = items(&service["spec"]["externalIPs"]).map(str_of).collect();
    match str_at(service, "/spec/type") {
        "ClusterIP" | "NodePort" => none_if_empty(own.join(",")),
        "LoadBalancer" => {
            let balanced = load_balancer(service);
            let all: Vec<&str> = balanced.split(',').filter(|text| !text.is_empty()).chain(own).collect();
            if all.is_empty() { "<pending>".to_owned() } else { all.join(",") }
        }
        "ExternalName" => str_at(service, "/spec/externalName").to_owned(),
        _ => "<unknown>".to_owned(),
    }
}

pub(super) fn hosts(rules: &Value) -> String {
    let count = items(rules).count();
    let named: Vec<&str> =
        items(rules).take(HOSTS_MAX).map(|rule| str_of(&rule["host"])).filter(|host| !host.is_empty()).collect();
    match (named.is_empty(), count > HOSTS_MAX) {
        (true, _) => "*".to_owned(),
        (false, true) => format!("{} + {} more...", named.join(","), count - HOSTS_MAX),
        (false, false) => named.join(","),
    }
}

pub(super) fn node_roles(node: &Value) -> String {
    let mut roles: Vec<&str> = Vec::new();
    for (name, value) in node["metadata"]["labels"].as_object().into_iter().flatten() {
        match name.strip_prefix("node-role.kubernetes.io/") {
            Some(role) if !role.is_empty() => roles.push(role),
            None if name == "kubernetes.io/role" && !str_of(value).is_empty() => roles.push(str_of(value)),
            _ => {}
        }
    }
    roles.sort_unstable();
    roles.dedup();
    roles.join(",")
}

pub(super) fn node_address(node: &Value, kind: &str) -> String {
    let found = items(&node["status"]["addresses"]).find(|address| address["type"] == kind);
    found.map_or("<none>", |address| str_of(&address["address"])).to_owned()
}

pub(super) fn param_kind(policy: &Value) -> Value {
    let kind = &policy["spec"]["paramKind"];
    match kind.is_null() {
        true => json!("<unset>"),
        false => json!(format!("{}/{}", str_of(&kind["apiVersion"]), str_of(&kind["kind"]))),
    }
}

pub(super) fn param_ref(binding: &Value) -> Value {
    let parameter = &binding["spec"]["paramRef"];
    match (str_of(&parameter["name"]), str_of(&parameter["namespace"])) {
        ("", _) if parameter["selector"].is_null() => json!("<unset>"),
        ("", _) => selector(&parameter["selector"]),
        (name, "") => json!(format!("*/{name}")),
        (name, namespace) => json!(format!("{namespace}/{name}")),
    }
}

/// Where the two generations of events keep things.
pub(super) struct EventFields {
    first: &'static str,
    last: &'static str,
    count: &'static str,
    object: &'static str,
    message: &'static str,
    source: &'static str,
    host: &'static str,
    controller: &'static str,
}

pub(super) const CORE_EVENT: EventFields = EventFields {
    first: "/firstTimestamp",
    last: "/lastTimestamp",
    count: "/count",
    object: "/involvedObject",
    message: "/message",
    source: "/source/component",
    host: "/source/host",
    controller: "/reportingComponent",
};

pub(super) const NEW_EVENT: EventFields = EventFields {
    first: "/deprecatedFirstTimestamp",
    last: "/deprecatedLastTimestamp",
    count: "/deprecatedCount",
    object: "/regarding",
    message: "/note",
    source: "/deprecatedSource/component",
    host: "/deprecatedSource/host",
    controller: "/reportingController",
};

pub(super) fn event(o: &Value, now: Timestamp, fields: &EventFields) -> Vec<Value> {
    let first = match str_at(o, fields.first) {
        "" => since(str_at(o, "/eventTime"), now),
        at => since(at, now),
    };
    let mut last = match str_at(o, fields.last) {
        "" => first.clone(),
        at => since(at, now),
    };
    let mut count = o.pointer(fields.count).and_then(Value::as_i64).filter(|count| *count > 0).unwrap_or(1);
    if let Some(series) = o.get("series").filter(|series| !series.is_null()) {
        last = since(str_of(&series["lastObservedTime"]), now);
        count = series["count"].as_i64().unwrap_or(count);
    }
    let about = o.pointer(fields.object).unwrap_or(&Value::Null);
    let kind = str_of(&about["kind"]).to_lowercase();
    let target = match str_of(&about["name"]) {
        "" => kind,
        name => format!("{kind}/{name}"),
    };
    let (component, controller) = (str_at(o, fields.source), str_at(o, fields.controller));
    let source = match (component, str_at(o, fields.host)) {
        ("", "") if controller.is_empty() => "<none>".to_owned(),
        ("", "") => match str_at(o, "/reportingInstance") {
            "" => controller.to_owned(),
            instance => format!("{controller}, {instance}"),
        },
        (component, "") => component.to_owned(),
        (component, host) => format!("{component}, {host}"),
    };
    vec![
        json!(last),
        string(o, "/type"),
        string(o, "/reason"),
        json!(target),
        json!(str_of(&about["fieldPath"])),
        json!(source),
        json!(str_at(o, fields.message).trim()),
        json!(first),
        json!(count),
        name(o),
    ]
}
