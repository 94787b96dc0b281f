//! Which pods make room for a critical one that the scheduler did not place, as a static pod. Pure.
//!
//! As few as possible go, and of the least service class. Behaves as pkg/kubelet/preemption/preemption.go, v1.36.

use std::sync::Arc;

use rkube_api::k8s::core::v1::Pod;

use super::units;
use crate::pod::{PodExt, QosClass, pod_request};

/// How much of a resource has to become free.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Need {
    pub(super) name: String,
    pub(super) amount: i64,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("no set of running pods found to reclaim resources: [{0}]")]
pub(super) struct NoneFound(String);

fn none_found(needs: &[Need]) -> NoneFound {
    NoneFound(needs.iter().map(|need| format!("(res: {}, q: {}), ", need.name, need.amount)).collect())
}

fn part_of(pod: &Pod, name: &str) -> i64 {
    // A pod is one pod.
    if name == "pods" { 1 } else { units(name, &pod_request(pod.pod_spec(), name)) }
}

/// What is still needed when these pods are gone.
fn without<'a>(needs: &[Need], pods: impl Iterator<Item = &'a Arc<Pod>> + Clone) -> Vec<Need> {
    let left = needs.iter().map(|need| {
        let freed: i64 = pods.clone().map(|pod| part_of(pod, &need.name)).sum();
        Need { name: need.name.clone(), amount: need.amount.saturating_sub(freed) }
    });
    left.filter(|need| need.amount > 0).collect()
}

/// How far the end of a pod is from meeting the needs: the sum of the squares of the parts that stay unmet.
fn distance(needs: &[Need], pod: &Pod) -> f64 {
    let unmet = needs.iter().map(|need| {
        let left = need.amount.saturating_sub(part_of(pod, &need.name)).max(0);
        (left as f64 / need.amount as f64).powi(2)
    });
    unmet.sum()
}

fn is_preemptable(preemptor: &Pod, pod: &Pod) -> bool {
    if preemptor.is_critical() && !pod.is_critical() {
        return true;
    }
    match (preemptor.pod_spec().priority, pod.pod_spec().priority) {
        (Some(own), Some(other)) => own > other,
        _ => false,
    }
}

/// Takes the nearest pod again and again until the needs are met; of equally near ones the smaller.
fn nearest(mut pods: Vec<Arc<Pod>>, mut needs: Vec<Need>) -> Result<Vec<Arc<Pod>>, NoneFound> {
    let mut chosen = Vec::new();
    while !needs.is_empty() {
        let size = |pod: &Pod| (part_of(pod, "memory"), part_of(pod, "cpu"));
        let order = |(_, a): &(usize, &Arc<Pod>), (_, b): &(usize, &Arc<Pod>)| {
            distance(&needs, a).total_cmp(&distance(&needs, b)).then_with(|| size(a).cmp(&size(b)))
        };
        let best = pods.iter().enumerate().min_by(order).map(|(at, _)| at);
        let pod = pods.swap_remove(best.ok_or_else(|| none_found(&needs))?);
        needs = without(&needs, [&pod].into_iter());
        chosen.push(pod);
    }
    Ok(chosen)
}

/// The pods to end, the least important first.
pub(super) fn choose(preemptor: &Pod, pods: &[Arc<Pod>], needs: &[Need]) -> Result<Vec<Arc<Pod>>, NoneFound> {
    let of = |class: QosClass| -> Vec<Arc<Pod>> {
        pods.iter().filter(|pod| is_preemptable(preemptor, pod) && pod.qos() == class).cloned().collect()
    };
    let (best_effort, burstable, guaranteed) =
        (of(QosClass::BestEffort), of(QosClass::Burstable), of(QosClass::Guaranteed));
    let unmet = without(needs, best_effort.iter().chain(&burstable).chain(&guaranteed));
    if !unmet.is_empty() {
        return Err(none_found(&unmet));
    }
    // Of a class go those that are needed even if all of the lesser classes went.
    let guaranteed = nearest(guaranteed, without(needs, best_effort.iter().chain(&burstable)))?;
    let burstable = nearest(burstable, without(needs, best_effort.iter().chain(&guaranteed)))?;
    let best_effort = nearest(best_effort, without(needs, burstable.iter().chain(&guaranteed)))?;
    Ok(best_effort.into_iter().chain(burstable).chain(guaranteed).collect())
}
