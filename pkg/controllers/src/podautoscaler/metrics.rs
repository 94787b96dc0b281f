//! Reads the three metrics APIs.
//!
//! Behaves as pkg/controller/podautoscaler/metrics/client.go and k8s.io/metrics/pkg/client, v1.36.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use bytes::Bytes;
use http::header::ACCEPT;
use jiff::Timestamp;
use rkube_api::k8s::autoscaling::v2::CrossVersionObjectReference;
use rkube_apimachinery::gvk::GroupVersion;
use rkube_apimachinery::quantity::Quantity;
use rkube_apimachinery::time;
use rkube_client::client::escape;
use rkube_client::{Client, ClientError};
use serde_json::Value;

use crate::common::mapper::Mapper;

/// The time a measurement of custom metrics covers if it does not say.
const DEFAULT_WINDOW: Duration = Duration::from_secs(60);
/// A metrics server that takes longer holds up other autoscalers.
const TIMEOUT: Duration = Duration::from_secs(30);

/// What was measured of one pod, in thousandths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PodMetric {
    pub(super) timestamp: Timestamp,
    /// Before the timestamp: when it was measured.
    pub(super) window: Duration,
    pub(super) value: i64,
}

/// By name of the pod.
pub(super) type PodMetrics = BTreeMap<String, PodMetric>;

/// Errors are texts: they end up in conditions and events.
pub(super) struct MetricsClient {
    client: Client,
    mapper: Mapper,
}

fn milli(value: &Value) -> Option<i64> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => return None,
    };
    Some(Quantity::parse(&text).ok()?.milli_value())
}

