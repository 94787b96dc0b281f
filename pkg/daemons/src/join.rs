//! How a worker joins: it learns the cluster's authority, checks it against the token, and asks for a
//! certificate as its node.
//!
//! ```text
//! GET kube-public/cluster-info     unverified, anonymous     the CA
//! compare the CA with the token    by its hash, or by a signature made with the token; nothing secret was sent so far
//! GET kube-public/cluster-info     verified, anonymous       the cluster's settings
//! POST certificatesigningrequests  verified, with the token  approved and signed in the cluster
//! everything else                  verified, with the certificate
//! ```
//! What it learns it keeps. A worker that has joined starts without a server, from what was kept, and what its kubelet
//! does without one it does: containers run on, static pods are started.
//!
//! Behaves as kubeadm's discovery and `pkg/kubelet/certificate/bootstrap`, v1.36.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::StreamExt;
use http::{HeaderValue, Uri};
use jiff::Timestamp;
use rkube_api::ByteString;
use rkube_api::k8s::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use rkube_api::k8s::core::v1::ConfigMap;
use rkube_api::meta::pkg::apis::meta::v1::ObjectMeta;
use rkube_apimachinery::chain::chain;
use rkube_apimachinery::clock::SharedClock;
use rkube_apimachinery::random::SharedRandom;
use rkube_client::transport::{ClientError, WatchEvent};
use rkube_client::{Client, ListParams};
use rkube_http::client::HttpClient;
use rkube_http::connect::Connector;
use rkube_http::tls::{self, SharedClientConfig, SharedServerConfig, TlsError};
use rkube_http::transport::RemoteTransport;
use rkube_pki::join_token::{self, Credential, JoinToken};
use rkube_pki::tree::{self, Names};
use rkube_pki::{CertifiedKey, Leaf, PkiError, authority, csr, files, kubeconfig};
use rustls::RootCertStore;
use tracing::{info, warn};

use crate::node::ClusterFacts;

/// How long a cluster may take to sign a node's certificate.
const SIGN_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a server may take to answer a worker that can go on without it.
const ANSWER_PATIENCE: Duration = Duration::from_secs(5);
/// Between two requests for a serving certificate that nobody signed.
const SIGN_RETRY: Duration = Duration::from_secs(5);
const SIGN_RETRY_MAX: Duration = Duration::from_secs(300);
/// After a renewal that failed; a third of a certificate's time is left then.
const RETRY_INTERVAL: Duration = Duration::from_secs(60);
const CHECK_MAX: Duration = Duration::from_secs(3600);
/// The node's certificate and key, without extension, and those its kubelet serves with.
const CLIENT_FILE: &str = "client-kubelet";
const SERVING_FILE: &str = "serving-kubelet";
const AUTHORITY_FILE: &str = "server-ca.crt";
/// What the cluster is like, as it was told last.
const FACTS_FILE: &str = "cluster.json";
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
    #[error("asking {url} for the cluster's authority: no answer within {} s", ANSWER_PATIENCE.as_secs())]
    Silent { url: String },
    #[error("the server at {url} has no cluster-info; it is not an rkube server, or an older one")]
    NoClusterInfo { url: String },
    #[error(
        "the authority of the server at {url} is not the one in the token: wrong server, wrong token, or an attack"
    )]
    WrongAuthority { url: String },
    #[error(
        "the server at {url} does not know the token {id}: it is wrong or has expired; `rkube token create` makes a new one, \
         and its form that begins with K10 needs no signature"
    )]
    Unsigned { url: String, id: String },
    #[error(
        "the authority of the server is valid from {from} to {until}, and this machine's clock says {now}: set the clock"
    )]
    Clock { from: Timestamp, until: Timestamp, now: Timestamp },
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
    /// Keeps the node's own certificate fresh while it runs.
    pub(crate) renewal: ClientRenewal,
    /// No server has answered; all is as it was kept.
    pub(crate) is_from_kept: bool,
}

/// What a worker needs to go on as a member of a cluster.
struct Membership {
    authority: String,
    facts: ClusterFacts,
    pair: CertifiedKey,
}

