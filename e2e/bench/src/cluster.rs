//! The way to the API server under test: several independent connections with one identity, and namespaces of our own.
//!
//! Invariant: what a run creates lies in namespaces made by [`Cluster::in_namespace`] (or is named after them), which are
//! gone when the run ends, also after an error or Ctrl-C, unless `--keep` was given.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use arc_swap::ArcSwap;
use bytes::Bytes;
use clap::{Args, ValueEnum};
use futures_util::StreamExt;
use http::{HeaderValue, Method, Request, Response};
use rkube_api::k8s::core::v1::{Namespace, ServiceAccount};
use rkube_apimachinery::clock::SharedClock;
use rkube_apimachinery::random::{self, SharedRandom, SystemRandom};
use rkube_client::transport::{ClientError, SharedTransport, Transport, WatchEvent};
use rkube_client::{Client, DeleteOptions, ListParams};
use rkube_http::body::Body;
use rkube_http::client::{HttpClient, RequestError};
use rkube_http::connect::Connector;
use rkube_http::tls;
use rkube_http::transport::RemoteTransport;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;

use crate::kubeconfig::Kubeconfig;

/// How long a namespace may take to go. Deleting much of it is work for the server's controllers.
const NAMESPACE_GONE_TIMEOUT: Duration = Duration::from_secs(300);
/// How long the server's controllers may take to make a namespace's default service account.
const SERVICE_ACCOUNT_TIMEOUT: Duration = Duration::from_secs(60);
/// More than a benchmark of one machine needs, less than its ports.
const CONNECTIONS_MAX: usize = 20_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum HttpVersion {
    #[value(name = "1.1")]
    Http1,
    #[value(name = "2")]
    Http2,
}

/// Which server, and how to reach it.
#[derive(Args, Clone, Debug)]
pub(crate) struct Target {
    /// How to reach the server and who we are
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: PathBuf,
    /// Connections; workers share them. With HTTP/1.1 one per worker is best
    #[arg(long, default_value_t = 8, value_name = "N")]
    pub(crate) connections: usize,
    /// HTTP version to speak
    #[arg(long, value_enum, default_value = "2")]
    pub(crate) http: HttpVersion,
    /// Leave the namespaces this run made
    #[arg(long)]
    pub(crate) keep: bool,
}

/// One connection, or with HTTP/1.1 as many as are used at once.
#[derive(Clone)]
pub(crate) struct Connection {
    pub(crate) http: HttpClient,
    pub(crate) transport: RemoteTransport,
}

impl Connection {
    /// One request with a complete answer; never sent twice.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        body: impl Into<Bytes>,
    ) -> Result<Response<Bytes>, ClientError> {
        self.transport.send(build(method, path, body.into())?).await
    }

    pub(crate) async fn patch(
        &self,
        path: &str,
        kind: &'static str,
        body: impl Into<Bytes>,
    ) -> Result<(), ClientError> {
        let mut request = build(Method::PATCH, path, body.into())?;
        request.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static(kind));
        self.transport.send(request).await.map(drop)
    }

    /// One GET whose answer is read by the caller; the head may be a failure.
    pub(crate) async fn open(&self, path: &str) -> Result<Response<Body>, RequestError> {
        let mut request = Request::new(Body::empty());
        *request.uri_mut() = path.parse().map_err(|error: http::uri::InvalidUri| RequestError::Url(error.into()))?;
        request.headers_mut().insert(http::header::ACCEPT, HeaderValue::from_static("application/json"));
        self.http.request(request).await
    }
}

fn build(method: Method, path: &str, body: Bytes) -> Result<Request<Bytes>, ClientError> {
    let request = Request::builder().method(method).uri(path).body(body);
    request.map_err(|source| ClientError::Request { path: path.to_owned(), source: Box::new(source) })
}

/// A server and our connections to it.
#[derive(Clone)]
pub(crate) struct Cluster {
    connections: Arc<[Connection]>,
    pub(crate) clock: SharedClock,
    random: SharedRandom,
    keep: bool,
}

impl Cluster {
    /// Prepares the connections; none is opened yet.
    pub(crate) fn new(target: &Target, clock: SharedClock) -> Result<Self> {
        let Target { connections, http, keep, .. } = target;
        ensure!(
            (1..=CONNECTIONS_MAX).contains(connections),
            "--connections {connections} is not in 1..={CONNECTIONS_MAX}"
        );
        let config = Kubeconfig::load(&target.kubeconfig)?;
        let connector = connector(&config)?;
        let connections: Vec<_> =
            (0..*connections).map(|_| connection(&config, &connector, *http)).collect::<Result<_>>()?;
        Ok(Self { connections: connections.into(), clock, random: Arc::new(SystemRandom), keep: *keep })
    }

    /// The connection of worker `index`.
    pub(crate) fn connection(&self, index: usize) -> &Connection {
        &self.connections[index % self.connections.len()]
    }

    /// Whether what a run made is to stay.
    pub(crate) fn keeps(&self) -> bool {
        self.keep
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.len()
    }

    /// A typed client over connection `index`.
    pub(crate) fn client(&self, index: usize) -> Client {
        let transport: SharedTransport = Arc::new(self.connection(index).transport.clone());
        Client::new(transport, self.clock.clone(), Arc::clone(&self.random))
    }

    pub(crate) fn random_name(&self, prefix: &str) -> String {
        format!("{prefix}-{}", random::string(self.random.as_ref(), 6))
    }

    /// A number below `limit`.
    pub(crate) fn random_below(&self, limit: u64) -> u64 {
        random::below(self.random.as_ref(), limit)
    }

