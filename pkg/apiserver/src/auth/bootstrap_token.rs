//! Bootstrap tokens: Secrets of type `bootstrap.kubernetes.io/token` in `kube-system`, by which nodes join.
//!
//! Behaves as `plugin/pkg/auth/authenticator/token/bootstrap/bootstrap.go`, v1.36.

use std::collections::BTreeMap;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use rkube_api::k8s::core::v1::Secret;
use rkube_apimachinery::clock::SharedClock;
use rkube_pki::join_token;
use rkube_registry::UserInfo;

use super::AuthenticationError;
use crate::admission::Objects;

const TYPE: &str = "bootstrap.kubernetes.io/token";
pub const GROUP: &str = "system:bootstrappers";
const USER_PREFIX: &str = "system:bootstrap:";

pub struct BootstrapTokens {
    objects: Objects,
    clock: SharedClock,
}

impl BootstrapTokens {
    pub fn new(objects: Objects, clock: SharedClock) -> Self {
        Self { objects, clock }
    }

    /// Who the token is; `None` for a text that is no bootstrap token.
    pub async fn verify(&self, token: &str) -> Result<Option<UserInfo>, AuthenticationError> {
        let Some((id, secret)) = token.split_once('.').filter(|(id, secret)| join_token::is_bootstrap(id, secret))
        else {
            return Ok(None);
        };
        let bad = || AuthenticationError("invalid bearer token".to_owned());
        let found = self.objects.cached_or_live::<Secret>("kube-system", &format!("bootstrap-token-{id}")).await;
        let object = found.map_err(|status| AuthenticationError(status.message().to_owned()))?.ok_or_else(bad)?;
        let data = object.data.clone().unwrap_or_default();
        let field =
            |name: &str| data.get(name).and_then(|value| std::str::from_utf8(&value.0).ok()).unwrap_or_default();
        let is_usable = object.type_.as_deref() == Some(TYPE)
            && object.metadata.deletion_timestamp.is_none()
            && field("token-id") == id
            && field("usage-bootstrap-authentication") == "true"
            && !self.is_expired(field("expiration"));
        if !is_usable || verify_slices_are_equal(field("token-secret").as_bytes(), secret.as_bytes()).is_err() {
            return Err(bad());
        }
        let extra = field("auth-extra-groups").split(',').map(str::trim);
        let extra = extra.filter(|group| group.starts_with("system:bootstrappers:")).map(str::to_owned);
        let groups = std::iter::once(GROUP.to_owned()).chain(extra).collect();
        Ok(Some(UserInfo { name: format!("{USER_PREFIX}{id}"), uid: String::new(), groups, extra: BTreeMap::new() }))
    }

    /// A time that cannot be read has passed.
    fn is_expired(&self, expiration: &str) -> bool {
        !expiration.is_empty()
            && expiration.parse::<jiff::Timestamp>().map_or(true, |expires| expires <= self.clock.now())
    }
}
