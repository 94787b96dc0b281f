//! Environment variables of a container, and `$(NAME)` in its command.
//!
//! Behaves as makeEnvironmentVariables in pkg/kubelet/kubelet_pods.go, pkg/kubelet/envvars/envvars.go and
//! third_party/forked/golang/expansion, v1.36.

use std::collections::BTreeMap;

use indexmap::IndexMap;
use rkube_api::k8s::core::v1::{ConfigMap, Container, EnvVarSource, Pod, Secret, Service};
use rkube_client::transport::ClientError;

use crate::downward::{self, DownwardError, NodeFacts};
use crate::objects::Objects;
use crate::pod::PodExt;

/// Why a container's configuration cannot be made; shown as `CreateContainerConfigError`.
#[derive(Debug, thiserror::Error)]
pub enum EnvError {
    #[error("{kind} \"{name}\" not found")]
    NotFound { kind: &'static str, name: String },
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    Key { key: String, kind: &'static str, namespace: String, name: String },
    #[error(transparent)]
    Downward(#[from] DownwardError),
    #[error(transparent)]
    Client(#[from] ClientError),
}

/// What variables are made from beside the pod.
pub struct EnvSources<'a> {
    pub objects: &'a Objects,
    /// All services of the pod's namespace and of the default one.
    pub services: &'a [std::sync::Arc<Service>],
    pub node: &'a NodeFacts,
    pub pod_ips: &'a [String],
}

/// Variables in the order they are set, later ones over earlier ones.
pub async fn variables(
    pod: &Pod,
    container: &Container,
    sources: &EnvSources<'_>,
) -> Result<IndexMap<String, String>, EnvError> {
    let mut own = IndexMap::new();
    add_sources(pod, container, sources, &mut own).await?;

    let service = service_variables(pod, sources.services);
    for variable in container.env.as_deref().unwrap_or_default() {
        let value = match (&variable.value_from, variable.value.as_deref().unwrap_or_default()) {
            (Some(source), "") => value_from(pod, container, sources, source).await?,
            (_, value) => Some(expand(value, |name| own.get(name).or_else(|| service.get(name)).cloned())),
        };
        // An optional source that is missing sets nothing.
        if let Some(value) = value {
            own.insert(variable.name.clone(), value);
        }
    }
    // What the container says wins over what services add.
    for (name, value) in service {
        own.entry(name).or_insert(value);
    }
    Ok(own)
}

async fn add_sources(
    pod: &Pod,
    container: &Container,
    sources: &EnvSources<'_>,
    own: &mut IndexMap<String, String>,
) -> Result<(), EnvError> {
    for source in container.env_from.as_deref().unwrap_or_default() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        let mut values = BTreeMap::new();
        if let Some(reference) = &source.config_map_ref {
            if let Some(map) = config_map(pod, sources, &reference.name, reference.optional).await? {
                values.extend(map.data.clone().unwrap_or_default());
            }
        } else if let Some(reference) = &source.secret_ref
            && let Some(secret) = secret(pod, sources, &reference.name, reference.optional).await?
        {
            for (key, value) in secret.data.iter().flatten() {
                values.insert(key.clone(), String::from_utf8_lossy(&value.0).into_owned());
            }
        }
        for (key, value) in values {
            let name = format!("{prefix}{key}");
            // Such a name cannot be set at all.
            if !name.is_empty() && !name.contains(['=', '\0']) {
                own.insert(name, value);
            }
        }
    }
    Ok(())
}

async fn config_map(
    pod: &Pod,
    sources: &EnvSources<'_>,
    name: &str,
    optional: Option<bool>,
) -> Result<Option<std::sync::Arc<ConfigMap>>, EnvError> {
    let found = sources.objects.get::<ConfigMap>(pod.namespace(), name).await?;
    match found {
        None if optional != Some(true) => Err(EnvError::NotFound { kind: "configmap", name: name.to_owned() }),
        found => Ok(found),
    }
}

async fn secret(
    pod: &Pod,
    sources: &EnvSources<'_>,
    name: &str,
    optional: Option<bool>,
) -> Result<Option<std::sync::Arc<Secret>>, EnvError> {
    let found = sources.objects.get::<Secret>(pod.namespace(), name).await?;
    match found {
        None if optional != Some(true) => Err(EnvError::NotFound { kind: "secret", name: name.to_owned() }),
        found => Ok(found),
    }
}

async fn value_from(
    pod: &Pod,
    container: &Container,
    sources: &EnvSources<'_>,
    source: &EnvVarSource,
) -> Result<Option<String>, EnvError> {
    if let Some(field) = &source.field_ref {
        return Ok(Some(downward::field(pod, &field.field_path, sources.pod_ips, sources.node)?));
    }
    if let Some(selector) = &source.resource_field_ref {
        return Ok(Some(downward::resource(pod, Some(container), selector, sources.node)?));
    }
    let missing = |key: &str, kind, name: &str, optional: Option<bool>| match optional {
        Some(true) => Ok(None),
        _ => Err(EnvError::Key {
            key: key.to_owned(),
            kind,
            namespace: pod.namespace().to_owned(),
            name: name.to_owned(),
        }),
    };
    if let Some(selector) = &source.config_map_key_ref {
        let Some(map) = config_map(pod, sources, &selector.name, selector.optional).await? else { return Ok(None) };
        return match map.data.as_ref().and_then(|data| data.get(&selector.key)) {
            Some(value) => Ok(Some(value.clone())),
            None => missing(&selector.key, "ConfigMap", &selector.name, selector.optional),
        };
    }
    if let Some(selector) = &source.secret_key_ref {
        let Some(secret) = secret(pod, sources, &selector.name, selector.optional).await? else { return Ok(None) };
        return match secret.data.as_ref().and_then(|data| data.get(&selector.key)) {
            Some(value) => Ok(Some(String::from_utf8_lossy(&value.0).into_owned())),
            None => missing(&selector.key, "Secret", &selector.name, selector.optional),
        };
    }
    Ok(Some(String::new()))
}

/// `$(NAME)` becomes the value, `$$` a dollar; a name without a value stays as it is.
pub fn expand(text: &str, value_of: impl Fn(&str) -> Option<String>) -> String {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        expanded.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            expanded.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            match value_of(name) {
                Some(value) => expanded.push_str(&value),
                None => {
                    expanded.push_str("$(");
                    expanded.push_str(name);
                    expanded.push(')');
                }
            }
            rest = after;
        } else {
            expanded.push('$');
        }
    }
    expanded.push_str(rest);
    expanded
}

