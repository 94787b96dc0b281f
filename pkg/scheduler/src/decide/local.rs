//! Filters and scores that need one node and the pod, and nothing else.
//!
//! Behaves as the plugins NodeUnschedulable, NodeName, TaintToleration, NodeAffinity, NodePorts,
//! NodeResourcesFit, NodeResourcesBalancedAllocation and ImageLocality of pkg/scheduler/framework/plugins, v1.36.

use smallvec::SmallVec;

use crate::cluster::{Cluster, NodeState, Taken};
use crate::config::{Profile, ResourceWeight, Strategy};
use crate::decide::diagnosis::Rejection;
use crate::model::node_affinity;
use crate::model::pod::PodInfo;
use crate::model::resources::{Resources, is_extended, is_scalar};
use crate::model::taints;
use crate::plugins::Plugin;

pub(crate) const SCORE_MAX: i64 = 100;

const MEBIBYTE: i64 = 1024 * 1024;
/// Images smaller than this in sum are not worth a preference; per container, larger ones are worth no more.
const IMAGES_MIN: i64 = 23 * MEBIBYTE;
const IMAGE_MAX: i64 = 1000 * MEBIBYTE;

/// Whether the node's taints let the pod in.
pub(crate) fn taints_allow(pod: &PodInfo, node: &NodeState) -> bool {
    !taints::is_repelled(pod.tolerations(), node.taints())
}

/// Whether the node is one the pod's own node selector and affinity allow.
pub(crate) fn affinity_allows(pod: &PodInfo, node: &NodeState) -> bool {
    node_affinity::required_matches(pod.spec(), node.labels())
}

/// The first plugin's no that depends on the node alone, not on the pods on it.
pub(crate) fn check_node(profile: &Profile, pod: &PodInfo, node: &NodeState) -> Option<Rejection> {
    if profile.filters(Plugin::NodeUnschedulable)
        && node.is_unschedulable()
        && !taints::tolerates_unschedulable(pod.tolerations())
    {
        return Some(Rejection::unresolvable(Plugin::NodeUnschedulable, "node(s) were unschedulable"));
    }
    if profile.filters(Plugin::NodeName) && pod.node_name().is_some_and(|name| *name != *node.name) {
        return Some(Rejection::unresolvable(Plugin::NodeName, "node(s) didn't match the requested node name"));
    }
    if profile.filters(Plugin::TaintToleration) && !taints_allow(pod, node) {
        return Some(Rejection::unresolvable(Plugin::TaintToleration, "node(s) had untolerated taint(s)"));
    }
    if profile.filters(Plugin::NodeAffinity) {
        let added = profile.added_affinity.as_ref();
        let added = added.and_then(|added| added.required_during_scheduling_ignored_during_execution.as_ref());
        if added.is_some_and(|selector| !node_affinity::selector_matches(selector, node.labels())) {
            let reason = "node(s) didn't match scheduler-enforced node affinity";
            return Some(Rejection::unresolvable(Plugin::NodeAffinity, reason));
        }
        if !affinity_allows(pod, node) {
            let reason = "node(s) didn't match Pod's node affinity/selector";
            return Some(Rejection::unresolvable(Plugin::NodeAffinity, reason));
        }
    }
    None
}

/// The first plugin's no that depends on what is on the node.
pub(crate) fn check_room(profile: &Profile, pod: &PodInfo, node: &NodeState) -> Option<Rejection> {
    if profile.filters(Plugin::NodePorts) && node.port_conflict(pod) {
        let reason = "node(s) didn't have free ports for the requested pod ports";
        return Some(Rejection::resolvable(Plugin::NodePorts, reason));
    }
    check_fit(profile, pod, node, (&node.requested, node.pods.len()))
}

/// As `check_room` for a pod without host ports, with `taken` in place of what the node's pods take.
pub(crate) fn check_taken(profile: &Profile, pod: &PodInfo, node: &NodeState, taken: &Taken) -> Option<Rejection> {
    check_fit(profile, pod, node, (&taken.requested, taken.pods))
}

