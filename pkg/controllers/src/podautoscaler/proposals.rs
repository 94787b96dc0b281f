//! What each metric of an autoscaler asks for.
//!
//! Behaves as `computeReplicasForMetrics` and what it calls in pkg/controller/podautoscaler/horizontal.go, v1.36.

use rkube_api::k8s::autoscaling::v2::{
    ContainerResourceMetricStatus, ExternalMetricSource, ExternalMetricStatus, MetricIdentifier, MetricSpec,
    MetricStatus, MetricTarget, MetricValueStatus, ObjectMetricSource, ObjectMetricStatus, PodsMetricSource,
    PodsMetricStatus, ResourceMetricStatus,
};
use rkube_api::meta::pkg::api::resource::Quantity as Text;
use rkube_api::meta::pkg::apis::meta::v1::LabelSelector;
use rkube_apimachinery::quantity::{Format, Quantity};
use rkube_client::owner::selector_of;

use super::metrics::MetricsClient;
use super::replicas::{Calculator, Proposal};
use crate::common::go_text::selector_text;

/// The target of an autoscaler.
pub(super) struct Target<'a> {
    pub(super) namespace: &'a str,
    /// As its scale says it.
    pub(super) selector: &'a str,
    pub(super) spec_replicas: i32,
    pub(super) status_replicas: i32,
    pub(super) calculator: Calculator<'a>,
}

/// What a metric asks for, under its name.
#[derive(Debug)]
pub(super) struct Proposed {
    pub(super) replicas: i32,
    pub(super) metric: String,
    pub(super) status: MetricStatus,
}

/// Why a metric asks for nothing.
#[derive(Debug)]
pub(super) struct Failed {
    /// Of the event and the condition.
    pub(super) reason: &'static str,
    pub(super) detail: String,
    /// The whole error.
    pub(super) error: String,
}

/// What went wrong, as events tell it and as the whole error does.
struct Problem {
    detail: String,
    error: String,
}

impl Problem {
    /// The error says more than the event.
    fn wrapped(prefix: &str) -> impl FnOnce(String) -> Self + '_ {
        move |detail| Self { error: format!("{prefix}: {detail}"), detail }
    }
}

impl From<String> for Problem {
    fn from(detail: String) -> Self {
        Self { error: detail.clone(), detail }
    }
}

fn milli(text: &Text) -> i64 {
    Quantity::parse(&text.0).map_or(0, |amount| amount.milli_value())
}

fn quantity(value: i64, format: Format) -> Option<Text> {
    Some(Text(Quantity::milli(value, format).to_string()))
}

fn average(value: i64) -> MetricValueStatus {
    MetricValueStatus { average_value: quantity(value, Format::DecimalSi), ..MetricValueStatus::default() }
}

fn whole(value: i64) -> MetricValueStatus {
    MetricValueStatus { value: quantity(value, Format::DecimalSi), ..MetricValueStatus::default() }
}

/// The selector of a metric as the metrics APIs take it.
fn metric_selector(selector: Option<&LabelSelector>) -> Result<String, String> {
    match selector {
        None => Ok(String::new()),
        Some(selector) => {
            selector_of(Some(selector)).map(|selector| selector.to_string()).map_err(|error| error.to_string())
        }
    }
}

fn identifier(metric: &MetricIdentifier) -> MetricIdentifier {
    metric.clone()
}

