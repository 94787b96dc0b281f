//! Service account token controller: fills token Secrets, deletes those whose account is gone, and takes deleted
//! ones off their account's list.
//!
//! Watches  v1 Secret of type `kubernetes.io/service-account-token` (primary); v1 ServiceAccount
//! Writes   v1 Secret (update, delete); v1 ServiceAccount (its `secrets`)
//! Behaves as  pkg/controller/serviceaccount/tokens_controller.go and the legacy claims of pkg/serviceaccount, v1.36

use std::sync::Arc;

use rkube_api::ByteString;
use rkube_api::k8s::core::v1::{Secret, ServiceAccount};
use rkube_apimachinery::key::ObjectKey;
use rkube_client::owner::{object_key, uid_of};
use rkube_client::{
    Client, ClientError, DeleteOptions, Delta, Lister, Reconciler, Requeue, Runner, SyncError, WorkQueue,
};
use rkube_pki::service_account::LEGACY_ISSUER;
use serde_json::json;
use tracing::info;

use super::{NAME_ANNOTATION, UID_ANNOTATION, annotation, secrets};
use crate::config::ControllerConfig;
use crate::context::{ControllerContext, Descriptor, Running};

const NAME: &str = "serviceaccount-token-controller";
const RETRIES_MAX: u32 = 10;

pub(crate) const SERVICEACCOUNT_TOKEN: Descriptor = Descriptor::new(NAME, "serviceaccount-token", start);

/// What is looked at.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Item {
    Token(ObjectKey),
    /// A token that is gone, and whose list it may be on.
    Gone {
        account: ObjectKey,
        uid: String,
        secret: String,
    },
}

struct Tokens {
    client: Client,
    config: Arc<ControllerConfig>,
    secrets: Lister<Secret>,
    accounts: Lister<ServiceAccount>,
}

fn start(context: &ControllerContext) -> Running {
    let secrets = secrets(&context.informers);
    let accounts = context.informers.informer::<ServiceAccount>();
    let queue: WorkQueue<Item> = context.queue("serviceaccount_tokens_service");
    let controller = Arc::new(Tokens {
        client: context.client_for(NAME),
        config: Arc::clone(&context.config),
        secrets: secrets.lister(),
        accounts: accounts.lister(),
    });
    let keys = queue.clone();
    secrets.add_handler(move |delta| {
        let secret = delta.object();
        let key = object_key(&**secret);
        if matches!(delta, Delta::Deleted(_)) {
            let account = ObjectKey::new(Arc::clone(&key.namespace), annotation(secret, NAME_ANNOTATION));
            let uid = annotation(secret, UID_ANNOTATION).to_owned();
            keys.add(Item::Gone { account, uid, secret: key.name.to_string() });
        } else {
            keys.add(Item::Token(key));
        }
    });
    // The tokens of an account that is gone, or another under the same name, are to go.
    let (lister, keys) = (secrets.lister(), queue.clone());
    accounts.add_handler(move |delta| {
        let account = object_key(&**delta.object());
        let is_same = delta.old().is_some_and(|old| uid_of(&**old) == uid_of(&**delta.object()));
        if is_same {
            return;
        }
        for secret in lister.list_all(&account.namespace) {
            if annotation(&secret, NAME_ANNOTATION) == &*account.name {
                keys.add(Item::Token(object_key(&*secret)));
            }
        }
    });
    let runner = Runner::new(NAME, queue, controller).workers(context.config.concurrent_syncs);
    Box::pin(runner.retries_max(RETRIES_MAX).run(context.shutdown.clone()))
}

impl Tokens {
    /// The account a token is for: of that name, and that uid if the token knows one.
    async fn account(&self, secret: &Secret, namespace: &str) -> Result<Option<Arc<ServiceAccount>>, ClientError> {
        let (name, uid) = (annotation(secret, NAME_ANNOTATION), annotation(secret, UID_ANNOTATION));
        let is_it = |account: &ServiceAccount| uid.is_empty() || uid_of(account) == uid;
        if let Some(account) = self.accounts.get_named(namespace, name).filter(|account| is_it(account)) {
            return Ok(Some(account));
        }
        // The cache may not have it yet, and what follows cannot be undone.
        match self.client.namespaced::<ServiceAccount>(namespace).get(name).await {
            Ok(account) => Ok(Some(Arc::new(account)).filter(|account| is_it(account))),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn value<'a>(secret: &'a Secret, name: &str) -> Option<&'a [u8]> {
        secret.data.as_ref()?.get(name).map(|value| value.0.as_slice()).filter(|value| !value.is_empty())
    }

    fn needs_root_ca(&self, secret: &Secret) -> bool {
        let root_ca = self.config.root_ca.as_bytes();
        !root_ca.is_empty() && Self::value(secret, "ca.crt") != Some(root_ca)
    }

    fn is_complete(&self, secret: &Secret) -> bool {
        !self.needs_root_ca(secret)
            && Self::value(secret, "namespace").is_some()
            && Self::value(secret, "token").is_some()
    }

