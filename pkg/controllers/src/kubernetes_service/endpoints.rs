//! The Service, its Endpoints and its EndpointSlice.
//!
//! Behaves as `pkg/controlplane/reconcilers/endpointsadapter.go`, v1.36. Objects are read from the API, not from a
//! cache: they change about never, and a server must not correct another by an old copy.

use std::collections::BTreeMap;
use std::net::IpAddr;

use rkube_api::k8s::core::v1::{
    EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Service, ServicePort, ServiceSpec,
};
use rkube_api::k8s::discovery::v1::{Endpoint, EndpointConditions, EndpointPort as SlicePort, EndpointSlice};
use rkube_api::meta::pkg::apis::meta::v1::ObjectMeta;
use rkube_api::meta::pkg::util::intstr::IntOrString;
use rkube_client::{Client, ClientError, DeleteOptions, SyncError};
use tracing::info;

use super::{ApiServer, NAMESPACE, SERVICE};
use crate::common::slices::SERVICE_NAME_LABEL;

const SKIP_MIRROR_LABEL: &str = "endpointslice.kubernetes.io/skip-mirror";
const PORT_NAME: &str = "https";
const PROTOCOL: &str = "TCP";

fn labels(pairs: &[(&str, &str)]) -> Option<BTreeMap<String, String>> {
    Some(pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
}

fn metadata(pairs: &[(&str, &str)]) -> ObjectMeta {
    ObjectMeta {
        name: Some(SERVICE.to_owned()),
        namespace: Some(NAMESPACE.to_owned()),
        labels: labels(pairs),
        ..ObjectMeta::default()
    }
}

fn is_made(error: &ClientError) -> bool {
    error.is_already_exists()
}

/// Makes the Service if it is missing. One that is there stays as it is.
pub(super) async fn ensure_service(client: &Client, api_server: &ApiServer) -> Result<(), SyncError> {
    let api = client.namespaced::<Service>(NAMESPACE);
    match api.get(SERVICE).await {
        Err(error) if error.is_not_found() => {}
        Err(error) => return Err(SyncError::during("reading the kubernetes Service")(error)),
        Ok(_) => return Ok(()),
    }
    let address = api_server.service_ip.to_string();
    let port = ServicePort {
        name: Some(PORT_NAME.to_owned()),
        port: 443,
        protocol: Some(PROTOCOL.to_owned()),
        target_port: Some(IntOrString::Int(i32::from(api_server.https_port))),
        ..ServicePort::default()
    };
    let spec = ServiceSpec {
        cluster_ip: Some(address.clone()),
        cluster_ips: Some(vec![address]),
        ip_family_policy: Some("SingleStack".to_owned()),
        ports: Some(vec![port]),
        session_affinity: Some("None".to_owned()),
        type_: Some("ClusterIP".to_owned()),
        ..ServiceSpec::default()
    };
    let metadata = metadata(&[("component", "apiserver"), ("provider", "kubernetes")]);
    let service = Service { metadata, spec: Some(spec), status: None };
    match api.create(&service).await {
        Err(error) if !is_made(&error) => Err(SyncError::during("creating the kubernetes Service")(error)),
        _ => Ok(()),
    }
}

/// Makes the Service lead to these servers. Ports that are there stay unless `sets_port`.
pub(super) async fn reconcile(
    client: &Client,
    masters: &[IpAddr],
    https_port: u16,
    sets_port: bool,
) -> Result<(), SyncError> {
    let api = client.namespaced::<Endpoints>(NAMESPACE);
    let current = match api.get(SERVICE).await {
        Ok(current) => Some(current),
        Err(error) if error.is_not_found() => None,
        Err(error) => return Err(SyncError::during("reading the endpoints of the kubernetes Service")(error)),
    };
    let wanted = wanted(current.as_ref(), masters, https_port, sets_port);
    let written = match &current {
        Some(current) if *current == wanted => Ok(()),
        Some(_) => {
            info!(?masters, "Set the endpoints of the kubernetes Service");
            api.update(&wanted).await.map(drop)
        }
        None if masters.is_empty() => return Ok(()),
        None => match api.create(&wanted).await {
            Err(error) if !is_made(&error) => Err(error),
            _ => Ok(()),
        },
    };
    written.map_err(SyncError::during("writing the endpoints of the kubernetes Service"))?;
    ensure_slice(client, &slice(&wanted))
        .await
        .map_err(SyncError::during("writing the slice of the kubernetes Service"))
}

/// One subset with the addresses of all servers.
fn wanted(current: Option<&Endpoints>, masters: &[IpAddr], https_port: u16, sets_port: bool) -> Endpoints {
    let mut wanted = current.cloned().unwrap_or_else(|| Endpoints { metadata: metadata(&[]), ..Endpoints::default() });
    let labels = wanted.metadata.labels.get_or_insert_default();
    labels.insert(SKIP_MIRROR_LABEL.to_owned(), "true".to_owned());
    let own_port = || EndpointPort {
        name: Some(PORT_NAME.to_owned()),
        port: i32::from(https_port),
        protocol: Some(PROTOCOL.to_owned()),
        ..EndpointPort::default()
    };
    let ports = match wanted.subsets.as_deref() {
        Some([only]) if !sets_port => only.ports.clone(),
        _ => Some(vec![own_port()]),
    };
    let addresses: Vec<_> =
        masters.iter().map(|master| EndpointAddress { ip: master.to_string(), ..EndpointAddress::default() }).collect();
    wanted.subsets = (!addresses.is_empty())
        .then(|| vec![EndpointSubset { addresses: Some(addresses), ports, ..EndpointSubset::default() }]);
    wanted
}

/// The same as a slice. Addresses of one family only, as upstream: IPv6 if all are.
fn slice(endpoints: &Endpoints) -> EndpointSlice {
    let subset = endpoints.subsets.iter().flatten().next().cloned().unwrap_or_default();
    let addresses = subset.addresses.unwrap_or_default();
    let is_ipv6 = |address: &EndpointAddress| address.ip.contains(':');
    let ipv6 = !addresses.is_empty() && addresses.iter().all(is_ipv6);
    let endpoint = |address: &EndpointAddress| Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(EndpointConditions { ready: Some(true), ..EndpointConditions::default() }),
        ..Endpoint::default()
    };
    let port = |port: EndpointPort| SlicePort {
        name: port.name,
        port: Some(port.port),
        protocol: port.protocol,
        app_protocol: port.app_protocol,
    };
    EndpointSlice {
        metadata: metadata(&[(SERVICE_NAME_LABEL, SERVICE)]),
        address_type: if ipv6 { "IPv6" } else { "IPv4" }.to_owned(),
        endpoints: Some(addresses.iter().filter(|address| is_ipv6(address) == ipv6).map(endpoint).collect()),
        ports: Some(subset.ports.unwrap_or_default().into_iter().map(port).collect()),
    }
}

async fn ensure_slice(client: &Client, wanted: &EndpointSlice) -> Result<(), ClientError> {
    let api = client.namespaced::<EndpointSlice>(NAMESPACE);
    let create = async || match api.create(wanted).await {
        Err(error) if !is_made(&error) => Err(error),
        _ => Ok(()),
    };
    let mut current = match api.get(SERVICE).await {
        Ok(current) => current,
        Err(error) if error.is_not_found() => return create().await,
        Err(error) => return Err(error),
    };
    if current.address_type != wanted.address_type {
        // The family of a slice cannot change.
        api.delete(SERVICE, &DeleteOptions::default()).await?;
        return create().await;
    }
    let same_endpoints =
        current.endpoints.as_deref().unwrap_or_default() == wanted.endpoints.as_deref().unwrap_or_default();
    let same_ports = current.ports.as_deref().unwrap_or_default() == wanted.ports.as_deref().unwrap_or_default();
    if same_endpoints && same_ports && current.metadata.labels == wanted.metadata.labels {
        return Ok(());
    }
    current.endpoints.clone_from(&wanted.endpoints);
    current.ports.clone_from(&wanted.ports);
    current.metadata.labels.clone_from(&wanted.metadata.labels);
    api.update(&current).await.map(drop)
}
