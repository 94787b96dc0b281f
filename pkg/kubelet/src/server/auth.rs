//! Who calls the kubelet, and what they may do.
//!
//! A client certificate names its user; a bearer token is shown to the API server. What the user may do the
//! API server says. Answers are kept for a while. There is no anonymous access and no off switch.
//! Behaves as pkg/kubelet/server/auth.go and the webhook authenticator and authorizer, v1.36.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::{Method, Request, StatusCode, header};
use parking_lot::Mutex;
use rkube_apimachinery::clock::SharedClock;
use rkube_client::Client;
use rkube_http::body::Body;
use rkube_http::listener::ConnectionInfo;
use rkube_http::tls::ClientVerifier;
use serde_json::{Value, json};

/// Upstream's defaults for webhooks of the kubelet.
const AUTHENTICATED_TTL: Duration = Duration::from_secs(120);
const ALLOWED_TTL: Duration = Duration::from_secs(300);
const DENIED_TTL: Duration = Duration::from_secs(30);
/// Entries of each cache; the oldest half goes when it is full.
const CACHED_MAX: usize = 1024;

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct User {
    pub name: String,
    pub groups: Vec<String>,
}

/// Why a request is turned away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    Unauthorized,
    Forbidden(String),
    Unavailable(String),
}

impl Refusal {
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Forbidden(_) => StatusCode::FORBIDDEN,
            Self::Unavailable(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    pub fn message(&self) -> String {
        match self {
            Self::Unauthorized => "Unauthorized".to_owned(),
            Self::Forbidden(message) | Self::Unavailable(message) => message.clone(),
        }
    }
}

/// Authentication and authorization.
pub trait Access: Send + Sync + 'static {
    /// Lets a request through or turns it away.
    fn check<'a>(&'a self, request: &'a Caller) -> BoxFuture<'a, Result<User, Refusal>>;
}

/// The parts of a request that matter here; the request itself goes on to its handler.
#[derive(Clone, Debug)]
pub struct Caller {
    pub connection: Option<Arc<ConnectionInfo>>,
    pub token: Option<String>,
    pub method: Method,
    pub path: String,
}

impl Caller {
    pub fn of(request: &Request<Body>) -> Self {
        let token = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token = token.and_then(|value| value.strip_prefix("Bearer ")).map(|token| token.trim().to_owned());
        Self {
            connection: request.extensions().get::<Arc<ConnectionInfo>>().cloned(),
            token: token.filter(|token| !token.is_empty()),
            method: request.method().clone(),
            path: request.uri().path().to_owned(),
        }
    }
}

/// The API verb and the subresources of the node, any of which lets the request through.
pub fn attributes(method: &Method, path: &str) -> (&'static str, Vec<&'static str>) {
    let verb = match *method {
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "get",
    };
    let below = |root: &str| path == root || path.strip_prefix(root).is_some_and(|rest| rest.starts_with('/'));
    let fine = match () {
        () if below("/pods") || below("/runningpods") => Some("pods"),
        () if below("/healthz") => Some("healthz"),
        () if below("/configz") => Some("configz"),
        () => None,
    };
    let coarse = match () {
        () if below("/stats") => "stats",
        () if below("/metrics") => "metrics",
        () if below("/logs") => "log",
        () if below("/checkpoint") => "checkpoint",
        () => "proxy",
    };
    (verb, fine.into_iter().chain([coarse]).collect())
}

type Reviewed = (User, &'static str, &'static str);

/// Asks the API server.
pub struct Webhook {
    client: Client,
    clock: SharedClock,
    node_name: String,
    /// Of the cluster's client authority.
    verifier: ClientVerifier,
    tokens: Mutex<HashMap<String, (Option<User>, Duration)>>,
    reviews: Mutex<HashMap<Reviewed, (bool, Duration)>>,
}

impl Webhook {
    pub fn new(client: Client, clock: SharedClock, node_name: &str, verifier: ClientVerifier) -> Self {
        let node_name = node_name.to_owned();
        Self { client, clock, node_name, verifier, tokens: Mutex::default(), reviews: Mutex::default() }
    }

