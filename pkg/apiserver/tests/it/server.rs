//! An API server over memory storage, behind a real TLS listener, with an administrator's credentials.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use http::Uri;
use parking_lot::Mutex;
use rkube_apimachinery::clock::{Clock, SystemClock};
use rkube_apimachinery::random::SystemRandom;
use rkube_apiserver::auth::basic::{
    BasicAuthenticator, CertificateAuthenticator, MASTERS, MastersOnly, NoAudit, NoImpersonation, StaticTokens,
};
use rkube_apiserver::auth::flow::MaxInFlight;
use rkube_apiserver::openapi::{Builtin, Served};
use rkube_apiserver::proxy::RegistryNodes;
use rkube_apiserver::server::{Extensions, REQUEST_TIMEOUT};
use rkube_apiserver::{ApiServer, Config};
use rkube_http::client::HttpClient;
use rkube_http::connect::Connector;
use rkube_http::listener::Listener;
use rkube_http::tls;
use rkube_pki::kubeconfig::{User, render};
use rkube_pki::{CertificateAuthority, CertifiedKey, Leaf};
use rkube_registry::admission::AlwaysAdmit;
use rkube_registry::{Registry, UserInfo};
use rkube_storage::Storage;
use rkube_storage::memory::MemoryStorage;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub(crate) const TOKEN: &str = "an-administrators-token";

pub(crate) struct Server {
    pub(crate) api: ApiServer,
    pub(crate) address: SocketAddr,
    authority: CertificateAuthority,
    authority_pem: String,
    admin: CertifiedKey,
    shutdown: CancellationToken,
    listener: tokio::task::JoinHandle<()>,
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::start_at(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), Arc::new(MemoryStorage::new())).await
    }

    pub(crate) async fn start_at(address: SocketAddr, storage: Arc<dyn Storage>) -> Self {
        Self::start_with(address, storage, rkube_registry::Config::default()).await
    }

    /// With the ranges and resources of a test, and the rest as configured.
    pub(crate) async fn start_with(
        address: SocketAddr,
        storage: Arc<dyn Storage>,
        config: rkube_registry::Config,
    ) -> Self {
        let clock = SystemClock::shared();
        let now = clock.now();
        let (authority, authority_pair) = CertificateAuthority::generate("test-ca", now).expect("an authority");
        let serving = authority
            .issue(&Leaf::server("test", vec!["localhost".to_owned()], vec![IpAddr::V4(Ipv4Addr::LOCALHOST)]), now)
            .expect("a serving certificate");
        let admin = authority.issue(&Leaf::client("admin", &[MASTERS]), now).expect("a client certificate");
        let authorities = authority_pair.chain().expect("its chain");
        let roots = tls::roots(&authorities).expect("roots");
        let serving = tls::server_config(serving.chain().expect("chain"), serving.key().expect("key"), &roots);
        let serving = Arc::new(ArcSwap::from_pointee(serving.expect("a TLS configuration")));
        let clients = tls::ClientVerifier::new(roots.clone()).expect("a verifier");
        let kubelets = tls::client_config(roots, Some((admin.chain().expect("chain"), admin.key().expect("key"))));
        let kubelets = Arc::new(ArcSwap::from_pointee(kubelets.expect("a TLS configuration")));
        let cluster = Arc::new(ArcSwap::from_pointee(tls::unverified_client_config().expect("a TLS configuration")));
        let resources = rkube_api::resources().to_vec();
        let registry_config = rkube_registry::Config {
            resources: resources.clone(),
            service_cidrs: vec!["10.43.0.0/16".parse().expect("a range")],
            ..config
        };
        let registry = Registry::new(storage, clock.clone(), Arc::new(SystemRandom), registry_config)
            .await
            .expect("the registry starts");
        let root = UserInfo { name: "root".to_owned(), groups: vec![MASTERS.to_owned()], ..UserInfo::default() };
        let api = ApiServer::new(Config {
            registry: Arc::clone(&registry),
            clock: clock.clone(),
            resources,
            authenticator: Arc::new(BasicAuthenticator {
                certificates: Some(CertificateAuthenticator::new(clients, clock.clone())),
                tokens: StaticTokens::default().with(TOKEN, root),
            }),
            anonymous: true,
            authorizer: Arc::new(MastersOnly),
            impersonation: Arc::new(NoImpersonation),
            audit: Arc::new(NoAudit),
            flow: Arc::new(MaxInFlight::default()),
            admission: Arc::new(AlwaysAdmit),
            nodes: Arc::new(RegistryNodes::new(registry, kubelets, cluster)),
            openapi: Arc::new(Served::new(Arc::new(Builtin))),
            metrics: Arc::new(Mutex::default()),
            checks: Vec::new(),
            advertise_address: address.to_string(),
            extensions: Extensions::default(),
            request_timeout: REQUEST_TIMEOUT,
        });
        let socket = TcpListener::bind(address).await.expect("a socket");
        let address = socket.local_addr().expect("its address");
        let shutdown = CancellationToken::new();
        let listener = Listener::new("apiserver", socket, Some(serving), clock).spawn(
            Arc::new(api.clone()),
            shutdown.clone(),
            Duration::from_secs(5),
        );
        let authority_pem = authority.certificate_pem().to_owned();
        Self { api, address, authority, authority_pem, admin, shutdown, listener }
    }

    pub(crate) fn kubeconfig(&self) -> String {
        let server = format!("https://{}", self.address);
        render("default", &server, &self.authority_pem, "admin", &User::Certificate(self.admin.clone()))
    }

    /// A serving configuration for a kubelet on the loopback address.
    pub(crate) fn kubelet_tls(&self) -> tls::SharedServerConfig {
        let leaf = Leaf::server("system:node:n1", Vec::new(), vec![IpAddr::V4(Ipv4Addr::LOCALHOST)]);
        let pair = self.authority.issue(&leaf, SystemClock::new().now()).expect("a certificate");
        let authorities = rkube_pki::authority::certificates(&self.authority_pem, "the CA").expect("the authority");
        let roots = tls::roots(&authorities).expect("roots");
        let config = tls::server_config(pair.chain().expect("chain"), pair.key().expect("key"), &roots);
        Arc::new(ArcSwap::from_pointee(config.expect("a TLS configuration")))
    }

    /// A client with the administrator's certificate.
    pub(crate) fn client(&self) -> HttpClient {
        let identity = (self.admin.chain().expect("chain"), self.admin.key().expect("key"));
        self.client_with(Some(identity))
    }

    /// A client without credentials.
    pub(crate) fn stranger(&self) -> HttpClient {
        self.client_with(None)
    }

    fn client_with(
        &self,
        identity: Option<(Vec<rustls_pki_types::CertificateDer<'static>>, rustls_pki_types::PrivateKeyDer<'static>)>,
    ) -> HttpClient {
        let authorities = rkube_pki::authority::certificates(&self.authority_pem, "the CA").expect("the authority");
        let config = tls::client_config(tls::roots(&authorities).expect("roots"), identity).expect("a configuration");
        let connector = Connector::new(Some(Arc::new(ArcSwap::from_pointee(config))));
        let base: Uri = format!("https://{}", self.address).parse().expect("a URL");
        HttpClient::new(&base, connector).expect("a client")
    }

    pub(crate) async fn stop(self) {
        self.api.stop();
        self.shutdown.cancel();
        self.listener.await.expect("the listener ends");
    }
}