fn timestamp(item: &Value) -> Timestamp {
    item["timestamp"].as_str().and_then(|text| time::parse(text).ok()).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// A Go duration of the resource metrics API: `30s`, `1m0s`, `15.5s`.
fn window(text: &str) -> Option<Duration> {
    time::parse_duration(text).ok().and_then(|duration| Duration::try_from(duration).ok())
}

fn query(parameters: &[(&str, &str)]) -> String {
    let mut query = String::new();
    for (name, value) in parameters.iter().filter(|(_, value)| !value.is_empty()) {
        let separator = if query.is_empty() { '?' } else { '&' };
        let _ = write!(query, "{separator}{name}={}", escape(value));
    }
    query
}

impl MetricsClient {
    pub(super) fn new(client: &Client, mapper: Mapper) -> Self {
        Self { client: client.with_timeout(TIMEOUT), mapper }
    }

    /// One request, not repeated: the next round comes soon enough.
    async fn get(&self, path: &str, resource: &str) -> Result<Value, String> {
        let request = http::Request::builder().uri(path).header(ACCEPT, "application/json").body(Bytes::new());
        let request = request.map_err(|error| error.to_string())?;
        let response = self.client.raw(request).await.map_err(|error| match &error {
            // Nobody serves the path, which no `Status` says. In the words of client-go, which names what is missing.
            ClientError::Api(status)
                if status.is_not_found() && status.message().trim_end() == "404 page not found" =>
            {
                format!("the server could not find the requested resource (get {resource})")
            }
            _ => error.to_string(),
        })?;
        serde_json::from_slice(response.body()).map_err(|error| error.to_string())
    }

    /// CPU or memory of the pods, or of one container of each.
    pub(super) async fn resource(
        &self,
        resource: &str,
        namespace: &str,
        selector: &str,
        container: Option<&str>,
    ) -> Result<PodMetrics, String> {
        let path = format!(
            "/apis/metrics.k8s.io/v1beta1/namespaces/{}/pods{}",
            escape(namespace),
            query(&[("labelSelector", selector)])
        );
        let list = self.get(&path, "pods.metrics.k8s.io").await;
        let list = list.map_err(|error| format!("unable to fetch metrics from resource metrics API: {error}"))?;
        let items = list["items"].as_array().map(Vec::as_slice).unwrap_or_default();
        if items.is_empty() {
            return Err("no metrics returned from resource metrics API".to_owned());
        }
        let metrics = items.iter().filter_map(|item| {
            let name = item["metadata"]["name"].as_str()?;
            let value = usage(item, resource, container)?;
            let window = item["window"].as_str().and_then(window).unwrap_or_default();
            Some((name.to_owned(), PodMetric { timestamp: timestamp(item), window, value }))
        });
        Ok(metrics.collect())
    }

    /// The version of the custom metrics API that its server prefers.
    async fn custom_version(&self) -> Result<String, String> {
        let group = self.get("/apis/custom.metrics.k8s.io", "custom.metrics.k8s.io").await;
        let version = group.ok().and_then(|group| {
            let supported = |version: &&str| matches!(*version, "v1beta1" | "v1beta2");
            let listed = group["versions"].as_array().into_iter().flatten();
            let listed = listed.filter_map(|version| version["version"].as_str());
            let preferred = group["preferredVersion"]["version"].as_str();
            preferred.into_iter().chain(listed).find(supported).map(str::to_owned)
        });
        version.ok_or_else(|| "no custom metrics API (custom.metrics.k8s.io) registered".to_owned())
    }

    async fn custom(&self, rest: &str, metric: &str, parameters: &[(&str, &str)]) -> Result<Vec<Value>, String> {
        let fetched = async {
            let version = self.custom_version().await?;
            let path = format!("/apis/custom.metrics.k8s.io/{version}/{rest}/{}{}", escape(metric), query(parameters));
            self.get(&path, "custom.metrics.k8s.io").await
        };
        let mut list =
            fetched.await.map_err(|error| format!("unable to fetch metrics from custom metrics API: {error}"))?;
        Ok(list["items"].as_array_mut().map(std::mem::take).unwrap_or_default())
    }

    /// Any metric of the pods.
    pub(super) async fn pods(
        &self,
        metric: &str,
        namespace: &str,
        selector: &str,
        metric_selector: &str,
    ) -> Result<PodMetrics, String> {
        let rest = format!("namespaces/{}/pods/*", escape(namespace));
        let parameters = [("labelSelector", selector), ("metricLabelSelector", metric_selector)];
        let items = self.custom(&rest, metric, &parameters).await?;
        if items.is_empty() {
            return Err("no metrics returned from custom metrics API".to_owned());
        }
        let metrics = items.iter().filter_map(|item| {
            let seconds = item["windowSeconds"].as_u64().or_else(|| item["window"].as_u64());
            let window = seconds.map_or(DEFAULT_WINDOW, Duration::from_secs);
            let value = milli(&item["value"])?;
            let name = item["describedObject"]["name"].as_str()?;
            Some((name.to_owned(), PodMetric { timestamp: timestamp(item), window, value }))
        });
        Ok(metrics.collect())
    }

    /// Any metric of one object.
    pub(super) async fn object(
        &self,
        metric: &str,
        namespace: &str,
        object: &CrossVersionObjectReference,
        metric_selector: &str,
    ) -> Result<i64, String> {
        let api_version = object.api_version.as_deref().unwrap_or_default();
        let group = GroupVersion::parse(api_version).map(|version| version.group).unwrap_or_default();
        let prefix = "unable to fetch metrics from custom metrics API";
        let rest = if object.kind == "Namespace" && group.is_empty() {
            format!("namespaces/{}/metrics", escape(namespace))
        } else {
            let resource = self.mapper.resource_of(&group, &object.kind).await;
            let resource = resource.map_err(|error| format!("{prefix}: {error}"))?.ok_or_else(|| {
                format!("{prefix}: unable to map kind {}.{group} to resource: no matches for kind", object.kind)
            })?;
            format!("namespaces/{}/{}/{}", escape(namespace), resource.group_resource(), escape(&object.name))
        };
        let items = self.custom(&rest, metric, &[("metricLabelSelector", metric_selector)]).await?;
        let [item] = items.as_slice() else {
            let count = items.len();
            return Err(format!(
                "{prefix}: the custom metrics API server returned {count} results when we asked for exactly one"
            ));
        };
        milli(&item["value"]).ok_or_else(|| format!("{prefix}: the value of {metric} is not a quantity"))
    }

    /// All values of a metric that is none of the cluster's.
    pub(super) async fn external(&self, metric: &str, namespace: &str, selector: &str) -> Result<Vec<i64>, String> {
        let path = format!(
            "/apis/external.metrics.k8s.io/v1beta1/namespaces/{}/{}{}",
            escape(namespace),
            escape(metric),
            query(&[("labelSelector", selector)])
        );
        let list = self.get(&path, &format!("{metric}.external.metrics.k8s.io")).await;
        let list = list.map_err(|error| format!("unable to fetch metrics from external metrics API: {error}"))?;
        let items = list["items"].as_array().map(Vec::as_slice).unwrap_or_default();
        if items.is_empty() {
            return Err("no metrics returned from external metrics API".to_owned());
        }
        Ok(items.iter().filter_map(|item| milli(&item["value"])).collect())
    }
}

/// What a pod uses of a resource. A pod of which a container was not measured was not measured.
fn usage(pod: &Value, resource: &str, container: Option<&str>) -> Option<i64> {
    let containers = pod["containers"].as_array().map(Vec::as_slice).unwrap_or_default();
    let of = |container: &Value| milli(&container["usage"][resource]);
    match container {
        Some(name) => of(containers.iter().find(|container| container["name"].as_str() == Some(name))?),
        None if containers.is_empty() => None,
        None => containers.iter().map(of).try_fold(0_i64, |sum, usage| Some(sum.saturating_add(usage?))),
    }
}
