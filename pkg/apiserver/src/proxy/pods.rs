//! Pods as backends: their streams through the kubelet, their ports directly.

use std::sync::Arc;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use rkube_api::k8s::core::v1::Pod;
use rkube_apimachinery::chain::chain;
use rkube_apimachinery::status::ApiStatus;
use rkube_http::proxy::Backend;
use rkube_registry::options::GetOptions;
use rkube_registry::store::Target;

use super::{NodeEndpoint, Route, backend_uri, is_global_unicast, join_host_port, own_prefix, split_scheme_name_port};
use crate::answer::resource_not_found;
use crate::query::Query;
use crate::scope::Scope;
use crate::server::Inner;

pub(super) async fn get(server: &Arc<Inner>, scope: &Scope, name: &str) -> Result<Arc<Pod>, ApiStatus> {
    let row = rkube_api::resource_named("", "v1", "pods").ok_or_else(resource_not_found)?;
    let store = server.registry.store(&row.gvr()).ok_or_else(resource_not_found)?;
    let target = Target::new(scope.info.namespace.as_str(), name);
    let object = store.get(&scope.context, &target, &GetOptions::default()).await?;
    object.typed::<Pod>().map_err(|error| ApiStatus::internal(chain(&error)))
}

/// The container asked for, or the only one.
pub(super) fn container(asked: &str, name: &str, pod: &Pod) -> Result<String, ApiStatus> {
    let spec = pod.spec.as_ref();
    let containers = spec.map(|spec| spec.containers.as_slice()).unwrap_or_default();
    let init = spec.and_then(|spec| spec.init_containers.as_deref()).unwrap_or_default();
    let ephemeral = spec.and_then(|spec| spec.ephemeral_containers.as_deref()).unwrap_or_default();
    // In upstream's order of visiting.
    let all = init
        .iter()
        .map(|container| container.name.as_str())
        .chain(containers.iter().map(|container| container.name.as_str()))
        .chain(ephemeral.iter().map(|container| container.name.as_str()));
    let all: Vec<&str> = all.collect();
    if !asked.is_empty() {
        if all.contains(&asked) {
            return Ok(asked.to_owned());
        }
        return Err(ApiStatus::bad_request(format!("container {asked} is not valid for pod {name}")));
    }
    match containers {
        [only] => Ok(only.name.clone()),
        [] => Err(ApiStatus::bad_request(format!("a container name must be specified for pod {name}"))),
        _ => Err(ApiStatus::bad_request(format!(
            "a container name must be specified for pod {name}, choose one of: [{}]",
            all.join(" ")
        ))),
    }
}

/// The kubelet of the pod's node; `None` while it has none.
pub(super) async fn kubelet(server: &Arc<Inner>, pod: &Pod) -> Result<Option<NodeEndpoint>, ApiStatus> {
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default();
    if node.is_empty() {
        return Ok(None);
    }
    server.nodes.kubelet(node).await.map(Some)
}

/// A kubelet's URL.
pub(super) fn kubelet_uri(endpoint: &NodeEndpoint, path_and_query: &str) -> Result<http::Uri, ApiStatus> {
    let authority = join_host_port(&endpoint.host, &endpoint.port.to_string());
    format!("{}://{authority}{path_and_query}", endpoint.scheme).parse().map_err(ApiStatus::internal)
}

/// exec, attach and port-forward.
pub(super) async fn stream(server: &Arc<Inner>, scope: &Scope) -> Result<Backend, ApiStatus> {
    let query = scope.query();
    let name = scope.info.path_name();
    let pod = get(server, scope, name).await?;
    let path = match scope.info.subresource.as_str() {
        "portforward" => format!("/portForward/{}/{name}?{}", scope.info.namespace, forward_query(&query)?),
        subresource => {
            let container = container(query.get("container").unwrap_or_default(), name, &pod)?;
            let query = stream_query(&query)?;
            format!("/{subresource}/{}/{name}/{container}?{query}", scope.info.namespace)
        }
    };
    let no_host = || ApiStatus::bad_request(format!("pod {name} does not have a host assigned"));
    let endpoint = kubelet(server, &pod).await?.ok_or_else(no_host)?;
    let uri = kubelet_uri(&endpoint, path.trim_end_matches('?'))?;
    Ok(Backend { connector: endpoint.connector, uri, host: String::new(), response_timeout: None })
}

/// The options under the kubelet's names.
fn stream_query(query: &Query<'_>) -> Result<String, ApiStatus> {
    let mut out = Vec::new();
    // Upstream's defaults for what the client leaves out.
    let is_on = |name: &str, default: bool| query.get(name).map_or(default, |_| query.is_on(name));
    for (name, kubelet_name, default) in
        [("stdin", "input", false), ("stdout", "output", true), ("stderr", "error", true), ("tty", "tty", false)]
    {
        if is_on(name, default) {
            out.push(format!("{kubelet_name}=1"));
        }
    }
    for word in query.all("command") {
        out.push(format!("command={}", utf8_percent_encode(word, NON_ALPHANUMERIC)));
    }
    Ok(out.join("&"))
}

fn forward_query(query: &Query<'_>) -> Result<String, ApiStatus> {
    let mut ports = Vec::new();
    for port in query.all("ports").flat_map(|value| value.split(',')) {
        let number: u16 = port
            .parse()
            .map_err(|_| ApiStatus::bad_request(format!("strconv.ParseInt: parsing {port:?}: invalid syntax")))?;
        ports.push(number.to_string());
    }
    Ok(if ports.is_empty() { String::new() } else { format!("port={}", ports.join(",")) })
}

/// `pods/proxy`.
pub(super) async fn route(server: &Arc<Inner>, scope: &Scope) -> Result<Route, ApiStatus> {
    let id = scope.info.path_name();
    let Some((scheme, name, port)) = split_scheme_name_port(id) else {
        return Err(ApiStatus::bad_request(format!("invalid pod request {id:?}")));
    };
    let pod = get(server, scope, name).await?;
    let address = pod.status.as_ref().and_then(|status| {
        status.pod_ip.clone().or_else(|| status.pod_ips.as_ref().and_then(|ips| Some(ips.first()?.ip.clone())))
    });
    let address = address.unwrap_or_default();
    if !is_global_unicast(&address) {
        return Err(ApiStatus::bad_request("address not allowed"));
    }
    let declared = || {
        let containers = pod.spec.as_ref().map(|spec| spec.containers.as_slice()).unwrap_or_default();
        containers.iter().find_map(|container| container.ports.as_ref()?.first().map(|port| port.container_port))
    };
    let port =
        if port.is_empty() { declared().map(|port| port.to_string()).unwrap_or_default() } else { port.to_owned() };
    let authority = join_host_port(&address, &port);
    let uri = backend_uri(scope, scheme, &authority)?;
    let backend = Backend { connector: server.nodes.cluster(), uri, host: String::new(), response_timeout: None };
    Ok(Route { backend, rewrite: Some(own_prefix(scope)) })
}
