//! Token cleaner controller: deletes bootstrap tokens when they expire.
//!
//! Watches  v1 Secret of bootstrap tokens (primary)
//! Writes   v1 Secret (delete)
//! Behaves as  pkg/controller/bootstrap/tokencleaner.go, v1.36

use std::sync::Arc;
use std::time::Duration;

use rkube_api::k8s::core::v1::Secret;
use rkube_apimachinery::key::ObjectKey;
use rkube_client::owner::uid_of;
use rkube_client::{Client, DeleteOptions, Lister, Reconciler, Requeue, SyncError, WorkQueue};
use tracing::info;

use super::{Expiration, expiration, tokens};
use crate::common::enqueue::enqueue_all;
use crate::context::{ControllerContext, Descriptor, Running};

const NAME: &str = "token-cleaner-controller";

pub(crate) const TOKEN_CLEANER: Descriptor = Descriptor::new(NAME, "tokencleaner", start).off_by_default();

struct Cleaner {
    client: Client,
    tokens: Lister<Secret>,
}

fn start(context: &ControllerContext) -> Running {
    let tokens = tokens(&context.informers);
    let queue: WorkQueue<ObjectKey> = context.queue("token_cleaner");
    let controller = Arc::new(Cleaner { client: context.client_for(NAME), tokens: tokens.lister() });
    enqueue_all(&tokens, &queue);
    context.run(NAME, &queue, &controller, 1)
}

impl Reconciler for Cleaner {
    async fn sync(&self, key: &ObjectKey) -> Result<Requeue, SyncError> {
        let Some(secret) = self.tokens.get(key) else { return Ok(Requeue::Never) };
        let now = self.client.clock().now();
        match expiration(&secret, now) {
            Expiration::Never => Ok(Requeue::Never),
            Expiration::At(at) => {
                Ok(Requeue::After(Duration::try_from(at.duration_since(now)).unwrap_or(Duration::ZERO)))
            }
            Expiration::Past => {
                let api = self.client.namespaced::<Secret>(&key.namespace);
                match api.delete(&key.name, &DeleteOptions::uid(uid_of(&*secret))).await {
                    Ok(()) => {
                        info!(secret = %key, "Deleted expired bootstrap token");
                        Ok(Requeue::Never)
                    }
                    // Deleted already, or another under the same name.
                    Err(error) if error.is_not_found() || error.is_conflict() => Ok(Requeue::Never),
                    Err(error) => Err(SyncError::during("deleting an expired token")(error)),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bootstrap::token;
    use crate::testing::{World, names, survives_any_crash};

    fn arrange() -> World {
        let world = World::new(&[TOKEN_CLEANER]);
        world.api.put(&token("foreve", ""));
        world.api.put(&token("unread", "tomorrow"));
        world.api.put(&token("passed", "2029-12-31T23:59:59Z"));
        world.api.put(&token("inhour", "2030-01-01T02:00:00+01:00"));
        let mut other = token("other0", "2000-01-01T00:00:00Z");
        other.type_ = Some("Opaque".to_owned());
        world.api.put(&other);
        world
    }

    #[tokio::test]
    async fn a_token_goes_when_its_time_comes() {
        let mut world = arrange();
        world.start();
        world.settle().await;
        let left = ["bootstrap-token-foreve", "bootstrap-token-inhour", "bootstrap-token-other0"];
        assert_eq!(names::<Secret>(&world, "kube-system"), left);
        world.run_for(Duration::from_secs(3599)).await;
        assert_eq!(names::<Secret>(&world, "kube-system").len(), 3);
        world.run_for(Duration::from_secs(2)).await;
        assert_eq!(names::<Secret>(&world, "kube-system"), [left[0], left[2]]);
    }

    #[tokio::test]
    async fn converges_after_a_crash_at_any_write() {
        let drive = async |world: &mut World| world.run_for(Duration::from_secs(3700)).await;
        survives_any_crash(arrange, drive, |world| names::<Secret>(world, "kube-system").join(" ")).await;
    }
}
