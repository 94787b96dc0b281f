//! Built-in admission: the plugins of kube-apiserver's default chain, in its order.
//!
//! Every write of every kind passes the chain in the registry's one write path: first all plugins
//! mutate, then, after validation, all validate.
//!
//! Behaves as `pkg/kubeapiserver/options/plugins.go`, v1.36.

mod certificates;
mod declared_features;
mod default_class;
mod default_tolerations;
mod limit_ranger;
mod namespace_lifecycle;
mod node_restriction;
mod object_in_use;
mod objects;
mod pod_resize;
mod pod_security;
mod pod_topology;
mod priority;
mod resource_quota;
mod role_escalation;
mod runtime_class;
mod service_account;
mod taint_nodes;
mod token_audience;
mod volume_resize;

use std::sync::Arc;

use futures_util::future::BoxFuture;
use rkube_apimachinery::clock::SharedClock;
use rkube_apimachinery::random::SharedRandom;
use rkube_apimachinery::status::{ApiStatus, Reason};
use rkube_registry::{Admission, Attributes, Operation, Registry};
use serde_json::Value;

use crate::auth::Authorizer;
pub use objects::Objects;

/// One step of the chain. A plugin that does not mutate or does not validate leaves that half alone.
pub trait Plugin: Send + Sync + 'static {
    /// Upstream's name, as in `--enable-admission-plugins`.
    fn name(&self) -> &'static str;

    fn handles(&self, operation: Operation) -> bool;

    fn admit<'a>(&'a self, _attributes: &'a mut Attributes) -> BoxFuture<'a, Result<(), ApiStatus>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn validate<'a>(&'a self, _attributes: &'a mut Attributes) -> BoxFuture<'a, Result<(), ApiStatus>> {
        Box::pin(std::future::ready(Ok(())))
    }
}

/// The chain as the registry calls it.
pub struct Chain {
    plugins: Vec<Box<dyn Plugin>>,
}

impl Chain {
    pub fn new(plugins: Vec<Box<dyn Plugin>>) -> Self {
        Self { plugins }
    }

    /// Upstream's names of the plugins, in the order they are asked.
    pub fn names(&self) -> Vec<&'static str> {
        self.plugins.iter().map(|plugin| plugin.name()).collect()
    }

    /// The plugins of this module, in upstream's order.
    pub fn builtin(
        registry: &Arc<Registry>,
        authorizer: &Arc<dyn Authorizer>,
        clock: SharedClock,
        random: SharedRandom,
    ) -> Vec<Box<dyn Plugin>> {
        let objects = Objects::new(Arc::clone(registry));
        vec![
            Box::new(namespace_lifecycle::NamespaceLifecycle::new(objects.clone())),
            Box::new(limit_ranger::LimitRanger::new(objects.clone())),
            Box::new(service_account::ServiceAccountAdmission::new(objects.clone(), random)),
            Box::new(node_restriction::NodeRestriction::new(objects.clone(), Arc::clone(authorizer))),
            Box::new(taint_nodes::TaintNodesByCondition),
            Box::new(pod_security::PodSecurity::new(objects.clone())),
            Box::new(priority::PriorityAdmission::new(objects.clone())),
            Box::new(default_tolerations::DefaultTolerationSeconds),
            Box::new(default_class::DefaultStorageClass::new(objects.clone())),
            Box::new(object_in_use::StorageObjectInUseProtection),
            Box::new(volume_resize::PersistentVolumeClaimResize::new(objects.clone())),
            Box::new(runtime_class::RuntimeClassAdmission::new(objects.clone())),
            Box::new(certificates::CertificateApproval::new(Arc::clone(authorizer))),
            Box::new(certificates::CertificateSigning::new(Arc::clone(authorizer))),
            Box::new(certificates::CertificateSubjectRestriction),
            Box::new(default_class::DefaultIngressClass::new(objects.clone())),
            Box::new(pod_topology::PodTopologyLabels::new(objects.clone())),
            Box::new(declared_features::NodeDeclaredFeatureValidator::new(objects.clone())),
            Box::new(pod_resize::PodResizeValidator::new(objects.clone())),
            Box::new(resource_quota::ResourceQuotaAdmission::new(objects.clone(), clock)),
            Box::new(role_escalation::RoleEscalation::new(objects, Arc::clone(authorizer))),
        ]
    }
}

