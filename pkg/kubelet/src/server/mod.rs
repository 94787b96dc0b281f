//! The kubelet's HTTPS server on port 10250.
//!
//! Behaves as pkg/kubelet/server/server.go, v1.36.

pub mod auth;
mod cadvisor;
mod figures;
mod metrics;
mod node_logs;
pub mod stats;
mod streams;
mod summary;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Method, Request, Response, StatusCode, header};
use percent_encoding::percent_decode_str;
use rkube_api::Kind;
use rkube_api::k8s::core::v1::Pod;
use rkube_apimachinery::task;
use rkube_http::body::Body;
use rkube_http::listener::Handler;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tracing::info_span;

use crate::kubelet::Inner;
use crate::logs::{self, LogOptions};
use crate::pod::PodExt;
use crate::runtime::state::{RuntimeContainer, State};
use crate::server::auth::{Access, Caller};

/// Chunks of a log waiting for a slow reader.
const LOG_CHUNKS_MAX: usize = 64;
/// Upstream's `streaming-connection-idle-timeout`.
const STREAM_IDLE_TIMEOUT: Duration = Duration::from_secs(4 * 3600);

type Answer = Response<Body>;

/// Handles requests; clones share everything.
#[derive(Clone)]
pub struct KubeletServer {
    inner: Arc<Inner>,
    access: Arc<dyn Access>,
    stats: Arc<summary::Sampler>,
}

impl KubeletServer {
    pub fn new(inner: Arc<Inner>, access: Arc<dyn Access>) -> Self {
        Self { inner, access, stats: Arc::default() }
    }

    /// Answers without asking who it is: for callers in the same process that were authorized already.
    pub async fn answer(&self, mut request: Request<Body>) -> Answer {
        let path = request.uri().path().to_owned();
        let parts: Vec<String> = path
            .split('/')
            .filter(|part| !part.is_empty())
            .map(|part| percent_decode_str(part).decode_utf8_lossy().into_owned())
            .collect();
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let query = Query::of(&request);
        let method = request.method().clone();
        let reads = method == Method::GET || method == Method::HEAD;
        match (parts.as_slice(), reads) {
            (["healthz"], true) => self.healthz(),
            (["healthz", "ping" | "log"], true) => text(StatusCode::OK, "ok"),
            (["pods"], true) => self.pods(),
            (["runningpods"], true) => self.running_pods(),
            (["configz"], true) => self.configz(),
            (["stats", "summary"] | ["stats"], true) => json_answer(&self.stats.summary(&self.inner).await),
            (["metrics"], true) => metrics::kubelet(&self.inner),
            (["metrics", "resource"], true) => metrics::resource(&self.inner),
            (["metrics", "cadvisor"], true) => cadvisor::answer(&self.inner).await,
            (["metrics", "probes"], true) => metrics::probes(&self.inner),
            (["logs", rest @ ..], true) => node_logs::answer(rest, path.ends_with('/')).await,
            (["containerLogs", namespace, pod, container], true) => {
                self.container_logs(namespace, pod, container, &query).await
            }
            (["exec", namespace, pod, rest @ ..], _) => self.exec(&mut request, namespace, pod, rest, &query).await,
            (["attach", namespace, pod, rest @ ..], _) => self.attach(&mut request, namespace, pod, rest).await,
            (["portForward", namespace, pod, ..], _) => self.port_forward(&mut request, namespace, pod, &query).await,
            (["run", namespace, pod, rest @ ..], false) => self.run(namespace, pod, rest, &query).await,
            (
                ["healthz" | "pods" | "runningpods" | "configz" | "stats" | "metrics" | "containerLogs" | "run", ..],
                _,
            ) => text(StatusCode::METHOD_NOT_ALLOWED, "405: Method Not Allowed"),
            _ => text(StatusCode::NOT_FOUND, "404 page not found"),
        }
    }

    fn healthz(&self) -> Answer {
        match self.inner.pleg.health() {
            Ok(()) => text(StatusCode::OK, "ok"),
            Err(message) => text(
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("[-]syncloop failed: {message}\nhealthz check failed\n"),
            ),
        }
    }

    fn pods(&self) -> Answer {
        let pods = self.inner.pods.all();
        let pods: Vec<_> = pods.iter().map(|pod| self.inner.allocations.apply(pod)).collect();
        let items = pods.iter().map(|pod| {
            let mut pod = (**pod).clone();
            if let Some(status) = self.inner.statuses.get(&pod.uid()) {
                pod.status = Some(status);
            }
            pod.to_value()
        });
        json_answer(&pod_list(items.collect()))
    }

