//! Strategies of the groups that extend and guard the server: certificates, admissionregistration,
//! apiregistration, apiextensions, flowcontrol.
//!
//! Behaves as pkg/registry/{certificates,admissionregistration,flowcontrol}/*/strategy.go and
//! kube-aggregator/pkg/registry/apiservice/strategy.go, v1.36.

use jiff::Timestamp;
use rkube_api::apiextensions::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use rkube_api::apiregistration::pkg::apis::apiregistration::v1::{APIService, APIServiceCondition, APIServiceStatus};
use rkube_api::k8s::admissionregistration::v1::{
    MutatingAdmissionPolicy, MutatingAdmissionPolicyBinding, MutatingWebhookConfiguration, ValidatingAdmissionPolicy,
    ValidatingAdmissionPolicyBinding, ValidatingWebhookConfiguration,
};
use rkube_api::k8s::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestCondition, CertificateSigningRequestStatus,
};
use rkube_api::k8s::flowcontrol::v1::{FlowSchema, PriorityLevelConfiguration};
use rkube_api::meta::pkg::apis::meta::v1::{ObjectMeta, Time};
use rkube_validation::admission_registration::rules::static_suffix_warnings;
use rkube_validation::admission_registration::{policies, webhooks};
use rkube_validation::{api_registration, certificates, flow_control};

use super::rules::{
    RESET_STATUS, Rules, first_generation, next_generation, reset_meta_for_status, spec_generation, status_only,
    with_status,
};
use super::{Registration, StrategyContext};

const ADMISSION: &str = "admissionregistration.k8s.io";
const FLOW_CONTROL: &str = "flowcontrol.apiserver.k8s.io";

pub(super) fn strategies() -> Vec<Registration> {
    let mut all = vec![signing_requests(), api_services(), custom_resource_definitions()];
    all.extend(flow_schemas());
    all.extend(webhook_configurations());
    all.extend(admission_policies());
    all
}

fn signing_requests() -> Registration {
    let defaults = certificates::set_defaults;
    Registration::new(
        "certificates.k8s.io",
        "certificatesigningrequests",
        Rules::<CertificateSigningRequest>::new(certificates::validate, certificates::validate_update)
            .defaults(defaults)
            .on_create(|context, new| {
                let user = &context.request.user;
                let some = |text: &String| (!text.is_empty()).then(|| text.clone());
                new.spec.username = some(&user.name);
                new.spec.uid = some(&user.uid);
                new.spec.groups = (!user.groups.is_empty()).then(|| user.groups.clone());
                new.spec.extra = (!user.extra.is_empty()).then(|| user.extra.clone());
                new.status = Some(CertificateSigningRequestStatus::default());
            })
            .on_update(|_, new, old| {
                new.spec.clone_from(&old.spec);
                new.status.clone_from(&old.status);
            })
            .reset(&[&["spec"], &["status"]]),
    )
    .status(
        Rules::<CertificateSigningRequest>::subresource(defaults, certificates::validate_status_update)
            .on_update(|context, new, old| {
                new.spec.clone_from(&old.spec);
                keep_approval(new, old, "Approved");
                keep_approval(new, old, "Denied");
                stamp_conditions(context, new, old);
            })
            .reset(&[&["spec"]]),
    )
    .subresource(
        "approval",
        Rules::<CertificateSigningRequest>::subresource(defaults, certificates::validate_approval_update)
            .on_update(|context, new, old| {
                stamp_conditions(context, new, old);
                new.spec.clone_from(&old.spec);
                let conditions = new.status.take().and_then(|status| status.conditions);
                let kept = old.status.clone().unwrap_or_default();
                new.status = Some(CertificateSigningRequestStatus { conditions, ..kept });
            })
            .reset(&[&["spec"], &["status", "certificate"]]),
    )
}

fn request_conditions(request: &CertificateSigningRequest) -> &[CertificateSigningRequestCondition] {
    request.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default()
}

/// Status updates leave decisions as they are, as long as there are as many of them.
fn keep_approval(new: &mut CertificateSigningRequest, old: &CertificateSigningRequest, kind: &str) {
    let is = |condition: &&CertificateSigningRequestCondition| condition.type_ == kind;
    let kept: Vec<_> = request_conditions(old).iter().filter(is).collect();
    if request_conditions(new).iter().filter(is).count() != kept.len() {
        return;
    }
    let conditions = new.status.iter_mut().flat_map(|status| status.conditions.iter_mut().flatten());
    for (condition, kept) in conditions.filter(|condition| condition.type_ == kind).zip(kept) {
        condition.clone_from(kept);
    }
}

