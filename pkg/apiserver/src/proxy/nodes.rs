//! Nodes as backends, and the finder that reads them from the registry.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use rkube_api::k8s::core::v1::Node;
use rkube_apimachinery::chain::chain;
use rkube_apimachinery::status::ApiStatus;
use rkube_http::connect::Connector;
use rkube_http::proxy::Backend;
use rkube_http::tls::SharedClientConfig;
use rkube_registry::options::GetOptions;
use rkube_registry::store::Target;
use rkube_registry::{Registry, RequestContext};

use super::{
    NodeEndpoint, Nodes, Route, backend_uri, is_global_unicast, join_host_port, own_prefix, split_scheme_name_port,
};
use crate::answer::resource_not_found;
use crate::scope::Scope;
use crate::server::Inner;

const KUBELET_PORT: u16 = 10_250;
/// A node reports several addresses; the one that reaches it from here is usually its internal address.
const PREFERRED_ADDRESSES: [&str; 5] = ["InternalIP", "ExternalIP", "InternalDNS", "ExternalDNS", "Hostname"];

/// Reads addresses and ports from Node objects.
pub struct RegistryNodes {
    registry: Arc<Registry>,
    /// With the server's client certificate for kubelets, and the authority that signs theirs.
    kubelet_tls: SharedClientConfig,
    /// For `https:` backends in the cluster, whose certificates nobody here can check.
    cluster_tls: SharedClientConfig,
}

impl RegistryNodes {
    pub fn new(registry: Arc<Registry>, kubelet_tls: SharedClientConfig, cluster_tls: SharedClientConfig) -> Self {
        Self { registry, kubelet_tls, cluster_tls }
    }

    async fn find(&self, name: &str) -> Result<NodeEndpoint, ApiStatus> {
        let row = rkube_api::resource_named("", "v1", "nodes").ok_or_else(resource_not_found)?;
        let store = self.registry.store(&row.gvr()).ok_or_else(resource_not_found)?;
        let context = Arc::new(RequestContext::internal());
        let object = store.get(&context, &Target::new("", name), &GetOptions::default()).await?;
        let node = object.typed::<Node>().map_err(|error| ApiStatus::internal(chain(&error)))?;
        let status = node.status.as_ref();
        let addresses = status.and_then(|status| status.addresses.as_deref()).unwrap_or_default();
        let found = PREFERRED_ADDRESSES
            .iter()
            .find_map(|kind| addresses.iter().find(|address| address.type_ == *kind && !address.address.is_empty()));
        let host = found.map(|address| address.address.clone()).ok_or_else(|| {
            ApiStatus::internal(format!("no preferred addresses found; known addresses: {}", addresses.len()))
        })?;
        let port = status
            .and_then(|status| status.daemon_endpoints.as_ref()?.kubelet_endpoint.as_ref())
            .and_then(|endpoint| u16::try_from(endpoint.port).ok())
            .filter(|port| *port > 0)
            .unwrap_or(KUBELET_PORT);
        Ok(NodeEndpoint { scheme: "https", host, port, connector: Connector::new(Some(Arc::clone(&self.kubelet_tls))) })
    }
}

impl Nodes for RegistryNodes {
    fn kubelet<'a>(&'a self, node: &'a str) -> BoxFuture<'a, Result<NodeEndpoint, ApiStatus>> {
        Box::pin(self.find(node))
    }

    fn cluster(&self) -> Connector {
        Connector::new(Some(Arc::clone(&self.cluster_tls)))
    }
}

/// `nodes/proxy`.
pub(super) async fn route(server: &Arc<Inner>, scope: &Scope) -> Result<Route, ApiStatus> {
    let id = scope.info.path_name();
    let Some((scheme, name, port)) = split_scheme_name_port(id) else {
        return Err(ApiStatus::bad_request(format!("invalid node request {id:?}")));
    };
    let endpoint = server.nodes.kubelet(name).await?;
    let kubelet_port = endpoint.port.to_string();
    if port.is_empty() || port == kubelet_port {
        let uri = backend_uri(scope, endpoint.scheme, &join_host_port(&endpoint.host, &kubelet_port))?;
        let backend = Backend { connector: endpoint.connector, uri, host: String::new(), response_timeout: None };
        return Ok(Route { backend, rewrite: Some(own_prefix(scope)) });
    }
    // Another port gets none of the server's identity.
    if !is_global_unicast(&endpoint.host) {
        return Err(ApiStatus::bad_request("address not allowed"));
    }
    let uri = backend_uri(scope, scheme, &join_host_port(&endpoint.host, port))?;
    let backend = Backend { connector: server.nodes.cluster(), uri, host: String::new(), response_timeout: None };
    Ok(Route { backend, rewrite: Some(own_prefix(scope)) })
}
