//! Bootstrap tokens: made, listed and deleted through the API.
//!
//! Behaves as `kubeadm token`, v1.36. Differs from it: a list shows ids and never secrets.

use std::collections::BTreeMap;
use std::path::Path;

use jiff::{SignedDuration, Timestamp};
use rkube_api::ByteString;
use rkube_api::k8s::core::v1::{ConfigMap, Secret};
use rkube_api::meta::pkg::apis::meta::v1::ObjectMeta;
use rkube_apimachinery::clock::SharedClock;
use rkube_apimachinery::time;
use rkube_client::{Client, DeleteOptions, ListParams};
use rkube_pki::join_token::{self, Credential, JoinToken};
use rkube_pki::{KubeconfigFile, authority};
use serde::Serialize;

use super::AdminError;
use super::connect::connect;

const NAMESPACE: &str = "kube-system";
const TYPE: &str = "bootstrap.kubernetes.io/token";
const PREFIX: &str = "bootstrap-token-";
const USAGE_PREFIX: &str = "usage-bootstrap-";
const GROUP_PREFIX: &str = "system:bootstrappers:";
const GROUP_LENGTH_MAX: usize = 256;
/// What a token can be used for.
pub const USAGES: [&str; 2] = ["authentication", "signing"];

/// What is wanted of a new token.
#[derive(Clone, Debug)]
pub struct NewToken {
    /// `None` for one that never expires.
    pub ttl: Option<SignedDuration>,
    pub usages: Vec<String>,
    /// Besides `system:bootstrappers`.
    pub groups: Vec<String>,
    pub description: String,
}

/// A token that was made. `Debug` shows no secret.
#[derive(Debug)]
pub struct Created {
    pub token: JoinToken,
    /// Where to join with it.
    pub server: String,
}

/// A token as it is listed, without its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Listed {
    pub id: String,
    /// `None` for never.
    pub expires: Option<Timestamp>,
    pub usages: Vec<String>,
    pub description: String,
    pub groups: Vec<String>,
}

/// The commands, against the cluster of one kubeconfig.
pub struct Tokens {
    client: Client,
    file: KubeconfigFile,
}

impl Tokens {
    pub fn connect(kubeconfig: &Path, clock: SharedClock) -> Result<Self, AdminError> {
        let (client, file) = connect(kubeconfig, clock)?;
        Ok(Self { client, file })
    }

    pub async fn create(&self, wanted: &NewToken) -> Result<Created, AdminError> {
        check(wanted)?;
        let credential = join_token::generate_bootstrap()?;
        let secret = secret(&credential, wanted, self.client.clock().now())?;
        let api = self.client.namespaced::<Secret>(NAMESPACE);
        api.create(&secret).await.map_err(AdminError::request("creating the token", &self.file.server))?;
        let chain = authority::certificates(&self.file.authority, "the authority of the kubeconfig")?;
        let ca_hash = chain.first().map(|der| join_token::ca_hash(der));
        Ok(Created { token: JoinToken { ca_hash, credential }, server: self.advertised().await })
    }

    /// What the cluster says of itself; the administrator's own way to it may be a loopback address.
    async fn advertised(&self) -> String {
        let told = async {
            let info = self.client.namespaced::<ConfigMap>("kube-public").get("cluster-info").await.ok()?;
            let text = info.data?.remove("kubeconfig")?;
            text.lines().find_map(|line| Some(line.trim().strip_prefix("server:")?.trim().trim_matches('"').to_owned()))
        };
        told.await.unwrap_or_else(|| self.file.server.clone())
    }

    /// In order of id.
    pub async fn list(&self) -> Result<Vec<Listed>, AdminError> {
        let api = self.client.namespaced::<Secret>(NAMESPACE);
        let page = api.list(&ListParams::fields(format!("type={TYPE}"))).await;
        let page = page.map_err(AdminError::request("listing tokens", &self.file.server))?;
        let mut all: Vec<_> = page.items.iter().map(|secret| listed(secret)).collect();
        all.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(all)
    }

    /// `token` is an id or a whole token in any form.
    pub async fn delete(&self, token: &str) -> Result<String, AdminError> {
        let id = id_of(token)?;
        let api = self.client.namespaced::<Secret>(NAMESPACE);
        match api.delete(&format!("{PREFIX}{id}"), &DeleteOptions::default()).await {
            Ok(()) => Ok(id),
            Err(error) if error.is_not_found() => Err(AdminError::NoToken { id }),
            Err(error) => Err(AdminError::request("deleting the token", &self.file.server)(error)),
        }
    }
}

fn id_of(token: &str) -> Result<String, AdminError> {
    if join_token::is_bootstrap_id(token) {
        return Ok(token.to_owned());
    }
    match JoinToken::parse(token)?.credential {
        Credential::Bootstrap { id, .. } => Ok(id),
        Credential::Shared { .. } => {
            Err(AdminError::Invalid("a bootstrap token has an id of six lower-case letters and digits".to_owned()))
        }
    }
}

