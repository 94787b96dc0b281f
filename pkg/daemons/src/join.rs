//! How a worker joins: it learns the cluster's authority, checks it against the token, and asks for a
//! certificate as its node.
//!
//! ```text
//! GET kube-public/cluster-info     unverified, anonymous     the CA and the cluster's settings
//! compare the CA with the token    nothing secret has been sent so far
//! POST certificatesigningrequests  verified, with the token  approved and signed in the cluster
//! everything else                  verified, with the certificate
//! ```
//! Behaves as kubeadm's discovery and `pkg/kubelet/certificate/bootstrap`, v1.36.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::StreamExt;
use http::{HeaderValue, Uri};
use rkube_api::ByteString;
use rkube_api::k8s::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use rkube_api::k8s::core::v1::ConfigMap;
use rkube_api::meta::pkg::apis::meta::v1::ObjectMeta;
use rkube_apimachinery::clock::SharedClock;
use rkube_apimachinery::random::SharedRandom;
use rkube_client::transport::{ClientError, WatchEvent};
use rkube_client::{Client, ListParams};
use rkube_http::client::HttpClient;
use rkube_http::connect::Connector;
use rkube_http::tls::{self, TlsError};
use rkube_http::transport::RemoteTransport;
use rkube_pki::join_token::JoinToken;
use rkube_pki::tree::{self, Names};
use rkube_pki::{CertifiedKey, Leaf, PkiError, authority, csr, files};
use tracing::{info, warn};

use crate::node::ClusterFacts;

/// How long a cluster may take to sign a node's certificate.
const SIGN_TIMEOUT: Duration = Duration::from_secs(60);
/// A certificate with less than this left is asked for again at start.
const LEFT_MIN: Duration = Duration::from_secs(30 * 24 * 3600);
const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";

