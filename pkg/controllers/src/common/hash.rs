//! Hashes of templates that become part of names.
//!
//! // Differs from upstream: FNV-1a over the canonical JSON of the template instead of over Go's memory
//! dump of it. The value need not be Go's; it must not change between restarts and versions, and absent
//! fields do not enter it, so a field added to the API later changes no hash.

use rkube_api::Kind;
use rkube_api::k8s::core::v1::{PodTemplate, PodTemplateSpec};
use rkube_apimachinery::random::safe_encode;
use serde_json::Value;

/// The hash of a pod template, for names and the `pod-template-hash` label.
pub(crate) fn pod_template_hash(template: &PodTemplateSpec, collision_count: Option<i32>) -> String {
    encode(&template_value(template), collision_count)
}

/// The hash of any JSON, with the collision count that tells equal hashes apart.
pub(crate) fn encode(value: &Value, collision_count: Option<i32>) -> String {
    safe_encode(&fnv(value, collision_count).to_string())
}

/// The template as JSON, its fields in order of name.
pub(crate) fn template_value(template: &PodTemplateSpec) -> Value {
    let holder = PodTemplate { template: Some(template.clone()), ..PodTemplate::default() };
    holder.to_value()["template"].take()
}

fn fnv(value: &Value, collision_count: Option<i32>) -> u32 {
    // Objects are maps sorted by key, so equal values have equal texts.
    let text = value.to_string();
    let collisions = collision_count.map(i32::to_le_bytes);
    let bytes = text.bytes().chain(collisions.into_iter().flatten());
    bytes.fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use rkube_api::k8s::core::v1::{Container, PodSpec};

    use super::*;

    /// A change of these values restarts every workload at the next upgrade.
    #[test]
    fn hashes_never_change() {
        let container = Container { name: "c".to_owned(), image: Some("nginx:1".to_owned()), ..Container::default() };
        let spec = PodSpec { containers: vec![container], ..PodSpec::default() };
        let template = PodTemplateSpec { spec: Some(spec), ..PodTemplateSpec::default() };
        assert_eq!(pod_template_hash(&template, None), "757bfbc46");
        assert_ne!(pod_template_hash(&template, Some(1)), pod_template_hash(&template, None));
    }
}
