//! Strategies of the resource.k8s.io group.
//!
//! Behaves as pkg/registry/resource/*/strategy.go, v1.36, without the checks that need to ask for permission.

use rkube_api::k8s::resource::v1::{DeviceClass, ResourceClaim, ResourceClaimTemplate, ResourceSlice};
use rkube_api::meta::pkg::apis::meta::v1::Time;
use rkube_validation::resource::{claim, slice};

use super::Registration;
use super::rules::{RESET_STATUS, Rules, first_generation, next_generation, reset_meta_for_status, spec_generation};

const GROUP: &str = "resource.k8s.io";

pub(super) fn strategies() -> Vec<Registration> {
    vec![
        Registration::new(
            GROUP,
            "resourceclaims",
            Rules::<ResourceClaim>::new(claim::validate, claim::validate_update)
                .defaults(claim::set_defaults)
                .on_create(|_, new| new.status = Some(Default::default()))
                .on_update(|_, new, old| new.status.clone_from(&old.status))
                .returns_deleted()
                .reset(RESET_STATUS),
        )
        .status(
            Rules::<ResourceClaim>::status(claim::set_defaults, claim::validate_status_update)
                .on_update(|_, new, old| {
                    new.spec.clone_from(&old.spec);
                    reset_meta_for_status(&mut new.metadata, &old.metadata);
                    claim::drop_deallocated_devices(new, old);
                })
                .reset(&[&["metadata"], &["spec"]]),
        ),
        Registration::new(
            GROUP,
            "resourceclaimtemplates",
            Rules::<ResourceClaimTemplate>::new(claim::validate_template, claim::validate_template_update)
                .defaults(claim::set_template_defaults)
                .returns_deleted(),
        ),
        Registration::new(
            GROUP,
            "deviceclasses",
            spec_generation!(DeviceClass, claim::validate_class, claim::validate_class_update).returns_deleted(),
        ),
        Registration::new(
            GROUP,
            "resourceslices",
            Rules::<ResourceSlice>::new(slice::validate, slice::validate_update)
                .on_create(|context, new| {
                    first_generation(&mut new.metadata);
                    slice::set_taint_times(new, &Time(context.now));
                    slice::drop_disabled_fields(new, None);
                })
                .on_update(|context, new, old| {
                    slice::set_taint_times(new, &Time(context.now));
                    if new.spec != old.spec {
                        next_generation(&mut new.metadata, &old.metadata);
                    }
                    slice::drop_disabled_fields(new, Some(old));
                })
                .warnings(|new, _| slice::warnings(new))
                .returns_deleted(),
        ),
    ]
}