    async fn fill(&self, key: &ObjectKey, cached: &Secret, account: &ServiceAccount) -> Result<(), SyncError> {
        let Some(keys) = self.config.service_account_keys.as_ref().filter(|_| !self.is_complete(cached)) else {
            return Ok(());
        };
        let api = self.client.namespaced::<Secret>(&key.namespace);
        let mut live = match api.get(&key.name).await {
            Ok(live) => live,
            Err(error) if error.is_not_found() => return Ok(()),
            Err(error) => return Err(SyncError::during("reading a token Secret")(error)),
        };
        if live.metadata.resource_version != cached.metadata.resource_version || self.is_complete(&live) {
            // The event that brings the cache up to date queues it again.
            return Ok(());
        }
        let needs_root_ca = self.needs_root_ca(&live);
        let needs_token = Self::value(&live, "token").is_none();
        let name = account.metadata.name.clone().unwrap_or_default();
        let uid = uid_of(account).to_owned();
        let data = live.data.get_or_insert_default();
        if needs_root_ca {
            data.insert("ca.crt".to_owned(), ByteString(self.config.root_ca.clone().into_bytes()));
        }
        data.entry("namespace".to_owned()).or_insert_with(|| ByteString(key.namespace.as_bytes().to_vec()));
        if needs_token {
            let claims = json!({
                "iss": LEGACY_ISSUER,
                "sub": format!("system:serviceaccount:{}:{name}", key.namespace),
                "kubernetes.io/serviceaccount/namespace": &*key.namespace,
                "kubernetes.io/serviceaccount/secret.name": &*key.name,
                "kubernetes.io/serviceaccount/service-account.name": name,
                "kubernetes.io/serviceaccount/service-account.uid": uid,
            });
            let token = keys.sign(&claims).map_err(|error| SyncError::other(error.to_string()))?;
            data.insert("token".to_owned(), ByteString(token.into_bytes()));
        }
        let annotations = live.metadata.annotations.get_or_insert_default();
        annotations.insert(NAME_ANNOTATION.to_owned(), name);
        annotations.insert(UID_ANNOTATION.to_owned(), uid);
        match api.update(&live).await {
            Ok(_) => {
                info!(secret = %key, "Filled service account token");
                Ok(())
            }
            // Changed by another, which queues it again, or gone.
            Err(error) if error.is_conflict() || error.is_not_found() => Ok(()),
            Err(error) => Err(SyncError::during("filling a token Secret")(error)),
        }
    }

    async fn sync_token(&self, key: &ObjectKey) -> Result<(), SyncError> {
        let Some(secret) = self.secrets.get(key) else { return Ok(()) };
        let account = self.account(&secret, &key.namespace).await;
        let account = account.map_err(SyncError::during("reading the service account of a token"))?;
        if let Some(account) = account {
            return self.fill(key, &secret, &account).await;
        }
        let api = self.client.namespaced::<Secret>(&key.namespace);
        match api.delete(&key.name, &DeleteOptions::uid(uid_of(&*secret))).await {
            Ok(()) => info!(secret = %key, "Deleted the token of a service account that is gone"),
            Err(error) if error.is_not_found() || error.is_conflict() => {}
            Err(error) => return Err(SyncError::during("deleting a token Secret")(error)),
        }
        Ok(())
    }

    async fn remove_reference(&self, account: &ObjectKey, uid: &str, secret: &str) -> Result<(), SyncError> {
        let is_back = self.secrets.get_named(&account.namespace, secret).is_some();
        if is_back || self.accounts.get(account).is_none() {
            return Ok(());
        }
        let api = self.client.namespaced::<ServiceAccount>(&account.namespace);
        let mut live = match api.get(&account.name).await {
            Ok(live) => live,
            Err(error) if error.is_not_found() => return Ok(()),
            Err(error) => return Err(SyncError::during("reading a service account")(error)),
        };
        let names_it =
            |reference: &rkube_api::k8s::core::v1::ObjectReference| reference.name.as_deref() == Some(secret);
        if (!uid.is_empty() && uid_of(&live) != uid) || !live.secrets.iter().flatten().any(names_it) {
            return Ok(());
        }
        if let Some(secrets) = &mut live.secrets {
            secrets.retain(|reference| !names_it(reference));
        }
        live.secrets = live.secrets.filter(|secrets| !secrets.is_empty());
        match api.update(&live).await {
            Err(error) if !error.is_not_found() => {
                Err(SyncError::during("taking a deleted token off its service account")(error))
            }
            _ => Ok(()),
        }
    }
}

