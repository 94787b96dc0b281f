//! Which of many pod sets may contain a pod, without asking each of them.
//!
//! A set of one namespace whose selector demands `key=value` can only contain pods with that label, and is
//! looked up by it. Sets that demand nothing exact are looked up by namespace, the rest always.

use std::collections::HashMap;

use crate::model::term::{Member, PodSet};

/// Ids of pod sets by what they demand.
#[derive(Debug, Default)]
pub(crate) struct PodSetIndex {
    namespaces: HashMap<String, OfNamespace>,
    anywhere: Vec<u32>,
}

#[derive(Debug, Default)]
struct OfNamespace {
    by_label: HashMap<String, HashMap<String, Vec<u32>>>,
    rest: Vec<u32>,
}

fn exact(set: &PodSet) -> Option<(&str, &str)> {
    let requirements = set.selector.requirements().iter();
    requirements
        .map(rkube_apimachinery::labels::Requirement::key)
        .find_map(|key| Some((key, set.selector.requires_exact_match(key)?)))
}

impl PodSetIndex {
    pub(crate) fn insert(&mut self, set: &PodSet, id: u32) {
        self.lists(set, |list| list.push(id));
    }

    pub(crate) fn remove(&mut self, set: &PodSet, id: u32) {
        self.lists(set, |list| list.retain(|known| *known != id));
        for namespace in &set.namespaces {
            let Some(of_namespace) = self.namespaces.get_mut(namespace) else { continue };
            if let Some((key, value)) = exact(set)
                && let Some(values) = of_namespace.by_label.get_mut(key)
                && values.get(value).is_some_and(Vec::is_empty)
            {
                values.remove(value);
                if values.is_empty() {
                    of_namespace.by_label.remove(key);
                }
            }
            if of_namespace.by_label.is_empty() && of_namespace.rest.is_empty() {
                self.namespaces.remove(namespace);
            }
        }
    }

    fn lists(&mut self, set: &PodSet, mut change: impl FnMut(&mut Vec<u32>)) {
        if set.selector.is_nothing() {
            return;
        }
        if set.namespace_selector.is_some() {
            return change(&mut self.anywhere);
        }
        for namespace in &set.namespaces {
            let of_namespace = self.namespaces.entry(namespace.clone()).or_default();
            match exact(set) {
                Some((key, value)) => {
                    let values = of_namespace.by_label.entry(key.to_owned()).or_default();
                    change(values.entry(value.to_owned()).or_default());
                }
                None => change(&mut of_namespace.rest),
            }
        }
    }

    /// The sets that may contain the pod; the caller asks each. A set is named once.
    pub(crate) fn candidates(&self, pod: Member<'_>, mut each: impl FnMut(u32)) {
        self.anywhere.iter().copied().for_each(&mut each);
        let Some(of_namespace) = self.namespaces.get(pod.namespace) else { return };
        of_namespace.rest.iter().copied().for_each(&mut each);
        if of_namespace.by_label.is_empty() {
            return;
        }
        for (key, value) in pod.labels.into_iter().flatten() {
            let ids = of_namespace.by_label.get(key).and_then(|values| values.get(value));
            ids.into_iter().flatten().copied().for_each(&mut each);
        }
    }
}
