//! One decision: which node a pod goes to, or why none will have it.
//!
//! In: the cluster, a profile, a pod. Out: a node or a diagnosis. No I/O, no time.
//! The parts of filters and scores that need one node and the pod come from views that are kept; what depends on
//! other nodes comes from counts that are kept. Neither walks pods.
//! Behaves as pkg/scheduler/schedule_one.go (`schedulePod`), v1.36.

pub(crate) mod affinity;
pub(crate) mod diagnosis;
pub(crate) mod eval;
pub(crate) mod local;
pub(crate) mod owners;
pub(crate) mod score;
pub(crate) mod spread;
mod views;

use std::collections::BTreeSet;
use std::sync::Arc;

use rkube_apimachinery::random::SharedRandom;

use crate::cluster::Cluster;
use crate::config::Profile;
use crate::decide::diagnosis::Diagnosis;
use crate::decide::eval::{Eval, Round};
use crate::decide::owners::Owners;
use crate::decide::views::Views;
use crate::model::node_affinity;
use crate::model::pod::PodInfo;
use crate::plugins::{Plugin, Point};
use crate::volumes::{Bindings, Storage};

/// What came of a decision.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Node(Arc<str>),
    /// There are no nodes at all.
    NoNodes,
    Unfit(Box<Diagnosis>),
}

/// Decides, with memory of earlier decisions for speed only.
pub(crate) struct Decider {
    views: Views,
    owners: Box<dyn Owners>,
    pub(crate) storage: Storage,
    random: SharedRandom,
}

impl Decider {
    pub(crate) fn new(owners: Box<dyn Owners>, storage: Storage, random: SharedRandom) -> Self {
        Self { views: Views::default(), owners, storage, random }
    }

    pub(crate) fn random(&self) -> SharedRandom {
        Arc::clone(&self.random)
    }

    /// Everything about the pod that is not one node's affair, resolved against the cluster of this moment.
    pub(crate) fn eval<'a>(
        &'a mut self,
        cluster: &'a mut Cluster,
        (profile_index, profile): (usize, &'a Profile),
        pod: &'a Arc<PodInfo>,
    ) -> Result<Eval<'a>, Box<Diagnosis>> {
        let named = named_nodes(cluster, profile, pod)?;
        let volumes = self.storage.plan(cluster, profile, pod);
        let volumes = volumes
            .map_err(|(plugin, message)| Diagnosis::before_nodes(cluster.node_count(), plugin, message))?
            .map(|plan| (&self.storage, plan));
        let spread = spread::Plan::new(cluster, profile, pod, self.owners.as_ref());
        let affinity = affinity::Plan::new(cluster, profile, pod);
        let cluster = &*cluster;
        let view = match &named {
            // Pods of a DaemonSet are each of their own kind: looking at all nodes for each would not do.
            Some(named) if !spread.has_hard() && !spread.has_soft() => {
                self.views.of_few(cluster, profile, pod, named.iter().filter_map(|name| cluster.slot_of(name)))
            }
            _ => self.views.of(cluster, profile_index, profile, pod),
        };
        let round = Round::new(cluster, view, spread, affinity);
        Ok(Eval::new(cluster, profile, pod, view, round, volumes, named))
    }

    /// Takes the volumes that go with the node, if any wait for it.
    pub(crate) fn reserve(
        &mut self,
        cluster: &Cluster,
        profile: &Profile,
        pod: &PodInfo,
        node: &str,
    ) -> Option<Bindings> {
        let plan = self.storage.plan(cluster, profile, pod).ok()??;
        self.storage.reserve(&plan, cluster.node(cluster.slot_of(node)?)?)
    }

    pub(crate) fn decide(&mut self, cluster: &mut Cluster, profile: (usize, &Profile), pod: &Arc<PodInfo>) -> Verdict {
        if cluster.node_count() == 0 {
            return Verdict::NoNodes;
        }
        let random = self.random();
        let mut eval = match self.eval(cluster, profile, pod) {
            Ok(eval) => eval,
            Err(diagnosis) => return Verdict::Unfit(diagnosis),
        };
        // A node this pod was promised is taken if it can be, so that preemption is not for nothing.
        if let Some(name) = eval.own_nomination() {
            return Verdict::Node(name);
        }
        let best = match score::best_ranked(&mut eval, random.as_ref()) {
            Some(best) => best,
            None => {
                let feasible = eval.feasible();
                score::best(&eval, &feasible, random.as_ref())
            }
        };
        match best.and_then(|slot| eval.cluster.node(slot)) {
            Some(node) => Verdict::Node(Arc::clone(&node.name)),
            None => Verdict::Unfit(Box::new(eval.diagnose())),
        }
    }
}

/// The only nodes worth a look, if the pod names some.
fn named_nodes(
    cluster: &Cluster,
    profile: &Profile,
    pod: &PodInfo,
) -> Result<Option<BTreeSet<String>>, Box<Diagnosis>> {
    if !profile.enabled(Point::PreFilter, Plugin::NodeAffinity) {
        return Ok(None);
    }
    node_affinity::named_nodes(pod.spec()).map_err(|node_affinity::ConflictingTerms| {
        Diagnosis::before_nodes(cluster.node_count(), Plugin::NodeAffinity, "pod affinity terms conflict")
    })
}