/// Names the outside a worker joins through.
pub(crate) struct Joiner {
    /// `--join`
    pub(crate) url: String,
    /// All servers that are known, as `host:port`.
    pub(crate) servers: Vec<String>,
    /// Where a member reaches whichever server answers, as a URL.
    pub(crate) member_url: String,
    pub(crate) token: JoinToken,
    pub(crate) node_name: String,
    /// `<data-dir>/agent`
    pub(crate) folder: PathBuf,
    pub(crate) clock: SharedClock,
    pub(crate) random: SharedRandom,
}

impl Joiner {
    pub(crate) async fn join(&self) -> Result<Joined, JoinError> {
        let Some(kept) = self.kept_membership()? else {
            let (url, authority, facts) = self.ask_all().await?;
            return self.enter(&url, authority, facts).await;
        };
        let answer = tokio::select! {
            answer = self.ask_all() => answer,
            () = self.clock.sleep(ANSWER_PATIENCE) => {
                Err(JoinError::Silent { url: self.url.clone() })
            }
        };
        match answer {
            Ok((url, authority, facts)) => self.enter(&url, authority, facts).await,
            Err(error @ (JoinError::Discover { .. } | JoinError::Silent { .. })) => {
                warn!(error = %chain(&error), "No server answers; going on with what was kept");
                self.member(kept, true)
            }
            // The token it joined with has ended since. It knows its cluster without it.
            Err(JoinError::Unsigned { .. }) => self.member(kept, false),
            Err(error) => Err(error),
        }
    }

    /// Becomes a member, or is one already, by a server that has answered.
    async fn enter(&self, url: &str, authority: String, facts: ClusterFacts) -> Result<Joined, JoinError> {
        files::write(&self.folder.join(AUTHORITY_FILE), authority.as_bytes(), files::PUBLIC)?;
        let text = serde_json::json!(facts).to_string();
        files::write(&self.folder.join(FACTS_FILE), text.as_bytes(), files::PUBLIC)?;
        let pair = match self.kept(&authority)? {
            Some(pair) => pair,
            None => {
                let client = self.over(self.http(url, &authority, Some(self.token.credential.bearer()), None)?.0);
                let leaf = Leaf::client(&format!("system:node:{}", self.node_name), &["system:nodes"]);
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
                keep(&self.folder, CLIENT_FILE, &pair)?;
                pair
            }
        };
        self.member(Membership { authority, facts, pair }, false)
    }

    fn member(&self, membership: Membership, is_from_kept: bool) -> Result<Joined, JoinError> {
        let Membership { authority, facts, pair } = membership;
        let (http, tls) = self.http(&self.member_url, &authority, None, Some(&pair))?;
        let client = self.over(http.clone());
        let renewal = ClientRenewal {
            client: client.clone(),
            clock: self.clock.clone(),
            node_name: self.node_name.clone(),
            folder: self.folder.clone(),
            roots: roots(&authority)?,
            http,
            tls,
            pair,
        };
        Ok(Joined { client, facts, authority, renewal, is_from_kept })
    }

    /// What an earlier start left, if it is all there, of the token's cluster, and still good for something.
    fn kept_membership(&self) -> Result<Option<Membership>, JoinError> {
        let read = |name: &str| files::read(&self.folder.join(name));
        let (Some(authority), Some(facts)) = (read(AUTHORITY_FILE)?, read(FACTS_FILE)?) else { return Ok(None) };
        let (Ok(facts), Ok(chain)) =
            (serde_json::from_str::<ClusterFacts>(&facts), authority::certificates(&authority, "the kept authority"))
        else {
            return Ok(None);
        };
        if !chain.first().is_some_and(|first| self.token.accepts(first)) {
            return Ok(None);
        }
        let pair = self.kept(&authority)?;
        Ok(pair.map(|pair| Membership { authority, facts, pair }))
    }

