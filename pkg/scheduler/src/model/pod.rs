//! A pod with what scheduling asks of it again and again.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use rkube_api::host_ports::{HostPort, host_ports_of};
use rkube_api::k8s::core::v1::{Pod, PodSpec, Toleration};
use rkube_apimachinery::key::ObjectKey;

use crate::model::resources::{Resources, non_zero_requests_of, requests_of};
use crate::model::term::{Member, Terms};

/// One pod at one revision.
#[derive(Debug)]
pub(crate) struct PodInfo {
    pub(crate) pod: Arc<Pod>,
    pub(crate) key: ObjectKey,
    pub(crate) uid: Arc<str>,
    pub(crate) priority: i32,
    pub(crate) requests: Resources,
    pub(crate) non_zero: (i64, i64),
    pub(crate) ports: Vec<HostPort>,
    pub(crate) terms: Option<Arc<Terms>>,
}

static NO_SPEC: LazyLock<PodSpec> = LazyLock::new(PodSpec::default);

impl PodInfo {
    pub(crate) fn new(pod: Arc<Pod>) -> Arc<Self> {
        let spec = pod.spec.as_ref().unwrap_or(&NO_SPEC);
        Arc::new(Self {
            key: key_of(&pod),
            uid: pod.metadata.uid.as_deref().unwrap_or_default().into(),
            priority: spec.priority.unwrap_or(0),
            requests: requests_of(spec),
            non_zero: non_zero_requests_of(spec),
            ports: host_ports_of(spec),
            terms: Terms::of(&pod).map(Arc::new),
            pod,
        })
    }

    /// The same pod at another revision that does not matter to scheduling.
    pub(crate) fn with_pod(&self, pod: Arc<Pod>) -> Arc<Self> {
        Arc::new(Self {
            pod,
            key: self.key.clone(),
            uid: Arc::clone(&self.uid),
            priority: self.priority,
            requests: self.requests.clone(),
            non_zero: self.non_zero,
            ports: self.ports.clone(),
            terms: self.terms.clone(),
        })
    }

    pub(crate) fn spec(&self) -> &PodSpec {
        self.pod.spec.as_ref().unwrap_or(&NO_SPEC)
    }

    pub(crate) fn labels(&self) -> Option<&BTreeMap<String, String>> {
        self.pod.metadata.labels.as_ref()
    }

    pub(crate) fn namespace(&self) -> &str {
        &self.key.namespace
    }

    pub(crate) fn tolerations(&self) -> &[Toleration] {
        self.spec().tolerations.as_deref().unwrap_or_default()
    }

    pub(crate) fn is_terminating(&self) -> bool {
        self.pod.metadata.deletion_timestamp.is_some()
    }

    pub(crate) fn node_name(&self) -> Option<&str> {
        node_name(&self.pod)
    }

    pub(crate) fn nominated_node(&self) -> Option<&str> {
        let status = self.pod.status.as_ref()?;
        status.nominated_node_name.as_deref().filter(|name| !name.is_empty())
    }

    pub(crate) fn member<'a>(&'a self, namespaces: &'a Namespaces) -> Member<'a> {
        let namespace = self.namespace();
        Member { namespace, namespace_labels: namespaces.get(namespace), labels: self.labels() }
    }
}

/// Labels by namespace.
pub(crate) type Namespaces = std::collections::HashMap<String, BTreeMap<String, String>>;

pub(crate) fn key_of(pod: &Pod) -> ObjectKey {
    let text = |text: &Option<String>| Arc::<str>::from(text.as_deref().unwrap_or_default());
    ObjectKey { namespace: text(&pod.metadata.namespace), name: text(&pod.metadata.name) }
}

pub(crate) fn node_name(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|name| !name.is_empty())
}

/// Whether the pod has ended and holds nothing any more.
pub(crate) fn is_finished(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// The names of the claims the pod uses: those it names, and those made for its ephemeral volumes.
pub(crate) fn claim_names(pod: &Pod) -> impl Iterator<Item = String> + '_ {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.filter_map(|volume| match (&volume.persistent_volume_claim, &volume.ephemeral) {
        (Some(claim), _) => Some(claim.claim_name.clone()),
        (None, Some(_)) => Some(format!("{}-{}", pod.metadata.name.as_deref().unwrap_or_default(), volume.name)),
        (None, None) => None,
    })
}

/// Whether the claim is one made for an ephemeral volume of the pod.
pub(crate) fn is_ephemeral_claim(pod: &Pod, name: &str) -> bool {
    let mut volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let own = pod.metadata.name.as_deref().unwrap_or_default();
    volumes.any(|volume| volume.ephemeral.is_some() && format!("{own}-{}", volume.name) == name)
}