fn stamp_conditions(
    context: &StrategyContext<'_>,
    new: &mut CertificateSigningRequest,
    old: &CertificateSigningRequest,
) {
    for condition in new.status.iter_mut().flat_map(|status| status.conditions.iter_mut().flatten()) {
        condition.last_update_time.get_or_insert(time(context.now));
        if condition.last_transition_time.is_none() {
            let same = request_conditions(old)
                .iter()
                .find(|old| {
                    old.type_ == condition.type_ && old.status == condition.status && old.last_transition_time.is_some()
                })
                .and_then(|old| old.last_transition_time.clone());
            condition.last_transition_time = Some(same.unwrap_or_else(|| time(context.now)));
        }
    }
}

fn time(now: Timestamp) -> Time {
    Time(now)
}

fn api_services() -> Registration {
    Registration::new(
        "apiregistration.k8s.io",
        "apiservices",
        Rules::<APIService>::new(api_registration::validate, api_registration::validate_update)
            .defaults(api_registration::set_defaults)
            .on_create(|context, new| {
                let local = new.spec.as_ref().is_none_or(|spec| spec.service.is_none());
                let available = APIServiceCondition {
                    type_: "Available".to_owned(),
                    status: "True".to_owned(),
                    last_transition_time: Some(time(context.now)),
                    reason: Some("Local".to_owned()),
                    message: Some("Local APIServices are always available".to_owned()),
                };
                new.status = Some(APIServiceStatus { conditions: local.then(|| vec![available]) });
            })
            .on_update(|_, new, old| new.status.clone_from(&old.status))
            .no_unconditional_update()
            .reset(RESET_STATUS),
    )
    .status(
        status_only!(APIService, api_registration::set_defaults, api_registration::validate_status_update)
            .on_update(|_, new, old| {
                new.spec.clone_from(&old.spec);
                new.metadata.labels.clone_from(&old.metadata.labels);
                new.metadata.annotations.clone_from(&old.metadata.annotations);
                new.metadata.finalizers.clone_from(&old.metadata.finalizers);
                new.metadata.owner_references.clone_from(&old.metadata.owner_references);
            })
            .no_unconditional_update()
            .reset(&[&["metadata"], &["spec"]]),
    )
}

/// The metadata stays, except for who manages which field.
fn keep_metadata(new: &mut ObjectMeta, old: &ObjectMeta) {
    let managed = new.managed_fields.take();
    new.clone_from(old);
    new.managed_fields = managed;
}

fn flow_schemas() -> Vec<Registration> {
    use flow_control::{set_level_defaults, set_schema_defaults, validate_level, validate_schema};
    vec![
        Registration::new(
            FLOW_CONTROL,
            "flowschemas",
            with_status!(FlowSchema, validate_schema, |new, _| validate_schema(new)).defaults(set_schema_defaults),
        )
        .status(
            Rules::<FlowSchema>::status(set_schema_defaults, |new, _| flow_control::validate_schema_status(new))
                .on_update(|_, new, old| {
                    keep_metadata(&mut new.metadata, &old.metadata);
                    new.spec.clone_from(&old.spec);
                })
                .reset(&[&["metadata"], &["spec"]]),
        ),
        Registration::new(
            FLOW_CONTROL,
            "prioritylevelconfigurations",
            with_status!(PriorityLevelConfiguration, validate_level, |new, _| validate_level(new))
                .defaults(set_level_defaults),
        )
        .status(
            Rules::<PriorityLevelConfiguration>::status(set_level_defaults, |new, _| {
                flow_control::validate_level_status(new)
            })
            .on_update(|_, new, old| {
                keep_metadata(&mut new.metadata, &old.metadata);
                new.spec.clone_from(&old.spec);
            })
            .reset(&[&["metadata"], &["spec"]]),
        ),
    ]
}