    /// Opens every connection, so that no measurement holds a handshake, and says which version answers.
    pub(crate) async fn warm_up(&self) -> Result<String> {
        let path = "/version";
        let answers = self.connections.iter().map(|connection| connection.send(Method::GET, path, Bytes::new()));
        let mut answers: Vec<_> = futures_util::stream::iter(answers).buffered(64).collect().await;
        let answer = answers.pop().context("no connection")?.context("asking the server for its version")?;
        for other in answers {
            other.context("opening connections")?;
        }
        let version: serde_json::Value = serde_json::from_slice(answer.body()).context("reading the version")?;
        Ok(version["gitVersion"].as_str().unwrap_or("unknown").to_owned())
    }

    /// Makes a namespace, runs `work` in it, and removes it with everything in it.
    pub(crate) async fn in_namespace<T>(&self, work: impl AsyncFnOnce(&str) -> Result<T>) -> Result<T> {
        let name = self.random_name("rkube-bench");
        let body = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}).to_string();
        let made = self.connection(0).send(Method::POST, "/api/v1/namespaces", body).await;
        made.with_context(|| format!("creating namespace {name}"))?;
        let result = interruptible(work(&name)).await;
        let cleaned = if self.keep { Ok(()) } else { self.remove_namespace(&name).await };
        let value = result?;
        cleaned?;
        Ok(value)
    }

    /// Waits until a new namespace has the service account that pods need.
    pub(crate) async fn ready_for_pods(&self, namespace: &str) -> Result<()> {
        let accounts = self.client(0).namespaced::<ServiceAccount>(namespace);
        let mut params = ListParams::fields("metadata.name=default");
        let list = accounts.dynamic().list(&params).await.context("looking for the default service account")?;
        if !list.items.is_empty() {
            return Ok(());
        }
        params.resource_version = list.resource_version;
        let timeout = u32::try_from(SERVICE_ACCOUNT_TIMEOUT.as_secs()).unwrap_or(u32::MAX);
        let mut changes = accounts.dynamic().watch(&params, timeout).await.context("watching service accounts")?;
        while let Some(event) = changes.next().await {
            if matches!(event.context("watching service accounts")?, WatchEvent::Added(_)) {
                return Ok(());
            }
        }
        bail!("namespace {namespace} had no default service account after {timeout} s")
    }

    /// Deletes a namespace and waits until it is gone.
    pub(crate) async fn remove_namespace(&self, name: &str) -> Result<()> {
        let namespaces = self.client(0).all::<Namespace>();
        let mut params = ListParams::fields(format!("metadata.name={name}"));
        let list = namespaces.dynamic().list(&params).await.with_context(|| format!("looking for namespace {name}"))?;
        params.resource_version = list.resource_version;
        let timeout = u32::try_from(NAMESPACE_GONE_TIMEOUT.as_secs()).unwrap_or(u32::MAX);
        let mut changes = namespaces.dynamic().watch(&params, timeout).await.context("watching namespaces")?;
        namespaces
            .delete(name, &DeleteOptions::default())
            .await
            .with_context(|| format!("deleting namespace {name}"))?;
        let gone = async {
            while let Some(event) = changes.next().await {
                if matches!(event.context("watching namespaces")?, WatchEvent::Deleted(_)) {
                    return Ok(());
                }
            }
            bail!("the watch of namespace {name} ended before it was gone")
        };
        tokio::select! {
            result = gone => result,
            () = self.clock.sleep(NAMESPACE_GONE_TIMEOUT) => {
                bail!("namespace {name} was not gone after {} s", NAMESPACE_GONE_TIMEOUT.as_secs())
            }
        }
    }
}

/// Runs `work` until it ends or the user wants it to.
pub(crate) async fn interruptible<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::select! {
        result = work => result,
        _ = tokio::signal::ctrl_c() => bail!("interrupted"),
    }
}

fn connector(config: &Kubeconfig) -> Result<Connector> {
    if config.server.scheme_str() != Some("https") {
        return Ok(Connector::new(None));
    }
    let authorities: Vec<CertificateDer<'static>> = match &config.ca_pem {
        Some(pem) => CertificateDer::pem_slice_iter(pem)
            .collect::<Result<_, _>>()
            .context("reading the authority's certificates")?,
        None => Vec::new(),
    };
    ensure!(config.insecure || !authorities.is_empty(), "the kubeconfig has no certificate authority for its server");
    let identity = match &config.identity {
        None => None,
        Some((certificate, key)) => {
            let chain = CertificateDer::pem_slice_iter(certificate).collect::<Result<_, _>>();
            let chain = chain.context("reading the client certificate")?;
            Some((chain, PrivateKeyDer::from_pem_slice(key).context("reading the client key")?))
        }
    };
    let tls = if config.insecure {
        ensure!(identity.is_none(), "a client certificate is not shown to a server that is not verified");
        tls::unverified_client_config()?
    } else {
        tls::client_config(tls::roots(&authorities)?, identity)?
    };
    let connector = Connector::new(Some(Arc::new(ArcSwap::from_pointee(tls))));
    Ok(match &config.server_name {
        Some(name) => connector.server_name(name.as_str()),
        None => connector,
    })
}

fn connection(config: &Kubeconfig, connector: &Connector, version: HttpVersion) -> Result<Connection> {
    let mut http = match version {
        HttpVersion::Http1 => HttpClient::http1(&config.server, connector.clone())?,
        HttpVersion::Http2 => HttpClient::new(&config.server, connector.clone())?,
    };
    if let Some(token) = config.token.clone() {
        http = http.with_token(Arc::new(move || Some(token.clone())));
    }
    Ok(Connection { transport: RemoteTransport::new(http.clone(), HeaderValue::from_static("rkube-bench")), http })
}