fn check_fit(
    profile: &Profile,
    pod: &PodInfo,
    node: &NodeState,
    (used, pods): (&Resources, usize),
) -> Option<Rejection> {
    if !profile.filters(Plugin::NodeResourcesFit) {
        return None;
    }
    let mut rejection: Option<Rejection> = None;
    let mut lacks = |reason: std::borrow::Cow<'static, str>, more_than_all: bool| {
        let rejection = rejection.get_or_insert_with(|| Rejection {
            plugin: Plugin::NodeResourcesFit,
            resolvable: true,
            reasons: SmallVec::new(),
        });
        rejection.reasons.push(reason);
        rejection.resolvable &= !more_than_all;
    };
    if pods as i64 + 1 > node.pods_max {
        lacks("Too many pods".into(), false);
    }
    let (wanted, all) = (&pod.requests, &node.allocatable);
    if wanted.is_zero() {
        return rejection;
    }
    if wanted.milli_cpu > 0 && wanted.milli_cpu > all.milli_cpu - used.milli_cpu {
        lacks("Insufficient cpu".into(), wanted.milli_cpu > all.milli_cpu);
    }
    if wanted.memory > 0 && wanted.memory > all.memory - used.memory {
        lacks("Insufficient memory".into(), wanted.memory > all.memory);
    }
    if wanted.ephemeral_storage > 0 && wanted.ephemeral_storage > all.ephemeral_storage - used.ephemeral_storage {
        lacks("Insufficient ephemeral-storage".into(), wanted.ephemeral_storage > all.ephemeral_storage);
    }
    for (name, amount) in &wanted.scalars {
        if is_extended(name) && is_ignored(profile, name) {
            continue;
        }
        let offered = all.scalar(name);
        if *amount > offered - used.scalar(name) {
            lacks(format!("Insufficient {name}").into(), *amount > offered);
        }
    }
    rejection
}

fn is_ignored(profile: &Profile, name: &str) -> bool {
    let group = name.split('/').next().unwrap_or_default();
    profile.fit.ignored_resources.iter().any(|ignored| ignored == name)
        || profile.fit.ignored_groups.iter().any(|ignored| ignored == group)
}

/// Requested (with the pod), allocated (without) and allocatable of one resource.
struct Share {
    requested: i64,
    allocated: i64,
    allocatable: i64,
}

fn shares(
    resources: &[ResourceWeight],
    pod: &PodInfo,
    node: &NodeState,
    defaults: bool,
) -> SmallVec<[(i64, Share); 2]> {
    let mut shares = SmallVec::new();
    for resource in resources {
        let name = resource.name.as_str();
        let (wanted, allocated) = match name {
            "cpu" if defaults => (pod.non_zero.0, node.non_zero.0),
            "memory" if defaults => (pod.non_zero.1, node.non_zero.1),
            name => (pod.requests.get(name), node.requested.get(name)),
        };
        let allocatable = node.allocatable.get(name);
        if allocatable == 0 || (wanted == 0 && is_scalar(name)) {
            continue;
        }
        shares.push((resource.weight, Share { requested: allocated + wanted, allocated, allocatable }));
    }
    shares
}

/// NodeResourcesFit's score.
pub(crate) fn fit_score(profile: &Profile, pod: &PodInfo, node: &NodeState) -> i64 {
    let (mut sum, mut weights) = (0_i64, 0_i64);
    for (weight, share) in shares(&profile.fit.resources, pod, node, true) {
        let Share { requested, allocatable, .. } = share;
        let score = match &profile.fit.strategy {
            Strategy::LeastAllocated if requested > allocatable => 0,
            Strategy::LeastAllocated => ratio(allocatable - requested, allocatable),
            Strategy::MostAllocated => ratio(requested.min(allocatable), allocatable),
            Strategy::RequestedToCapacityRatio(shape) => {
                let utilization = if requested > allocatable { 100 } else { ratio(requested, allocatable) };
                match interpolate(shape, utilization) {
                    score if score > 0 => score,
                    _ => continue,
                }
            }
        };
        sum += score * weight;
        weights += weight;
    }
    match &profile.fit.strategy {
        _ if weights == 0 => 0,
        Strategy::RequestedToCapacityRatio(_) => (sum as f64 / weights as f64).round() as i64,
        _ => sum / weights,
    }
}

/// `100 * part / whole`; bytes times 100 may not fit 64 bits.
fn ratio(part: i64, whole: i64) -> i64 {
    i64::try_from(i128::from(part) * i128::from(SCORE_MAX) / i128::from(whole)).unwrap_or(0)
}