    async fn authenticate(&self, caller: &Caller) -> Result<User, Refusal> {
        let certificates = caller.connection.as_ref().map(|connection| connection.peer_certificates.as_slice());
        if let Some([leaf, ..]) = certificates {
            let now = u64::try_from(self.clock.now().as_second()).unwrap_or(0);
            let chain = certificates.unwrap_or_default();
            if self.verifier.verify(chain, now).is_ok()
                && let Ok(subject) = rkube_pki::subject::subject(leaf)
                && !subject.common_name.is_empty()
            {
                return Ok(User { name: subject.common_name, groups: subject.organizations });
            }
        }
        let Some(token) = &caller.token else { return Err(Refusal::Unauthorized) };
        let now = self.clock.monotonic();
        if let Some((user, until)) = self.tokens.lock().get(token)
            && now < *until
        {
            return user.clone().ok_or(Refusal::Unauthorized);
        }
        let review = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token},
        });
        let answer = self.post("/apis/authentication.k8s.io/v1/tokenreviews", &review).await?;
        let authenticated = answer.pointer("/status/authenticated").and_then(Value::as_bool) == Some(true);
        let user = authenticated.then(|| {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let name = answer.pointer("/status/user/username").map(text).unwrap_or_default();
            let groups = answer.pointer("/status/user/groups").and_then(Value::as_array);
            User { name, groups: groups.into_iter().flatten().map(text).collect() }
        });
        let mut tokens = self.tokens.lock();
        make_room(&mut tokens, |(_, until)| *until);
        let ttl = if user.is_some() { AUTHENTICATED_TTL } else { DENIED_TTL };
        tokens.insert(token.clone(), (user.clone(), now + ttl));
        user.ok_or(Refusal::Unauthorized)
    }

    async fn authorize(&self, user: &User, verb: &'static str, subresource: &'static str) -> Result<bool, Refusal> {
        let key = (user.clone(), verb, subresource);
        let now = self.clock.monotonic();
        if let Some((allowed, until)) = self.reviews.lock().get(&key)
            && now < *until
        {
            return Ok(*allowed);
        }
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
            "spec": {
                "user": user.name, "groups": user.groups,
                "resourceAttributes": {
                    "verb": verb, "version": "v1", "resource": "nodes", "subresource": subresource,
                    "name": self.node_name,
                },
            },
        });
        let answer = self.post("/apis/authorization.k8s.io/v1/subjectaccessreviews", &review).await?;
        let allowed = answer.pointer("/status/allowed").and_then(Value::as_bool) == Some(true);
        let mut reviews = self.reviews.lock();
        make_room(&mut reviews, |(_, until)| *until);
        reviews.insert(key, (allowed, now + if allowed { ALLOWED_TTL } else { DENIED_TTL }));
        Ok(allowed)
    }

    async fn post(&self, path: &str, body: &Value) -> Result<Value, Refusal> {
        let failed = |error: String| Refusal::Unavailable(format!("asking the API server: {error}"));
        let request = Request::post(path).header(header::CONTENT_TYPE, "application/json");
        let request = request.body(body.to_string().into()).map_err(|error| failed(error.to_string()))?;
        let answer = self
            .client
            .raw(request)
            .await
            .map_err(|error| failed(rkube_apimachinery::chain::chain(&error).to_string()))?;
        serde_json::from_slice(answer.body()).map_err(|error| failed(error.to_string()))
    }
}

fn make_room<K: Clone + Eq + std::hash::Hash, V>(cache: &mut HashMap<K, V>, until: impl Fn(&V) -> Duration) {
    if cache.len() < CACHED_MAX {
        return;
    }
    let mut ends: Vec<Duration> = cache.values().map(&until).collect();
    ends.sort();
    let middle = ends.get(ends.len() / 2).copied().unwrap_or_default();
    cache.retain(|_, value| until(value) > middle);
}

impl Access for Webhook {
    fn check<'a>(&'a self, caller: &'a Caller) -> BoxFuture<'a, Result<User, Refusal>> {
        Box::pin(async move {
            let user = self.authenticate(caller).await?;
            let (verb, subresources) = attributes(&caller.method, &caller.path);
            for subresource in &subresources {
                if self.authorize(&user, verb, subresource).await? {
                    return Ok(user);
                }
            }
            // Fine-grained access falls back to the whole.
            if subresources.first() != Some(&"proxy") && self.authorize(&user, verb, "proxy").await? {
                return Ok(user);
            }
            Err(Refusal::Forbidden(format!(
                "Forbidden (user={}, verb={verb}, resource=nodes, subresource(s)=[{}])",
                user.name,
                subresources.join(" ")
            )))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_subresources_of_the_node() {
        for (method, path, verb, subresources) in [
            (Method::GET, "/pods", "get", &["pods", "proxy"][..]),
            (Method::GET, "/runningpods/", "get", &["pods", "proxy"]),
            (Method::GET, "/metrics/cadvisor", "get", &["metrics"]),
            (Method::GET, "/stats/summary", "get", &["stats"]),
            (Method::GET, "/statsx", "get", &["proxy"]),
            (Method::POST, "/exec/ns/p/c", "create", &["proxy"]),
            (Method::GET, "/healthz", "get", &["healthz", "proxy"]),
            (Method::GET, "/containerLogs/ns/p/c", "get", &["proxy"]),
        ] {
            assert_eq!(attributes(&method, path), (verb, subresources.to_vec()), "{path}");
        }
    }
}
