//! The pods a pod belongs with by default: those of its Services and of its controller.
//!
//! Behaves as pkg/scheduler/framework/plugins/helper/spread.go, v1.36.

use std::collections::BTreeMap;

use rkube_api::Kind;
use rkube_api::k8s::apps::v1::{ReplicaSet, StatefulSet};
use rkube_api::k8s::core::v1::{ReplicationController, Service};
use rkube_apimachinery::labels::Selector;
use rkube_client::{InformerFactory, Lister};

use crate::model::pod::PodInfo;
use crate::model::selector::compile;

/// Finds the selector of a pod that has no spread constraints of its own.
pub(crate) trait Owners: Send + Sync {
    /// Everything, when the pod belongs to nothing.
    fn selector_for(&self, pod: &PodInfo) -> Selector;
}

/// By the caches of Services and controllers.
pub(crate) struct CachedOwners {
    services: Lister<Service>,
    replication_controllers: Lister<ReplicationController>,
    replica_sets: Lister<ReplicaSet>,
    stateful_sets: Lister<StatefulSet>,
}

const BY_LABEL: &str = "scheduler-service-selector";

fn label_value(namespace: &str, key: &str, value: &str) -> String {
    format!("{namespace}/{key}={value}")
}

impl CachedOwners {
    pub(crate) fn new(informers: &InformerFactory) -> Self {
        let services = informers.informer::<Service>();
        // A Service is found by the first label it selects; the rest is compared.
        services.add_index(BY_LABEL, |service| {
            let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
            let namespace = service.metadata().namespace.as_deref().unwrap_or_default();
            let first = selector.and_then(|selector| selector.iter().next());
            first.map(|(key, value)| label_value(namespace, key, value)).into_iter().collect()
        });
        Self {
            services: services.lister(),
            replication_controllers: informers.informer().lister(),
            replica_sets: informers.informer().lister(),
            stateful_sets: informers.informer().lister(),
        }
    }
}

fn set_selector(labels: &BTreeMap<String, String>) -> Selector {
    Selector::from_set(labels.iter().map(|(key, value)| (key.as_str(), value.as_str())))
}

impl Owners for CachedOwners {
    fn selector_for(&self, pod: &PodInfo) -> Selector {
        let mut labels = BTreeMap::new();
        for (key, value) in pod.labels().into_iter().flatten() {
            for service in self.services.by_index(BY_LABEL, &label_value(pod.namespace(), key, value)) {
                let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
                let Some(selector) = selector else { continue };
                let own = pod.labels();
                if selector.iter().all(|(key, value)| own.and_then(|own| own.get(key)) == Some(value)) {
                    labels.extend(selector.clone());
                }
            }
        }
        let owners = pod.pod.metadata.owner_references.iter().flatten();
        let owner = owners.into_iter().find(|owner| owner.controller == Some(true));
        let mut more = Selector::everything();
        if let Some(owner) = owner {
            let (namespace, name) = (pod.namespace(), owner.name.as_str());
            match (owner.api_version.as_str(), owner.kind.as_str()) {
                ("v1", "ReplicationController") => {
                    let controller = self.replication_controllers.get_named(namespace, name);
                    let selector =
                        controller.as_ref().and_then(|controller| controller.spec.as_ref()?.selector.clone());
                    labels.extend(selector.unwrap_or_default());
                }
                ("apps/v1", "ReplicaSet") => {
                    let set = self.replica_sets.get_named(namespace, name);
                    if let Some(spec) = set.as_ref().and_then(|set| set.spec.as_ref()) {
                        more = compile(Some(&spec.selector));
                    }
                }
                ("apps/v1", "StatefulSet") => {
                    let set = self.stateful_sets.get_named(namespace, name);
                    if let Some(spec) = set.as_ref().and_then(|set| set.spec.as_ref()) {
                        more = compile(Some(&spec.selector));
                    }
                }
                _ => {}
            }
        }
        more.requirements()
            .iter()
            .fold(set_selector(&labels), |selector, requirement| selector.and(requirement.clone()))
    }
}
