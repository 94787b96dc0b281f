//! Who may approve and sign certificate requests: whoever is authorized for their signer. And nobody gets an
//! administrator's certificate by request.
//!
//! Behaves as `plugin/pkg/admission/certificates/{approval,signing,subjectrestriction}/admission.go` and
//! `pkg/certauthorization`, v1.36.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use rkube_api::k8s::certificates::v1::CertificateSigningRequest;
use rkube_apimachinery::quote::quote;
use rkube_apimachinery::status::ApiStatus;
use rkube_pki::csr::SigningRequest;
use rkube_registry::{Attributes, Operation, UserInfo};

use super::{Plugin, forbidden, not_convertible, object};
use crate::auth::basic::MASTERS;
use crate::auth::{Attributes as Question, Authorizer};

const GROUP: &str = "certificates.k8s.io";
const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client";

/// Whether the user may `verb` for the signer, or for every signer of its domain.
async fn is_authorized(authorizer: &dyn Authorizer, user: &UserInfo, verb: &str, signer: &str) -> bool {
    let domain = signer.split('/').next().unwrap_or_default();
    for name in [signer.to_owned(), format!("{domain}/*")] {
        let question = Question {
            user: user.clone(),
            verb: verb.to_owned(),
            is_resource: true,
            group: GROUP.to_owned(),
            version: "*".to_owned(),
            resource: "signers".to_owned(),
            name,
            ..Question::default()
        };
        if authorizer.authorize(&question).await.is_allowed() {
            return true;
        }
    }
    false
}

fn is_request(attributes: &Attributes, subresource: &str) -> bool {
    let row = &attributes.resource;
    row.group == GROUP && row.plural == "certificatesigningrequests" && attributes.subresource == subresource
}

pub(super) struct CertificateApproval {
    authorizer: Arc<dyn Authorizer>,
}

impl CertificateApproval {
    pub(super) fn new(authorizer: Arc<dyn Authorizer>) -> Self {
        Self { authorizer }
    }

    /// The signer is the stored one: a request that tries to change it is judged by what it was.
    async fn check(&self, attributes: &mut Attributes) -> Result<(), ApiStatus> {
        let Some(old) = attributes.old_object.clone().filter(|_| is_request(attributes, "approval")) else {
            return Ok(());
        };
        let old = old.typed::<CertificateSigningRequest>().map_err(not_convertible)?;
        let signer = &old.spec.signer_name;
        if is_authorized(self.authorizer.as_ref(), &attributes.context.user, "approve", signer).await {
            return Ok(());
        }
        let text = format!("user not permitted to approve requests with signerName {}", quote(signer));
        Err(forbidden(attributes, text))
    }
}

impl Plugin for CertificateApproval {
    fn name(&self) -> &'static str {
        "CertificateApproval"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Update
    }

    fn validate<'a>(&'a self, attributes: &'a mut Attributes) -> BoxFuture<'a, Result<(), ApiStatus>> {
        Box::pin(self.check(attributes))
    }
}

pub(super) struct CertificateSigning {
    authorizer: Arc<dyn Authorizer>,
}

impl CertificateSigning {
    pub(super) fn new(authorizer: Arc<dyn Authorizer>) -> Self {
        Self { authorizer }
    }

    async fn check(&self, attributes: &mut Attributes) -> Result<(), ApiStatus> {
        let Some(old) = attributes.old_object.clone().filter(|_| is_request(attributes, "status")) else {
            return Ok(());
        };
        let old = old.typed::<CertificateSigningRequest>().map_err(not_convertible)?;
        let new = object!(attributes, CertificateSigningRequest);
        let signed = |request: &CertificateSigningRequest| {
            let status = request.status.clone().unwrap_or_default();
            (status.certificate, status.conditions.unwrap_or_default())
        };
        if signed(new) == signed(&old) {
            return Ok(());
        }
        let signer = &old.spec.signer_name;
        if is_authorized(self.authorizer.as_ref(), &attributes.context.user, "sign", signer).await {
            return Ok(());
        }
        let text = format!("user not permitted to sign requests with signerName {}", quote(signer));
        Err(forbidden(attributes, text))
    }
}

impl Plugin for CertificateSigning {
    fn name(&self) -> &'static str {
        "CertificateSigning"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Update
    }

    fn validate<'a>(&'a self, attributes: &'a mut Attributes) -> BoxFuture<'a, Result<(), ApiStatus>> {
        Box::pin(self.check(attributes))
    }
}

pub(super) struct CertificateSubjectRestriction;

fn check_subject(attributes: &mut Attributes) -> Result<(), ApiStatus> {
    if !is_request(attributes, "") {
        return Ok(());
    }
    let spec = object!(attributes, CertificateSigningRequest).spec.clone();
    if spec.signer_name != CLIENT_SIGNER {
        return Ok(());
    }
    let request = SigningRequest::parse(&spec.request.0).map_err(|error| {
        forbidden(attributes, format!("failed to parse CSR: {}", rkube_apimachinery::chain::chain(&error)))
    })?;
    if request.organizations.iter().any(|group| group == MASTERS) {
        let text = format!("use of {CLIENT_SIGNER} signer with {MASTERS} group is not allowed");
        return Err(forbidden(attributes, text));
    }
    Ok(())
}

impl Plugin for CertificateSubjectRestriction {
    fn name(&self) -> &'static str {
        "CertificateSubjectRestriction"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Create
    }

    fn validate<'a>(&'a self, attributes: &'a mut Attributes) -> BoxFuture<'a, Result<(), ApiStatus>> {
        Box::pin(std::future::ready(check_subject(attributes)))
    }
}
