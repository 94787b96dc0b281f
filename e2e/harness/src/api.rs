//! The cluster as a client sees it: the API with the admin kubeconfig, and waiting for what it shows.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use arc_swap::ArcSwap;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::StreamExt;
use http::{HeaderValue, Uri};
use rkube_api::StoredObject;
use rkube_apimachinery::backoff::Backoff;
use rkube_apimachinery::clock::{Clock, SystemClock};
use rkube_apimachinery::random::SystemRandom;
use rkube_client::transport::WatchEvent;
use rkube_client::{Client, DynamicApi, ListParams};
use rkube_http::client::HttpClient;
use rkube_http::connect::Connector;
use rkube_http::tls;
use rkube_http::transport::RemoteTransport;
use rkube_pki::{CertifiedKey, authority};
use serde::Deserialize;
use serde_json::Value;

/// What failed and announces itself by no event is tried again after pauses that grow.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_millis(500);
const WATCH_SECONDS: u32 = 600;

#[derive(Deserialize)]
struct Kubeconfig {
    clusters: Vec<NamedCluster>,
    users: Vec<NamedUser>,
}

#[derive(Deserialize)]
struct NamedCluster {
    cluster: ClusterEntry,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct ClusterEntry {
    server: String,
    certificate_authority_data: String,
}

#[derive(Deserialize)]
struct NamedUser {
    user: UserEntry,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct UserEntry {
    client_certificate_data: String,
    client_key_data: String,
}

/// A client with the identity of a kubeconfig of one cluster and one user.
pub(crate) fn connect(kubeconfig: &Path) -> Result<Client> {
    let text =
        std::fs::read_to_string(kubeconfig).with_context(|| format!("reading kubeconfig {}", kubeconfig.display()))?;
    let config: Kubeconfig = serde_saphyr::from_str(&text)?;
    let (Some(cluster), Some(user)) = (config.clusters.first(), config.users.first()) else {
        bail!("{} names no cluster or no user", kubeconfig.display());
    };
    let decode = |data: &str| Ok::<_, anyhow::Error>(String::from_utf8(STANDARD.decode(data)?)?);
    let pair = CertifiedKey {
        certificate_pem: decode(&user.user.client_certificate_data)?,
        key_pem: decode(&user.user.client_key_data)?,
    };
    let authority = decode(&cluster.cluster.certificate_authority_data)?;
    let roots = tls::roots(&authority::certificates(&authority, "cluster CA")?)?;
    let config = tls::client_config(roots, Some((pair.chain()?, pair.key()?)))?;
    let base: Uri = cluster.cluster.server.parse()?;
    let connector = Connector::new(Some(Arc::new(ArcSwap::from_pointee(config)))).http2(true);
    let transport = RemoteTransport::new(HttpClient::new(&base, connector)?, HeaderValue::from_static("rkube-e2e"));
    Ok(Client::new(Arc::new(transport), SystemClock::shared(), Arc::new(SystemRandom)))
}

/// Objects by namespace and name, as JSON.
pub(crate) type Objects = BTreeMap<String, Value>;

/// Waits until `check` gives a result for the objects selected. Its error is what is still missing: the last
/// one is shown when the time is up. A server that is away is waited for.
pub(crate) async fn wait<T>(
    api: &DynamicApi,
    params: &ListParams,
    limit: Duration,
    what: &str,
    mut check: impl FnMut(&Objects) -> Result<T, String>,
) -> Result<T> {
    let mut missing = "the API did not answer".to_owned();
    let mut pauses = Pauses::new();
    let following = async {
        loop {
            if let Err(error) = follow(api, params, &mut check, &mut missing).await? {
                missing = format!("{missing}; then {error}");
            }
            pauses.pass().await;
        }
    };
    // `follow` breaks out with the result through its error side, so that `?` reads as "go on".
    let outcome: Result<Result<std::convert::Infallible, Found<T>>, _> = tokio::time::timeout(limit, following).await;
    match outcome {
        Ok(Err(Found(found))) => Ok(found),
        Ok(Ok(never)) => match never {},
        Err(_) => Err(late(what, limit, &missing)),
    }
}

/// Tries until there is a result. For what no event announces: that packets get through, that a file has changed.
/// The error of an attempt is what is still missing.
pub(crate) async fn retry<T>(
    limit: Duration,
    what: &str,
    mut attempt: impl AsyncFnMut() -> Result<T, String>,
) -> Result<T> {
    let mut missing = "no attempt has ended".to_owned();
    let mut pauses = Pauses::new();
    let trying = async {
        loop {
            match attempt().await {
                Ok(found) => return found,
                Err(why) => missing = why,
            }
            pauses.pass().await;
        }
    };
    let outcome = tokio::time::timeout(limit, trying).await;
    outcome.map_err(|_| late(what, limit, &missing))
}

fn late(what: &str, limit: Duration, missing: &str) -> anyhow::Error {
    anyhow!("{what}: not within {} s; last seen: {missing}", limit.as_secs())
}

/// What lies between attempts.
struct Pauses {
    backoff: Backoff,
    clock: SystemClock,
}

impl Pauses {
    fn new() -> Self {
        Self { backoff: Backoff::doubling(RETRY_FIRST, RETRY_MAX), clock: SystemClock::new() }
    }

    async fn pass(&mut self) {
        self.clock.sleep(self.backoff.step(&SystemRandom)).await;
    }
}

/// What was waited for.
struct Found<T>(T);

/// Lists and watches until the check succeeds (`Err`) or the watch ends (`Ok`).
async fn follow<T>(
    api: &DynamicApi,
    params: &ListParams,
    check: &mut impl FnMut(&Objects) -> Result<T, String>,
    missing: &mut String,
) -> Result<Result<(), String>, Found<T>> {
    let list = match api.list(params).await {
        Ok(list) => list,
        Err(error) => return Ok(Err(error.to_string())),
    };
    let mut objects: Objects = list.items.iter().map(|object| entry(object)).collect();
    match check(&objects) {
        Ok(found) => return Err(Found(found)),
        Err(why) => *missing = why,
    }
    let from = ListParams { resource_version: list.resource_version, ..params.clone() };
    let mut events = match api.watch(&from, WATCH_SECONDS).await {
        Ok(events) => events,
        Err(error) => return Ok(Err(error.to_string())),
    };
    while let Some(event) = events.next().await {
        match event {
            Ok(WatchEvent::Added(object) | WatchEvent::Modified(object)) => {
                let (key, value) = entry(&object);
                objects.insert(key, value);
            }
            Ok(WatchEvent::Deleted(object)) => {
                objects.remove(&entry(&object).0);
            }
            Ok(WatchEvent::Bookmark { .. }) => continue,
            Err(error) => return Ok(Err(error.to_string())),
        }
        match check(&objects) {
            Ok(found) => return Err(Found(found)),
            Err(why) => *missing = why,
        }
    }
    Ok(Ok(()))
}

fn entry(object: &StoredObject) -> (String, Value) {
    let value = object.value().unwrap_or_default();
    let text = |field: &str| value["metadata"][field].as_str().unwrap_or_default().to_owned();
    let key = match text("namespace") {
        namespace if namespace.is_empty() => text("name"),
        namespace => format!("{namespace}/{}", text("name")),
    };
    (key, value)
}

/// The status of a condition, empty if there is none.
pub(crate) fn condition<'a>(object: &'a Value, kind: &str) -> &'a str {
    let conditions = object["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let found = conditions.iter().find(|condition| condition["type"] == kind);
    found.and_then(|condition| condition["status"].as_str()).unwrap_or_default()
}
