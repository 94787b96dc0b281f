//! An API server with all that decides who may do what (authentication, roles, admission), without sockets: requests
//! go in as values. What a test asks about is seeded before the server starts.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use http::{HeaderMap, Method, Request};
use parking_lot::Mutex;
use rkube_apimachinery::clock::{Clock, SharedClock, SystemClock};
use rkube_apimachinery::random::SystemRandom;
use rkube_apiserver::admission::{Chain, Objects};
use rkube_apiserver::auth::basic::{CertificateAuthenticator, NoAudit, StaticTokens};
use rkube_apiserver::auth::bootstrap_token::BootstrapTokens;
use rkube_apiserver::auth::cluster::ClusterAuthenticator;
use rkube_apiserver::auth::flow::MaxInFlight;
use rkube_apiserver::auth::impersonation::ByAuthorization;
use rkube_apiserver::auth::node::{NodeAuthorizer, Union};
use rkube_apiserver::auth::request_header::RequestHeaderAuthenticator;
use rkube_apiserver::auth::service_account::{Signer, TokenSettings, Verifier};
use rkube_apiserver::auth::{Attributes, Authorizer, Decision, FlowControl, Rules};
use rkube_apiserver::openapi::NoOpenApi;
use rkube_apiserver::proxy::RegistryNodes;
use rkube_apiserver::rbac::{RbacAuthorizer, bootstrap};
use rkube_apiserver::server::{Extensions, REQUEST_TIMEOUT};
use rkube_apiserver::{ApiServer, Config};
use rkube_http::body::Body;
use rkube_http::listener::{ConnectionInfo, Handler, Judgement};
use rkube_http::tls;
use rkube_pki::service_account::ServiceAccountKeys;
use rkube_pki::{CertificateAuthority, Leaf};
use rkube_registry::options::{CreateOptions, GetOptions, ListOptions};
use rkube_registry::store::Target;
use rkube_registry::{Registry, RequestContext, UserInfo};
use rkube_storage::Storage;
use rkube_storage::memory::MemoryStorage;
use rustls_pki_types::CertificateDer;
use serde::Serialize;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

pub(crate) const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

pub(crate) type Observe = Box<dyn FnOnce(Arc<dyn Authorizer>) -> Arc<dyn Authorizer> + Send>;

/// What a cluster begins with.
pub(crate) struct Setup {
    /// With `apiVersion` and `kind`, in an order that works.
    pub(crate) objects: Vec<Value>,
    /// Instead of the real one, to see what admission says of requests that would not reach it.
    pub(crate) authorizer: Option<Arc<dyn Authorizer>>,
    /// Around the authorizer, to see what it decides.
    pub(crate) observe: Option<Observe>,
    pub(crate) flow: Arc<dyn FlowControl>,
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) clock: SharedClock,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            objects: Vec::new(),
            authorizer: None,
            observe: None,
            flow: Arc::new(MaxInFlight::default()),
            storage: Arc::new(MemoryStorage::new()),
            clock: SystemClock::shared(),
        }
    }
}

pub(crate) struct Cluster {
    pub(crate) api: ApiServer,
    pub(crate) authority: CertificateAuthority,
    pub(crate) front_proxy: CertificateAuthority,
    pub(crate) registry: Arc<Registry>,
    stop: CancellationToken,
}

/// A code and a body; lists, objects and errors alike.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) code: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Value,
}

impl Answer {
    /// `ok`, or the code and what the client is told.
    pub(crate) fn verdict(&self) -> String {
        if self.code < 400 { "ok".to_owned() } else { format!("{} {}", self.code, self.message()) }
    }

    pub(crate) fn message(&self) -> &str {
        self.body["message"].as_str().unwrap_or_default()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop.cancel();
        self.api.stop();
        self.registry.shutdown();
    }
}

pub(crate) fn user(name: &str, groups: &[&str]) -> UserInfo {
    let groups = groups.iter().map(|group| (*group).to_owned()).collect();
    UserInfo { name: name.to_owned(), groups, ..UserInfo::default() }
}

pub(crate) fn admin() -> UserInfo {
    user("admin", &["system:masters"])
}

pub(crate) fn node(name: &str) -> UserInfo {
    user(&format!("system:node:{name}"), &["system:nodes"])
}

/// Allows everything but the verbs.
pub(crate) struct AllBut(pub(crate) &'static [&'static str]);

impl Authorizer for AllBut {
    fn authorize<'a>(&'a self, attributes: &'a Attributes) -> futures_util::future::BoxFuture<'a, Decision> {
        let decision = if self.0.contains(&attributes.verb.as_str()) {
            Decision::NoOpinion { reason: String::new() }
        } else {
            Decision::Allow { reason: String::new() }
        };
        Box::pin(std::future::ready(decision))
    }

    fn rules<'a>(&'a self, _: &'a UserInfo, _: &'a str) -> futures_util::future::BoxFuture<'a, Rules> {
        Box::pin(std::future::ready(Rules::default()))
    }
}

