//! `pods/binding`: gives a pod its node.
//!
//! Behaves as `pkg/registry/core/pod/storage/storage.go` (`BindingREST`), v1.36.

use std::sync::Arc;

use rkube_api::draft::Draft;
use rkube_apimachinery::field::{Error, ErrorList, Path};
use rkube_apimachinery::gvk::{GroupKind, GroupResource, GroupVersionKind};
use rkube_apimachinery::meta::{Condition, Meta, MetaMut};
use rkube_apimachinery::status::ApiStatus;
use serde_json::Value;

use super::{Raw, member, set_pod_condition};
use crate::admission::{Operation, OperationOptions};
use crate::context::RequestContext;
use crate::metadata;
use crate::options::{CreateOptions, Preconditions};
use crate::store::{Answer, Store, Target, success};

impl Store {
    pub(crate) async fn bind(
        &self,
        context: &Arc<RequestContext>,
        target: &Target,
        mut binding: Value,
        options: &CreateOptions,
    ) -> Result<Answer, ApiStatus> {
        options.validate()?;
        metadata::ensure_namespace(&mut binding, true, &target.namespace)?;
        // The uid and the version of a binding are preconditions on the pod.
        let kind = GroupVersionKind::new("", "v1", "Binding");
        let operation = OperationOptions::Create(options.clone());
        let dry_run = options.is_dry_run();
        let name = target.name.clone();
        let mut attributes = self.attributes(
            context,
            target,
            Operation::Create,
            name,
            Some(Draft::new(binding)),
            None,
            operation,
            dry_run,
        );
        attributes.kind = kind;
        context.admission.admit(&mut attributes).await?;
        let draft = attributes.object.as_mut().ok_or_else(|| ApiStatus::internal("admission removed the binding"))?;
        if draft.value().name() != &*target.name {
            return Err(ApiStatus::bad_request("name in URL does not match name in Binding object"));
        }
        let errors = validate(draft.value());
        if !errors.is_empty() {
            return Err(ApiStatus::invalid(&GroupKind::new("", "Binding"), &target.name, &errors));
        }
        context.admission.validate(&mut attributes).await?;
        let draft = attributes.object.take().ok_or_else(|| ApiStatus::internal("admission removed the binding"))?;
        self.assign(target, &draft.into_value(), dry_run).await?;
        Ok(Answer::Status(Box::new(success(None))))
    }

    async fn assign(&self, target: &Target, binding: &Value, dry_run: bool) -> Result<(), ApiStatus> {
        let resource = self.resource().group_resource();
        let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let preconditions =
            Preconditions { uid: given(binding.uid()), resource_version: given(binding.resource_version()) };
        let now = self.core().shared.clock.now();
        let node = binding.pointer("/target/name").and_then(Value::as_str).unwrap_or_default();
        let refuse = |text: String| ApiStatus::conflict(&GroupResource::new("", "pods/binding"), &target.name, &text);
        let change = |pod: &mut Value| {
            let name = &target.name;
            if pod.is_terminating() {
                return Err(refuse(format!("pod {name} is being deleted, cannot be assigned to a host")));
            }
            let bound = pod.pointer("/spec/nodeName").and_then(Value::as_str).unwrap_or_default();
            if !bound.is_empty() {
                return Err(refuse(format!("pod {name} is already assigned to node {bound:?}")));
            }
            let gates = pod.pointer("/spec/schedulingGates").and_then(Value::as_array);
            if gates.is_some_and(|gates| !gates.is_empty()) {
                return Err(refuse(format!("pod {name} has non-empty .spec.schedulingGates")));
            }
            member(pod, "spec")?.insert("nodeName".to_owned(), Value::from(node));
            // The nomination has been decided; left in place it would mislead whoever reads it.
            member(pod, "status")?.remove("nominatedNodeName");
            copy_texts(binding, pod, "annotations");
            copy_texts(binding, pod, "labels");
            let scheduled = Condition { kind: "PodScheduled", status: "True", ..Condition::default() };
            set_pod_condition(pod, &scheduled, now)
        };
        let (core, name) = (self.core(), &target.name);
        let mut raw = Raw { core, resource: &resource, name, preconditions: Some(&preconditions), change };
        core.guaranteed_update(&resource, &self.key(target), dry_run, &mut raw).await?;
        Ok(())
    }
}

fn validate(binding: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let path = Path::new("target");
    let text = |name: &str| binding.pointer(&format!("/target/{name}")).and_then(Value::as_str).unwrap_or_default();
    let kind = text("kind");
    if !matches!(kind, "" | "Node") {
        errors.push(Error::not_supported(&path.child("kind"), kind, &["Node", "<empty>"]));
    }
    if text("name").is_empty() {
        errors.push(Error::required(&path.child("name"), ""));
    }
    errors
}

fn copy_texts(from: &Value, to: &mut Value, field: &str) {
    let Some(texts) = from.meta_field(field).and_then(Value::as_object).filter(|texts| !texts.is_empty()) else {
        return;
    };
    let mut all = to.meta_field(field).and_then(Value::as_object).cloned().unwrap_or_default();
    all.extend(texts.clone());
    to.set_meta_field(field, Value::Object(all));
}
