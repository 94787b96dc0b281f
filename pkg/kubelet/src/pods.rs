//! The pods that should be on this node, by UID, with static pods and their mirrors matched by name.
//!
//! Behaves as pkg/kubelet/pod/pod_manager.go, v1.36.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::RwLock;
use rkube_api::k8s::core::v1::Pod;
use rkube_apimachinery::key::ObjectKey;

use crate::pod::{HASH_ANNOTATION, MIRROR_ANNOTATION, PodExt, PodUid};

#[derive(Default)]
struct Pods {
    /// From the API and from files, without mirrors.
    by_uid: HashMap<PodUid, Arc<Pod>>,
    mirrors: HashMap<ObjectKey, Arc<Pod>>,
}

#[derive(Default)]
pub struct PodManager(RwLock<Pods>);

impl PodManager {
    /// Returns whether it was unknown in this version.
    pub fn set(&self, pod: Arc<Pod>) -> bool {
        let mut pods = self.0.write();
        let version = pod.metadata.resource_version.clone();
        let old = match pod.is_mirror() {
            true => pods.mirrors.insert(pod.key(), pod),
            false => pods.by_uid.insert(pod.uid(), pod),
        };
        old.is_none_or(|old| old.metadata.resource_version != version)
    }

    pub fn remove(&self, pod: &Pod) {
        let mut pods = self.0.write();
        if pod.is_mirror() {
            pods.mirrors.remove(&pod.key());
        } else {
            pods.by_uid.remove(&pod.uid());
        }
    }

    pub fn get(&self, uid: &PodUid) -> Option<Arc<Pod>> {
        self.0.read().by_uid.get(uid).cloned()
    }

    pub fn by_name(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        let pods = self.0.read();
        pods.by_uid.values().find(|pod| pod.namespace() == namespace && pod.name() == name).cloned()
    }

    /// Requests name a pod by the API's UID, which for a static pod is its mirror's.
    pub fn translate(&self, uid: &PodUid) -> PodUid {
        let pods = self.0.read();
        let mirror = pods.mirrors.values().find(|mirror| mirror.uid() == *uid);
        let hash = mirror.and_then(|mirror| mirror.annotation(MIRROR_ANNOTATION));
        hash.map_or_else(|| uid.clone(), PodUid::from)
    }

    pub fn all(&self) -> Vec<Arc<Pod>> {
        self.0.read().by_uid.values().cloned().collect()
    }

    pub fn mirrors(&self) -> Vec<Arc<Pod>> {
        self.0.read().mirrors.values().cloned().collect()
    }

    pub fn mirror_of(&self, pod: &Pod) -> Option<Arc<Pod>> {
        self.0.read().mirrors.get(&pod.key()).cloned()
    }

    pub fn static_of(&self, mirror: &Pod) -> Option<Arc<Pod>> {
        let pods = self.0.read();
        pods.by_uid.values().find(|pod| pod.is_static() && pod.key() == mirror.key()).cloned()
    }

    /// The object the API server knows for a pod here.
    pub fn api_pod(&self, uid: &PodUid) -> Option<Arc<Pod>> {
        let pod = self.get(uid)?;
        if pod.is_static() { self.mirror_of(&pod).filter(|mirror| is_mirror_of(mirror, &pod)) } else { Some(pod) }
    }
}

/// Whether `mirror` shows this very version of a static pod.
pub fn is_mirror_of(mirror: &Pod, pod: &Pod) -> bool {
    mirror.annotation(MIRROR_ANNOTATION).is_some()
        && mirror.annotation(MIRROR_ANNOTATION) == pod.annotation(HASH_ANNOTATION)
}
