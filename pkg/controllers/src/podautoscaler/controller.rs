//! Looks at one autoscaler per sync, and scales its target.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use rkube_api::k8s::autoscaling::v2::{HorizontalPodAutoscaler, HorizontalPodAutoscalerStatus, MetricStatus};
use rkube_api::k8s::core::v1::Pod;
use rkube_api::resource::SharedResource;
use rkube_apimachinery::clock::SharedClock;
use rkube_apimachinery::gvk::GroupVersion;
use rkube_apimachinery::key::ObjectKey;
use rkube_apimachinery::labels::Selector;
use rkube_apimachinery::quantity::Quantity;
use rkube_client::owner::object_key;
use rkube_client::{Client, ClientError, Delta, EventRecorder, Lister, Reconciler, Requeue, SyncError, WorkQueue};
use serde_json::Value;
use tracing::{info, warn};

use super::NAME;
use super::behavior::{History, Range, Verdict, limit};
use super::metrics::MetricsClient;
use super::proposals::{Target, propose};
use super::replicas::{Calculator, Tolerances};
use super::status::{ABLE_TO_SCALE, Conditions, SCALING_ACTIVE, SCALING_LIMITED};
use crate::common::errors::ignore_not_found;
use crate::common::mapper::Mapper;
use crate::config::ControllerConfig;
use crate::context::{ControllerContext, Running};
use crate::metrics::{Scaling, metrics};

/// What upstream signs these events with.
const EVENT_SOURCE: &str = "horizontal-pod-autoscaler";
/// Attempts at a scale that others write at the same time.
const SCALE_ATTEMPTS: usize = 5;

struct Autoscaler {
    client: Client,
    recorder: EventRecorder,
    clock: SharedClock,
    config: Arc<ControllerConfig>,
    mapper: Mapper,
    metrics: MetricsClient,
    autoscalers: Lister<HorizontalPodAutoscaler>,
    pods: Lister<Pod>,
    known: Mutex<HashMap<ObjectKey, Known>>,
}

/// What is remembered of an autoscaler.
#[derive(Default)]
struct Known {
    history: History,
    /// Of its target's pods, to see whether two autoscalers have the same.
    selector: Option<Selector>,
}

pub(super) fn start(context: &ControllerContext) -> Running {
    let autoscalers = context.informers.informer::<HorizontalPodAutoscaler>();
    let pods = context.informers.informer::<Pod>();
    let client = context.client_for(NAME);
    let mapper = Mapper::new(&client);
    let controller = Arc::new(Autoscaler {
        recorder: context.recorder.for_component(EVENT_SOURCE),
        clock: context.clock().clone(),
        config: Arc::clone(&context.config),
        metrics: MetricsClient::new(&client, mapper.clone()),
        mapper,
        autoscalers: autoscalers.lister(),
        pods: pods.lister(),
        known: Mutex::default(),
        client,
    });
    let queue: WorkQueue<ObjectKey> = context.queue("horizontalpodautoscaler");
    let (period, keys) = (context.config.horizontal_pod_autoscaler_sync_period, queue.clone());
    autoscalers.add_handler(move |delta| {
        let key = object_key(&**delta.object());
        match delta {
            Delta::Added(_) | Delta::Deleted(_) => keys.add(key),
            // Its own status too: never faster than the period, or it would drive itself.
            Delta::Updated { .. } => keys.add_after(key, period),
        }
    });
    context.run(NAME, &queue, &controller, context.config.concurrent_syncs)
}

/// The target's scale and where it is.
struct Scale {
    resource: SharedResource,
    object: Value,
}

impl Scale {
    fn replicas(&self, part: &str) -> i32 {
        self.object[part]["replicas"].as_i64().and_then(|count| i32::try_from(count).ok()).unwrap_or(0)
    }

    fn selector(&self) -> &str {
        self.object["status"]["selector"].as_str().unwrap_or_default()
    }
}

/// What the metrics ask for together.
struct Desired {
    replicas: i32,
    metric: String,
    statuses: Vec<MetricStatus>,
    /// Of metrics that could not be read although others could.
    error: Option<String>,
}

/// A round that ended early: what is wrong, and the status that says so.
struct Stopped {
    error: String,
    status: HorizontalPodAutoscalerStatus,
}