    /// The authority of the first server that answers, and what it says of the cluster. One that answers wrongly is
    /// not passed over.
    async fn ask_all(&self) -> Result<(String, String, ClusterFacts), JoinError> {
        let mut outcome = self.discover(&self.url).await.map(|(authority, facts)| (self.url.clone(), authority, facts));
        for server in &self.servers {
            let url = format!("https://{server}");
            if !matches!(outcome, Err(JoinError::Discover { .. })) {
                break;
            }
            if url != self.url
                && let Ok((authority, facts)) = self.discover(&url).await
            {
                outcome = Ok((url, authority, facts));
            }
        }
        outcome
    }

    /// Reads the cluster's authority from whoever answers, and believes it if the token says so: by the hash the
    /// token begins with, or by a signature that only who knows the token can make. Settings are read again from
    /// the server that is known by then.
    async fn discover(&self, url: &str) -> Result<(String, ClusterFacts), JoinError> {
        let tls = Arc::new(ArcSwap::from_pointee(tls::unverified_client_config()?));
        let told = self.cluster_info(url, &self.over(http_over(url, tls, None)?)).await?;
        let missing = || JoinError::NoClusterInfo { url: url.to_owned() };
        let authority = self.verified_authority(url, &told).ok_or_else(missing)??;
        let (from, until) = tree::validity(authority.as_bytes()).ok_or_else(missing)?;
        let now = self.clock.now();
        if now < from || now > until {
            return Err(JoinError::Clock { from, until, now });
        }
        let (http, _) = self.http(url, &authority, None, None)?;
        let data = self.cluster_info(url, &self.over(http)).await?;
        let dns = data.get("cluster-dns").and_then(|text| text.parse().ok()).ok_or_else(missing)?;
        let text = |key: &str| data.get(key).cloned().ok_or_else(missing);
        Ok((authority, ClusterFacts { dns, domain: text("cluster-domain")?, pods: text("cluster-cidr")? }))
    }

    async fn cluster_info(&self, url: &str, stranger: &Client) -> Result<BTreeMap<String, String>, JoinError> {
        let found = stranger.namespaced::<ConfigMap>("kube-public").get("cluster-info").await;
        match found {
            Ok(map) => Ok(map.data.unwrap_or_default()),
            Err(error) if error.is_not_found() => Err(JoinError::NoClusterInfo { url: url.to_owned() }),
            Err(source) => Err(JoinError::Discover { url: url.to_owned(), source }),
        }
    }

    /// `None` if nothing was told that could be verified.
    fn verified_authority(&self, url: &str, told: &BTreeMap<String, String>) -> Option<Result<String, JoinError>> {
        let url = || url.to_owned();
        match (&self.token.ca_hash, &self.token.credential) {
            (None, Credential::Bootstrap { id, secret }) => {
                let content = told.get("kubeconfig")?;
                let Some(signature) = told.get(&format!("jws-kubeconfig-{id}")) else {
                    return Some(Err(JoinError::Unsigned { url: url(), id: id.clone() }));
                };
                if !join_token::is_signed(content, id, secret, signature) {
                    return Some(Err(JoinError::WrongAuthority { url: url() }));
                }
                kubeconfig::authority_of(content).map(Ok)
            }
            (hash, _) => {
                let authority = told.get("ca.crt")?.clone();
                let chain = match authority::certificates(&authority, "the server's authority") {
                    Ok(chain) => chain,
                    Err(error) => return Some(Err(error.into())),
                };
                if !self.token.accepts(chain.first()?) {
                    return Some(Err(JoinError::WrongAuthority { url: url() }));
                }
                if hash.is_none() {
                    warn!(
                        "The token pins no authority; the server was believed. Use the whole token, beginning with K10"
                    );
                }
                Some(Ok(authority))
            }
        }
    }

    fn http(
        &self,
        url: &str,
        authority: &str,
        token: Option<String>,
        pair: Option<&CertifiedKey>,
    ) -> Result<(HttpClient, SharedClientConfig), JoinError> {
        let tls = Arc::new(ArcSwap::from_pointee(client_config(&roots(authority)?, pair)?));
        Ok((http_over(url, Arc::clone(&tls), token)?, tls))
    }

