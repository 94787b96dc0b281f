//! Protection of storage in use: claims that pods use, volumes that are bound, and classes of volume attributes that
//! are referred to are not deleted before that ends.
//!
//! Watches  v1 PersistentVolumeClaim with v1 Pod; v1 PersistentVolume; storage.k8s.io/v1 VolumeAttributesClass with
//!          claims and volumes
//! Writes   the finalizers `kubernetes.io/{pvc,pv,vac}-protection` of each
//! Behaves as  pkg/controller/volume/{pvcprotection,pvprotection,vacprotection}, v1.36
//!
//! Invariant: the finalizer of a claim is taken off only when the API itself, not just the cache, has no pod on a node
//! that uses it. A pod that started a moment ago keeps its data.

mod attributes_classes;
mod claims;
mod finalizer;
#[cfg(test)]
mod tests;
mod volumes;

pub(crate) use attributes_classes::VOLUMEATTRIBUTESCLASS_PROTECTION;
pub(crate) use claims::PERSISTENTVOLUMECLAIM_PROTECTION;
pub(crate) use volumes::PERSISTENTVOLUME_PROTECTION;
