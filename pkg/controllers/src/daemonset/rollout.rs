//! Replacing pods of an old template, as many at once as the strategy allows.
//!
//! Behaves as `rollingUpdate` of pkg/controller/daemon/update.go, v1.36.

use std::collections::BTreeSet;
use std::sync::Arc;

use rkube_api::k8s::core::v1::Pod;

use super::plan::{Found, Plan};
use crate::common::pods;

/// The living pods of a node, at most one of each kind.
struct OnNode<'a> {
    new: Option<&'a Arc<Pod>>,
    old: Option<&'a Arc<Pod>>,
}

impl<'a> OnNode<'a> {
    /// `None` if there are two of a kind, which `manage` will mend.
    fn of(found: &Found<'_>, members: &'a [Arc<Pod>]) -> Option<Self> {
        let living = members.iter().filter(|pod| !pods::is_terminating(pod));
        let (new, old): (Vec<_>, Vec<_>) = living.partition(|pod| found.is_updated(pod));
        let pair = Self { new: new.first().copied(), old: old.first().copied() };
        (new.len() < 2 && old.len() < 2).then_some(pair)
    }
}

/// The next steps of the rollout. `manage` has had its turn, and its changes were seen.
pub(super) fn rolling_update(found: &Found<'_>) -> Plan {
    if !found.is_rolling() {
        return Plan::default();
    }
    let desired = found.desired();
    let (surge, unavailable) = found.tolerance(desired);
    if surge == 0 { replace(found, unavailable) } else { surge_ahead(found, surge, desired) }
}

/// The nodes to look at: those that have pods and those that should have one.
fn relevant<'a>(found: &'a Found<'_>) -> impl Iterator<Item = (&'a str, &'a [Arc<Pod>])> {
    let wanted = found.nodes.keys().filter(|node| found.runs_on(node));
    let names: BTreeSet<&str> = wanted.chain(found.by_node.keys()).map(String::as_str).collect();
    names.into_iter().map(|node| (node, found.by_node.get(node).map(Vec::as_slice).unwrap_or_default()))
}

/// Deletes old pods, those that are not available first; `manage` makes new ones in their place.
fn replace(found: &Found<'_>, max_unavailable: usize) -> Plan {
    let mut unavailable = 0;
    let (mut useless, mut candidates) = (Vec::new(), Vec::new());
    for (_, members) in relevant(found) {
        match OnNode::of(found, members) {
            Some(OnNode { new: Some(new), old: None }) if found.is_available(new) => {}
            Some(OnNode { new: None, old: Some(old) }) if found.is_available(old) => candidates.push(Arc::clone(old)),
            Some(OnNode { new: None, old: Some(old) }) => {
                // It does not serve, so nothing is lost with it.
                useless.push(Arc::clone(old));
                unavailable += 1;
            }
            _ => unavailable += 1,
        }
    }
    candidates.truncate(max_unavailable.saturating_sub(unavailable));
    useless.extend(candidates);
    Plan { delete: useless, ..Plan::default() }
}

/// Creates new pods beside old ones, and deletes an old one when its successor is available.
fn surge_ahead(found: &Found<'_>, max_surge: usize, desired: usize) -> Plan {
    let (mut surging, mut available) = (0, 0);
    let (mut plan, mut candidates, mut misplaced) = (Plan::default(), Vec::new(), Vec::new());
    for (node, members) in relevant(found) {
        let Some(OnNode { new, old }) = OnNode::of(found, members) else {
            surging += 1;
            continue;
        };
        available += usize::from(old.or(new).is_some_and(|pod| found.is_available(pod)));
        match (new, old) {
            (_, None) => {}
            (Some(new), Some(_)) if !found.is_available(new) => surging += 1,
            (Some(_), Some(old)) => plan.delete.push(Arc::clone(old)),
            (None, Some(old)) => match (found.is_available(old), found.runs_on(node)) {
                (false, false) => plan.delete.push(Arc::clone(old)),
                // It does not serve: its successor is no surge.
                (false, true) => plan.create.push(node.to_owned()),
                (true, false) => misplaced.push(Arc::clone(old)),
                (true, true) => candidates.push(node.to_owned()),
            },
        }
    }
    // An old pod on a node that no longer fits goes when as many serve elsewhere as should.
    misplaced.truncate(available.saturating_sub(desired));
    plan.delete.extend(misplaced);
    candidates.truncate(max_surge.saturating_sub(surging));
    plan.create.extend(candidates);
    plan
}
