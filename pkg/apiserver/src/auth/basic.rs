//! Credentials and rules for a cluster's first minutes: client certificates of one authority, fixed tokens,
//! and everything allowed to `system:masters`.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use http::{HeaderMap, header};
use rkube_apimachinery::chain::chain;
use rkube_apimachinery::clock::SharedClock;
use rkube_apimachinery::status::ApiStatus;
use rkube_http::tls::ClientVerifier;
use rkube_registry::UserInfo;
use rustls_pki_types::CertificateDer;
use sha2::{Digest, Sha256};

use super::{
    Attributes, Audit, AuditEvent, Authenticated, AuthenticationError, Authenticator, Authorizer, Credentials,
    Decision, Impersonation, Rules,
};

pub const MASTERS: &str = "system:masters";
pub const AUTHENTICATED: &str = "system:authenticated";
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
pub const ANONYMOUS: &str = "system:anonymous";

/// The user of a request without credentials.
pub fn anonymous() -> UserInfo {
    UserInfo { name: ANONYMOUS.to_owned(), groups: vec![UNAUTHENTICATED.to_owned()], ..UserInfo::default() }
}

/// Adds the group of everyone who is known.
#[must_use]
pub fn authenticated(mut user: UserInfo) -> UserInfo {
    let anonymous = user.name == ANONYMOUS;
    if !anonymous && !user.groups.iter().any(|group| group == AUTHENTICATED || group == UNAUTHENTICATED) {
        user.groups.push(AUTHENTICATED.to_owned());
    }
    user
}

/// How long one look at a connection's certificates is good for. A certificate that expires is refused that much later.
const JUDGEMENT_SECONDS: u64 = 10;

/// Whether what was found out at `at` still counts.
pub(super) fn still_counts(at: u64, now: u64) -> bool {
    now.abs_diff(at) < JUDGEMENT_SECONDS
}

/// A client certificate's subject: the common name is the user, organizations are groups, and Kubernetes' own
/// attribute is the uid.
#[derive(Clone)]
pub struct CertificateAuthenticator {
    verifier: ClientVerifier,
    clock: SharedClock,
}

/// Who the certificates of a connection are, and when that was found out.
struct Judged {
    at: u64,
    user: Option<UserInfo>,
}

impl CertificateAuthenticator {
    pub fn new(verifier: ClientVerifier, clock: SharedClock) -> Self {
        Self { verifier, clock }
    }

    /// Checking a signature costs more than answering most requests, so a connection's user is kept for a while.
    pub(super) fn user(&self, credentials: &Credentials<'_>) -> Result<Option<UserInfo>, AuthenticationError> {
        let Some(connection) = credentials.connection.filter(|connection| !connection.peer_certificates.is_empty())
        else {
            return Ok(None);
        };
        let now = u64::try_from(self.clock.now().as_second()).unwrap_or_default();
        if let Some(judged) = connection.judgement.get::<Judged>()
            && still_counts(judged.at, now)
        {
            return Ok(judged.user.clone());
        }
        let user = self.judge(&connection.peer_certificates, now)?;
        connection.judgement.set(Arc::new(Judged { at: now, user: user.clone() }));
        Ok(user)
    }

    fn judge(&self, shown: &[CertificateDer<'_>], now: u64) -> Result<Option<UserInfo>, AuthenticationError> {
        let Some(leaf) = shown.first() else { return Ok(None) };
        self.verifier.verify(shown, now).map_err(|error| AuthenticationError(format!("x509: {}", chain(&error))))?;
        let subject = rkube_pki::subject(leaf).map_err(|error| AuthenticationError(chain(&error).to_string()))?;
        if subject.common_name.is_empty() {
            return Ok(None);
        }
        let uid = match subject.uids.as_slice() {
            [] => String::new(),
            [uid] if !uid.is_empty() => uid.clone(),
            [_] => return Err(AuthenticationError("UID cannot be an empty string".to_owned())),
            several => {
                return Err(AuthenticationError(format!("expected 1 UID, but found multiple: {several:?}")));
            }
        };
        let extra = BTreeMap::from([(
            "authentication.kubernetes.io/credential-id".to_owned(),
            vec![format!("X509SHA256={}", hex(&Sha256::digest(leaf.as_ref())))],
        )]);
        Ok(Some(UserInfo { name: subject.common_name, uid, groups: subject.organizations, extra }))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |text, byte| text + &format!("{byte:02x}"))
}

/// Tokens known by their digest, so that looking one up takes no time that depends on the token.
#[derive(Clone, Default)]
pub struct StaticTokens(HashMap<[u8; 32], UserInfo>);

impl StaticTokens {
    #[must_use]
    pub fn with(mut self, token: &str, user: UserInfo) -> Self {
        self.0.insert(Sha256::digest(token.as_bytes()).into(), user);
        self
    }