    fn over(&self, http: HttpClient) -> Client {
        let transport = RemoteTransport::new(http, HeaderValue::from_static("rkube-agent"));
        let client = Client::new(Arc::new(transport), self.clock.clone(), Arc::clone(&self.random));
        client.with_user_agent(&crate::version::user_agent("kubelet"))
    }

    /// The node's certificate of an earlier start, if it is this node's, of this authority, and has not expired. One
    /// that is due is renewed by itself, without a token.
    fn kept(&self, authority: &str) -> Result<Option<CertifiedKey>, JoinError> {
        let pair = kept(&self.folder, CLIENT_FILE, authority, self.clock.now())?;
        let named = |pair: &CertifiedKey| {
            let chain = pair.chain().ok()?;
            rkube_pki::subject(chain.first()?).ok().map(|subject| subject.common_name)
        };
        Ok(pair.filter(|pair| named(pair).is_some_and(|name| name == format!("system:node:{}", self.node_name))))
    }
}

fn http_over(url: &str, tls: SharedClientConfig, token: Option<String>) -> Result<HttpClient, JoinError> {
    let bad = || JoinError::Url { url: url.to_owned() };
    let base: Uri = url.parse().map_err(|_| bad())?;
    let http = HttpClient::new(&base, Connector::new(Some(tls)).http2(true)).map_err(|_| bad())?;
    Ok(match token {
        Some(token) => http.with_token(Arc::new(move || Some(token.clone()))),
        None => http,
    })
}

fn paths(folder: &Path, name: &str) -> (PathBuf, PathBuf) {
    (folder.join(format!("{name}.crt")), folder.join(format!("{name}.key")))
}

fn keep(folder: &Path, name: &str, pair: &CertifiedKey) -> Result<(), JoinError> {
    let (certificate, key) = paths(folder, name);
    files::write(&key, pair.key_pem.as_bytes(), files::PRIVATE)?;
    Ok(files::write(&certificate, pair.certificate_pem.as_bytes(), files::PUBLIC)?)
}

/// A pair of an earlier start, if it is whole, of this authority, and has not expired.
fn kept(folder: &Path, name: &str, authority: &str, now: Timestamp) -> Result<Option<CertifiedKey>, JoinError> {
    let (certificate, key) = paths(folder, name);
    let (Some(certificate_pem), Some(key_pem)) = (files::read(&certificate)?, files::read(&key)?) else {
        return Ok(None);
    };
    let lasts = tree::inspect(&certificate, now).is_ok_and(|found| !found.left.is_zero());
    let is_ours = tree::is_signed_by(&certificate_pem, authority) && tree::belongs(&certificate_pem, &key_pem);
    Ok((lasts && is_ours).then_some(CertifiedKey { certificate_pem, key_pem }))
}

fn roots(authority: &str) -> Result<RootCertStore, JoinError> {
    Ok(tls::roots(&authority::certificates(authority, "the server's authority")?)?)
}

fn client_config(roots: &RootCertStore, pair: Option<&CertifiedKey>) -> Result<rustls::ClientConfig, JoinError> {
    let identity = match pair {
        Some(pair) => Some((pair.chain()?, pair.key()?)),
        None => None,
    };
    Ok(tls::client_config(roots.clone(), identity)?)
}

/// Waits until a certificate is to be asked for again. In short steps, so that a clock that is set counts.
async fn until_due(clock: &SharedClock, pair: &CertifiedKey) {
    let due = tree::renewal(pair.certificate_pem.as_bytes());
    while let Some(left) = due.and_then(|due| Duration::try_from(due.duration_since(clock.now())).ok())
        && !left.is_zero()
    {
        clock.sleep(left.min(CHECK_MAX)).await;
    }
}

/// Keeps the certificate a node shows to its server fresh.
pub(crate) struct ClientRenewal {
    client: Client,
    clock: SharedClock,
    node_name: String,
    folder: PathBuf,
    roots: RootCertStore,
    http: HttpClient,
    tls: SharedClientConfig,
    pair: CertifiedKey,
}

