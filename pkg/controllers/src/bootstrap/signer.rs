//! Bootstrap signer controller: the `kubeconfig` of `kube-public/cluster-info`, signed with every valid token.
//!
//! Watches  v1 ConfigMap `kube-public/cluster-info` (primary); v1 Secret of bootstrap tokens
//! Writes   v1 ConfigMap (its `jws-kubeconfig-<token id>` entries)
//! Behaves as  pkg/controller/bootstrap/bootstrapsigner.go, v1.36

use std::collections::BTreeMap;
use std::sync::Arc;

use rkube_api::k8s::core::v1::{ConfigMap, Secret};
use rkube_apimachinery::key::ObjectKey;
use rkube_client::{Client, Lister, Reconciler, Requeue, SyncError, WorkQueue};
use rkube_pki::join_token;

use super::{Expiration, NAMESPACE, expiration, field, tokens};
use crate::common::enqueue::enqueue_all;
use crate::context::{ControllerContext, Descriptor, Running};

const NAME: &str = "bootstrap-signer-controller";
const PUBLIC_NAMESPACE: &str = "kube-public";
const CONFIG_MAP: &str = "cluster-info";
const KUBECONFIG: &str = "kubeconfig";
const SIGNATURE_PREFIX: &str = "jws-kubeconfig-";
const SECRET_PREFIX: &str = "bootstrap-token-";

pub(crate) const BOOTSTRAP_SIGNER: Descriptor = Descriptor::new(NAME, "bootstrapsigner", start).off_by_default();

struct Signer {
    client: Client,
    config_maps: Lister<ConfigMap>,
    tokens: Lister<Secret>,
}

fn start(context: &ControllerContext) -> Running {
    let config_maps =
        context.informers.scoped::<ConfigMap>(PUBLIC_NAMESPACE, "", &format!("metadata.name={CONFIG_MAP}"));
    let tokens = tokens(&context.informers);
    let queue: WorkQueue<ObjectKey> = context.queue("bootstrap_signer_queue");
    let controller = Arc::new(Signer {
        client: context.client_for(NAME),
        config_maps: config_maps.lister(),
        tokens: tokens.lister(),
    });
    enqueue_all(&config_maps, &queue);
    let keys = queue.clone();
    tokens.core().add_handler(move |_| keys.add(ObjectKey::new(PUBLIC_NAMESPACE, CONFIG_MAP)));
    context.run(NAME, &queue, &controller, 1)
}

impl Signer {
    /// The signature of each token that may sign now, by the token's id.
    fn signatures(&self, content: &str) -> BTreeMap<String, String> {
        let now = self.client.clock().now();
        let mut signatures = BTreeMap::new();
        for secret in self.tokens.list_all(NAMESPACE) {
            let (id, key) = (field(&secret, "token-id"), field(&secret, "token-secret"));
            let named = secret.metadata.name.as_deref().and_then(|name| name.strip_prefix(SECRET_PREFIX));
            let is_valid = join_token::is_bootstrap_id(id)
                && named == Some(id)
                && !key.is_empty()
                && expiration(&secret, now) != Expiration::Past
                && field(&secret, "usage-bootstrap-signing") == "true";
            if is_valid {
                signatures.insert(format!("{SIGNATURE_PREFIX}{id}"), join_token::sign_detached(content, id, key));
            }
        }
        signatures
    }
}

impl Reconciler for Signer {
    async fn sync(&self, key: &ObjectKey) -> Result<Requeue, SyncError> {
        let Some(current) = self.config_maps.get(key) else { return Ok(Requeue::Never) };
        let Some(data) = current.data.as_ref() else { return Ok(Requeue::Never) };
        let Some(content) = data.get(KUBECONFIG) else { return Ok(Requeue::Never) };
        let unsigned = data.iter().filter(|(name, _)| !name.starts_with(SIGNATURE_PREFIX));
        let mut wanted: BTreeMap<_, _> = unsigned.map(|(name, value)| (name.clone(), value.clone())).collect();
        wanted.extend(self.signatures(content));
        if wanted == *data {
            return Ok(Requeue::Never);
        }
        let mut signed = ConfigMap::clone(&current);
        signed.data = Some(wanted);
        match self.client.namespaced::<ConfigMap>(PUBLIC_NAMESPACE).update(&signed).await {
            Ok(_) => Ok(Requeue::Never),
            Err(error) if error.is_not_found() => Ok(Requeue::Never),
            Err(error) => Err(SyncError::during("signing the cluster's information")(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use expect_test::expect;

    use super::*;
    use crate::bootstrap::{TOKEN_CLEANER, token};
    use crate::testing::{World, labels, metadata, survives_any_crash};

    fn arrange() -> World {
        let mut world = World::new(&[BOOTSTRAP_SIGNER, TOKEN_CLEANER]);
        world.config.controllers = ["*".to_owned()].into();
        let data = [("kubeconfig", "content"), ("ca.crt", "other"), ("jws-kubeconfig-gone00", "old")];
        world.api.put(&ConfigMap {
            metadata: metadata(PUBLIC_NAMESPACE, CONFIG_MAP),
            data: Some(labels(&data)),
            ..ConfigMap::default()
        });
        world.api.put(&token("abcdef", ""));
        world.api.put(&token("expire", "2030-01-01T01:00:00Z"));
        world.api.put(&token("passed", "2029-01-01T00:00:00Z"));
        let mut unsigned = token("nosign", "");
        unsigned.data.get_or_insert_default().remove("usage-bootstrap-signing");
        world.api.put(&unsigned);
        let mut misnamed = token("ghijkl", "");
        misnamed.metadata.name = Some("bootstrap-token-mnopqr".to_owned());
        world.api.put(&misnamed);
        world
    }

    fn outcome(world: &World) -> String {
        let map = world.api.get::<ConfigMap>(PUBLIC_NAMESPACE, CONFIG_MAP).expect("it was put");
        let data = map.data.clone().unwrap_or_default();
        data.iter().map(|(name, value)| format!("{name}={value}\n")).collect()
    }

    #[tokio::test]
    async fn each_valid_token_signs_and_signatures_go_with_their_tokens() {
        let mut world = arrange();
        world.start();
        world.settle().await;
        // The signatures are those kubeadm checks: HS256 over `header.content`, the content left out.
        expect![[r#"
            ca.crt=other
            jws-kubeconfig-abcdef=eyJhbGciOiJIUzI1NiIsImtpZCI6ImFiY2RlZiJ9..psz1NayrXM3IaFzKZGsb5n_mBl7MjtlsZ1xE8MRmF_4
            jws-kubeconfig-expire=eyJhbGciOiJIUzI1NiIsImtpZCI6ImV4cGlyZSJ9..pE4QDIpM9MG8aXbq2VYDY9LE9mjeuzdVA91Y9ICTk_Q
            kubeconfig=content
        "#]]
        .assert_eq(&outcome(&world));
        world.run_for(Duration::from_secs(3601)).await;
        assert!(!outcome(&world).contains("expire"), "{}", outcome(&world));
        world.api.take_actions();
        world.run_for(Duration::from_secs(3600)).await;
        assert_eq!(world.api.take_writes(), "");
    }

    #[tokio::test]
    async fn converges_after_a_crash_at_any_write() {
        let drive = async |world: &mut World| {
            world.run_for(Duration::from_secs(5)).await;
            world.api.put(&token("second", ""));
            world.run_for(Duration::from_secs(3600)).await;
        };
        survives_any_crash(arrange, drive, outcome).await;
    }
}
