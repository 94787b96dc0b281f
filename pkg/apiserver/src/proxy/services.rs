//! Services as backends: one of their ready endpoints, at random.

use std::sync::Arc;

use rkube_api::k8s::core::v1::Service;
use rkube_api::k8s::discovery::v1::EndpointSlice;
use rkube_apimachinery::chain::chain;
use rkube_apimachinery::status::ApiStatus;
use rkube_http::proxy::Backend;
use rkube_registry::Store;
use rkube_registry::options::{GetOptions, ListOptions};
use rkube_registry::store::Target;

use super::{Route, backend_uri, is_global_unicast, join_host_port, own_prefix, split_scheme_name_port};
use crate::answer::resource_not_found;
use crate::scope::Scope;
use crate::server::Inner;

fn store(server: &Inner, group: &str, plural: &str) -> Result<Store, ApiStatus> {
    let row = rkube_api::resource_named(group, "v1", plural).ok_or_else(resource_not_found)?;
    server.registry.store(&row.gvr()).ok_or_else(resource_not_found)
}

/// `services/proxy`.
pub(super) async fn route(server: &Arc<Inner>, scope: &Scope) -> Result<Route, ApiStatus> {
    let id = scope.info.path_name();
    let Some((scheme, name, port)) = split_scheme_name_port(id) else {
        return Err(ApiStatus::bad_request(format!("invalid service request {id:?}")));
    };
    let target = Target::new(scope.info.namespace.as_str(), name);
    let service = store(server, "", "services")?.get(&scope.context, &target, &GetOptions::default()).await?;
    let service = service.typed::<Service>().map_err(|error| ApiStatus::internal(chain(&error)))?;
    let port_name = match port.parse::<i32>() {
        Err(_) => port.to_owned(),
        Ok(number) => {
            let ports = service.spec.as_ref().and_then(|spec| spec.ports.as_deref()).unwrap_or_default();
            let found = ports.iter().find(|declared| declared.port == number);
            let missing =
                || ApiStatus::service_unavailable(format!("no service port {number} found for service {name:?}"));
            found.ok_or_else(missing)?.name.clone().unwrap_or_default()
        }
    };
    let options = ListOptions {
        label_selector: format!("kubernetes.io/service-name={name}"),
        resource_version: "0".to_owned(),
        ..ListOptions::default()
    };
    let slices = store(server, "discovery.k8s.io", "endpointslices")?
        .list(&scope.context, &scope.info.namespace, &options)
        .await?;
    let mut backends = Vec::new();
    for slice in slices.items {
        let slice = slice.typed::<EndpointSlice>().map_err(|error| ApiStatus::internal(chain(&error)))?;
        add_backends(&slice, &port_name, &mut backends);
    }
    if backends.is_empty() {
        return Err(ApiStatus::service_unavailable(format!("no endpoints available for service {id:?}")));
    }
    let chosen = usize::try_from(uuid::Uuid::new_v4().as_u128() % backends.len() as u128).unwrap_or_default();
    let Some((address, port)) = backends.get(chosen) else {
        return Err(ApiStatus::service_unavailable(format!("no endpoints available for service {id:?}")));
    };
    let uri = backend_uri(scope, scheme, &join_host_port(address, &port.to_string()))?;
    let backend = Backend { connector: server.nodes.cluster(), uri, host: String::new(), response_timeout: None };
    Ok(Route { backend, rewrite: Some(own_prefix(scope)) })
}

/// Ready endpoints that are pods: a service cannot be made to point at anything else through the server.
fn add_backends(slice: &EndpointSlice, port_name: &str, into: &mut Vec<(String, i32)>) {
    let ports = slice.ports.as_deref().unwrap_or_default();
    let found = ports.iter().find(|port| port.name.as_deref().unwrap_or_default() == port_name);
    let Some(port) = found.and_then(|port| port.port) else { return };
    for endpoint in slice.endpoints.iter().flatten() {
        let is_ready = endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true);
        let is_pod = endpoint.target_ref.as_ref().is_some_and(|target| target.kind.as_deref() == Some("Pod"));
        if !is_ready || !is_pod {
            continue;
        }
        into.extend(
            endpoint
                .addresses
                .iter()
                .filter(|address| is_global_unicast(address))
                .map(|address| (address.clone(), port)),
        );
    }
}