impl Cluster {
    pub(crate) async fn start(setup: Setup) -> Self {
        let clock = setup.clock;
        let folder = tempfile::tempdir().unwrap();
        let keys =
            ServiceAccountKeys::load_or_generate(&folder.path().join("sa.key"), &folder.path().join("sa.pub")).unwrap();
        let settings = TokenSettings { issuer: ISSUER.to_owned(), audiences: vec![ISSUER.to_owned()] };
        let signer = Signer::new(keys.clone(), settings.clone(), clock.clone());
        let resources = rkube_api::resources().to_vec();
        let config = rkube_registry::Config {
            resources: resources.clone(),
            token_signer: Some(Arc::new(signer)),
            service_cidrs: vec!["10.43.0.0/16".parse().unwrap()],
            ..rkube_registry::Config::default()
        };
        let registry = Registry::new(setup.storage, clock.clone(), Arc::new(SystemRandom), config).await.unwrap();
        seed(&registry, setup.objects).await;
        let stop = CancellationToken::new();
        let objects = || Objects::new(Arc::clone(&registry));
        let authorizer: Arc<dyn Authorizer> = match setup.authorizer {
            Some(authorizer) => authorizer,
            None => Arc::new(Union(vec![
                Arc::new(NodeAuthorizer::new(objects())),
                Arc::new(RbacAuthorizer::start(&registry, clock.clone(), stop.clone()).await.unwrap()),
            ])),
        };
        let authorizer = match setup.observe {
            Some(observe) => observe(authorizer),
            None => authorizer,
        };
        let (authority, pair) = CertificateAuthority::generate("test-ca", clock.now()).unwrap();
        let roots = tls::roots(&pair.chain().unwrap()).unwrap();
        let (front_proxy, pair) = CertificateAuthority::generate("test-front-proxy-ca", clock.now()).unwrap();
        let proxies = tls::ClientVerifier::new(tls::roots(&pair.chain().unwrap()).unwrap()).unwrap();
        let unverified = Arc::new(ArcSwap::from_pointee(tls::unverified_client_config().unwrap()));
        let api = ApiServer::new(Config {
            registry: Arc::clone(&registry),
            clock: clock.clone(),
            resources,
            authenticator: Arc::new(ClusterAuthenticator {
                front_proxy: RequestHeaderAuthenticator::new(proxies, clock.clone()),
                certificates: CertificateAuthenticator::new(tls::ClientVerifier::new(roots).unwrap(), clock.clone()),
                tokens: StaticTokens::default(),
                service_accounts: Verifier::new(keys, settings, clock.clone(), objects()),
                bootstrap: BootstrapTokens::new(objects(), clock.clone()),
            }),
            anonymous: true,
            admission: Arc::new(Chain::new(Chain::builtin(
                &registry,
                &authorizer,
                clock.clone(),
                Arc::new(SystemRandom),
            ))),
            authorizer,
            impersonation: Arc::new(ByAuthorization),
            audit: Arc::new(NoAudit),
            flow: setup.flow,
            nodes: Arc::new(RegistryNodes::new(Arc::clone(&registry), Arc::clone(&unverified), unverified)),
            openapi: Arc::new(NoOpenApi),
            metrics: Arc::new(Mutex::default()),
            checks: Vec::new(),
            advertise_address: String::new(),
            extensions: Extensions::default(),
            request_timeout: REQUEST_TIMEOUT,
        });
        Self { api, authority, front_proxy, registry, stop }
    }

    /// A request of a user who is already known.
    pub(crate) async fn ask(&self, user: &UserInfo, method: Method, path: &str, body: &Value) -> Answer {
        let response = self.api.call_as(request(method, path, &HeaderMap::new(), body), user.clone()).await;
        answer(response).await
    }

    /// A request over a connection, with whatever credentials it brings.
    pub(crate) async fn call(
        &self,
        method: Method,
        path: &str,
        headers: &HeaderMap,
        certificates: Vec<CertificateDer<'static>>,
        body: &Value,
    ) -> Answer {
        answer(self.api.call(over_connection(request(method, path, headers, body), certificates)).await).await
    }

    /// Only the code: a watch has no end.
    pub(crate) async fn code(
        &self,
        method: Method,
        path: &str,
        headers: &HeaderMap,
        certificates: Vec<CertificateDer<'static>>,
        body: &Value,
    ) -> u16 {
        self.api.call(over_connection(request(method, path, headers, body), certificates)).await.status().as_u16()
    }

    /// Where a client with these certificates connects from.
    pub(crate) fn connection(certificates: Vec<CertificateDer<'static>>) -> Arc<ConnectionInfo> {
        let somewhere = SocketAddr::from(([127, 0, 0, 1], 1));
        Arc::new(ConnectionInfo {
            remote: somewhere,
            local: somewhere,
            tls: true,
            peer_certificates: certificates,
            judgement: Judgement::default(),
            last_requests: CancellationToken::new(),
        })
    }

