//! Service account tokens that live in Secrets and never expire.
//!
//! Each use is written on the Secret, once a day, so that those nobody uses can be cleaned up.
//!
//! Behaves as `pkg/serviceaccount/legacy.go`, v1.36.

use aws_lc_rs::constant_time::verify_slices_are_equal;
use jiff::{Timestamp, ToSpan};
use rkube_api::k8s::core::v1::{Secret, ServiceAccount};
use rkube_api::meta::pkg::apis::meta::v1::ObjectMeta;
use rkube_apimachinery::quote::quote;
use serde_json::{Value, json};

use super::AuthenticationError;
use crate::admission::Objects;

const LAST_USED: &str = "kubernetes.io/legacy-token-last-used";
const INVALID_SINCE: &str = "kubernetes.io/legacy-token-invalid-since";

/// Whose token it is: namespace, name and uid of the account.
pub(super) struct Account {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) uid: String,
}

/// Checks a token whose signature and issuer are good against the Secret it lives in and its account.
pub(super) async fn verify(
    objects: &Objects,
    token: &str,
    claims: &Value,
    now: Timestamp,
) -> Result<Account, AuthenticationError> {
    let bad = |text: &str| AuthenticationError(text.to_owned());
    let claim = |name: &str| claims[format!("kubernetes.io/serviceaccount/{name}")].as_str().unwrap_or_default();
    let (namespace, secret_name) = (claim("namespace"), claim("secret.name"));
    let (name, uid) = (claim("service-account.name"), claim("service-account.uid"));
    for (value, what) in [
        (namespace, "namespace"),
        (secret_name, "secretName"),
        (name, "serviceAccountName"),
        (uid, "serviceAccountUID"),
    ] {
        if value.is_empty() {
            return Err(AuthenticationError(format!("{what} claim is missing")));
        }
    }
    if claims["sub"].as_str() != Some(&format!("system:serviceaccount:{namespace}:{name}")) {
        return Err(bad("sub claim is invalid"));
    }
    let unread = |status: rkube_apimachinery::status::ApiStatus| AuthenticationError(status.message().to_owned());
    let secret = objects.cached_or_live::<Secret>(namespace, secret_name).await.map_err(unread)?;
    let secret = secret
        .filter(|secret| secret.metadata.deletion_timestamp.is_none())
        .ok_or_else(|| bad("Token has been invalidated"))?;
    let stored = secret.data.as_ref().and_then(|data| data.get("token")).map(|value| value.0.as_slice());
    if verify_slices_are_equal(stored.unwrap_or_default(), token.as_bytes()).is_err() {
        return Err(bad("Token does not match server's copy"));
    }
    let account = objects.cached_or_live::<ServiceAccount>(namespace, name).await.map_err(unread)?;
    let account = account.ok_or_else(|| AuthenticationError(format!("serviceaccounts {} not found", quote(name))))?;
    if account.metadata.deletion_timestamp.is_some() {
        return Err(AuthenticationError(format!("ServiceAccount {namespace}/{name} has been deleted")));
    }
    let found = account.metadata.uid.as_deref().unwrap_or_default();
    if found != uid {
        return Err(AuthenticationError(format!("ServiceAccount UID ({found}) does not match claim ({uid})")));
    }
    note_use(objects, &secret.metadata, now).await;
    let invalid = label(&secret.metadata, INVALID_SINCE).filter(|since| !since.is_empty());
    if invalid.is_some() {
        return Err(AuthenticationError(format!(
            "the token in secret {namespace}/{secret_name} for service account {namespace}/{name} has been marked invalid. \
             Use tokens from the TokenRequest API or manually created secret-based tokens, or remove the \
             '{INVALID_SINCE}' label from the secret to temporarily allow use of this token"
        )));
    }
    Ok(Account { namespace: namespace.to_owned(), name: name.to_owned(), uid: uid.to_owned() })
}

fn label<'a>(metadata: &'a ObjectMeta, name: &str) -> Option<&'a String> {
    metadata.labels.as_ref()?.get(name)
}

/// Another server's clock may be a day ahead; what it wrote stays.
async fn note_use(objects: &Objects, metadata: &ObjectMeta, now: Timestamp) {
    let day = |time: Timestamp| time.strftime("%Y-%m-%d").to_string();
    let today = day(now);
    let tomorrow = now.checked_add(24.hours()).map(day).unwrap_or_default();
    if label(metadata, LAST_USED).is_some_and(|last| *last == today || *last == tomorrow) {
        return;
    }
    let patch = json!({ "metadata": { "uid": metadata.uid, "labels": { LAST_USED: today } } });
    if let Err(status) = objects.merge::<Secret>(metadata, patch).await {
        tracing::warn!(error = %status, "Could not write down the use of a service account token");
    }
}
