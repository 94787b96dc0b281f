//! The slow, obvious choice of victims, and random clusters on which preemption must make the same one.
//!
//! For every node the oracle takes all less important pods away, puts back whom it can, and compares what is lost.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use proptest::prelude::*;
use rkube_api::Kind;
use rkube_api::k8s::core::v1::{Node, Pod};
use rkube_apimachinery::random::SeededRandom;

use crate::cluster::Cluster;
use crate::config::Profile;
use crate::decide::Verdict;
use crate::model::pod::PodInfo;
use crate::preempt::{self, Budgets};
use crate::tests::oracle::{Dice, World, decider, no_objects, random_node, random_pod};

fn priority(pod: &Pod) -> i32 {
    pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0)
}

fn started(pod: &Pod) -> Timestamp {
    pod.status.as_ref().and_then(|status| status.start_time.as_ref()).expect("every pod has started").0
}

/// What leaving costs, as upstream compares it: the least is best.
type Loss = (i32, i64, usize, Reverse<Timestamp>);

impl World {
    /// Who would leave the node for the pod, the most important first, and what that costs.
    fn victims(&self, pod: &Pod, node: &str) -> Option<(Loss, Vec<String>)> {
        let mut lower: Vec<(&String, &Pod)> = self
            .pods
            .iter()
            .filter(|(_, (other, on))| on == node && priority(other) < priority(pod))
            .map(|(uid, (other, _))| (uid, other))
            .collect();
        lower.sort_by_key(|(_, other)| (Reverse(priority(other)), started(other)));
        let mut rest = self.clone();
        lower.iter().for_each(|(uid, _)| drop(rest.pods.remove(*uid)));
        if !rest.fits(pod, node) {
            return None;
        }
        let mut victims = Vec::new();
        for (uid, other) in lower {
            rest.pods.insert(uid.clone(), (other.clone(), node.to_owned()));
            if !rest.fits(pod, node) {
                rest.pods.remove(uid);
                victims.push((uid.clone(), other));
            }
        }
        let highest = priority(victims.first()?.1);
        let sum = victims.iter().map(|(_, other)| i64::from(priority(other)) - i64::from(i32::MIN)).sum();
        let earliest = victims.iter().filter(|(_, other)| priority(other) == highest).map(|(_, other)| started(other));
        let loss = (highest, sum, victims.len(), Reverse(earliest.min()?));
        Some((loss, victims.into_iter().map(|(uid, _)| uid).collect()))
    }
}

/// A pod with a priority and its own start; plain ones have nothing but requests, so that both ways of judging are taken.
fn ranked_pod(dice: &Dice, step: usize) -> Pod {
    let mut value = random_pod(dice, &format!("p{step}"));
    if let Some(affinity) = value["spec"]["affinity"].as_object_mut() {
        // Whom to be with is upstream's one filter that preemption never helps with.
        affinity.remove("podAffinity");
    }
    if dice.one_in(2) {
        let spec = value["spec"].as_object_mut().expect("an object");
        spec.remove("affinity");
        spec.remove("topologySpreadConstraints");
    }
    value["spec"]["priority"] = (dice.below(5) * 10).into();
    value["status"]["startTime"] = format!("2030-01-01T00:{:02}:{:02}Z", step / 60, step % 60).into();
    Pod::from_value(value).expect("a pod")
}

fn history(seed: u64, steps: usize) -> Result<(), TestCaseError> {
    let dice = Dice(SeededRandom::new(seed));
    let profile = Profile::default();
    let (mut decider, budgets) = (decider(), Budgets::new(&no_objects()));
    let mut cluster = Cluster::default();
    let mut world = World { nodes: BTreeMap::new(), pods: BTreeMap::new(), namespaces: BTreeMap::new() };
    for name in ["default", "other"] {
        cluster.set_namespace(name, Some(BTreeMap::new()));
        world.namespaces.insert(name.to_owned(), BTreeMap::new());
    }
    for index in 0..=dice.below(4) {
        let name = format!("n{index}");
        let node = Node::from_value(random_node(&dice, &name)).expect("a node");
        cluster.set_node(&Arc::new(node.clone()));
        world.nodes.insert(name, node);
    }
    for step in 0..steps {
        let mut pod = ranked_pod(&dice, step);
        let info = PodInfo::new(Arc::new(pod.clone()));
        let target = match decider.decide(&mut cluster, (0, &profile), &info) {
            Verdict::Node(name) => name.to_string(),
            Verdict::NoNodes => return Err(TestCaseError::fail("there are nodes")),
            Verdict::Unfit(diagnosis) => {
                let outcome = preempt::preempt(&mut decider, &mut cluster, &budgets, (0, &profile), &info, &diagnosis);
                let actual = outcome.preemption.map(|preemption| {
                    let victims: Vec<String> = preemption.victims.iter().map(|victim| victim.uid.to_string()).collect();
                    (preemption.node.to_string(), victims)
                });
                let candidates = world.nodes.keys().filter_map(|name| {
                    let (loss, victims) = world.victims(&pod, name)?;
                    Some((loss, (name.clone(), victims)))
                });
                let expected = candidates.min_by_key(|(loss, _)| *loss).map(|(_, candidate)| candidate);
                prop_assert_eq!(&actual, &expected, "step {} for {:?}", step, pod);
                for uid in actual.iter().flat_map(|(_, victims)| victims) {
                    cluster.remove_pod(uid);
                    world.pods.remove(uid);
                }
                // Without a place it goes anywhere, as other schedulers would have it, so that nodes get crowded.
                actual.map_or_else(|| format!("n{}", dice.below(world.nodes.len() as u64)), |(node, _)| node)
            }
        };
        pod.spec.get_or_insert_default().node_name = Some(target.clone());
        cluster.set_pod(&Arc::new(pod.clone()), &target);
        world.pods.insert(format!("p{step}"), (pod, target));
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_same_victims_leave(seed in any::<u64>(), steps in 10_usize..60) {
        history(seed, steps)?;
    }
}
