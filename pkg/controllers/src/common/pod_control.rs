//! Creates and deletes pods for a controller and says so in events.
//!
//! Behaves as `RealPodControl` of `pkg/controller/controller_utils.go`, v1.36.

use rkube_api::Kind;
use rkube_api::k8s::core::v1::{Pod, PodTemplateSpec};
use rkube_api::meta::pkg::apis::meta::v1::ObjectMeta;
use rkube_apimachinery::names::name_is_dns_subdomain;
use rkube_client::batch::{SlowStart, slow_start};
use rkube_client::owner::{new_controller_ref, object_key};
use rkube_client::{Client, ClientError, DeleteOptions, EventRecorder, Expectations};

use super::errors::namespace_terminating;

#[derive(Clone)]
pub(crate) struct PodControl {
    client: Client,
    recorder: EventRecorder,
}

impl PodControl {
    pub(crate) fn new(client: Client, recorder: EventRecorder) -> Self {
        Self { client, recorder }
    }

    /// Creates `pod` for `owner`.
    pub(crate) async fn create<O: Kind>(&self, owner: &O, pod: &Pod) -> Result<Pod, ClientError> {
        let namespace = owner.metadata().namespace.as_deref().unwrap_or_default();
        match self.client.namespaced::<Pod>(namespace).create(pod).await {
            Ok(created) => {
                let name = created.metadata.name.as_deref().unwrap_or_default();
                self.recorder.normal(owner, "SuccessfulCreate", format!("Created pod: {name}"));
                Ok(created)
            }
            Err(error) => {
                if !namespace_terminating(&error) {
                    self.recorder.warning(owner, "FailedCreate", format!("Error creating: {error}"));
                }
                Err(error)
            }
        }
    }

    /// Creates `count` pods in growing batches, as long as none fails. `expectations`, which waits for all of them,
    /// learns which will not be seen.
    pub(crate) async fn create_many<O: Kind>(
        &self,
        owner: &O,
        expectations: &Expectations,
        count: usize,
        make: impl Fn(usize) -> Pod,
    ) -> SlowStart<ClientError> {
        let key = &object_key(owner);
        let outcome = slow_start(count, 1, |position| {
            let pod = make(position);
            async move {
                match self.create(owner, &pod).await {
                    Ok(_) => Ok(()),
                    Err(error) => {
                        expectations.creation_observed(key);
                        // All creations would fail alike until the namespace is gone, and the owner with it.
                        if namespace_terminating(&error) { Ok(()) } else { Err(error) }
                    }
                }
            }
        })
        .await;
        expectations.creations_observed(key, outcome.skipped);
        outcome
    }

    /// Deletes this very pod, not one that took its name since.
    pub(crate) async fn delete<O: Kind>(&self, owner: &O, pod: &Pod) -> Result<(), ClientError> {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let api = self.client.namespaced::<Pod>(pod.metadata.namespace.as_deref().unwrap_or_default());
        let options = DeleteOptions::uid(pod.metadata.uid.as_deref().unwrap_or_default());
        match api.delete(name, &options).await {
            Ok(()) => {
                self.recorder.normal(owner, "SuccessfulDelete", format!("Deleted pod: {name}"));
                Ok(())
            }
            Err(error) => {
                if !error.is_not_found() {
                    self.recorder.warning(owner, "FailedDelete", format!("Error deleting: {error}"));
                }
                Err(error)
            }
        }
    }
}

/// A pod of `owner` from its template, with a generated name.
pub(crate) fn pod_from_template<O: Kind>(owner: &O, template: &PodTemplateSpec) -> Pod {
    let metadata = template.metadata.clone().unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(prefix(owner.metadata().name.as_deref().unwrap_or_default())),
            labels: metadata.labels,
            annotations: metadata.annotations,
            finalizers: metadata.finalizers,
            owner_references: Some(vec![new_controller_ref(owner)]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

/// The owner's name with a dash, or without where that is no valid prefix.
fn prefix(name: &str) -> String {
    let with_dash = format!("{name}-");
    if name_is_dns_subdomain(&with_dash, true).is_empty() { with_dash } else { name.to_owned() }
}
