//! Service account tokens: what they say, and whether what they are bound to still exists.
//!
//! Behaves as `pkg/serviceaccount/{claims,jwt}.go`, v1.36.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use rkube_api::Kind;
use rkube_api::k8s::core::v1::{Node, Pod, Secret, ServiceAccount};
use rkube_api::meta::pkg::apis::meta::v1::ObjectMeta;
use rkube_apimachinery::clock::SharedClock;
use rkube_apimachinery::quote::quote_list;
use rkube_apimachinery::status::ApiStatus;
use rkube_pki::service_account::{LEGACY_ISSUER, ServiceAccountKeys};
use rkube_registry::UserInfo;
use rkube_registry::{NameAndUid, TokenPolicy, TokenSigner, TokenToSign};
use serde_json::{Value, json};

use super::{Authenticated, AuthenticationError, legacy_token};
use crate::admission::Objects;

const USER_PREFIX: &str = "system:serviceaccount:";
const ALL_ACCOUNTS: &str = "system:serviceaccounts";
/// The claim that holds all of Kubernetes' own.
const CLAIM: &str = "kubernetes.io";
/// A token outlives the object it is bound to by this, so that a graceful end can still report.
const DELETED_GRACE: Duration = Duration::from_secs(60);

/// What tokens of this cluster have in common.
#[derive(Clone, Debug)]
pub struct TokenSettings {
    pub issuer: String,
    /// Audiences of the API server; the first are those of a token that names none.
    pub audiences: Vec<String>,
}

/// Signs tokens with the cluster's key.
pub struct Signer {
    keys: ServiceAccountKeys,
    settings: TokenSettings,
    clock: SharedClock,
}

impl Signer {
    pub fn new(keys: ServiceAccountKeys, settings: TokenSettings, clock: SharedClock) -> Self {
        Self { keys, settings, clock }
    }

    fn claims(&self, token: &TokenToSign) -> Value {
        let now = self.clock.now().as_second();
        let reference = |object: &NameAndUid| match object.uid.as_str() {
            "" => json!({ "name": object.name }),
            uid => json!({ "name": object.name, "uid": uid }),
        };
        let mut own = json!({
            "namespace": token.namespace,
            "serviceaccount": reference(&token.service_account),
        });
        for (name, object) in [("pod", &token.pod), ("secret", &token.secret), ("node", &token.node)] {
            if let Some(object) = object {
                own[name] = reference(object);
            }
        }
        if token.warn_after_seconds > 0 {
            own["warnafter"] = json!(now + token.warn_after_seconds);
        }
        json!({
            "iss": self.settings.issuer,
            "sub": format!("{USER_PREFIX}{}:{}", token.namespace, token.service_account.name),
            "aud": token.audiences,
            "iat": now,
            "nbf": now,
            "exp": now + token.expiration_seconds,
            "jti": uuid::Uuid::new_v4().to_string(),
            CLAIM: own,
        })
    }
}

impl TokenSigner for Signer {
    fn policy(&self) -> TokenPolicy {
        TokenPolicy { audiences: self.settings.audiences.clone(), expiration_seconds_max: 0, extend_expiration: true }
    }

    fn sign<'a>(&'a self, request: &'a TokenToSign) -> BoxFuture<'a, Result<String, ApiStatus>> {
        Box::pin(std::future::ready(self.keys.sign(&self.claims(request)).map_err(ApiStatus::internal)))
    }
}

/// Verifies tokens against the cluster's keys and its objects.
pub struct Verifier {
    keys: ServiceAccountKeys,
    settings: TokenSettings,
    clock: SharedClock,
    objects: Objects,
}

impl Verifier {
    pub fn new(keys: ServiceAccountKeys, settings: TokenSettings, clock: SharedClock, objects: Objects) -> Self {
        Self { keys, settings, clock, objects }
    }

    /// Whether a token claims to be of this cluster. Others are for other authenticators.
    pub fn is_ours(&self, token: &str) -> bool {
        token.split('.').count() == 3
    }

