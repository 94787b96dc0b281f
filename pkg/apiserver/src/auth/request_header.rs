//! Users by headers, from a proxy that has authenticated them: an aggregating API server, or an administrator's own.
//!
//! Invariant: headers count only over a connection whose client certificate is of the front-proxy authority and
//! carries an allowed name. From anyone else they are as if they were not there, and they reach nobody behind.
//!
//! Behaves as `k8s.io/apiserver/pkg/authentication/request/headerrequest/requestheader.go` and the `Verifier` of
//! `request/x509/x509.go`, v1.36. Differs from upstream in one order that nobody can see: the certificate is looked
//! at after the headers, so that requests without them cost nothing here.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::{HeaderMap, HeaderName};
use percent_encoding::percent_decode_str;
use rkube_apimachinery::chain::chain;
use rkube_apimachinery::clock::SharedClock;
use rkube_http::listener::ConnectionInfo;
use rkube_http::tls::ClientVerifier;
use rkube_registry::UserInfo;

use super::basic::still_counts;
use super::{AuthenticationError, Credentials};

/// The headers, as kubeadm names them to kube-apiserver.
pub const USER: &str = "X-Remote-User";
pub const UID: &str = "X-Remote-Uid";
pub const GROUP: &str = "X-Remote-Group";
pub const EXTRA_PREFIX: &str = "X-Remote-Extra-";
/// The only proxy believed: who holds the certificate that the server keeps beside its authority.
pub const ALLOWED_NAME: &str = "front-proxy-client";

const USER_NAME: HeaderName = HeaderName::from_static("x-remote-user");
const UID_NAME: HeaderName = HeaderName::from_static("x-remote-uid");
const GROUP_NAME: HeaderName = HeaderName::from_static("x-remote-group");
const EXTRA_LOWER: &str = "x-remote-extra-";

/// Believes proxies whose certificate is of one authority.
pub struct RequestHeaderAuthenticator {
    verifier: ClientVerifier,
    clock: SharedClock,
}

/// That the proxy at the other end of a connection is believed, and when that was found out.
struct Believed {
    at: u64,
}

impl RequestHeaderAuthenticator {
    /// `verifier` knows the front-proxy authority and no other.
    pub fn new(verifier: ClientVerifier, clock: SharedClock) -> Self {
        Self { verifier, clock }
    }

    /// Whom the proxy names; `None` where no headers or no certificate are shown.
    pub(super) fn user(&self, credentials: &Credentials<'_>) -> Result<Option<UserInfo>, AuthenticationError> {
        let headers = credentials.headers;
        let name = first(headers, &USER_NAME);
        let Some(connection) = credentials.connection.filter(|connection| !connection.peer_certificates.is_empty())
        else {
            return Ok(None);
        };
        if name.is_empty() {
            return Ok(None);
        }
        self.believe(connection)?;
        let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for header in headers.keys() {
            if let Some(key) = header.as_str().strip_prefix(EXTRA_LOWER) {
                // A key that is no UTF-8 after decoding is kept as it was sent.
                let key = percent_decode_str(key).decode_utf8().map_or_else(|_| key.to_owned(), |key| key.into_owned());
                extra.entry(key).or_default().extend(all(headers, header));
            }
        }
        let groups = all(headers, &GROUP_NAME).filter(|group| !group.is_empty()).collect();
        Ok(Some(UserInfo { name, uid: first(headers, &UID_NAME), groups, extra }))
    }

    fn believe(&self, connection: &ConnectionInfo) -> Result<(), AuthenticationError> {
        let now = u64::try_from(self.clock.now().as_second()).unwrap_or_default();
        if connection.judgement.get::<Believed>().is_some_and(|believed| still_counts(believed.at, now)) {
            return Ok(());
        }
        let shown = &connection.peer_certificates;
        self.verifier.verify(shown, now).map_err(|error| AuthenticationError(format!("x509: {}", chain(&error))))?;
        let leaf = shown.first().ok_or_else(|| AuthenticationError("no certificate".to_owned()))?;
        let subject = rkube_pki::subject(leaf).map_err(|error| AuthenticationError(chain(&error).to_string()))?;
        if subject.common_name != ALLOWED_NAME {
            return Err(AuthenticationError(format!(
                "x509: subject with cn={} is not in the allowed list",
                subject.common_name
            )));
        }
        connection.judgement.set(Arc::new(Believed { at: now }));
        Ok(())
    }
}

/// Takes the headers away, whoever sent them, so that nothing behind this server believes them.
pub(crate) fn clear(headers: &mut HeaderMap) {
    let ours =
        |name: &&HeaderName| [USER_NAME, UID_NAME, GROUP_NAME].contains(name) || name.as_str().starts_with(EXTRA_LOWER);
    let names: Vec<HeaderName> = headers.keys().filter(ours).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}

fn first(headers: &HeaderMap, name: &HeaderName) -> String {
    all(headers, name).next().unwrap_or_default()
}

fn all<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = String> + use<'a> {
    headers.get_all(name).into_iter().map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
}
