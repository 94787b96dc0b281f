//! Two candidates for one lease.

use std::time::Duration;

use rkube_apimachinery::task;
use rkube_client::Client;
use rkube_client::leader::{LeaderConfig, LeaderElector};
use tokio_util::sync::CancellationToken;

use crate::{Log, World, world};

/// Runs a candidate that says when it leads and when it stops.
fn candidate(world: &World, client: Client, name: &'static str, log: &Log) -> CancellationToken {
    let stop = CancellationToken::new();
    let elector = LeaderElector::new(client, LeaderConfig::new("kube-system", "test", name));
    let (token, log) = (stop.clone(), log.clone());
    let _ = world;
    task::spawn(tracing::Span::none(), async move {
        let lines = log.clone();
        let lost = elector
            .run(token, |leading| async move {
                lines.add(format!("{name} leads"));
                leading.cancelled().await;
            })
            .await;
        log.add(format!("{name} ended, lost: {lost}"));
    });
    stop
}

async fn pass(world: &World, seconds: u64) {
    for _ in 0..seconds {
        world.api.settle().await;
        world.clock.advance(Duration::from_secs(1));
    }
    world.api.settle().await;
}

#[tokio::test]
async fn one_leads_and_the_other_follows_when_it_gives_up() {
    let world = world();
    let log = Log::default();
    let first = candidate(&world, world.client.clone(), "one", &log);
    world.api.settle().await;
    let _second = candidate(&world, world.client.clone(), "two", &log);
    pass(&world, 60).await;
    assert_eq!(log.take(), "one leads");
    first.cancel();
    pass(&world, 6).await;
    assert_eq!(log.take(), "one ended, lost: false\ntwo leads");
}

#[tokio::test]
async fn a_leader_that_is_cut_off_stops_before_another_starts() {
    let world = world();
    let log = Log::default();
    let _first = candidate(&world, world.client.clone(), "one", &log);
    pass(&world, 10).await;
    world.api.react(|action| {
        let theirs = action.body["spec"]["holderIdentity"] == "one";
        theirs.then(|| rkube_apimachinery::status::ApiStatus::service_unavailable("cut off"))
    });
    let _second = candidate(&world, world.client.clone(), "two", &log);
    pass(&world, 40).await;
    assert_eq!(log.take(), "one leads\none ended, lost: true\ntwo leads");
}