    /// One of several requests over one connection.
    pub(crate) async fn code_over(
        &self,
        connection: &Arc<ConnectionInfo>,
        method: Method,
        path: &str,
        headers: &HeaderMap,
    ) -> u16 {
        let mut request = request(method, path, headers, &Value::Null);
        request.extensions_mut().insert(Arc::clone(connection));
        self.api.call(request).await.status().as_u16()
    }

    /// A strategic merge patch.
    pub(crate) async fn patch(&self, user: &UserInfo, path: &str, patch: &Value) -> Answer {
        let mut headers = HeaderMap::new();
        headers.insert(
            http::header::CONTENT_TYPE,
            http::HeaderValue::from_static("application/strategic-merge-patch+json"),
        );
        answer(self.api.call_as(request(Method::PATCH, path, &headers, patch), user.clone()).await).await
    }

    pub(crate) async fn code_as(&self, user: &UserInfo, method: Method, path: &str, body: &Value) -> u16 {
        let request = request(method, path, &HeaderMap::new(), body);
        self.api.call_as(request, user.clone()).await.status().as_u16()
    }

    pub(crate) async fn call_with_token(&self, token: &str, method: Method, path: &str, body: &Value) -> Answer {
        let mut headers = HeaderMap::new();
        headers.insert(http::header::AUTHORIZATION, format!("Bearer {token}").parse().unwrap());
        self.call(method, path, &headers, Vec::new(), body).await
    }

    /// A client certificate of an authority.
    pub(crate) fn certificate(
        authority: &CertificateAuthority,
        name: &str,
        groups: &[&str],
    ) -> Vec<CertificateDer<'static>> {
        authority.issue(&Leaf::client(name, groups), SystemClock::new().now()).unwrap().chain().unwrap()
    }

    pub(crate) async fn uid(&self, plural: &str, namespace: &str, name: &str) -> String {
        let row = rkube_api::resource_named("", "v1", plural).unwrap();
        let store = self.registry.store(&row.gvr()).unwrap();
        let context = Arc::new(RequestContext::internal());
        let found = store.get(&context, &Target::new(namespace, name), &GetOptions::default()).await.unwrap();
        found.selection.uid.clone()
    }
}

fn request(method: Method, path: &str, headers: &HeaderMap, body: &Value) -> Request<Body> {
    let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
    let mut request = Request::builder().method(method).uri(path).body(body).unwrap();
    *request.headers_mut() = headers.clone();
    request
        .headers_mut()
        .entry(http::header::CONTENT_TYPE)
        .or_insert(http::HeaderValue::from_static("application/json"));
    request
}

fn over_connection(mut request: Request<Body>, certificates: Vec<CertificateDer<'static>>) -> Request<Body> {
    request.extensions_mut().insert(Cluster::connection(certificates));
    request
}

async fn answer(response: http::Response<Body>) -> Answer {
    let (head, body) = response.into_parts();
    let bytes = body.read(1 << 26).await.unwrap();
    let body = serde_json::from_slice(&bytes).unwrap_or_else(|_| json!({ "message": String::from_utf8_lossy(&bytes) }));
    Answer { code: head.status.as_u16(), headers: head.headers, body }
}

async fn seed(registry: &Arc<Registry>, objects: Vec<Value>) {
    let policy = bootstrap::policy();
    let namespaces = ["default", "kube-system", "kube-public", "kube-node-lease"]
        .map(|name| json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } }));
    let mut all: Vec<Value> = namespaces.into();
    all.extend(policy.cluster_roles.iter().map(value));
    all.extend(policy.roles.iter().map(value));
    all.extend(policy.cluster_role_bindings.iter().map(value));
    all.extend(policy.role_bindings.iter().map(value));
    all.extend(objects);
    let context = Arc::new(RequestContext::internal());
    let mut touched = HashMap::new();
    for object in all {
        let text = |field: &str| object[field].as_str().unwrap_or_default().to_owned();
        let (group, version) = match text("apiVersion").split_once('/') {
            Some((group, version)) => (group.to_owned(), version.to_owned()),
            None => (String::new(), text("apiVersion")),
        };
        let row = rkube_api::resources()
            .iter()
            .find(|row| row.group == group && row.version == version && row.kind == text("kind"))
            .unwrap_or_else(|| panic!("{object} is of an unknown kind"));
        let store = registry.store(&row.gvr()).unwrap();
        let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default().to_owned();
        let target = Target::new(namespace, "");
        let created = store.create(&context, &target, object.clone(), &CreateOptions::default()).await;
        created.unwrap_or_else(|status| panic!("{object}: {}", status.message()));
        touched.insert(row.gvr(), store);
    }
    // A consistent list waits until the watch cache, which decisions are made by, has it all.
    for store in touched.values() {
        store.list(&context, "", &ListOptions::default()).await.unwrap();
    }
}

fn value<K: rkube_api::Kind + Serialize>(object: &K) -> Value {
    object.to_value()
}
