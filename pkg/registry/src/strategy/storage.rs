//! Strategies of the storage group.
//!
//! Behaves as pkg/registry/storage/*/strategy.go, v1.36.

use rkube_api::k8s::storage::v1::{
    CSIDriver, CSINode, CSIStorageCapacity, StorageClass, VolumeAttachment, VolumeAttributesClass,
};
use rkube_validation::storage;

use super::Registration;
use super::rules::{RESET_STATUS, Rules, next_generation, reset_meta_for_status};

const GROUP: &str = "storage.k8s.io";

pub(super) fn strategies() -> Vec<Registration> {
    vec![
        Registration::new(
            GROUP,
            "storageclasses",
            Rules::<StorageClass>::new(storage::validate_class, storage::validate_class_update)
                .defaults(storage::set_class_defaults)
                .warnings(|new, _| storage::class_warnings(new))
                .returns_deleted(),
        ),
        Registration::new(
            GROUP,
            "volumeattributesclasses",
            Rules::<VolumeAttributesClass>::new(
                storage::validate_attributes_class,
                storage::validate_attributes_class_update,
            )
            .returns_deleted(),
        ),
        Registration::new(
            GROUP,
            "volumeattachments",
            Rules::<VolumeAttachment>::new(storage::validate_attachment, storage::validate_attachment_update)
                .defaults(storage::set_attachment_defaults)
                .on_create(|_, new| new.status = Some(Default::default()))
                .on_update(|_, new, old| new.status.clone_from(&old.status))
                .no_unconditional_update()
                .returns_deleted()
                .reset(RESET_STATUS),
        )
        .status(
            Rules::<VolumeAttachment>::status(storage::set_attachment_defaults, storage::validate_attachment_update)
                .on_update(|_, new, old| {
                    new.spec.clone_from(&old.spec);
                    reset_meta_for_status(&mut new.metadata, &old.metadata);
                })
                .no_unconditional_update()
                .reset(&[&["metadata"], &["spec"]]),
        ),
        Registration::new(
            GROUP,
            "csinodes",
            Rules::<CSINode>::new(storage::validate_csi_node, storage::validate_csi_node_update)
                .no_unconditional_update()
                .returns_deleted(),
        ),
        Registration::new(
            GROUP,
            "csidrivers",
            // Limits that scale are behind a gate that is off.
            Rules::<CSIDriver>::new(storage::validate_csi_driver, storage::validate_csi_driver_update)
                .defaults(storage::set_csi_driver_defaults)
                .on_create(|_, new| new.spec.prevent_pod_scheduling_if_missing = None)
                .on_update(|_, new, old| {
                    if old.spec.prevent_pod_scheduling_if_missing.is_none() {
                        new.spec.prevent_pod_scheduling_if_missing = None;
                    }
                    if new.spec != old.spec {
                        next_generation(&mut new.metadata, &old.metadata);
                    }
                })
                .warnings(storage::csi_driver_warnings)
                .no_unconditional_update()
                .returns_deleted(),
        ),
        Registration::new(
            GROUP,
            "csistoragecapacities",
            Rules::<CSIStorageCapacity>::new(storage::validate_capacity, storage::validate_capacity_update)
                .warnings(|new, _| storage::capacity_warnings(new))
                .no_unconditional_update(),
        ),
    ]
}
