//! The runner: retries, panics, requeues, and what a crash leaves.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rkube_api::k8s::core::v1::Pod;
use rkube_apimachinery::key::ObjectKey;
use rkube_apimachinery::random::SeededRandom;
use rkube_client::batch::slow_start;
use rkube_client::{Client, Expectations, Reconciler, Requeue, Runner, SyncError, WorkQueue};
use tokio_util::sync::CancellationToken;

use crate::{pod, world};

/// Fails, panics, asks for a later look, is content.
struct Moody(AtomicU32);

impl Reconciler for Moody {
    async fn sync(&self, _: &ObjectKey) -> Result<Requeue, SyncError> {
        match self.0.fetch_add(1, Ordering::SeqCst) {
            0 => Err(SyncError::other("not today")),
            1 => panic!("oh no"),
            2 => Ok(Requeue::After(Duration::from_secs(30))),
            _ => Ok(Requeue::Never),
        }
    }
}

#[tokio::test]
async fn failures_and_panics_come_back_and_success_ends_it() {
    let world = world();
    let queue = WorkQueue::new("moody", world.clock.shared());
    let moody = Arc::new(Moody(AtomicU32::new(0)));
    let stop = CancellationToken::new();
    let runner = Runner::new("moody", queue.clone(), Arc::clone(&moody)).workers(2);
    let task = rkube_apimachinery::task::spawn(tracing::Span::none(), runner.run(stop.clone()));
    queue.add(ObjectKey::new("ns", "a"));
    for (after, calls) in [(0, 1), (5, 2), (10, 3), (29_000, 3), (1_000, 4), (3_600_000, 4)] {
        world.api.settle().await;
        world.clock.advance(Duration::from_millis(after));
        world.api.settle().await;
        assert_eq!(moody.0.load(Ordering::SeqCst), calls, "after {after} ms more");
    }
    stop.cancel();
    task.await.expect("the runner ends when told");
}

#[tokio::test]
async fn slow_start_stops_after_a_failing_batch() {
    let tried = AtomicU32::new(0);
    let outcome = slow_start(100, 1, |index| {
        tried.fetch_add(1, Ordering::SeqCst);
        async move { if index == 2 { Err("no") } else { Ok(()) } }
    })
    .await;
    // Batches of 1 and 2; the second has a failure.
    assert_eq!((tried.into_inner(), outcome.succeeded, outcome.skipped, outcome.error), (3, 2, 97, Some("no")));
}

#[tokio::test]
async fn expectations_count_creations_and_name_deletions() {
    let world = world();
    let expectations = Expectations::new(world.clock.shared());
    let key = ObjectKey::new("ns", "a");
    expectations.expect(&key, 1, ["u1".to_owned()]);
    expectations.deletion_observed(&key, "u1");
    expectations.deletion_observed(&key, "u1");
    assert!(!expectations.satisfied(&key));
    expectations.creation_observed(&key);
    assert!(expectations.satisfied(&key));
    expectations.expect_creations(&key, 1);
    world.clock.advance(Duration::from_secs(301));
    assert!(expectations.satisfied(&key), "a watch five minutes behind is not waited for");
}

#[tokio::test]
async fn a_dying_connection_writes_and_never_answers() {
    let world = world();
    let (transport, dead) = world.api.connect_until_write(2);
    let client = Client::new(transport, world.clock.shared(), SeededRandom::shared(1));
    let task = rkube_apimachinery::task::spawn(tracing::Span::none(), async move {
        let pods = client.namespaced::<Pod>("ns");
        for name in ["a", "b", "c"] {
            pods.create(&pod(name, &[])).await.expect("an answer, or none ever");
        }
    });
    dead.cancelled().await;
    world.api.settle().await;
    assert_eq!(world.api.list::<Pod>("ns").len(), 2);
    task.abort();
}
