//! Service account tokens for projected volumes: requested, kept, renewed before they expire.
//!
//! Behaves as pkg/kubelet/token/token_manager.go, v1.36.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::Mutex;
use rkube_api::k8s::core::v1::ServiceAccount;
use rkube_apimachinery::clock::SharedClock;
use rkube_client::Client;
use rkube_client::transport::ClientError;
use serde_json::{Value, json};

use crate::pod::PodUid;

/// A token is renewed when this old, however long it would live.
const AGE_MAX: Duration = Duration::from_secs(24 * 3600);
/// With 80 percent of its life gone a token is renewed.
const LIFE_PERCENT: u32 = 80;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TokenRequest {
    pub namespace: String,
    pub service_account: String,
    pub audience: String,
    pub expiration_seconds: i64,
    pub pod_name: String,
    pub pod_uid: PodUid,
}

struct Held {
    token: String,
    expires: Timestamp,
    issued: Timestamp,
}

#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error("failed to fetch token: {0}")]
    Client(#[source] ClientError),
    #[error("the server answered a token request without a token")]
    Incomplete,
}

/// Tokens of all pods. They live in memory only.
pub struct TokenManager {
    client: Client,
    clock: SharedClock,
    held: Mutex<HashMap<TokenRequest, Held>>,
}

impl TokenManager {
    pub fn new(client: Client, clock: SharedClock) -> Self {
        Self { client, clock, held: Mutex::default() }
    }

    pub async fn get(&self, request: &TokenRequest) -> Result<String, TokenError> {
        let now = self.clock.now();
        let known =
            self.held.lock().get(request).map(|held| (held.token.clone(), needs_renewal(held, now), held.expires));
        if let Some((token, false, _)) = known {
            return Ok(token);
        }
        match self.request(request).await {
            Ok(held) => {
                let token = held.token.clone();
                self.held.lock().insert(request.clone(), held);
                Ok(token)
            }
            // The old one is good until it expires.
            Err(error) => match known {
                Some((token, _, expires)) if expires > now => {
                    tracing::warn!(namespace = request.namespace, service_account = request.service_account, %error, "Token was not renewed");
                    Ok(token)
                }
                _ => Err(error),
            },
        }
    }

    async fn request(&self, request: &TokenRequest) -> Result<Held, TokenError> {
        let audiences = if request.audience.is_empty() { json!([]) } else { json!([request.audience]) };
        let spec = json!({
            "audiences": audiences,
            "expirationSeconds": request.expiration_seconds,
            "boundObjectRef": {
                "apiVersion": "v1", "kind": "Pod", "name": request.pod_name, "uid": request.pod_uid.as_str(),
            },
        });
        let api = self.client.namespaced::<ServiceAccount>(&request.namespace);
        let answer = api.create_token(&request.service_account, spec).await.map_err(TokenError::Client)?;
        let text = |path: &str| answer.pointer(path).and_then(Value::as_str);
        let token = text("/status/token").ok_or(TokenError::Incomplete)?.to_owned();
        let expires = text("/status/expirationTimestamp").and_then(|text| text.parse().ok());
        let issued = self.clock.now();
        let lifetime = Duration::from_secs(u64::try_from(request.expiration_seconds).unwrap_or(3600));
        Ok(Held { token, expires: expires.unwrap_or(issued + lifetime), issued })
    }

    pub fn forget(&self, uid: &PodUid) {
        self.held.lock().retain(|request, _| request.pod_uid != *uid);
    }
}

fn needs_renewal(held: &Held, now: Timestamp) -> bool {
    let since = |from: Timestamp, to: Timestamp| Duration::try_from(to.duration_since(from)).unwrap_or(Duration::ZERO);
    let age = since(held.issued, now);
    age > AGE_MAX || age > since(held.issued, held.expires) * LIFE_PERCENT / 100
}