    fn running_pods(&self) -> Answer {
        let running = self.inner.cache.all();
        let items = running.iter().filter(|pod| pod.is_active()).map(|pod| {
            let containers: Vec<Value> = pod
                .containers
                .iter()
                .filter(|container| container.state == State::Running)
                .map(|container| json!({"name": container.name, "image": container.image, "resources": {}}))
                .collect();
            json!({
                "metadata": {"name": pod.name, "namespace": pod.namespace, "uid": pod.uid.as_str()},
                "spec": {"containers": containers},
                "status": {},
            })
        });
        json_answer(&pod_list(items.collect()))
    }

    fn configz(&self) -> Answer {
        let config = &self.inner.config;
        json_answer(&json!({"kubeletconfig": {
            "kind": "KubeletConfiguration",
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "enableServer": true,
            "staticPodPath": config.manifests_dir.as_ref().map(|path| path.to_string_lossy()).unwrap_or_default(),
            "port": config.port,
            "authentication": {"x509": {}, "webhook": {"enabled": true, "cacheTTL": "2m0s"}, "anonymous": {"enabled": false}},
            "authorization": {"mode": "Webhook"},
            "clusterDomain": config.cluster_domain,
            "clusterDNS": config.cluster_dns,
            "maxPods": config.pods_max,
            "podPidsLimit": config.pod_pids_max.unwrap_or(-1),
            "resolvConf": config.resolv_conf.to_string_lossy(),
            "containerLogMaxSize": format!("{}Mi", config.container_log_bytes_max >> 20),
            "containerLogMaxFiles": config.container_log_files_max,
            "imageGCHighThresholdPercent": config.image_gc_high_percent,
            "imageGCLowThresholdPercent": config.image_gc_low_percent,
            "nodeStatusUpdateFrequency": "10s",
            "nodeStatusReportFrequency": "5m0s",
            "nodeLeaseDurationSeconds": 40,
            "syncFrequency": "1m0s",
        }}))
    }

    /// The pod and one of its containers, or the answer that there is none.
    #[allow(clippy::result_large_err, reason = "the error is the response to send")]
    fn find(&self, namespace: &str, pod: &str, container: Option<&str>) -> Result<(Arc<Pod>, String), Answer> {
        let not_found = |what: String| text(StatusCode::NOT_FOUND, what);
        let pod = self.inner.pods.by_name(namespace, pod).ok_or_else(|| not_found("pod does not exist".to_owned()))?;
        let name = match container.filter(|name| !name.is_empty()) {
            Some(name) => name.to_owned(),
            None => pod.pod_spec().containers.first().map(|container| container.name.clone()).unwrap_or_default(),
        };
        if pod.container(&name).is_none() {
            return Err(not_found(format!("container {name:?} not found in pod \"{}\"", pod.full_text())));
        }
        Ok((pod, name))
    }

    async fn container_logs(&self, namespace: &str, pod: &str, container: &str, query: &Query) -> Answer {
        let (pod, container) = match self.find(namespace, pod, Some(container)) {
            Ok(found) => found,
            Err(answer) => return answer,
        };
        let options = match log_options(query, self.inner.clock.now()) {
            Ok(options) => options,
            Err(message) => return text(StatusCode::UNPROCESSABLE_ENTITY, message),
        };
        let uid = pod.uid();
        let found = self.log_of(&pod, &container, query.flag("previous"));
        let container = match found {
            Ok(container) => container,
            Err(message) => return text(StatusCode::BAD_REQUEST, message),
        };
        let path = std::path::PathBuf::from(&container.log_path);
        if !path.exists() {
            let message = format!(
                "failed to open log file {:?}: open {}: no such file or directory",
                container.log_path, container.log_path
            );
            return text(StatusCode::INTERNAL_SERVER_ERROR, message);
        }
        let (sink, received) = mpsc::channel::<Bytes>(LOG_CHUNKS_MAX);
        let cache = self.inner.cache.clone();
        let id = container.id.clone();
        let is_running: logs::IsRunning = Box::new(move || {
            let pod = cache.get(&uid);
            let runs =
                pod.is_some_and(|pod| pod.containers.iter().any(|held| held.id == id && held.state == State::Running));
            Box::pin(std::future::ready(runs))
        });
        task::spawn(info_span!("log", pod = %pod.key(), container = container.name), async move {
            if let Err(error) = logs::read(&path, options, is_running, sink).await {
                tracing::debug!(%error, "Log was not read to its end");
            }
        });
        let stream = futures_util::stream::unfold(received, |mut received| async {
            received.recv().await.map(|bytes| (Ok::<_, rkube_http::body::BoxError>(bytes), received))
        });
        let mut answer = Response::new(Body::stream(stream));
        answer.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/plain"));
        answer
    }