/// Asks for what one metric wants.
pub(super) async fn propose(
    client: &MetricsClient,
    target: &Target<'_>,
    metric: &MetricSpec,
) -> Result<Proposed, Failed> {
    let fail = |reason, prefix: String| {
        move |problem: Problem| Failed { reason, error: format!("{prefix}: {}", problem.error), detail: problem.detail }
    };
    if let ("Object", Some(source)) = (metric.type_.as_str(), &metric.object) {
        let fail = fail("FailedGetObjectMetric", "failed to get object metric value".to_owned());
        return by_object(client, target, source).await.map_err(fail);
    }
    if let ("Pods", Some(source)) = (metric.type_.as_str(), &metric.pods) {
        let fail = fail("FailedGetPodsMetric", "failed to get pods metric value".to_owned());
        return by_pods(client, target, source).await.map_err(fail);
    }
    if let ("Resource", Some(source)) = (metric.type_.as_str(), &metric.resource) {
        let fail = fail("FailedGetResourceMetric", format!("failed to get {} resource metric value", source.name));
        let (proposed, metric) = by_resource(client, target, &source.target, &source.name, None).await.map_err(fail)?;
        let (replicas, current) = proposed;
        let resource = Some(ResourceMetricStatus { name: source.name.clone(), current });
        let status = MetricStatus { type_: "Resource".to_owned(), resource, ..MetricStatus::default() };
        return Ok(Proposed { replicas, metric, status });
    }
    if let ("ContainerResource", Some(source)) = (metric.type_.as_str(), &metric.container_resource) {
        let (name, container) = (&source.name, &source.container);
        let fail =
            fail("FailedGetContainerResourceMetric", format!("failed to get {container} container metric value"));
        let (proposed, metric) =
            by_resource(client, target, &source.target, name, Some(container)).await.map_err(fail)?;
        let (replicas, current) = proposed;
        let (name, container) = (name.clone(), container.clone());
        let container_resource = Some(ContainerResourceMetricStatus { name, container, current });
        let status =
            MetricStatus { type_: "ContainerResource".to_owned(), container_resource, ..MetricStatus::default() };
        return Ok(Proposed { replicas, metric, status });
    }
    if let ("External", Some(source)) = (metric.type_.as_str(), &metric.external) {
        let prefix = format!("failed to get {} external metric value", source.metric.name);
        return by_external(client, target, source).await.map_err(fail("FailedGetExternalMetric", prefix));
    }
    let detail = format!("unknown metric source type {:?}", metric.type_);
    Err(Failed { reason: "InvalidMetricSourceType", error: detail.clone(), detail })
}

async fn by_object(
    client: &MetricsClient,
    target: &Target<'_>,
    source: &ObjectMetricSource,
) -> Result<Proposed, Problem> {
    let (object, metric) = (&source.described_object, &source.metric);
    let selector = metric_selector(metric.selector.as_ref())?;
    let usage = async {
        let usage = client.object(&metric.name, target.namespace, object, &selector).await;
        usage.map_err(|error| {
            let (kind, namespace, name) = (&object.kind, target.namespace, &object.name);
            format!("unable to get metric {}: {error} on {kind} {namespace}/{name}", metric.name)
        })
    };
    let (proposal, current, name) = match (source.target.type_.as_str(), &source.target) {
        ("Value", MetricTarget { value: Some(value), .. }) => {
            let proposal = target.calculator.by_value(target.spec_replicas, milli(value), usage.await?)?;
            (proposal, whole(proposal.usage), format!("{} metric {}", object.kind, metric.name))
        }
        ("AverageValue", MetricTarget { average_value: Some(value), .. }) => {
            let wrapped = format!("failed to get {} object metric", metric.name);
            let usage = usage.await.map_err(Problem::wrapped(&wrapped))?;
            let proposal = target.calculator.by_share(target.status_replicas, milli(value), usage);
            (proposal, average(proposal.usage), external_name(metric))
        }
        _ => {
            let text = "invalid object metric source: neither a value target nor an average value target was set";
            return Err(text.to_owned().into());
        }
    };
    let object = ObjectMetricStatus { described_object: object.clone(), metric: identifier(metric), current };
    let status = MetricStatus { type_: "Object".to_owned(), object: Some(object), ..MetricStatus::default() };
    Ok(Proposed { replicas: proposal.replicas, metric: name, status })
}

fn external_name(metric: &MetricIdentifier) -> String {
    format!("external metric {}({})", metric.name, selector_text(metric.selector.as_ref()))
}