fn webhook_configurations() -> Vec<Registration> {
    vec![
        Registration::new(
            ADMISSION,
            "validatingwebhookconfigurations",
            Rules::<ValidatingWebhookConfiguration>::new(
                webhooks::validate_validating,
                webhooks::validate_validating_update,
            )
            .defaults(webhooks::set_validating_defaults)
            .on_create(|_, new| first_generation(&mut new.metadata))
            .on_update(|_, new, old| {
                if new.webhooks != old.webhooks {
                    next_generation(&mut new.metadata, &old.metadata);
                }
            })
            .warnings(|new, _| static_suffix_warnings(new.metadata.name.as_deref()))
            .no_unconditional_update(),
        ),
        Registration::new(
            ADMISSION,
            "mutatingwebhookconfigurations",
            Rules::<MutatingWebhookConfiguration>::new(webhooks::validate_mutating, webhooks::validate_mutating_update)
                .defaults(webhooks::set_mutating_defaults)
                .on_create(|_, new| first_generation(&mut new.metadata))
                .on_update(|_, new, old| {
                    if new.webhooks != old.webhooks {
                        next_generation(&mut new.metadata, &old.metadata);
                    }
                })
                .warnings(|new, _| static_suffix_warnings(new.metadata.name.as_deref()))
                .no_unconditional_update(),
        ),
    ]
}

fn admission_policies() -> Vec<Registration> {
    vec![
        Registration::new(
            ADMISSION,
            "validatingadmissionpolicies",
            with_status!(ValidatingAdmissionPolicy, policies::validate_policy, policies::validate_policy_update)
                .defaults(policies::set_policy_defaults)
                .warnings(|new, _| static_suffix_warnings(new.metadata.name.as_deref()))
                .no_unconditional_update(),
        )
        .status(
            Rules::<ValidatingAdmissionPolicy>::status(
                policies::set_policy_defaults,
                policies::validate_policy_status_update,
            )
            .on_update(|_, new, old| {
                new.spec.clone_from(&old.spec);
                reset_meta_for_status(&mut new.metadata, &old.metadata);
            })
            .no_unconditional_update()
            .reset(&[&["metadata"], &["spec"]]),
        ),
        Registration::new(
            ADMISSION,
            "validatingadmissionpolicybindings",
            spec_generation!(ValidatingAdmissionPolicyBinding, policies::validate_binding, |new, _| {
                policies::validate_binding(new)
            })
            .defaults(policies::set_binding_defaults)
            .warnings(|new, _| static_suffix_warnings(new.metadata.name.as_deref()))
            .no_unconditional_update(),
        ),
        Registration::new(
            ADMISSION,
            "mutatingadmissionpolicies",
            spec_generation!(
                MutatingAdmissionPolicy,
                policies::validate_mutating_policy,
                policies::validate_mutating_policy_update
            )
            .defaults(policies::set_mutating_policy_defaults)
            .warnings(|new, _| static_suffix_warnings(new.metadata.name.as_deref()))
            .no_unconditional_update(),
        ),
        Registration::new(
            ADMISSION,
            "mutatingadmissionpolicybindings",
            spec_generation!(MutatingAdmissionPolicyBinding, policies::validate_mutating_binding, |new, _| {
                policies::validate_mutating_binding(new)
            })
            .defaults(policies::set_mutating_binding_defaults)
            .warnings(|new, _| static_suffix_warnings(new.metadata.name.as_deref()))
            .no_unconditional_update(),
        ),
    ]
}

fn custom_resource_definitions() -> Registration {
    use rkube_validation::apiextensions::definition;
    Registration::new(
        "apiextensions.k8s.io",
        "customresourcedefinitions",
        Rules::<CustomResourceDefinition>::new(definition::validate, definition::validate_update)
            .defaults(definition::set_defaults)
            .on_create(|_, new| {
                new.status = None;
                first_generation(&mut new.metadata);
                definition::remember_storage_version(new);
            })
            .on_update(|_, new, old| {
                new.status.clone_from(&old.status);
                if new.spec != old.spec {
                    next_generation(&mut new.metadata, &old.metadata);
                }
                definition::remember_storage_version(new);
            })
            .warnings(definition::warnings)
            .no_unconditional_update()
            .reset(RESET_STATUS),
    )
    .status(
        status_only!(CustomResourceDefinition, definition::set_defaults, definition::validate_status_update)
            .no_unconditional_update(),
    )
}
