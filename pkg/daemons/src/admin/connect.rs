//! A client of the cluster a kubeconfig names.

use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwap;
use http::{HeaderValue, Uri};
use rkube_apimachinery::clock::SharedClock;
use rkube_apimachinery::random::SystemRandom;
use rkube_client::Client;
use rkube_http::client::HttpClient;
use rkube_http::connect::Connector;
use rkube_http::tls;
use rkube_http::transport::RemoteTransport;
use rkube_pki::{KubeconfigFile, authority};

use super::AdminError;

pub(super) fn connect(path: &Path, clock: SharedClock) -> Result<(Client, KubeconfigFile), AdminError> {
    let file = KubeconfigFile::load(path)?;
    let bad = || AdminError::Url { server: file.server.clone() };
    let roots = tls::roots(&authority::certificates(&file.authority, "the authority of the kubeconfig")?)?;
    let identity = match &file.identity {
        Some(pair) => Some((pair.chain()?, pair.key()?)),
        None => None,
    };
    let config = tls::client_config(roots, identity)?;
    let mut connector = Connector::new(Some(Arc::new(ArcSwap::from_pointee(config)))).http2(true);
    if let Some(name) = &file.server_name {
        connector = connector.server_name(name.as_str());
    }
    let base: Uri = file.server.parse().map_err(|_| bad())?;
    let mut http = HttpClient::new(&base, connector).map_err(|_| bad())?;
    if let Some(token) = file.token.clone() {
        http = http.with_token(Arc::new(move || Some(token.clone())));
    }
    let transport = RemoteTransport::new(http, HeaderValue::from_static("rkube"));
    Ok((Client::new(Arc::new(transport), clock, Arc::new(SystemRandom)), file))
}