    pub fn find(&self, token: &str) -> Option<&UserInfo> {
        let digest: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        self.0.get(&digest)
    }
}

/// The token of an `Authorization: Bearer` header. A header of another scheme, or with more than one space
/// before the token, is as none.
pub fn bearer_token(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?.trim();
    let mut parts = value.splitn(3, ' ');
    let (scheme, token) = (parts.next()?, parts.next()?);
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

/// Client certificates and fixed tokens.
pub struct BasicAuthenticator {
    pub certificates: Option<CertificateAuthenticator>,
    pub tokens: StaticTokens,
}

impl Authenticator for BasicAuthenticator {
    fn authenticate<'a>(
        &'a self,
        credentials: &'a Credentials<'a>,
    ) -> BoxFuture<'a, Result<Option<Authenticated>, AuthenticationError>> {
        let result = (|| {
            if let Some(certificates) = &self.certificates
                && let Some(user) = certificates.user(credentials)?
            {
                return Ok(Some(Authenticated { user, audiences: Vec::new() }));
            }
            match bearer_token(credentials.headers) {
                None => Ok(None),
                Some(token) => match self.tokens.find(token) {
                    Some(user) => Ok(Some(Authenticated { user: user.clone(), audiences: Vec::new() })),
                    None => Err(AuthenticationError("invalid bearer token".to_owned())),
                },
            }
        })();
        Box::pin(std::future::ready(result))
    }

    fn authenticate_token<'a>(
        &'a self,
        token: &'a str,
        _audiences: &'a [String],
    ) -> BoxFuture<'a, Result<Option<Authenticated>, AuthenticationError>> {
        let found = self.tokens.find(token).map(|user| Authenticated { user: user.clone(), audiences: Vec::new() });
        Box::pin(std::future::ready(Ok(found)))
    }
}

/// Allows everything to `system:masters` and the public endpoints to everyone.
pub struct MastersOnly;

const PUBLIC: [&str; 6] = ["/healthz", "/livez", "/readyz", "/version", "/version/", "/openid/v1/jwks"];

impl Authorizer for MastersOnly {
    fn authorize<'a>(&'a self, attributes: &'a Attributes) -> BoxFuture<'a, Decision> {
        let is_public =
            !attributes.is_resource && attributes.verb == "get" && PUBLIC.contains(&attributes.path.as_str());
        let decision = if is_public || attributes.user.groups.iter().any(|group| group == MASTERS) {
            Decision::Allow { reason: String::new() }
        } else {
            Decision::NoOpinion { reason: String::new() }
        };
        Box::pin(std::future::ready(decision))
    }

    fn rules<'a>(&'a self, user: &'a UserInfo, _namespace: &'a str) -> BoxFuture<'a, Rules> {
        let all = user.groups.iter().any(|group| group == MASTERS);
        let rules = Rules {
            resource_rules: if all {
                vec![serde_json::json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]})]
            } else {
                Vec::new()
            },
            non_resource_rules: if all {
                vec![serde_json::json!({"verbs": ["*"], "nonResourceURLs": ["*"]})]
            } else {
                Vec::new()
            },
            ..Rules::default()
        };
        Box::pin(std::future::ready(rules))
    }
}

/// Nobody acts as anybody else. A request that asks for it is refused, not carried out as its sender.
pub struct NoImpersonation;

impl Impersonation for NoImpersonation {
    fn impersonate<'a>(
        &'a self,
        headers: &'a mut HeaderMap,
        user: &'a UserInfo,
        _authorizer: &'a Arc<dyn Authorizer>,
    ) -> BoxFuture<'a, Result<Option<UserInfo>, ApiStatus>> {
        let asked = headers.keys().find(|name| name.as_str().starts_with("impersonate-"));
        let result = match asked {
            None => Ok(None),
            Some(_) => {
                let attributes = Attributes {
                    user: user.clone(),
                    verb: "impersonate".to_owned(),
                    is_resource: true,
                    resource: "users".to_owned(),
                    ..Attributes::default()
                };
                Err(attributes.forbidden(""))
            }
        };
        Box::pin(std::future::ready(result))
    }
}

/// Records nothing.
pub struct NoAudit;

impl Audit for NoAudit {
    fn record(&self, _event: &AuditEvent<'_>) {}
}
