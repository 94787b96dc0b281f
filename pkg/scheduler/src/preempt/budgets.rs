//! Which victims' disruption budgets are used up.

use std::sync::Arc;

use rkube_api::k8s::policy::v1::PodDisruptionBudget;
use rkube_apimachinery::labels::Selector;
use rkube_client::{InformerFactory, Lister};

use crate::model::pod::PodInfo;
use crate::model::selector::{LabelsOf, compile};

/// All disruption budgets.
pub(crate) struct Budgets {
    lister: Lister<PodDisruptionBudget>,
}

/// Budgets at one moment.
pub(crate) struct Snapshot(Vec<Budget>);

struct Budget {
    object: Arc<PodDisruptionBudget>,
    selector: Selector,
    allowed: i32,
}

impl Budgets {
    pub(crate) fn new(informers: &InformerFactory) -> Self {
        Self { lister: informers.informer().lister() }
    }

    pub(crate) fn now(&self) -> Snapshot {
        let budgets = self.lister.list_all("").into_iter().filter_map(|object| {
            let selector = compile(object.spec.as_ref()?.selector.as_ref());
            let allowed = object.status.as_ref().and_then(|status| status.disruptions_allowed).unwrap_or(0);
            // A budget without a selector, or with an empty one, is about nobody.
            let idle = selector.is_everything() || selector.is_nothing();
            (!idle).then_some(Budget { object, selector, allowed })
        });
        Snapshot(budgets.collect())
    }
}

impl Snapshot {
    /// Those whose leaving violates a budget, and the others, each in the order given.
    pub(crate) fn split(&self, pods: Vec<Arc<PodInfo>>) -> (Vec<Arc<PodInfo>>, Vec<Arc<PodInfo>>) {
        if self.0.is_empty() {
            return (Vec::new(), pods);
        }
        let mut allowed: Vec<i32> = self.0.iter().map(|budget| budget.allowed).collect();
        pods.into_iter().partition(|pod| {
            let mut violated = false;
            for (budget, allowed) in self.0.iter().zip(&mut allowed) {
                let metadata = &budget.object.metadata;
                if metadata.namespace.as_deref() != Some(pod.namespace())
                    || pod.labels().is_none_or(std::collections::BTreeMap::is_empty)
                    || !budget.selector.matches(&LabelsOf(pod.labels()))
                {
                    continue;
                }
                // One the server is evicting already is counted there.
                let disrupted = budget.object.status.as_ref().and_then(|status| status.disrupted_pods.as_ref());
                if disrupted.is_some_and(|pods| pods.contains_key(&*pod.key.name)) {
                    continue;
                }
                *allowed -= 1;
                violated |= *allowed < 0;
            }
            violated
        })
    }
}
