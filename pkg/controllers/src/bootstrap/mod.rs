//! Bootstrap tokens: Secrets of type `bootstrap.kubernetes.io/token` in `kube-system`, by which nodes join.
//!
//! The signer signs what a stranger may read of the cluster with each token, so that whoever has a token knows the
//! cluster from an impostor. The cleaner deletes tokens that have expired.
//!
//! Behaves as  pkg/controller/bootstrap, staging/cluster-bootstrap/util/secrets, v1.36

mod signer;
mod token_cleaner;

use jiff::Timestamp;
use rkube_api::k8s::core::v1::Secret;
use rkube_client::{Informer, InformerFactory};

pub(crate) use signer::BOOTSTRAP_SIGNER;
pub(crate) use token_cleaner::TOKEN_CLEANER;

const NAMESPACE: &str = "kube-system";
const TYPE: &str = "bootstrap.kubernetes.io/token";

/// Only the tokens: all other Secrets are none of our business, nor of our memory.
fn tokens(informers: &InformerFactory) -> Informer<Secret> {
    informers.scoped(NAMESPACE, "", &format!("type={TYPE}"))
}

fn field<'a>(secret: &'a Secret, name: &str) -> &'a str {
    let value = secret.data.as_ref().and_then(|data| data.get(name));
    value.and_then(|value| std::str::from_utf8(&value.0).ok()).unwrap_or_default()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expiration {
    Never,
    At(Timestamp),
    Past,
}

/// A time that cannot be read has passed.
fn expiration(secret: &Secret, now: Timestamp) -> Expiration {
    match field(secret, "expiration") {
        "" => Expiration::Never,
        text => match rkube_apimachinery::time::parse(text) {
            Ok(at) if at > now => Expiration::At(at),
            _ => Expiration::Past,
        },
    }
}

#[cfg(test)]
fn token(id: &str, expires: &str) -> Secret {
    let fields = [
        ("token-id", id),
        ("token-secret", "0123456789abcdef"),
        ("usage-bootstrap-signing", "true"),
        ("expiration", expires),
    ];
    let data = fields.into_iter().filter(|(_, value)| !value.is_empty());
    let data = data.map(|(name, value)| (name.to_owned(), rkube_api::ByteString(value.as_bytes().to_vec())));
    Secret {
        metadata: crate::testing::metadata(NAMESPACE, &format!("bootstrap-token-{id}")),
        type_: Some(TYPE.to_owned()),
        data: Some(data.collect()),
        ..Secret::default()
    }
}
