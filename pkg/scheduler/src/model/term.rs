//! Pod affinity terms: which pods a term speaks of, and over which topology.
//!
//! Behaves as kube-scheduler/framework/types.go (`AffinityTerm`), v1.36.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rkube_api::k8s::core::v1::{Pod, PodAffinityTerm, WeightedPodAffinityTerm};
use rkube_apimachinery::labels::Selector;

use crate::model::selector::{LabelsOf, compile};

/// A set of pods.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PodSet {
    /// Those of these namespaces,
    pub(crate) namespaces: BTreeSet<String>,
    /// and of the namespaces with such labels,
    pub(crate) namespace_selector: Option<Selector>,
    /// that have such labels.
    pub(crate) selector: Selector,
}

/// What decides whether a pod is in a set.
#[derive(Clone, Copy)]
pub(crate) struct Member<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) namespace_labels: Option<&'a BTreeMap<String, String>>,
    pub(crate) labels: Option<&'a BTreeMap<String, String>>,
}

impl PodSet {
    pub(crate) fn contains(&self, pod: Member<'_>) -> bool {
        let namespace = self.namespaces.contains(pod.namespace)
            || self
                .namespace_selector
                .as_ref()
                .is_some_and(|selector| selector.matches(&LabelsOf(pod.namespace_labels)));
        namespace && self.selector.matches(&LabelsOf(pod.labels))
    }

    /// Labels of one namespace.
    pub(crate) fn in_namespace(namespace: &str, selector: Selector) -> Self {
        Self { namespaces: [namespace.to_owned()].into(), namespace_selector: None, selector }
    }
}

/// A set of pods that is counted per value of a node label.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Term {
    pub(crate) pods: Arc<PodSet>,
    pub(crate) topology_key: Arc<str>,
}

impl Term {
    fn new(term: &PodAffinityTerm, namespace: &str) -> Self {
        let mut namespaces: BTreeSet<String> = term.namespaces.iter().flatten().cloned().collect();
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.insert(namespace.to_owned());
        }
        let pods = PodSet {
            namespaces,
            namespace_selector: term.namespace_selector.as_ref().map(|selector| compile(Some(selector))),
            selector: compile(term.label_selector.as_ref()),
        };
        Self { pods: Arc::new(pods), topology_key: term.topology_key.as_str().into() }
    }
}

/// All terms of one pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Terms {
    pub(crate) required: Vec<Term>,
    pub(crate) required_anti: Vec<Term>,
    /// Negative weights are those of anti-affinity.
    pub(crate) preferred: Vec<(i64, Term)>,
}

impl Terms {
    pub(crate) fn of(pod: &Pod) -> Option<Self> {
        let affinity = pod.spec.as_ref()?.affinity.as_ref()?;
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let term = |term: &PodAffinityTerm| Term::new(term, namespace);
        let weighted = |sign: i64| {
            move |term: &WeightedPodAffinityTerm| {
                (sign * i64::from(term.weight), Term::new(&term.pod_affinity_term, namespace))
            }
        };
        let mut terms = Self::default();
        if let Some(affinity) = &affinity.pod_affinity {
            let required = affinity.required_during_scheduling_ignored_during_execution.iter().flatten();
            terms.required = required.map(term).collect();
            let preferred = affinity.preferred_during_scheduling_ignored_during_execution.iter().flatten();
            terms.preferred.extend(preferred.map(weighted(1)));
        }
        if let Some(affinity) = &affinity.pod_anti_affinity {
            let required = affinity.required_during_scheduling_ignored_during_execution.iter().flatten();
            terms.required_anti = required.map(term).collect();
            let preferred = affinity.preferred_during_scheduling_ignored_during_execution.iter().flatten();
            terms.preferred.extend(preferred.map(weighted(-1)));
        }
        let any = !(terms.required.is_empty() && terms.required_anti.is_empty() && terms.preferred.is_empty());
        any.then_some(terms)
    }
}
