//! Objects live in namespaces that exist and are not going away.
//!
//! Behaves as `apiserver/pkg/admission/plugin/namespace/lifecycle/admission.go`, v1.36.

use futures_util::future::BoxFuture;
use rkube_api::k8s::core::v1::Namespace;
use rkube_apimachinery::gvk::GroupResource;
use rkube_apimachinery::status::ApiStatus;
use rkube_registry::{Attributes, Operation};

use super::{Objects, Plugin, forbidden};

/// Namespaces the cluster cannot be without.
const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

pub(super) struct NamespaceLifecycle {
    objects: Objects,
}

impl NamespaceLifecycle {
    pub(super) fn new(objects: Objects) -> Self {
        Self { objects }
    }

    async fn check(&self, attributes: &mut Attributes) -> Result<(), ApiStatus> {
        let is_namespace = attributes.resource.group.is_empty() && attributes.resource.plural == "namespaces";
        if is_namespace {
            if attributes.operation == Operation::Delete && IMMORTAL.contains(&attributes.name.as_ref()) {
                return Err(forbidden(attributes, "this namespace may not be deleted"));
            }
            return Ok(());
        }
        // An access review about a namespace must not tell whether it exists.
        let is_access_review = attributes.resource.group == "authorization.k8s.io";
        if attributes.namespace.is_empty() || attributes.operation == Operation::Delete || is_access_review {
            return Ok(());
        }
        let name = attributes.namespace.clone();
        let Some(namespace) = self.objects.cached_or_live::<Namespace>("", &name).await? else {
            return Err(ApiStatus::not_found(&GroupResource::new("", "namespaces"), &name));
        };
        let phase = namespace.status.as_ref().and_then(|status| status.phase.as_deref());
        if attributes.operation == Operation::Create && phase == Some("Terminating") {
            let text = format!("unable to create new content in namespace {name} because it is being terminated");
            let message = format!("namespace {name} is being terminated");
            return Err(forbidden(attributes, text).cause("NamespaceTerminating", message, "metadata.namespace"));
        }
        Ok(())
    }
}

impl Plugin for NamespaceLifecycle {
    fn name(&self) -> &'static str {
        "NamespaceLifecycle"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation != Operation::Connect
    }

    fn admit<'a>(&'a self, attributes: &'a mut Attributes) -> BoxFuture<'a, Result<(), ApiStatus>> {
        Box::pin(self.check(attributes))
    }
}
