//! The downward API: fields of a pod and resources of its containers as text.
//!
//! Behaves as pkg/fieldpath and pkg/api/v1/resource/helpers.go, v1.36.

use std::collections::BTreeMap;

use rkube_api::k8s::core::v1::{Container, Pod, ResourceFieldSelector};
use rkube_apimachinery::quantity::Quantity;

use crate::pod::{PodExt, limit, quantity, request};

/// Why a field has no value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DownwardError {
    #[error("unsupported fieldPath: {0}")]
    Field(String),
    #[error("unsupported container resource : {0}")]
    Resource(String),
    #[error("container {0} not found")]
    Container(String),
}

/// What of a node shows up in pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    pub name: String,
    pub ips: Vec<String>,
    /// Limits of containers that have none.
    pub allocatable: BTreeMap<String, Quantity>,
}

/// A field of a pod. `ips` are the pod's addresses.
pub fn field(pod: &Pod, path: &str, ips: &[String], node: &NodeFacts) -> Result<String, DownwardError> {
    let spec = pod.pod_spec();
    let text = match path {
        "metadata.name" => pod.name().to_owned(),
        "metadata.namespace" => pod.namespace().to_owned(),
        "metadata.uid" => pod.uid().to_string(),
        "metadata.labels" => format_map(pod.metadata.labels.as_ref()),
        "metadata.annotations" => format_map(pod.metadata.annotations.as_ref()),
        "spec.nodeName" => spec.node_name.clone().unwrap_or_else(|| node.name.clone()),
        "spec.serviceAccountName" => spec.service_account_name.clone().unwrap_or_default(),
        "status.podIP" => ips.first().cloned().unwrap_or_default(),
        "status.podIPs" => ips.join(","),
        "status.hostIP" => node.ips.first().cloned().unwrap_or_default(),
        "status.hostIPs" => node.ips.join(","),
        _ => subscripted(pod, path).ok_or_else(|| DownwardError::Field(path.to_owned()))?,
    };
    Ok(text)
}

/// `metadata.labels['key']`
fn subscripted(pod: &Pod, path: &str) -> Option<String> {
    let (base, rest) = path.split_once("['")?;
    let key = rest.strip_suffix("']")?;
    let map = match base {
        "metadata.labels" => pod.metadata.labels.as_ref(),
        "metadata.annotations" => pod.metadata.annotations.as_ref(),
        _ => return None,
    };
    Some(map.and_then(|map| map.get(key)).cloned().unwrap_or_default())
}

/// `key="value"` per line, sorted by key. Quoting is Go's `%q`.
fn format_map(map: Option<&BTreeMap<String, String>>) -> String {
    let lines: Vec<String> =
        map.into_iter().flatten().map(|(key, value)| format!("{key}={}", go_quote(value))).collect();
    lines.join("\n")
}

fn go_quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => quoted.push_str(&format!("\\x{:02x}", c as u32)),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// A resource of a container, divided and rounded up. `container` is used where the selector names none.
pub fn resource(
    pod: &Pod,
    container: Option<&Container>,
    selector: &ResourceFieldSelector,
    node: &NodeFacts,
) -> Result<String, DownwardError> {
    let found;
    let container = match selector.container_name.as_deref().filter(|name| !name.is_empty()) {
        Some(name) => {
            found = pod.container(name).ok_or_else(|| DownwardError::Container(name.to_owned()))?.1;
            &found
        }
        None => container.ok_or_else(|| DownwardError::Container(String::new()))?,
    };
    let unknown = || DownwardError::Resource(selector.resource.clone());
    let (side, name) = selector.resource.split_once('.').ok_or_else(unknown)?;
    let known = matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-");
    let value = match side {
        _ if !known => return Err(unknown()),
        // A container without a limit is limited by the node.
        "limits" => match limit(container, name).filter(|limit| !limit.is_zero()) {
            Some(limit) => limit,
            None => node.allocatable.get(name).cloned().unwrap_or_else(Quantity::zero),
        },
        "requests" => request(container, name).unwrap_or_else(Quantity::zero),
        _ => return Err(unknown()),
    };
    let divisor = selector.divisor.as_ref().map(|divisor| quantity(Some(divisor))).filter(|divisor| !divisor.is_zero());
    Ok(divide(&value, divisor.as_ref(), name == "cpu").to_string())
}

/// CPU is divided in thousandths, so that a divisor of 1m counts them.
fn divide(value: &Quantity, divisor: Option<&Quantity>, cpu: bool) -> i64 {
    let scaled = |quantity: &Quantity| if cpu { quantity.milli_value() } else { quantity.value() };
    let one = if cpu { 1000 } else { 1 };
    let divisor = divisor.map_or(one, scaled).max(1);
    let value = scaled(value);
    value / divisor + i64::from(value % divisor > 0)
}

#[cfg(test)]
mod tests {
    use rkube_api::k8s::core::v1::{PodSpec, ResourceRequirements};
    use rkube_api::meta::pkg::api::resource::Quantity as ApiQuantity;

    use super::*;

    fn pod() -> Pod {
        let mut pod = Pod::default();
        pod.metadata.name = Some("p".into());
        pod.metadata.labels = Some([("b".into(), "2\n\"x\"".into()), ("a".into(), "1".into())].into());
        let limits = [("cpu".to_owned(), ApiQuantity("1250m".into()))].into();
        let resources = Some(ResourceRequirements { limits: Some(limits), ..Default::default() });
        let container = Container { name: "c".into(), resources, ..Default::default() };
        pod.spec = Some(PodSpec { containers: vec![container], ..Default::default() });
        pod
    }

    #[test]
    fn fields_are_formatted_as_upstream() {
        let node = NodeFacts { name: "n".into(), ips: vec!["10.0.0.1".into()], ..NodeFacts::default() };
        let get = |path| field(&pod(), path, &["10.42.0.2".into(), "fd00::2".into()], &node);
        assert_eq!(get("metadata.labels").unwrap(), "a=\"1\"\nb=\"2\\n\\\"x\\\"\"");
        assert_eq!(get("metadata.labels['a']").unwrap(), "1");
        assert_eq!(get("status.podIPs").unwrap(), "10.42.0.2,fd00::2");
        assert_eq!(get("spec.nodeName").unwrap(), "n");
        assert_eq!(get("spec.containers").unwrap_err().to_string(), "unsupported fieldPath: spec.containers");
    }

    #[test]
    fn resources_are_divided_and_rounded_up() {
        let mut node = NodeFacts::default();
        node.allocatable.insert("memory".into(), Quantity::parse("1Gi").unwrap());
        let get = |resource_name: &str, divisor: &str| {
            let selector = ResourceFieldSelector {
                container_name: Some("c".into()),
                resource: resource_name.into(),
                divisor: Some(ApiQuantity(divisor.into())),
            };
            resource(&pod(), None, &selector, &node).map_err(|error| error.to_string())
        };
        assert_eq!(get("limits.cpu", "1"), Ok("2".into()));
        assert_eq!(get("limits.cpu", "1m"), Ok("1250".into()));
        assert_eq!(get("limits.memory", "1Mi"), Ok("1024".into()));
        assert_eq!(get("requests.memory", "0"), Ok("0".into()));
        assert!(get("limits.gpu", "1").is_err());
    }
}