    /// Who the token is. `audiences` are those it must be for, the API server's own if empty.
    pub async fn verify(&self, token: &str, audiences: &[String]) -> Result<Authenticated, AuthenticationError> {
        let bad = |text: &str| AuthenticationError(text.to_owned());
        let claims = self.keys.verify(token).map_err(|error| AuthenticationError(error.to_string()))?;
        if claims["iss"].as_str() == Some(LEGACY_ISSUER) {
            return self.verify_legacy(token, &claims, audiences).await;
        }
        if claims["iss"].as_str() != Some(self.settings.issuer.as_str()) {
            return Err(bad("the token is of another issuer"));
        }
        let now = self.clock.now();
        let seconds = now.as_second();
        if claims["exp"].as_i64().is_none_or(|expires| expires <= seconds) {
            return Err(bad("service account token has expired"));
        }
        if claims["nbf"].as_i64().is_some_and(|begins| begins > seconds) {
            return Err(bad("service account token is not valid yet"));
        }
        let wanted = if audiences.is_empty() { &self.settings.audiences } else { audiences };
        let good_for = audiences_of(&claims["aud"]);
        let common: Vec<String> =
            wanted.iter().filter(|audience| good_for.contains(&audience.as_str())).cloned().collect();
        if common.is_empty() {
            return Err(AuthenticationError(format!(
                "token audiences {} is invalid for the target audiences {}",
                quote_list(&good_for),
                quote_list(wanted)
            )));
        }
        let own = &claims[CLAIM];
        let namespace = own["namespace"].as_str().ok_or_else(|| bad("the token names no namespace"))?;
        let account = self.bound::<ServiceAccount>(namespace, &own["serviceaccount"], now).await?;
        let account = account.ok_or_else(|| bad("the token names no service account"))?;
        let mut extra = BTreeMap::new();
        if let Some(id) = claims["jti"].as_str() {
            extra.insert("authentication.kubernetes.io/credential-id".to_owned(), vec![format!("JTI={id}")]);
        }
        self.bound::<Secret>(namespace, &own["secret"], now).await?;
        if let Some(pod) = self.bound::<Pod>(namespace, &own["pod"], now).await? {
            insert(&mut extra, "pod", &pod);
        }
        let node = &own["node"];
        match own["pod"].is_null() {
            // A pod's token tells its node; it is bound to the pod.
            false => {
                let named = |field: &str| node[field].as_str().unwrap_or_default().to_owned();
                if !node.is_null() {
                    insert(&mut extra, "node", &NameAndUid { name: named("name"), uid: named("uid") });
                }
            }
            true => {
                if let Some(node) = self.bound::<Node>("", node, now).await? {
                    insert(&mut extra, "node", &node);
                }
            }
        }
        Ok(Authenticated { user: user(namespace, account.name, account.uid, extra), audiences: common })
    }

    /// A token without end and audience; it is for whoever is asked, if that is the API server.
    async fn verify_legacy(
        &self,
        token: &str,
        claims: &Value,
        audiences: &[String],
    ) -> Result<Authenticated, AuthenticationError> {
        let own = &self.settings.audiences;
        let common: Vec<String> =
            own.iter().filter(|audience| audiences.is_empty() || audiences.contains(audience)).cloned().collect();
        if common.is_empty() {
            return Err(AuthenticationError(format!(
                "token audiences {own:?} is invalid for the target audiences {audiences:?}"
            )));
        }
        let account = legacy_token::verify(&self.objects, token, claims, self.clock.now()).await?;
        let user = user(&account.namespace, account.name, account.uid, BTreeMap::new());
        Ok(Authenticated { user, audiences: common })
    }

    /// Checks that an object the token is bound to is there and the same. `None` if it is bound to none.
    async fn bound<K: Kind>(
        &self,
        namespace: &str,
        reference: &Value,
        now: Timestamp,
    ) -> Result<Option<NameAndUid>, AuthenticationError> {
        let Some(name) = reference["name"].as_str() else { return Ok(None) };
        let gone = || AuthenticationError("service account token has been invalidated".to_owned());
        let found = self.objects.cached_or_live::<K>(namespace, name).await;
        let object: Arc<K> =
            found.map_err(|status| AuthenticationError(status.message().to_owned()))?.ok_or_else(gone)?;
        let metadata: &ObjectMeta = object.metadata();
        let uid = metadata.uid.clone().unwrap_or_default();
        let is_same = reference["uid"].as_str() == Some(uid.as_str());
        let deleted = metadata.deletion_timestamp.as_ref();
        let is_over = deleted.is_some_and(|at| at.0.checked_add(DELETED_GRACE).is_ok_and(|end| now > end));
        if !is_same || is_over {
            return Err(gone());
        }
        Ok(Some(NameAndUid { name: name.to_owned(), uid }))
    }
}

fn user(namespace: &str, name: String, uid: String, extra: BTreeMap<String, Vec<String>>) -> UserInfo {
    UserInfo {
        name: format!("{USER_PREFIX}{namespace}:{name}"),
        uid,
        groups: vec![ALL_ACCOUNTS.to_owned(), format!("{ALL_ACCOUNTS}:{namespace}")],
        extra,
    }
}

fn insert(extra: &mut BTreeMap<String, Vec<String>>, kind: &str, object: &NameAndUid) {
    extra.insert(format!("authentication.kubernetes.io/{kind}-name"), vec![object.name.clone()]);
    if !object.uid.is_empty() {
        extra.insert(format!("authentication.kubernetes.io/{kind}-uid"), vec![object.uid.clone()]);
    }
}

/// One audience or a list of them.
fn audiences_of(claim: &Value) -> Vec<&str> {
    match claim {
        Value::String(one) => vec![one],
        Value::Array(many) => many.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}