#[derive(Debug, thiserror::Error)]
pub(crate) enum JoinError {
    #[error("--join {url} is not a URL")]
    Url { url: String },
    #[error("asking {url} for the cluster's authority: is the server running, and is this its address?")]
    Discover {
        url: String,
        #[source]
        source: ClientError,
    },
    #[error("the server at {url} has no cluster-info; it is not an rkube server, or an older one")]
    NoClusterInfo { url: String },
    #[error(
        "the authority of the server at {url} is not the one in the token: wrong server, wrong token, or an attack"
    )]
    WrongAuthority { url: String },
    #[error("the cluster refused the token: it is wrong, or it has expired; `rkube token create` makes a new one")]
    Refused(#[source] ClientError),
    #[error("asking for a certificate")]
    Request(#[source] ClientError),
    #[error("the certificate request {name} was not approved and signed within {} s", SIGN_TIMEOUT.as_secs())]
    NotSigned { name: String },
    #[error("the certificate request {name} was denied: {message}")]
    Denied { name: String, message: String },
    #[error(transparent)]
    Pki(#[from] PkiError),
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// What a worker knows after it joined.
pub(crate) struct Joined {
    pub(crate) client: Client,
    pub(crate) facts: ClusterFacts,
    /// PEM of the cluster's authority.
    pub(crate) authority: String,
}

/// Names the outside a worker joins through.
pub(crate) struct Joiner {
    pub(crate) url: String,
    pub(crate) token: JoinToken,
    pub(crate) node_name: String,
    /// `<data-dir>/agent`
    pub(crate) folder: PathBuf,
    pub(crate) clock: SharedClock,
    pub(crate) random: SharedRandom,
}

impl Joiner {
    pub(crate) async fn join(&self) -> Result<Joined, JoinError> {
        let (authority, facts) = self.discover().await?;
        files::write(&self.folder.join("server-ca.crt"), authority.as_bytes(), files::PUBLIC)?;
        let leaf = Leaf::client(&format!("system:node:{}", self.node_name), &["system:nodes"]);
        let pair = match self.kept("client-kubelet", &authority)? {
            Some(pair) => pair,
            None => {
                let client = self.client(&authority, Some(self.token.credential.bearer()), None)?;
                let usages = ["digital signature", "client auth"];
                let pair = certificate(&client, &self.clock, &self.node_name, KUBELET_CLIENT, &leaf, &usages).await;
                let pair = pair.map_err(|error| match error {
                    JoinError::Request(source)
                        if source.status().is_some_and(|status| matches!(status.code(), 401 | 403)) =>
                    {
                        JoinError::Refused(source)
                    }
                    other => other,
                })?;
                self.keep("client-kubelet", &pair)?;
                pair
            }
        };
        let client = self.client(&authority, None, Some(&pair))?;
        Ok(Joined { client, facts, authority })
    }

    /// Reads the cluster's authority and settings from whoever answers, and believes them if the token says so.
    async fn discover(&self) -> Result<(String, ClusterFacts), JoinError> {
        let tls = Arc::new(ArcSwap::from_pointee(tls::unverified_client_config()?));
        let stranger = self.over(tls, None)?;
        let found = stranger.namespaced::<ConfigMap>("kube-public").get("cluster-info").await;
        let found = found.map_err(|source| JoinError::Discover { url: self.url.clone(), source })?;
        let data = found.data.unwrap_or_default();
        let missing = || JoinError::NoClusterInfo { url: self.url.clone() };
        let authority = data.get("ca.crt").cloned().ok_or_else(missing)?;
        let chain = authority::certificates(&authority, "the server's authority")?;
        if !chain.first().is_some_and(|certificate| self.token.accepts(certificate)) {
            return Err(JoinError::WrongAuthority { url: self.url.clone() });
        }
        if self.token.ca_hash.is_none() {
            warn!("The token pins no authority; the server was believed. Use the whole token, beginning with K10");
        }
        let dns = data.get("cluster-dns").and_then(|text| text.parse().ok()).ok_or_else(missing)?;
        let text = |key: &str| data.get(key).cloned().ok_or_else(missing);
        Ok((authority, ClusterFacts { dns, domain: text("cluster-domain")?, pods: text("cluster-cidr")? }))
    }

    fn client(&self, authority: &str, token: Option<String>, pair: Option<&CertifiedKey>) -> Result<Client, JoinError> {
        let roots = tls::roots(&authority::certificates(authority, "the server's authority")?)?;
        let identity = match pair {
            Some(pair) => Some((pair.chain()?, pair.key()?)),
            None => None,
        };
        self.over(Arc::new(ArcSwap::from_pointee(tls::client_config(roots, identity)?)), token)
    }

    fn over(&self, tls: tls::SharedClientConfig, token: Option<String>) -> Result<Client, JoinError> {
        let bad = || JoinError::Url { url: self.url.clone() };
        let base: Uri = self.url.parse().map_err(|_| bad())?;
        let mut http = HttpClient::new(&base, Connector::new(Some(tls)).http2(true)).map_err(|_| bad())?;
        if let Some(token) = token {
            http = http.with_token(Arc::new(move || Some(token.clone())));
        }
        let transport = RemoteTransport::new(http, HeaderValue::from_static("rkube-agent"));
        Ok(Client::new(Arc::new(transport), self.clock.clone(), Arc::clone(&self.random)))
    }

    fn paths(&self, name: &str) -> (PathBuf, PathBuf) {
        (self.folder.join(format!("{name}.crt")), self.folder.join(format!("{name}.key")))
    }

    /// A certificate of an earlier start, if it is of this authority and lasts.
    fn kept(&self, name: &str, authority: &str) -> Result<Option<CertifiedKey>, JoinError> {
        let (certificate, key) = self.paths(name);
        let (Some(certificate_pem), Some(key_pem)) = (files::read(&certificate)?, files::read(&key)?) else {
            return Ok(None);
        };
        let lasts = tree::inspect(&certificate, self.clock.now()).is_ok_and(|found| found.left > LEFT_MIN);
        let is_ours = tree::is_signed_by(&certificate_pem, authority);
        Ok((lasts && is_ours).then_some(CertifiedKey { certificate_pem, key_pem }))
    }

    fn keep(&self, name: &str, pair: &CertifiedKey) -> Result<(), JoinError> {
        let (certificate, key) = self.paths(name);
        files::write(&key, pair.key_pem.as_bytes(), files::PRIVATE)?;
        Ok(files::write(&certificate, pair.certificate_pem.as_bytes(), files::PUBLIC)?)
    }
}

/// Asks the cluster for the certificate the kubelet serves with.
pub(crate) async fn serving_certificate(
    client: &Client,
    clock: &SharedClock,
    node_name: &str,
    names: &Names,
) -> Result<CertifiedKey, JoinError> {
    let leaf = Leaf {
        dns_names: names.dns_names.clone(),
        ip_addresses: names.ip_addresses.clone(),
        ..Leaf::client(&format!("system:node:{node_name}"), &["system:nodes"])
    };
    certificate(client, clock, node_name, KUBELET_SERVING, &leaf, &["digital signature", "server auth"]).await
}

async fn certificate(
    client: &Client,
    clock: &SharedClock,
    node_name: &str,
    signer: &str,
    leaf: &Leaf,
    usages: &[&str],
) -> Result<CertifiedKey, JoinError> {
    let made = csr::request(leaf)?;
    let request = CertificateSigningRequest {
        metadata: ObjectMeta { generate_name: Some(format!("csr-{node_name}-")), ..ObjectMeta::default() },
        spec: CertificateSigningRequestSpec {
            request: ByteString(made.request_pem.into_bytes()),
            signer_name: signer.to_owned(),
            usages: Some(usages.iter().map(|&usage| usage.to_owned()).collect()),
            ..CertificateSigningRequestSpec::default()
        },
        ..CertificateSigningRequest::default()
    };
    let api = client.all::<CertificateSigningRequest>();
    let created = api.create(&request).await.map_err(JoinError::Request)?;
    let name = created.metadata.name.unwrap_or_default();
    info!(request = name, signer, "Waiting for a certificate");
    let signed = async {
        let params = ListParams::fields(format!("metadata.name={name}"));
        let mut events =
            api.dynamic().watch(&params, u32::try_from(SIGN_TIMEOUT.as_secs()).unwrap_or(u32::MAX)).await?;
        while let Some(event) = events.next().await {
            let (WatchEvent::Added(object) | WatchEvent::Modified(object)) = event? else { continue };
            let Ok(request) = object.typed::<CertificateSigningRequest>() else { continue };
            let status = request.status.clone().unwrap_or_default();
            if let Some(certificate) = status.certificate.filter(|certificate| !certificate.0.is_empty()) {
                return Ok(Ok(certificate.0));
            }
            let refusal = |kind: &str| kind == "Denied" || kind == "Failed";
            if let Some(no) = status.conditions.iter().flatten().find(|condition| refusal(&condition.type_)) {
                return Ok(Err(no.message.clone().unwrap_or_default()));
            }
        }
        Ok::<_, ClientError>(Err(String::new()))
    };
    let outcome = tokio::select! {
        outcome = signed => outcome.map_err(JoinError::Request)?,
        () = clock.sleep(SIGN_TIMEOUT) => return Err(JoinError::NotSigned { name }),
    };
    match outcome {
        Ok(pem) => {
            Ok(CertifiedKey { certificate_pem: String::from_utf8_lossy(&pem).into_owned(), key_pem: made.key_pem })
        }
        Err(message) if message.is_empty() => Err(JoinError::NotSigned { name }),
        Err(message) => Err(JoinError::Denied { name, message }),
    }
}
