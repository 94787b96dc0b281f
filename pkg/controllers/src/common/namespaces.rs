//! Reading namespaces.

use rkube_api::k8s::core::v1::Namespace;

/// Whether objects may be made in it. A namespace without phase was made by someone who sets none.
pub(crate) fn is_active(namespace: &Namespace) -> bool {
    let phase = namespace.status.as_ref().and_then(|status| status.phase.as_deref());
    phase.is_none_or(|phase| phase == "Active") && namespace.metadata.deletion_timestamp.is_none()
}