/// Variables for services, as docker links had them. Services of the pod's own namespace where the pod
/// wants links, and always the API's.
fn service_variables(pod: &Pod, services: &[std::sync::Arc<Service>]) -> BTreeMap<String, String> {
    let links = pod.pod_spec().enable_service_links.unwrap_or(true);
    let mut chosen = BTreeMap::new();
    for service in services {
        let name = service.metadata.name.as_deref().unwrap_or_default();
        let namespace = service.metadata.namespace.as_deref().unwrap_or_default();
        let address = service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()).unwrap_or_default();
        if address.is_empty() || address == "None" {
            continue;
        }
        let is_api = namespace == "default" && name == "kubernetes";
        if links && namespace == pod.namespace() {
            chosen.insert(name, service);
        } else if is_api {
            chosen.entry(name).or_insert(service);
        }
    }
    let mut variables = BTreeMap::new();
    for (name, service) in chosen {
        add_service(name, service, &mut variables);
    }
    variables
}

fn add_service(name: &str, service: &Service, variables: &mut BTreeMap<String, String>) {
    let Some(spec) = &service.spec else { return };
    let prefix = variable_name(name);
    let address = spec.cluster_ip.clone().unwrap_or_default();
    let host = if address.contains(':') { format!("[{address}]") } else { address.clone() };
    let ports = spec.ports.as_deref().unwrap_or_default();
    variables.insert(format!("{prefix}_SERVICE_HOST"), address.clone());
    if let Some(first) = ports.first() {
        let protocol = first.protocol.as_deref().unwrap_or("TCP").to_lowercase();
        variables.insert(format!("{prefix}_SERVICE_PORT"), first.port.to_string());
        variables.insert(format!("{prefix}_PORT"), format!("{protocol}://{host}:{}", first.port));
    }
    for port in ports {
        if let Some(port_name) = port.name.as_deref().filter(|name| !name.is_empty()) {
            variables.insert(format!("{prefix}_SERVICE_PORT_{}", variable_name(port_name)), port.port.to_string());
        }
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let lower = protocol.to_lowercase();
        let base = format!("{prefix}_PORT_{}_{protocol}", port.port);
        variables.insert(base.clone(), format!("{lower}://{host}:{}", port.port));
        variables.insert(format!("{base}_PROTO"), lower);
        variables.insert(format!("{base}_PORT"), port.port.to_string());
        variables.insert(format!("{base}_ADDR"), address.clone());
    }
}

fn variable_name(name: &str) -> String {
    name.to_uppercase().replace('-', "_")
}

#[cfg(test)]
mod tests {
    use rkube_api::k8s::core::v1::{PodSpec, ServicePort, ServiceSpec};

    use super::*;

    #[test]
    fn references_expand_once() {
        let value = |name: &str| (name == "A").then(|| "$(B)".to_owned());
        for (text, expanded) in [
            ("$(A)", "$(B)"),
            ("$$(A)", "$(A)"),
            ("$(MISSING)-$", "$(MISSING)-$"),
            ("a$(A", "a$(A"),
            ("$A $(A)$(A)", "$A $(B)$(B)"),
        ] {
            assert_eq!(expand(text, value), expanded, "{text}");
        }
    }

    #[test]
    fn services_become_variables() {
        let mut service = Service::default();
        service.metadata.name = Some("my-db".into());
        service.metadata.namespace = Some("ns".into());
        let port = ServicePort { name: Some("sql".into()), port: 5432, ..Default::default() };
        service.spec =
            Some(ServiceSpec { cluster_ip: Some("10.43.0.7".into()), ports: Some(vec![port]), ..Default::default() });
        let services = [std::sync::Arc::new(service)];
        let mut pod = Pod { spec: Some(PodSpec::default()), ..Pod::default() };
        pod.metadata.namespace = Some("ns".into());
        let lines: Vec<String> =
            service_variables(&pod, &services).into_iter().map(|(name, value)| format!("{name}={value}")).collect();
        expect_test::expect![[r#"
            MY_DB_PORT=tcp://10.43.0.7:5432
            MY_DB_PORT_5432_TCP=tcp://10.43.0.7:5432
            MY_DB_PORT_5432_TCP_ADDR=10.43.0.7
            MY_DB_PORT_5432_TCP_PORT=5432
            MY_DB_PORT_5432_TCP_PROTO=tcp
            MY_DB_SERVICE_HOST=10.43.0.7
            MY_DB_SERVICE_PORT=5432
            MY_DB_SERVICE_PORT_SQL=5432"#]]
        .assert_eq(&lines.join("\n"));
        pod.spec.as_mut().unwrap().enable_service_links = Some(false);
        assert!(service_variables(&pod, &services).is_empty());
    }
}
