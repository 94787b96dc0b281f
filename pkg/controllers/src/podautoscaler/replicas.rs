//! How many replicas a metric asks for.
//!
//! Behaves as pkg/controller/podautoscaler/replica_calculator.go and metrics/utilization.go, v1.36.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rkube_api::k8s::core::v1::{Container, Pod};
use rkube_api::pod_resources::{self, Side, is_sidecar};

use super::metrics::PodMetrics;
use crate::common::pods;

/// How far a ratio of usage to target may be from 1 without consequence.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tolerances {
    pub(super) down: f64,
    pub(super) up: f64,
}

impl Tolerances {
    fn holds(self, ratio: f64) -> bool {
        (1.0 - self.down) <= ratio && ratio <= (1.0 + self.up)
    }
}

/// The pods of a target and how to judge them.
pub(super) struct Calculator<'a> {
    pub(super) pods: &'a [Arc<Pod>],
    pub(super) tolerances: Tolerances,
    /// After a pod's start: its CPU usage counts only when it is ready.
    pub(super) cpu_initialization_period: Duration,
    /// After a pod's start: a pod that was never ready in it has not started yet.
    pub(super) initial_readiness_delay: Duration,
    pub(super) now: Timestamp,
}

/// What a metric asks for, and what it is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Proposal {
    pub(super) replicas: i32,
    /// In thousandths, per pod or in all.
    pub(super) usage: i64,
    /// In percent of the requests.
    pub(super) utilization: Option<i32>,
}

/// Usage against target.
struct Ratio {
    ratio: f64,
    usage: i64,
    utilization: Option<i32>,
}

/// From the usage of pods, by name, to a ratio.
type Measure<'a> = dyn Fn(&BTreeMap<&str, i64>) -> Result<Ratio, String> + 'a;

/// Pods by what their metrics are good for.
struct Groups<'a> {
    ready: usize,
    unready: Vec<&'a str>,
    missing: Vec<&'a str>,
}

/// Rounded up, and within the range of counts.
fn ceil(value: f64) -> i32 {
    value.ceil() as i32
}

fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

fn plus(time: Timestamp, duration: Duration) -> Timestamp {
    SignedDuration::try_from(duration).ok().and_then(|by| time.checked_add(by).ok()).unwrap_or(Timestamp::MAX)
}