impl Autoscaler {
    async fn scale_of(&self, hpa: &HorizontalPodAutoscaler, namespace: &str) -> Result<Scale, (String, &'static str)> {
        let target = &hpa.spec.scale_target_ref;
        let api_version = target.api_version.as_deref().unwrap_or_default();
        let Some(version) = GroupVersion::parse(api_version) else {
            let text = format!("unexpected GroupVersion string: {api_version}");
            return Err((text, "invalid API version in scale target reference"));
        };
        let unknown = "unable to determine resource for scale target reference";
        let resource = self.mapper.resource_of(&version.group, &target.kind).await;
        let resource = resource
            .map_err(|error| (error.to_string(), unknown))?
            .ok_or_else(|| (format!("no matches for kind {:?} in group {:?}", target.kind, version.group), unknown))?;
        let api = self.client.dynamic(Arc::clone(&resource), namespace);
        match api.get_subresource(&target.name, "scale").await {
            Ok(object) => Ok(Scale { resource, object }),
            Err(error) => Err((error.to_string(), "failed to query scale subresource")),
        }
    }

    /// Writes the new size; again if somebody else wrote the target meanwhile.
    async fn rescale(&self, namespace: &str, name: &str, scale: &Scale, replicas: i32) -> Result<(), ClientError> {
        let api = self.client.dynamic(Arc::clone(&scale.resource), namespace);
        let mut object = scale.object.clone();
        let mut attempt = 1;
        loop {
            object["spec"]["replicas"] = replicas.into();
            match api.update_subresource(name, "scale", &object).await {
                Ok(_) => return Ok(()),
                Err(error) if error.is_conflict() && attempt < SCALE_ATTEMPTS => {
                    object = api.get_subresource(name, "scale").await?;
                    attempt += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The selector of the target's pods, if no other autoscaler has these pods too.
    fn selector(&self, key: &ObjectKey, text: &str) -> Result<Selector, (&'static str, &'static str, String)> {
        if text.is_empty() {
            return Err(("SelectorRequired", "InvalidSelector", "selector is required".to_owned()));
        }
        let selector = Selector::parse(text).map_err(|error| {
            let text = format!("couldn't convert selector into a corresponding internal selector object: {error}");
            ("InvalidSelector", "InvalidSelector", text)
        })?;
        let mut known = self.known.lock();
        known.entry(key.clone()).or_default().selector = Some(selector.clone());
        let pods = self.pods.list(&key.namespace, &selector);
        let mut rivals: Vec<String> = known
            .iter()
            .filter(|(other, known)| {
                let selects = |pod: &Arc<Pod>| {
                    known.selector.as_ref().is_some_and(|selector| selector.matches(&pod.metadata.labels))
                };
                other.namespace == key.namespace && pods.iter().any(selects)
            })
            .map(|(other, _)| other.to_string())
            .collect();
        if rivals.len() > 1 {
            rivals.sort();
            let rivals = rivals.join(" ");
            let text = format!("pods by selector {text} are controlled by multiple HPAs: [{rivals}]");
            return Err(("AmbiguousSelector", "AmbiguousSelector", text));
        }
        Ok(selector)
    }

    fn tolerances(&self, hpa: &HorizontalPodAutoscaler) -> Tolerances {
        let default = self.config.horizontal_pod_autoscaler_tolerance;
        let behavior = hpa.spec.behavior.as_ref();
        let own = |rules: Option<&rkube_api::k8s::autoscaling::v2::HPAScalingRules>| {
            let text = rules.and_then(|rules| rules.tolerance.as_ref())?;
            Some(Quantity::parse(&text.0).ok()?.as_f64())
        };
        Tolerances {
            down: own(behavior.and_then(|behavior| behavior.scale_down.as_ref())).unwrap_or(default),
            up: own(behavior.and_then(|behavior| behavior.scale_up.as_ref())).unwrap_or(default),
        }
    }

    /// Asks all metrics. One that cannot be read stops a scale down, and stops everything if it is the only one.
    async fn desired(
        &self,
        key: &ObjectKey,
        hpa: &HorizontalPodAutoscaler,
        scale: &Scale,
        conditions: &mut Conditions,
    ) -> Result<Desired, (String, Vec<MetricStatus>)> {
        let selector = self.selector(key, scale.selector()).map_err(|(event, reason, text)| {
            self.recorder.warning(hpa, event, &*text);
            let missing = "the HPA target's scale is missing a selector";
            conditions.set(SCALING_ACTIVE, false, reason, if event == "SelectorRequired" { missing } else { &text });
            (text, Vec::new())
        })?;
        let pods = self.pods.list(&key.namespace, &selector);
        let target = Target {
            namespace: &key.namespace,
            selector: scale.selector(),
            spec_replicas: scale.replicas("spec"),
            status_replicas: scale.replicas("status"),
            calculator: Calculator {
                pods: &pods,
                tolerances: self.tolerances(hpa),
                cpu_initialization_period: self.config.horizontal_pod_autoscaler_cpu_initialization_period,
                initial_readiness_delay: self.config.horizontal_pod_autoscaler_initial_readiness_delay,
                now: self.clock.now(),
            },
        };
        let wanted = hpa.spec.metrics.as_deref().unwrap_or_default();
        let mut desired = Desired { replicas: 0, metric: String::new(), statuses: Vec::new(), error: None };
        let mut failures = Vec::new();
        for metric in wanted {
            let start = self.clock.monotonic();
            let proposal = propose(&self.metrics, &target, metric).await;
            let took = self.clock.monotonic().saturating_sub(start);
            let from = target.spec_replicas;
            let scaling = match &proposal {
                Ok(proposed) => Scaling { from, to: proposed.replicas, error: "none" },
                Err(_) => Scaling { from, to: from, error: "internal" },
            };
            metrics().metric_computed(scaling, &metric.type_, took);
            match proposal {
                Ok(proposed) => {
                    if desired.replicas == 0 || proposed.replicas > desired.replicas {
                        desired.replicas = proposed.replicas;
                        desired.metric = proposed.metric;
                    }
                    desired.statuses.push(proposed.status);
                }
                Err(failed) => {
                    self.recorder.warning(hpa, failed.reason, &*failed.detail);
                    // Statuses stand where their metrics do.
                    desired.statuses.push(MetricStatus::default());
                    failures.push(failed);
                }
            }
        }
        if let Some(first) = failures.first() {
            let (invalid, all) = (failures.len(), wanted.len());
            let error = format!("invalid metrics ({invalid} invalid out of {all}), first error is: {}", first.error);
            if invalid >= all || desired.replicas < target.spec_replicas {
                let text = format!("the HPA was unable to compute the replica count: {}", first.detail);
                conditions.set(SCALING_ACTIVE, false, first.reason, text);
                return Err((error, desired.statuses));
            }
            desired.error = Some(error);
        }
        let text = format!("the HPA was able to successfully calculate a replica count from {}", desired.metric);
        conditions.set(SCALING_ACTIVE, true, "ValidMetricFound", text);
        Ok(desired)
    }

    /// What the target may have of what its metrics ask for.
    fn normalize(
        &self,
        key: &ObjectKey,
        hpa: &HorizontalPodAutoscaler,
        wanted: i32,
        range: Range,
        conditions: &mut Conditions,
    ) -> i32 {
        let now = self.clock.monotonic();
        let window = self.config.horizontal_pod_autoscaler_downscale_stabilization;
        let mut known = self.known.lock();
        let history = &mut known.entry(key.clone()).or_default().history;
        let (stable, limited): (Verdict, Verdict) = match &hpa.spec.behavior {
            None => {
                let stable = history.stabilize(wanted, window, now);
                (stable, limit(stable.replicas, range))
            }
            Some(behavior) => {
                let stable = history.stabilize_with(wanted, range.current, behavior, window, now);
                (stable, history.limit_with(stable.replicas, range, behavior, now))
            }
        };
        conditions.set(ABLE_TO_SCALE, true, stable.reason, stable.message);
        conditions.set(SCALING_LIMITED, limited.held, limited.reason, limited.message);
        limited.replicas
    }

    /// One round. The status it ends with, and an error that did not end it.
    async fn round(
        &self,
        key: &ObjectKey,
        hpa: &HorizontalPodAutoscaler,
        old: &HorizontalPodAutoscalerStatus,
    ) -> Result<(HorizontalPodAutoscalerStatus, Option<String>), Stopped> {
        let mut conditions = Conditions::new(old, self.clock.now());
        let name = &hpa.spec.scale_target_ref.name;
        let reference = format!("{}/{}/{name}", hpa.spec.scale_target_ref.kind, key.namespace);
        let scale = match self.scale_of(hpa, &key.namespace).await {
            Ok(scale) => scale,
            Err((detail, error)) => {
                self.recorder.warning(hpa, "FailedGetScale", &*detail);
                let text = format!("the HPA controller was unable to get the target's current scale: {detail}");
                conditions.set(ABLE_TO_SCALE, false, "FailedGetScale", text);
                let error = format!("{error} for {reference}: {detail}");
                return Err(Stopped { error, status: conditions.onto(old) });
            }
        };
        let text = "the HPA controller was able to get the target's current scale";
        conditions.set(ABLE_TO_SCALE, true, "SucceededGetScale", text);
        let current = scale.replicas("spec");
        self.known.lock().entry(key.clone()).or_default().history.begin(current, self.clock.monotonic());

        let range = Range { current, min: hpa.spec.min_replicas.unwrap_or(1), max: hpa.spec.max_replicas };
        let mut statuses = Vec::new();
        let mut error = None;
        let mut reason = String::new();
        let desired = if current == 0 {
            let text = "scaling is disabled since the replica count of the target is zero";
            conditions.set(SCALING_ACTIVE, false, "ScalingDisabled", text);
            conditions.remove_scaled_to_zero();
            0
        } else if current > range.max {
            "Current number of replicas above Spec.MaxReplicas".clone_into(&mut reason);
            range.max
        } else if current < range.min {
            "Current number of replicas below Spec.MinReplicas".clone_into(&mut reason);
            range.min
        } else {
            let found = match self.desired(key, hpa, &scale, &mut conditions).await {
                Ok(found) => found,
                Err((error, statuses)) => {
                    self.recorder.warning(hpa, "FailedComputeMetricsReplicas", &*error);
                    let error = format!(
                        "failed to compute desired number of replicas based on listed metrics for {reference}: {error}"
                    );
                    let status = conditions.into_status(old, current, old.desired_replicas, statuses, false);
                    return Err(Stopped { error, status });
                }
            };
            if found.replicas > current {
                reason = format!("{} above target", found.metric);
            } else if found.replicas < current {
                "All metrics below target".clone_into(&mut reason);
            }
            statuses = found.statuses;
            error = found.error;
            self.normalize(key, hpa, found.replicas, range, &mut conditions)
        };

        let rescales = desired != current;
        if rescales {
            if let Err(failed) = self.rescale(&key.namespace, name, &scale, desired).await {
                let text = format!("New size: {desired}; reason: {reason}; error: {failed}");
                self.recorder.warning(hpa, "FailedRescale", text);
                let text = format!("the HPA controller was unable to update the target scale: {failed}");
                conditions.set(ABLE_TO_SCALE, false, "FailedUpdateScale", text);
                let status = conditions.into_status(old, current, old.desired_replicas, statuses, false);
                return Err(Stopped { error: format!("failed to rescale {reference}: {failed}"), status });
            }
            let text = format!("the HPA controller was able to update the target scale to {desired}");
            conditions.set(ABLE_TO_SCALE, true, "SucceededRescale", text);
            conditions.remove_scaled_to_zero();
            self.recorder.normal(hpa, "SuccessfulRescale", format!("New size: {desired}; reason: {reason}"));
            let mut known = self.known.lock();
            let history = &mut known.entry(key.clone()).or_default().history;
            history.changed(current, desired, hpa.spec.behavior.as_ref(), self.clock.monotonic());
            info!(autoscaler = %key, from = current, to = desired, reason, "Rescaled");
        }
        Ok((conditions.into_status(old, current, desired, statuses, rescales), error))
    }

    async fn write(
        &self,
        hpa: &HorizontalPodAutoscaler,
        old: &HorizontalPodAutoscalerStatus,
        status: HorizontalPodAutoscalerStatus,
    ) -> Result<(), ClientError> {
        if *old == status {
            return Ok(());
        }
        let updated = HorizontalPodAutoscaler { status: Some(status), ..hpa.clone() };
        let namespace = hpa.metadata.namespace.as_deref().unwrap_or_default();
        let written = self.client.namespaced::<HorizontalPodAutoscaler>(namespace).update_status(&updated).await;
        let written = ignore_not_found(written.map(drop));
        if let Err(error) = &written {
            self.recorder.warning(hpa, "FailedUpdateStatus", error.to_string());
        }
        written
    }
}

impl Reconciler for Autoscaler {
    async fn sync(&self, key: &ObjectKey) -> Result<Requeue, SyncError> {
        let Some(hpa) = self.autoscalers.get(key) else {
            let mut known = self.known.lock();
            known.remove(key);
            metrics().hpa_count.set(i64::try_from(known.len()).unwrap_or(i64::MAX));
            drop(known);
            metrics().autoscaler(&key.namespace, &key.name, None);
            return Ok(Requeue::Never);
        };
        let old = hpa.status.clone().unwrap_or_default();
        let start = self.clock.monotonic();
        let outcome = self.round(key, &hpa, &old).await;
        let took = self.clock.monotonic().saturating_sub(start);
        let failed = matches!(&outcome, Err(_) | Ok((_, Some(_))));
        let (status, error) = match outcome {
            Ok(done) => done,
            Err(Stopped { error, status }) => (status, Some(error)),
        };
        let (from, to) = (status.current_replicas.unwrap_or(0), status.desired_replicas);
        metrics().autoscaled(Scaling { from, to, error: if failed { "internal" } else { "none" } }, took);
        metrics().autoscaler(&key.namespace, &key.name, Some(to));
        metrics().hpa_count.set(i64::try_from(self.known.lock().len()).unwrap_or(i64::MAX));
        if let Some(error) = error {
            warn!(autoscaler = %key, error, "Autoscaling was held up");
        }
        if let Err(error) = self.write(&hpa, &old, status).await {
            warn!(autoscaler = %key, error = %error, "Writing the status failed");
        }
        // After errors too: the next round looks at everything anew.
        Ok(Requeue::After(self.config.horizontal_pod_autoscaler_sync_period))
    }
}
