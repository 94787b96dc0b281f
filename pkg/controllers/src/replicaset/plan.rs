//! How many pods to create, or which to delete.

use std::sync::Arc;

use jiff::Timestamp;
use rkube_api::k8s::core::v1::Pod;

use crate::common::pods;

/// Creations or deletions in one sync. The rest follows when these were seen.
pub(crate) const BURST_REPLICAS: usize = 500;

#[derive(Debug)]
pub(crate) enum Plan {
    Nothing,
    Create(usize),
    Delete(Vec<Arc<Pod>>),
}

/// `active` are the pods the owner has, `related` those of its application on the same nodes.
pub(crate) fn plan(replicas: i32, active: &[Arc<Pod>], related: &[Arc<Pod>], now: Timestamp) -> Plan {
    let wanted = usize::try_from(replicas).unwrap_or(0);
    match wanted.cmp(&active.len()) {
        std::cmp::Ordering::Equal => Plan::Nothing,
        std::cmp::Ordering::Greater => Plan::Create((wanted - active.len()).min(BURST_REPLICAS)),
        std::cmp::Ordering::Less => {
            let count = (active.len() - wanted).min(BURST_REPLICAS);
            Plan::Delete(pods::choose_for_deletion(active, related, count, now))
        }
    }
}