async fn by_pods(client: &MetricsClient, target: &Target<'_>, source: &PodsMetricSource) -> Result<Proposed, Problem> {
    let metric = &source.metric;
    let selector = metric_selector(metric.selector.as_ref())?;
    let metrics = client.pods(&metric.name, target.namespace, target.selector, &selector).await;
    let metrics = metrics.map_err(|error| format!("unable to get metric {}: {error}", metric.name))?;
    let wanted = source.target.average_value.as_ref().map_or(0, milli);
    let proposal = target.calculator.by_average(target.spec_replicas, wanted, "", metrics)?;
    let pods = PodsMetricStatus { metric: identifier(metric), current: average(proposal.usage) };
    let status = MetricStatus { type_: "Pods".to_owned(), pods: Some(pods), ..MetricStatus::default() };
    Ok(Proposed { replicas: proposal.replicas, metric: format!("pods metric {}", metric.name), status })
}

/// Replicas, what is measured, and the name under which it is.
type ByResource = ((i32, MetricValueStatus), String);

async fn by_resource(
    client: &MetricsClient,
    target: &Target<'_>,
    wanted: &MetricTarget,
    resource: &str,
    container: Option<&str>,
) -> Result<ByResource, Problem> {
    let calculator = &target.calculator;
    let metrics = async {
        let metrics = client.resource(resource, target.namespace, target.selector, container).await;
        metrics.map_err(|error| format!("unable to get metrics for resource {resource}: {error}"))
    };
    let current = |proposal: Proposal| {
        let format = if resource == "memory" { Format::BinarySi } else { Format::DecimalSi };
        let average_value = quantity(proposal.usage, format);
        MetricValueStatus { average_value, average_utilization: proposal.utilization, value: None }
    };
    if let Some(value) = &wanted.average_value {
        let proposal = metrics
            .await
            .and_then(|metrics| calculator.by_average(target.spec_replicas, milli(value), resource, metrics));
        let proposal = proposal.map_err(|error| format!("failed to get {resource} usage: {error}"))?;
        return Ok(((proposal.replicas, current(proposal)), format!("{resource} resource")));
    }
    let Some(percent) = wanted.average_utilization else {
        let text = "invalid resource metric source: neither an average utilization target nor an average value \
                    (usage) target was set";
        return Err(text.to_owned().into());
    };
    let proposal = metrics
        .await
        .and_then(|metrics| calculator.by_utilization(target.spec_replicas, percent, resource, container, metrics));
    let proposal = proposal.map_err(|error| format!("failed to get {resource} utilization: {error}"))?;
    let kind = if container.is_some() { "container resource" } else { "resource" };
    let name = format!("{resource} {kind} utilization (percentage of request)");
    Ok(((proposal.replicas, current(proposal)), name))
}

async fn by_external(
    client: &MetricsClient,
    target: &Target<'_>,
    source: &ExternalMetricSource,
) -> Result<Proposed, Problem> {
    let metric = &source.metric;
    let usage = async {
        let selector = metric_selector(metric.selector.as_ref())?;
        let values = client.external(&metric.name, target.namespace, &selector).await.map_err(|error| {
            let selector = selector_text(metric.selector.as_ref());
            format!("unable to get external metric {}/{}/{selector}: {error}", target.namespace, metric.name)
        })?;
        Ok::<i64, String>(values.into_iter().fold(0, i64::saturating_add))
    };
    let (proposal, current) = if let Some(value) = &source.target.average_value {
        let wrapped = format!("failed to get {} external metric", metric.name);
        let usage = usage.await.map_err(Problem::wrapped(&wrapped))?;
        let proposal = target.calculator.by_share(target.status_replicas, milli(value), usage);
        (proposal, average(proposal.usage))
    } else if let Some(value) = &source.target.value {
        let proposal = match usage.await {
            Ok(usage) => target.calculator.by_value(target.spec_replicas, milli(value), usage),
            Err(error) => Err(error),
        };
        let wrapped = format!("failed to get external metric {}", metric.name);
        let proposal = proposal.map_err(Problem::wrapped(&wrapped))?;
        (proposal, whole(proposal.usage))
    } else {
        let text = "invalid external metric source: neither a value target nor an average value target was set";
        return Err(text.to_owned().into());
    };
    let external = ExternalMetricStatus { metric: identifier(metric), current };
    let status = MetricStatus { type_: "External".to_owned(), external: Some(external), ..MetricStatus::default() };
    Ok(Proposed { replicas: proposal.replicas, metric: external_name(metric), status })
}
