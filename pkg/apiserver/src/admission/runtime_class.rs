//! A pod of a runtime class carries its overhead and goes where the class can run.
//!
//! Behaves as `plugin/pkg/admission/runtimeclass/admission.go`, v1.36.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use rkube_api::k8s::core::v1::Pod;
use rkube_api::k8s::node::v1::RuntimeClass;
use rkube_api::pod_resources;
use rkube_apimachinery::status::ApiStatus;
use rkube_registry::{Attributes, Operation};

use super::{Objects, Plugin, forbidden, is_resource, object};

pub(super) struct RuntimeClassAdmission {
    objects: Objects,
}

impl RuntimeClassAdmission {
    pub(super) fn new(objects: Objects) -> Self {
        Self { objects }
    }

    async fn class(&self, attributes: &mut Attributes) -> Result<Option<Arc<RuntimeClass>>, ApiStatus> {
        let Some(pod) = attributes.object.as_mut() else { return Ok(None) };
        let pod = pod.typed::<Pod>().map_err(super::not_convertible)?;
        let Some(name) = pod.spec.as_ref().and_then(|spec| spec.runtime_class_name.clone()) else { return Ok(None) };
        match self.objects.cached_or_live::<RuntimeClass>("", &name).await? {
            Some(class) => Ok(Some(class)),
            None => Err(forbidden(attributes, format!("pod rejected: RuntimeClass {name:?} not found"))),
        }
    }

    async fn mutate(&self, attributes: &mut Attributes) -> Result<(), ApiStatus> {
        let Some(class) = self.class(attributes).await? else { return Ok(()) };
        let spec = object!(attributes, Pod).spec.get_or_insert_default();
        if let Some(overhead) = class.overhead.as_ref() {
            let given = pod_resources::parse(spec.overhead.as_ref());
            if !given.is_empty() && given != pod_resources::parse(overhead.pod_fixed.as_ref()) {
                return Err(forbidden(attributes, OVERHEAD_DIFFERS));
            }
            spec.overhead = overhead.pod_fixed.clone();
        }
        let Some(scheduling) = class.scheduling.as_ref() else { return Ok(()) };
        let mut conflict = None;
        for (key, value) in scheduling.node_selector.iter().flatten() {
            let selector = spec.node_selector.get_or_insert_default();
            if let Some(given) = selector.insert(key.clone(), value.clone()).filter(|given| given != value) {
                conflict = Some(format!(
                    "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {value}; pod.spec.nodeSelector[{key}] = {given}"
                ));
            }
        }
        for toleration in scheduling.tolerations.iter().flatten() {
            let tolerations = spec.tolerations.get_or_insert_default();
            if !tolerations.contains(toleration) {
                tolerations.push(toleration.clone());
            }
        }
        conflict.map_or(Ok(()), |text| Err(forbidden(attributes, text)))
    }

    async fn check(&self, attributes: &mut Attributes) -> Result<(), ApiStatus> {
        let class = self.class(attributes).await?;
        let overhead = class.as_ref().and_then(|class| class.overhead.as_ref());
        let given = object!(attributes, Pod).spec.get_or_insert_default().overhead.clone();
        match overhead {
            Some(overhead)
                if pod_resources::parse(overhead.pod_fixed.as_ref()) != pod_resources::parse(given.as_ref()) =>
            {
                Err(forbidden(attributes, OVERHEAD_DIFFERS))
            }
            None if given.is_some() => Err(forbidden(
                attributes,
                "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead",
            )),
            _ => Ok(()),
        }
    }
}

const OVERHEAD_DIFFERS: &str = "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead";

impl Plugin for RuntimeClassAdmission {
    fn name(&self) -> &'static str {
        "RuntimeClass"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Create
    }

    fn admit<'a>(&'a self, attributes: &'a mut Attributes) -> BoxFuture<'a, Result<(), ApiStatus>> {
        Box::pin(
            async move { if is_resource(attributes, "", "pods") { self.mutate(attributes).await } else { Ok(()) } },
        )
    }

    fn validate<'a>(&'a self, attributes: &'a mut Attributes) -> BoxFuture<'a, Result<(), ApiStatus>> {
        Box::pin(async move { if is_resource(attributes, "", "pods") { self.check(attributes).await } else { Ok(()) } })
    }
}