impl Calculator<'_> {
    /// By the share of what the pods, or one container of each, request.
    pub(super) fn by_utilization(
        &self,
        current: i32,
        target: i32,
        resource: &str,
        container: Option<&str>,
        metrics: PodMetrics,
    ) -> Result<Proposal, String> {
        let (groups, metrics) = self.grouped(metrics, resource)?;
        let requests = self.requests(resource, container)?;
        let measure = |metrics: &BTreeMap<&str, i64>| utilization(metrics, &requests, target);
        let fallback = |pod: &str| {
            let request = requests.get(pod).copied().unwrap_or(0);
            request.saturating_mul(target.max(100).into()) / 100
        };
        self.weighed(current, &groups, metrics, &measure, &fallback)
    }

    /// By the average value. `resource` is empty for metrics that are no resource.
    pub(super) fn by_average(
        &self,
        current: i32,
        target: i64,
        resource: &str,
        metrics: PodMetrics,
    ) -> Result<Proposal, String> {
        let (groups, metrics) = self.grouped(metrics, resource)?;
        let measure = |metrics: &BTreeMap<&str, i64>| {
            let total: i128 = metrics.values().map(|value| i128::from(*value)).sum();
            let usage = i64::try_from(total / metrics.len().max(1) as i128).unwrap_or(i64::MAX);
            Ok(Ratio { ratio: usage as f64 / target as f64, usage, utilization: None })
        };
        self.weighed(current, &groups, metrics, &measure, &|_| target)
    }

    /// By one value for all pods.
    pub(super) fn by_value(&self, current: i32, target: i64, usage: i64) -> Result<Proposal, String> {
        let ratio = usage as f64 / target as f64;
        let proposal = |replicas| Proposal { replicas, usage, utilization: None };
        if current == 0 {
            return Ok(proposal(ceil(ratio)));
        }
        if self.tolerances.holds(ratio) {
            return Ok(proposal(current));
        }
        if self.pods.is_empty() {
            let why = "no pods returned by selector while calculating replica count";
            return Err(format!("unable to calculate ready pods: {why}"));
        }
        let ready = self.pods.iter().filter(|pod| pods::phase(pod) == "Running" && pods::is_ready(pod)).count();
        Ok(proposal(ceil(ratio * ready as f64)))
    }

    /// By one value that is to be shared by the pods. `current` is how many there are.
    pub(super) fn by_share(&self, current: i32, target: i64, usage: i64) -> Proposal {
        let ratio = usage as f64 / (target as f64 * f64::from(current));
        let wanted = if self.tolerances.holds(ratio) { current } else { ceil(usage as f64 / target as f64) };
        let share = if current > 0 { (usage as f64 / f64::from(current)).ceil() as i64 } else { usage };
        Proposal { replicas: wanted, usage: share, utilization: None }
    }

    /// Sorts the pods, and leaves the metrics that count.
    fn grouped<'m>(
        &'m self,
        metrics: PodMetrics,
        resource: &str,
    ) -> Result<(Groups<'m>, BTreeMap<&'m str, i64>), String> {
        if self.pods.is_empty() {
            return Err("no pods returned by selector while calculating replica count".to_owned());
        }
        let mut groups = Groups { ready: 0, unready: Vec::new(), missing: Vec::new() };
        let mut counted = BTreeMap::new();
        for pod in self.pods {
            if pods::is_terminating(pod) || pods::phase(pod) == "Failed" {
                continue;
            }
            if pods::phase(pod) == "Pending" {
                groups.unready.push(name(pod));
                continue;
            }
            let Some(metric) = metrics.get(name(pod)) else {
                groups.missing.push(name(pod));
                continue;
            };
            if resource == "cpu" && self.is_starting(pod, metric.timestamp, metric.window) {
                groups.unready.push(name(pod));
                continue;
            }
            groups.ready += 1;
            counted.insert(name(pod), metric.value);
        }
        if counted.is_empty() {
            return Err("did not receive metrics for targeted pods (pods might be unready)".to_owned());
        }
        Ok((groups, counted))
    }

    /// Whether the CPU usage of a pod is that of its start.
    fn is_starting(&self, pod: &Pod, measured: Timestamp, window: Duration) -> bool {
        let started = pod.status.as_ref().and_then(|status| status.start_time.as_ref()).map(|time| time.0);
        let (Some(condition), Some(started)) = (pods::condition(pod, "Ready"), started) else { return true };
        let unready = condition.status == "False";
        let moved = condition.last_transition_time.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0);
        if plus(started, self.cpu_initialization_period) > self.now {
            // Of a pod that became ready the whole window must have been measured since.
            unready || measured < plus(moved, window)
        } else {
            unready && plus(started, self.initial_readiness_delay) > moved
        }
    }

    /// Weighs in the pods without usable metrics: those without any as if they were on target, or used nothing where
    /// that means fewer pods; those not ready as if they used nothing when pods are to be added.
    fn weighed(
        &self,
        current: i32,
        groups: &Groups<'_>,
        metrics: BTreeMap<&str, i64>,
        measure: &Measure<'_>,
        fallback: &dyn Fn(&str) -> i64,
    ) -> Result<Proposal, String> {
        let Ratio { ratio, usage, utilization } = measure(&metrics)?;
        let proposal = |replicas| Proposal { replicas, usage, utilization };
        let counts_unready = !groups.unready.is_empty() && ratio > 1.0;
        if !counts_unready && groups.missing.is_empty() {
            let wanted = if self.tolerances.holds(ratio) { current } else { ceil(ratio * groups.ready as f64) };
            return Ok(proposal(wanted));
        }
        let mut all = metrics;
        for pod in &groups.missing {
            if ratio < 1.0 {
                all.insert(pod, fallback(pod));
            } else if ratio > 1.0 {
                all.insert(pod, 0);
            }
        }
        if counts_unready {
            all.extend(groups.unready.iter().map(|pod| (*pod, 0)));
        }
        let weighed = measure(&all)?.ratio;
        let turned = (ratio < 1.0 && weighed > 1.0) || (ratio > 1.0 && weighed < 1.0);
        if self.tolerances.holds(weighed) || turned {
            return Ok(proposal(current));
        }
        let wanted = ceil(weighed * all.len() as f64);
        let against = (weighed < 1.0 && wanted > current) || (weighed > 1.0 && wanted < current);
        Ok(proposal(if against { current } else { wanted }))
    }

    /// What each pod requests, in thousandths.
    fn requests(&self, resource: &str, container: Option<&str>) -> Result<BTreeMap<&str, i64>, String> {
        let requests = self.pods.iter().map(|pod| Ok((name(pod), request(pod, resource, container)?)));
        requests.collect()
    }
}

fn utilization(metrics: &BTreeMap<&str, i64>, requests: &BTreeMap<&str, i64>, target: i32) -> Result<Ratio, String> {
    let (mut used, mut requested, mut count) = (0_i128, 0_i128, 0_i128);
    for (pod, value) in metrics {
        if let Some(request) = requests.get(pod) {
            used += i128::from(*value);
            requested += i128::from(*request);
            count += 1;
        }
    }
    if requested == 0 {
        return Err("no metrics returned matched known pods".to_owned());
    }
    let percent = i32::try_from(used * 100 / requested).unwrap_or(i32::MAX);
    let usage = i64::try_from(used / count).unwrap_or(i64::MAX);
    Ok(Ratio { ratio: f64::from(percent) / f64::from(target), usage, utilization: Some(percent) })
}

fn request(pod: &Pod, resource: &str, container: Option<&str>) -> Result<i64, String> {
    let Some(spec) = pod.spec.as_ref() else { return Ok(0) };
    let pod_level = spec.resources.as_ref().and_then(|resources| resources.requests.as_ref());
    if container.is_none() && pod_level.is_some_and(|requests| !requests.is_empty()) {
        let all = pod_resources::of_pod(spec, Side::Requests);
        let request = all.get(resource).map(|amount| amount.milli_value());
        return request.ok_or_else(|| format!("missing pod-level request for {resource} in Pod {}", name(pod)));
    }
    let sidecars = spec.init_containers.iter().flatten().filter(|container| is_sidecar(container));
    let mut containers = spec.containers.iter().chain(sidecars);
    let of = |container: &Container| {
        let requests = pod_resources::of(container.resources.as_ref(), Side::Requests);
        requests.get(resource).map(|amount| amount.milli_value()).ok_or_else(|| {
            format!("missing request for {resource} in container {} of Pod {}", container.name, name(pod))
        })
    };
    match container {
        Some(wanted) => match containers.find(|container| container.name == wanted) {
            Some(found) => of(found),
            None => Err(format!("container {wanted} not found in Pod {}", name(pod))),
        },
        None => containers.try_fold(0_i64, |sum, container| Ok(sum.saturating_add(of(container)?))),
    }
}
