//! Strategies of the networking and discovery groups.
//!
//! Behaves as pkg/registry/{networking,discovery}/*/strategy.go, v1.36.

use rkube_api::k8s::discovery::v1::EndpointSlice;
use rkube_api::k8s::networking::v1::{IPAddress, Ingress, IngressClass, NetworkPolicy, ServiceCIDR};
use rkube_validation::discovery;
use rkube_validation::networking::{ingress, network_policy, service_cidr};

use super::Registration;
use super::rules::{
    RESET_STATUS, Rules, first_generation, next_generation, reset_meta_for_status, spec_generation, status_only,
    with_status,
};

pub(super) fn strategies() -> Vec<Registration> {
    vec![
        Registration::new(
            "networking.k8s.io",
            "networkpolicies",
            spec_generation!(NetworkPolicy, network_policy::validate, network_policy::validate_update)
                .defaults(network_policy::set_defaults)
                .warnings(|new, _| network_policy::warnings(new)),
        ),
        Registration::new(
            "networking.k8s.io",
            "ingresses",
            with_status!(Ingress, ingress::validate, ingress::validate_update)
                .defaults(ingress::set_defaults)
                .warnings(|new, old| if old.is_none() { ingress::warnings(new) } else { Vec::new() }),
        )
        .status(
            status_only!(Ingress, ingress::set_defaults, ingress::validate_status_update)
                .warnings(|new, _| ingress::status_warnings(new)),
        ),
        Registration::new(
            "networking.k8s.io",
            "ingressclasses",
            spec_generation!(IngressClass, ingress::validate_class, ingress::validate_class_update)
                .defaults(ingress::set_class_defaults),
        ),
        Registration::new(
            "networking.k8s.io",
            "servicecidrs",
            Rules::<ServiceCIDR>::new(service_cidr::validate, service_cidr::validate_update)
                .defaults(service_cidr::set_defaults)
                .on_create(|_, new| new.status = Some(Default::default()))
                .on_update(|_, new, old| new.status.clone_from(&old.status))
                .reset(RESET_STATUS),
        )
        .status(
            Rules::<ServiceCIDR>::status(service_cidr::set_defaults, |new, old| {
                rkube_validation::metadata_update(&new.metadata, &old.metadata)
            })
            .on_update(|_, new, old| {
                new.spec.clone_from(&old.spec);
                reset_meta_for_status(&mut new.metadata, &old.metadata);
            }),
        ),
        Registration::new(
            "networking.k8s.io",
            "ipaddresses",
            Rules::<IPAddress>::new(service_cidr::validate_address, service_cidr::validate_address_update),
        ),
        Registration::new(
            "discovery.k8s.io",
            "endpointslices",
            Rules::<EndpointSlice>::new(discovery::validate, discovery::validate_update)
                .defaults(discovery::set_defaults)
                .on_create(|_, new| {
                    first_generation(&mut new.metadata);
                    discovery::drop_deprecated_topology(new, None);
                })
                .on_update(|_, new, old| {
                    let content =
                        |slice: &EndpointSlice| EndpointSlice { metadata: Default::default(), ..slice.clone() };
                    if content(new) != content(old) || new.metadata.labels != old.metadata.labels {
                        next_generation(&mut new.metadata, &old.metadata);
                    }
                    discovery::drop_deprecated_topology(new, Some(old));
                })
                .warnings(discovery::warnings),
        ),
    ]
}