impl ClientRenewal {
    /// Asks for a new certificate, as the node it is, before the old one expires; never ends.
    pub(crate) async fn run(mut self) {
        loop {
            until_due(&self.clock, &self.pair).await;
            if let Err(error) = self.renew().await {
                warn!(error = %chain(&error), "Could not renew the certificate of this node; trying again");
                self.clock.sleep(RETRY_INTERVAL).await;
            }
        }
    }

    async fn renew(&mut self) -> Result<(), JoinError> {
        let leaf = Leaf::client(&format!("system:node:{}", self.node_name), &["system:nodes"]);
        let usages = ["digital signature", "client auth"];
        let pair = certificate(&self.client, &self.clock, &self.node_name, KUBELET_CLIENT, &leaf, &usages).await?;
        self.tls.store(Arc::new(client_config(&self.roots, Some(&pair))?));
        self.http.reconnect();
        keep(&self.folder, CLIENT_FILE, &pair)?;
        self.pair = pair;
        info!("Renewed the certificate of this node");
        Ok(())
    }
}

/// What a kubelet serves with, asked for in the cluster.
pub(crate) struct ServingCertificate {
    pub(crate) client: Client,
    pub(crate) clock: SharedClock,
    pub(crate) node_name: String,
    pub(crate) names: Names,
    pub(crate) roots: RootCertStore,
    /// PEM of the cluster's authority.
    pub(crate) authority: String,
    /// `<data-dir>/agent`
    pub(crate) folder: PathBuf,
}

impl ServingCertificate {
    /// The one of an earlier start, or one that the cluster signs, however long that takes.
    pub(crate) async fn first(&self) -> Result<(SharedServerConfig, CertifiedKey), JoinError> {
        let kept = kept(&self.folder, SERVING_FILE, &self.authority, self.clock.now())?;
        let pair = match kept.filter(|pair| tree::is_for(&pair.certificate_pem, &self.names)) {
            Some(pair) => pair,
            None => self.asked().await,
        };
        let config = tls::server_config(pair.chain()?, pair.key()?, &self.roots)?;
        Ok((Arc::new(ArcSwap::from_pointee(config)), pair))
    }

    /// Asks until there is one.
    async fn asked(&self) -> CertifiedKey {
        let mut pause = SIGN_RETRY;
        loop {
            match self.ask().await {
                Ok(pair) => return pair,
                Err(error) => {
                    warn!(error = %chain(&error), "This node has no serving certificate yet; asking again");
                    self.clock.sleep(pause).await;
                    pause = (pause * 2).min(SIGN_RETRY_MAX);
                }
            }
        }
    }

    /// Asks for a certificate, and keeps it.
    async fn ask(&self) -> Result<CertifiedKey, JoinError> {
        let leaf = Leaf {
            dns_names: self.names.dns_names.clone(),
            ip_addresses: self.names.ip_addresses.clone(),
            ..Leaf::client(&format!("system:node:{}", self.node_name), &["system:nodes"])
        };
        let usages = ["digital signature", "server auth"];
        let pair = certificate(&self.client, &self.clock, &self.node_name, KUBELET_SERVING, &leaf, &usages).await?;
        keep(&self.folder, SERVING_FILE, &pair)?;
        Ok(pair)
    }

    /// Asks for a new certificate before the old one expires, and swaps it in; never ends.
    pub(crate) async fn keep_fresh(self, config: SharedServerConfig, mut pair: CertifiedKey) {
        loop {
            until_due(&self.clock, &pair).await;
            let renewed = async {
                let pair = self.ask().await?;
                config.store(Arc::new(tls::server_config(pair.chain()?, pair.key()?, &self.roots)?));
                Ok::<_, JoinError>(pair)
            };
            match renewed.await {
                Ok(renewed) => {
                    pair = renewed;
                    info!("Renewed the serving certificate of this node");
                }
                Err(error) => {
                    warn!(error = %chain(&error), "Could not renew the serving certificate of this node; trying again");
                    self.clock.sleep(RETRY_INTERVAL).await;
                }
            }
        }
    }
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

#[cfg(test)]
mod tests;