    /// The instance whose log is asked for: the newest, or the one before.
    fn log_of(&self, pod: &Pod, name: &str, previous: bool) -> Result<RuntimeContainer, String> {
        let runtime = self.inner.cache.get(&pod.uid());
        let instances: Vec<RuntimeContainer> = runtime
            .iter()
            .flat_map(|runtime| runtime.containers.iter())
            .filter(|container| container.name == name && container.state != State::Created)
            .cloned()
            .collect();
        let key = pod.name();
        let status = self.inner.statuses.get(&pod.uid()).unwrap_or_default();
        let lists = [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses];
        let status = lists.into_iter().flatten().flatten().find(|status| status.name == name);
        if previous {
            let ended =
                status.and_then(|status| status.last_state.as_ref()?.terminated.as_ref()?.container_id.as_deref());
            let found =
                ended.and_then(|id| instances.into_iter().find(|held| id.ends_with(&format!("://{}", held.id))));
            return found.ok_or_else(|| format!("previous terminated container {name:?} in pod {key:?} not found"));
        }
        if let Some(newest) = instances.into_iter().next() {
            return Ok(newest);
        }
        let waiting = status.and_then(|status| status.state.clone()?.waiting);
        let reason = waiting.and_then(|waiting| waiting.reason).unwrap_or_else(|| "ContainerCreating".to_owned());
        if matches!(reason.as_str(), "ErrImagePull" | "ImagePullBackOff") {
            return Err(format!(
                "container {name:?} in pod {key:?} is waiting to start: trying and failing to pull image"
            ));
        }
        Err(format!("container {name:?} in pod {key:?} is waiting to start: {reason}"))
    }
}

impl Handler for KubeletServer {
    fn call(&self, request: Request<Body>) -> BoxFuture<'static, Answer> {
        let server = self.clone();
        Box::pin(async move {
            let caller = Caller::of(&request);
            match server.access.check(&caller).await {
                Ok(_) => server.answer(request).await,
                Err(refusal) => text(refusal.status(), refusal.message()),
            }
        })
    }
}

fn pod_list(items: Vec<Value>) -> Value {
    json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items})
}

fn text(status: StatusCode, message: impl Into<String>) -> Answer {
    let mut answer = Response::new(Body::from(message.into()));
    *answer.status_mut() = status;
    let plain = header::HeaderValue::from_static("text/plain; charset=utf-8");
    answer.headers_mut().insert(header::CONTENT_TYPE, plain);
    answer
}

fn json_answer(value: &Value) -> Answer {
    let mut answer = Response::new(Body::from(value.to_string()));
    answer.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    answer
}

/// Decoded query parameters, in order.
#[derive(Clone, Debug, Default)]
struct Query(Vec<(String, String)>);

impl Query {
    fn of(request: &Request<Body>) -> Self {
        let decode = |text: &str| percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
        let pairs = request.uri().query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        Self(
            pairs.map(|pair| pair.split_once('=').unwrap_or((pair, ""))).map(|(k, v)| (decode(k), decode(v))).collect(),
        )
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }

    fn all(&self, name: &str) -> Vec<String> {
        self.0.iter().filter(|(key, _)| key == name).map(|(_, value)| value.clone()).collect()
    }

    fn flag(&self, name: &str) -> bool {
        matches!(self.get(name), Some("true" | "1" | "t" | "T" | "TRUE" | "True"))
    }

    fn number(&self, name: &str) -> Result<Option<u64>, String> {
        self.get(name).map(|value| value.parse().map_err(|_| format!("invalid {name}: {value:?}"))).transpose()
    }
}

fn log_options(query: &Query, now: jiff::Timestamp) -> Result<LogOptions, String> {
    let since = match (query.number("sinceSeconds")?, query.get("sinceTime")) {
        (Some(_), Some(_)) => return Err("at most one of `sinceTime` or `sinceSeconds` may be specified".to_owned()),
        (Some(seconds), None) => Some(now - Duration::from_secs(seconds.min(u32::MAX.into()))),
        (None, Some(time)) => Some(time.parse().map_err(|_| format!("invalid sinceTime: {time:?}"))?),
        (None, None) => None,
    };
    let stream = query.get("stream").unwrap_or("All");
    Ok(LogOptions {
        follow: query.flag("follow"),
        tail: query.number("tailLines")?,
        since,
        limit_bytes: query.number("limitBytes")?,
        timestamps: query.flag("timestamps"),
        stdout: stream != "Stderr",
        stderr: stream != "Stdout",
    })
}