impl Admission for Chain {
    fn admit<'a>(&'a self, attributes: &'a mut Attributes) -> BoxFuture<'a, Result<(), ApiStatus>> {
        Box::pin(async move {
            let operation = attributes.operation;
            for plugin in self.plugins.iter().filter(|plugin| plugin.handles(operation)) {
                plugin.admit(attributes).await?;
            }
            Ok(())
        })
    }

    fn validate<'a>(&'a self, attributes: &'a mut Attributes) -> BoxFuture<'a, Result<(), ApiStatus>> {
        Box::pin(async move {
            let operation = attributes.operation;
            for plugin in self.plugins.iter().filter(|plugin| plugin.handles(operation)) {
                plugin.validate(attributes).await?;
            }
            Ok(())
        })
    }
}

/// Whether a request is about the resource itself, in any version: `is_resource(a, "", "pods")`.
fn is_resource(attributes: &Attributes, group: &str, plural: &str) -> bool {
    attributes.subresource.is_empty() && attributes.resource.group == group && attributes.resource.plural == plural
}

/// A denial: 403 with the object's name, or what its name will be generated from.
fn forbidden(attributes: &mut Attributes, reason: impl std::fmt::Display) -> ApiStatus {
    let mut name = attributes.name.to_string();
    if name.is_empty() {
        let metadata = attributes.object.as_mut().map(|object| &object.value()["metadata"]);
        let text = |field: &str| metadata.and_then(|metadata| metadata[field].as_str()).filter(|text| !text.is_empty());
        name = text("name").or_else(|| text("generateName")).unwrap_or("Unknown").to_owned();
    }
    ApiStatus::forbidden(&attributes.resource.group_resource(), &name, &reason.to_string())
}

/// One error bare, several in brackets, none twice, as upstream's aggregate.
pub(crate) fn aggregate(errors: &[String]) -> String {
    let mut unique: Vec<&str> = Vec::new();
    for error in errors {
        if !unique.contains(&error.as_str()) {
            unique.push(error);
        }
    }
    match unique.as_slice() {
        [one] => (*one).to_owned(),
        many => format!("[{}]", many.join(", ")),
    }
}

/// Wraps a failure to look something up as a denial, unless it is one already.
fn forbidden_because(attributes: &mut Attributes, status: ApiStatus) -> ApiStatus {
    if status.is(Reason::Forbidden) { status } else { forbidden(attributes, status.message()) }
}

/// Without members that are null or empty, which stand for what is not there.
fn without_empty(mut value: Value) -> Value {
    if let Some(object) = value.as_object_mut() {
        let members = std::mem::take(object).into_iter().map(|(name, member)| (name, without_empty(member)));
        object.extend(members.filter(|(_, member)| match member {
            Value::Null => false,
            Value::Object(members) => !members.is_empty(),
            Value::Array(items) => !items.is_empty(),
            _ => true,
        }));
    }
    value
}

/// The object of the request as `K`. Only called for requests that carry one.
macro_rules! object {
    ($attributes:expr, $kind:ty) => {{
        let Some(object) = $attributes.object.as_mut() else { return Ok(()) };
        object.typed::<$kind>().map_err($crate::admission::not_convertible)?
    }};
}
pub(crate) use object;

fn not_convertible(error: rkube_api::kind::DecodeError) -> ApiStatus {
    ApiStatus::bad_request(format!(
        "Resource was marked with kind {} but was unable to be converted: {}",
        error.kind,
        rkube_apimachinery::chain::chain(&error)
    ))
}