fn check(wanted: &NewToken) -> Result<(), AdminError> {
    let bad = |text: String| Err(AdminError::Invalid(text));
    if wanted.ttl.is_some_and(|ttl| ttl <= SignedDuration::ZERO) {
        return bad("--ttl must be positive, or 0 for a token that never expires".to_owned());
    }
    if wanted.usages.is_empty() {
        return bad(format!("--usages must name at least one of {}", USAGES.join(", ")));
    }
    if let Some(usage) = wanted.usages.iter().find(|usage| !USAGES.contains(&usage.as_str())) {
        return bad(format!("--usages: {usage:?} is not one of {}", USAGES.join(", ")));
    }
    let is_group = |group: &String| {
        let rest = group.strip_prefix(GROUP_PREFIX).unwrap_or_default();
        let fine = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b':';
        let ends = rest.bytes().last().is_some_and(|last| last.is_ascii_lowercase() || last.is_ascii_digit());
        rest.len() <= GROUP_LENGTH_MAX && rest.bytes().all(fine) && ends
    };
    if let Some(group) = wanted.groups.iter().find(|group| !is_group(group)) {
        return bad(format!(
            "--groups: {group:?} must be {GROUP_PREFIX} and lower-case letters, digits, '-' and ':' after it"
        ));
    }
    if !wanted.groups.is_empty() && !wanted.usages.iter().any(|usage| usage == "authentication") {
        return bad(
            "--groups needs the usage authentication: a token that nobody logs in with has no groups".to_owned()
        );
    }
    Ok(())
}

fn secret(credential: &Credential, wanted: &NewToken, now: Timestamp) -> Result<Secret, AdminError> {
    let Credential::Bootstrap { id, secret } = credential else {
        return Err(AdminError::Invalid("not a bootstrap token".to_owned()));
    };
    let mut data = BTreeMap::from([("token-id".to_owned(), id.clone()), ("token-secret".to_owned(), secret.clone())]);
    data.extend(wanted.usages.iter().map(|usage| (format!("{USAGE_PREFIX}{usage}"), "true".to_owned())));
    if let Some(ttl) = wanted.ttl {
        let too_long = |_| AdminError::Invalid("--ttl is too long".to_owned());
        data.insert("expiration".to_owned(), time::format(now.checked_add(ttl).map_err(too_long)?));
    }
    for (name, value) in [("description", wanted.description.clone()), ("auth-extra-groups", wanted.groups.join(","))] {
        if !value.is_empty() {
            data.insert(name.to_owned(), value);
        }
    }
    let metadata = ObjectMeta { name: Some(format!("{PREFIX}{id}")), ..ObjectMeta::default() };
    let data = data.into_iter().map(|(name, value)| (name, ByteString(value.into_bytes()))).collect();
    Ok(Secret { metadata, type_: Some(TYPE.to_owned()), data: Some(data), ..Secret::default() })
}

fn listed(secret: &Secret) -> Listed {
    let field = |name: &str| {
        let value = secret.data.as_ref().and_then(|data| data.get(name));
        value.and_then(|value| String::from_utf8(value.0.clone()).ok()).unwrap_or_default()
    };
    let split = |text: String| text.split(',').filter(|part| !part.is_empty()).map(str::to_owned).collect();
    let usages = USAGES.into_iter().filter(|usage| field(&format!("{USAGE_PREFIX}{usage}")) == "true");
    Listed {
        id: field("token-id"),
        expires: time::parse(&field("expiration")).ok(),
        usages: usages.map(str::to_owned).collect(),
        description: field("description"),
        groups: split(field("auth-extra-groups")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted() -> NewToken {
        NewToken {
            ttl: Some(SignedDuration::from_hours(24)),
            usages: USAGES.map(str::to_owned).into(),
            groups: vec!["system:bootstrappers:edge".to_owned()],
            description: "for the edge".to_owned(),
        }
    }

    #[test]
    fn a_token_lists_as_it_was_made_and_without_its_secret() {
        let credential = Credential::Bootstrap { id: "abcdef".to_owned(), secret: "0123456789abcdef".to_owned() };
        let secret = secret(&credential, &wanted(), "2030-01-01T00:00:00Z".parse().unwrap()).unwrap();
        let listed = listed(&secret);
        assert_eq!(
            serde_json::to_string(&listed).unwrap(),
            r#"{"id":"abcdef","expires":"2030-01-02T00:00:00Z","usages":["authentication","signing"],"description":"for the edge","groups":["system:bootstrappers:edge"]}"#
        );
    }

    #[test]
    fn what_is_wrong_with_a_wish_is_named() {
        let error = |change: fn(&mut NewToken)| {
            let mut wanted = wanted();
            change(&mut wanted);
            check(&wanted).unwrap_err().to_string()
        };
        assert!(check(&wanted()).is_ok());
        for (change, expected) in [
            (
                (|wanted| wanted.ttl = Some(SignedDuration::from_secs(-1))) as fn(&mut NewToken),
                "--ttl must be positive, or 0 for a token that never expires",
            ),
            (|wanted| wanted.usages.clear(), "--usages must name at least one of authentication, signing"),
            (
                |wanted| wanted.usages.push("login".to_owned()),
                "--usages: \"login\" is not one of authentication, signing",
            ),
            (
                |wanted| wanted.groups.push("system:masters".to_owned()),
                "--groups: \"system:masters\" must be system:bootstrappers: and lower-case letters, digits, '-' and ':' after it",
            ),
            (
                |wanted| wanted.usages = vec!["signing".to_owned()],
                "--groups needs the usage authentication: a token that nobody logs in with has no groups",
            ),
        ] {
            assert_eq!(error(change), expected);
        }
    }

    #[test]
    fn a_token_is_named_by_its_id_or_in_any_form() {
        let whole = format!("K10{}::abcdef.0123456789abcdef", "a".repeat(64));
        for text in ["abcdef", "abcdef.0123456789abcdef", &whole] {
            assert_eq!(id_of(text).unwrap(), "abcdef");
        }
        assert!(id_of("no-token").is_err());
    }
}