fn interpolate(shape: &[(i64, i64)], at: i64) -> i64 {
    let Some(next) = shape.iter().position(|(utilization, _)| at <= *utilization) else {
        return shape.last().map_or(0, |(_, score)| *score);
    };
    let (x, y) = shape[next];
    match next.checked_sub(1).map(|before| shape[before]) {
        None => y,
        Some((x0, y0)) => y0 + (y - y0) * (at - x0) / (x - x0),
    }
}

/// Whether NodeResourcesBalancedAllocation has nothing to say of the pod.
pub(crate) fn balance_is_moot(profile: &Profile, pod: &PodInfo) -> bool {
    profile.balanced.iter().all(|resource| pod.requests.get(&resource.name) == 0)
}

/// NodeResourcesBalancedAllocation's score: 75 when the pod changes nothing, more when it evens things out.
pub(crate) fn balanced_score(profile: &Profile, pod: &PodInfo, node: &NodeState) -> i64 {
    let shares = shares(&profile.balanced, pod, node, false);
    let fraction = |amount: i64, share: &Share| (amount as f64 / share.allocatable as f64).min(1.0);
    let with: SmallVec<[f64; 2]> = shares.iter().map(|(_, share)| fraction(share.requested, share)).collect();
    let without: SmallVec<[f64; 2]> = shares.iter().map(|(_, share)| fraction(share.allocated, share)).collect();
    SCORE_MAX / 2 + (SCORE_MAX / 2 + evenness(&with) - evenness(&without)) / 2
}

fn evenness(fractions: &[f64]) -> i64 {
    let deviation = match fractions {
        [] | [_] => 0.0,
        [a, b] => ((a - b) / 2.0).abs(),
        many => {
            let count = many.len() as f64;
            let mean = many.iter().sum::<f64>() / count;
            (many.iter().map(|fraction| (fraction - mean) * (fraction - mean)).sum::<f64>() / count).sqrt()
        }
    };
    ((1.0 - deviation) * SCORE_MAX as f64) as i64
}

/// TaintToleration's raw score: unwelcome, so less is better.
pub(crate) fn soft_taints(pod: &PodInfo, node: &NodeState) -> i64 {
    taints::count_soft(pod.tolerations(), node.taints())
}

/// NodeAffinity's raw score.
pub(crate) fn preference(profile: &Profile, pod: &PodInfo, node: &NodeState) -> i64 {
    let own = node_affinity::preference(pod.spec(), node.labels());
    let added = profile.added_affinity.as_ref();
    let added = added.and_then(|added| added.preferred_during_scheduling_ignored_during_execution.as_ref());
    let met = added.into_iter().flatten().filter(|term| node_affinity::term_matches(&term.preference, node.labels()));
    own + met.map(|term| i64::from(term.weight)).sum::<i64>()
}

/// ImageLocality's score: the bytes the node already has, less where few nodes have them, so that not all
/// pods of an image go to the one node that pulled it first.
pub(crate) fn image_score(cluster: &Cluster, pod: &PodInfo, node: &NodeState) -> i64 {
    if node.images.is_empty() {
        return 0;
    }
    let spec = pod.spec();
    let containers = || spec.init_containers.iter().flatten().chain(&spec.containers);
    let volumes = spec.volumes.iter().flatten().filter_map(|volume| volume.image.as_ref()?.reference.as_deref());
    let names = containers().filter_map(|container| container.image.as_deref()).chain(volumes);
    let nodes = cluster.node_count().max(1) as f64;
    let sum: i64 = names
        .filter_map(|name| {
            let name = with_tag(name);
            let size = node.images.get(&*name)?;
            let spread = cluster.nodes_with_image(&name) as f64 / nodes;
            Some((*size as f64 * spread) as i64)
        })
        .sum();
    let most = IMAGE_MAX * containers().count().max(1) as i64;
    SCORE_MAX * (sum.clamp(IMAGES_MIN, most) - IMAGES_MIN) / (most - IMAGES_MIN)
}

/// The name as nodes report it: with a tag.
fn with_tag(name: &str) -> std::borrow::Cow<'_, str> {
    let tagged = name.rfind(':').is_some_and(|colon| name.rfind('/').is_none_or(|slash| colon > slash));
    if tagged { name.into() } else { format!("{name}:latest").into() }
}