impl Reconciler<Item> for Tokens {
    async fn sync(&self, item: &Item) -> Result<Requeue, SyncError> {
        match item {
            Item::Token(key) => self.sync_token(key).await?,
            Item::Gone { account, uid, secret } => self.remove_reference(account, uid, secret).await?,
        }
        Ok(Requeue::Never)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use expect_test::expect;
    use rkube_api::k8s::core::v1::ObjectReference;
    use rkube_pki::service_account::ServiceAccountKeys;

    use super::super::TYPE;
    use super::*;
    use crate::testing::{World, labels, metadata, names, survives_any_crash};

    fn keys() -> ServiceAccountKeys {
        ServiceAccountKeys::generate().expect("a key")
    }

    fn account(name: &str) -> ServiceAccount {
        let secrets = vec![ObjectReference { name: Some("token".to_owned()), ..ObjectReference::default() }];
        ServiceAccount { metadata: metadata("ns", name), secrets: Some(secrets), ..ServiceAccount::default() }
    }

    fn secret(name: &str, account: &str) -> Secret {
        let mut metadata = metadata("ns", name);
        metadata.annotations = Some(labels(&[(NAME_ANNOTATION, account)]));
        Secret { metadata, type_: Some(TYPE.to_owned()), ..Secret::default() }
    }

    fn arrange(keys: &ServiceAccountKeys) -> World {
        let mut world = World::new(&[SERVICEACCOUNT_TOKEN]);
        world.config.service_account_keys = Some(keys.clone());
        world.config.root_ca = "root".to_owned();
        world.api.put(&account("robot"));
        world.api.put(&secret("token", "robot"));
        world.api.put(&secret("orphan", "nobody"));
        let mut other = secret("other", "nobody");
        other.type_ = Some("Opaque".to_owned());
        world.api.put(&other);
        world
    }

    fn claims(world: &World, keys: &ServiceAccountKeys) -> String {
        let secret = world.api.get::<Secret>("ns", "token").expect("it is there");
        let data = secret.data.clone().unwrap_or_default();
        let text = |name: &str| String::from_utf8_lossy(&data[name].0).into_owned();
        let mut claims = keys.verify(&text("token")).expect("our own token");
        // Uids differ from run to run; what counts is whose it is.
        let account = world.api.get::<ServiceAccount>("ns", "robot").expect("it is there");
        let uid = &mut claims["kubernetes.io/serviceaccount/service-account.uid"];
        let own =
            uid.as_str() == account.metadata.uid.as_deref() && annotation(&secret, UID_ANNOTATION) == uid_of(&*account);
        *uid = own.into();
        format!("{} {} {claims}", text("namespace"), text("ca.crt"))
    }

    #[tokio::test]
    async fn a_token_is_filled_once_and_one_without_an_account_goes() {
        let keys = keys();
        let mut world = arrange(&keys);
        world.start();
        world.settle().await;
        expect![[r#"ns root {"iss":"kubernetes/serviceaccount","kubernetes.io/serviceaccount/namespace":"ns","kubernetes.io/serviceaccount/secret.name":"token","kubernetes.io/serviceaccount/service-account.name":"robot","kubernetes.io/serviceaccount/service-account.uid":true,"sub":"system:serviceaccount:ns:robot"}"#]]
            .assert_eq(&claims(&world, &keys));
        assert_eq!(names::<Secret>(&world, "ns"), ["other", "token"]);
        world.api.take_actions();
        world.run_for(Duration::from_secs(3600)).await;
        assert_eq!(world.api.take_writes(), "");

        // What was taken out is put back; the token itself is another then.
        world.api.edit::<Secret>("ns", "token", |secret| {
            secret.data.get_or_insert_default().remove("ca.crt");
        });
        world.settle().await;
        assert!(claims(&world, &keys).starts_with("ns root "));
    }

    #[tokio::test]
    async fn a_deleted_token_leaves_its_account_and_an_account_takes_its_tokens_along() {
        let keys = keys();
        let mut world = arrange(&keys);
        world.start();
        world.settle().await;
        world.api.remove::<Secret>("ns", "token");
        world.settle().await;
        let robot = world.api.get::<ServiceAccount>("ns", "robot").expect("it is there");
        assert!(robot.secrets.iter().flatten().next().is_none(), "{:?}", robot.secrets);

        world.api.put(&secret("again", "robot"));
        world.settle().await;
        world.api.remove::<ServiceAccount>("ns", "robot");
        world.settle().await;
        assert_eq!(names::<Secret>(&world, "ns"), ["other"]);
    }

    #[tokio::test]
    async fn the_token_of_an_earlier_account_goes() {
        let keys = keys();
        let mut world = arrange(&keys);
        world.start();
        world.settle().await;
        world.api.remove::<ServiceAccount>("ns", "robot");
        world.api.put(&account("robot"));
        world.settle().await;
        assert_eq!(names::<Secret>(&world, "ns"), ["other"]);
    }

    #[tokio::test]
    async fn converges_after_a_crash_at_any_write() {
        let keys = keys();
        let outcome = |world: &World| format!("{:?} {}", names::<Secret>(world, "ns"), claims(world, &keys));
        let drive = async |world: &mut World| world.run_for(Duration::from_secs(60)).await;
        survives_any_crash(|| arrange(&keys), drive, outcome).await;
    }
}
