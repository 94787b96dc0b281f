//! How many pods the controllers of some pods want.

use std::collections::BTreeMap;
use std::sync::Arc;

use rkube_api::Kind;
use rkube_api::k8s::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use rkube_api::k8s::core::v1::{Pod, ReplicationController};
use rkube_api::meta::pkg::apis::meta::v1::OwnerReference;
use rkube_apimachinery::gvk::GroupVersion;
use rkube_apimachinery::meta::Meta;
use rkube_client::owner::{controller_of, uid_of};
use rkube_client::{Client, Lister, SyncError};

use crate::common::enqueue::resolve;
use crate::common::mapper::Mapper;

pub(super) struct Scales {
    pub(super) client: Client,
    pub(super) mapper: Mapper,
    pub(super) controllers: Lister<ReplicationController>,
    pub(super) replica_sets: Lister<ReplicaSet>,
    pub(super) deployments: Lister<Deployment>,
    pub(super) stateful_sets: Lister<StatefulSet>,
}

/// The scale of all controllers of some pods.
#[derive(Debug, Default)]
pub(super) struct Total {
    pub(super) scale: i32,
    /// Pods that nothing controls.
    pub(super) unmanaged: Vec<String>,
}

/// Uid and wanted replicas of a controller.
type Scale = (String, i32);

impl Scales {
    pub(super) async fn total(&self, pods: &[Arc<Pod>]) -> Result<Total, SyncError> {
        // What a pod refers to is not always what is counted: pods of a Deployment refer to its ReplicaSets.
        let mut scales: BTreeMap<String, i32> = BTreeMap::new();
        let mut total = Total::default();
        for pod in pods {
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            let Some(reference) = controller_of(&pod.metadata) else {
                total.unmanaged.push(name.to_owned());
                continue;
            };
            if scales.contains_key(&reference.uid) {
                continue;
            }
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            let Some((uid, scale)) = self.of(namespace, reference).await? else {
                return Err(SyncError::other(format!("found no controllers for pod {name:?}")));
            };
            scales.insert(uid, scale);
        }
        total.scale = scales.values().fold(0, |sum, scale| sum.saturating_add(*scale));
        Ok(total)
    }

    async fn of(&self, namespace: &str, reference: &OwnerReference) -> Result<Option<Scale>, SyncError> {
        let Some(version) = GroupVersion::parse(&reference.api_version) else {
            let text = format!("unexpected GroupVersion string: {}", reference.api_version);
            return Err(SyncError::other(text));
        };
        match self.cached(namespace, reference, &version.group) {
            Some(scale) => Ok(Some(scale)),
            None => self.served(namespace, reference, &version).await,
        }
    }

    /// The scale of a built-in kind, from the cache.
    fn cached(&self, namespace: &str, reference: &OwnerReference, group: &str) -> Option<Scale> {
        match (group, reference.kind.as_str()) {
            ("", ReplicationController::KIND) => {
                let controller = resolve(&self.controllers, namespace, reference)?;
                Some(scale_of(&*controller, controller.spec.as_ref().and_then(|spec| spec.replicas)))
            }
            ("apps" | "extensions", ReplicaSet::KIND) => {
                let set = resolve(&self.replica_sets, namespace, reference)?;
                match controller_of(&set.metadata).filter(|owner| owner.kind == Deployment::KIND) {
                    Some(owner) => {
                        let deployment = resolve(&self.deployments, namespace, owner)?;
                        Some(scale_of(&*deployment, deployment.spec.as_ref().and_then(|spec| spec.replicas)))
                    }
                    None => Some(scale_of(&*set, set.spec.as_ref().and_then(|spec| spec.replicas))),
                }
            }
            ("apps", StatefulSet::KIND) => {
                let set = resolve(&self.stateful_sets, namespace, reference)?;
                Some(scale_of(&*set, set.spec.as_ref().and_then(|spec| spec.replicas)))
            }
            _ => None,
        }
    }

    /// The scale of any kind that has the subresource.
    async fn served(
        &self,
        namespace: &str,
        reference: &OwnerReference,
        version: &GroupVersion,
    ) -> Result<Option<Scale>, SyncError> {
        let Some(resource) = self.mapper.resource_of(&version.group, &reference.kind).await? else {
            let text = format!("no matches for kind {:?} in version {:?}", reference.kind, reference.api_version);
            return Err(SyncError::other(text));
        };
        if resource.subresource("scale").is_none_or(|scale| scale.kind != "Scale") {
            let text = format!("{} does not implement the scale subresource", resource.group_resource());
            return Err(SyncError::other(text));
        }
        let scale = match self.client.dynamic(resource, namespace).get_subresource(&reference.name, "scale").await {
            Ok(scale) => scale,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let replicas = scale["spec"]["replicas"].as_i64().and_then(|count| i32::try_from(count).ok()).unwrap_or(0);
        Ok((scale.uid() == reference.uid).then(|| (reference.uid.clone(), replicas)))
    }
}

fn scale_of<K: Kind>(controller: &K, replicas: Option<i32>) -> Scale {
    (uid_of(controller).to_owned(), replicas.unwrap_or(1))
}
