//! Making room for an important pod by taking less important ones away.

use std::sync::Arc;

use crate::cluster::Cluster;
use crate::config::Profile;
use crate::decide::Decider;
use crate::decide::diagnosis::Diagnosis;
use crate::model::pod::PodInfo;

/// Disruption budgets, as victims are chosen by.
pub(crate) struct Budgets;

/// A node that would do, once the victims are gone.
pub(crate) struct Preemption {
    pub(crate) node: Arc<str>,
    pub(crate) victims: Vec<Arc<PodInfo>>,
    /// Less important pods that were promised the node, and are not any more.
    pub(crate) demoted: Vec<Arc<PodInfo>>,
}

/// What came of an attempt.
#[derive(Default)]
pub(crate) struct Outcome {
    pub(crate) preemption: Option<Preemption>,
    pub(crate) message: String,
    pub(crate) clear_nomination: bool,
}

pub(crate) fn preempt(
    _decider: &mut Decider,
    _cluster: &mut Cluster,
    _budgets: &Budgets,
    _profile: (usize, &Profile),
    _pod: &Arc<PodInfo>,
    _diagnosis: &Diagnosis,
) -> Outcome {
    Outcome::default()
}

impl Budgets {
    pub(crate) fn new(_informers: &rkube_client::InformerFactory) -> Self {
        Self
    }
}

impl crate::scheduler::Scheduler {
    pub(crate) fn carry_out(self: &Arc<Self>, _queued: crate::queue::Queued, _preemption: Preemption) {}
}
