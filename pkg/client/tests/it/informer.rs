//! Reflector and informer: what handlers and listers see.

use expect_test::{Expect, expect};
use rkube_api::k8s::core::v1::Pod;
use rkube_apimachinery::key::ObjectKey;
use rkube_apimachinery::labels::Selector;
use rkube_apimachinery::status::{ApiStatus, Reason};
use rkube_client::{DeleteOptions, Delta, Informer, InformerFactory};
use tokio_util::sync::CancellationToken;

use crate::{Log, World, pod, world};

fn watch_pods(world: &World) -> (InformerFactory, Informer<Pod>, Log) {
    let factory = InformerFactory::new(world.client.clone(), CancellationToken::new());
    let informer = factory.informer::<Pod>();
    let log = Log::default();
    let lines = log.clone();
    informer.add_handler(move |delta| {
        let (verb, pod) = match &delta {
            Delta::Added(pod) => ("added", pod),
            Delta::Updated { new, .. } => ("updated", new),
            Delta::Deleted(pod) => ("deleted", pod),
        };
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("-");
        lines.add(format!("{verb} {} {phase}", pod.metadata.name.as_deref().unwrap_or_default()));
    });
    factory.start();
    (factory, informer, log)
}

fn set_phase(world: &World, name: &str, phase: &str) {
    world.api.edit::<Pod>("ns", name, |pod| pod.status.get_or_insert_default().phase = Some(phase.to_owned()));
}

fn check(log: &Log, expected: Expect) {
    expected.assert_eq(&log.take());
}

#[tokio::test]
async fn handlers_see_what_is_there_and_then_every_change() {
    let world = world();
    world.api.put(&pod("a", &[]));
    let (factory, informer, log) = watch_pods(&world);
    factory.wait_for_sync().await.expect("not stopped");
    check(&log, expect!["added a -"]);

    world.client.namespaced::<Pod>("ns").create(&pod("b", &[])).await.expect("created");
    set_phase(&world, "a", "Running");
    world.client.namespaced::<Pod>("ns").delete("b", &DeleteOptions::default()).await.expect("deleted");
    world.api.settle().await;
    check(
        &log,
        expect![[r#"
        added b Pending
        updated a Running
        deleted b Pending"#]],
    );
    assert_eq!(informer.lister().len(), 1);
    // One streaming list served all of it.
    let reads: Vec<_> = world.api.take_actions().into_iter().filter(|action| !action.is_write()).collect();
    assert_eq!(reads.len(), 1, "{reads:?}");
}

#[tokio::test]
async fn late_handlers_are_told_everything() {
    let world = world();
    world.api.put(&pod("a", &[]));
    let (factory, informer, _) = watch_pods(&world);
    factory.wait_for_sync().await.expect("not stopped");
    let late = Log::default();
    let lines = late.clone();
    informer.add_handler(move |delta| lines.add(format!("{:?}", delta.object().metadata.name)));
    check(&late, expect![[r#"Some("a")"#]]);
}

#[tokio::test]
async fn changes_missed_while_disconnected_are_found_after_410() {
    let world = world();
    for name in ["kept", "changed", "gone", "reborn"] {
        world.api.put(&pod(name, &[]));
    }
    let (factory, _, log) = watch_pods(&world);
    factory.wait_for_sync().await.expect("not stopped");
    log.take();

    set_phase(&world, "changed", "Running");
    world.api.remove::<Pod>("ns", "gone");
    world.api.remove::<Pod>("ns", "reborn");
    world.api.put(&pod("reborn", &[]));
    world.api.compact();
    world.api.settle().await;
    check(
        &log,
        expect![[r#"
        deleted gone -
        updated changed Running
        deleted reborn -
        added reborn -"#]],
    );
}

#[tokio::test]
async fn a_closed_watch_goes_on_where_it_ended() {
    let world = world();
    let (factory, _, log) = watch_pods(&world);
    factory.wait_for_sync().await.expect("not stopped");
    world.api.put(&pod("a", &[]));
    world.api.settle().await;
    world.api.drop_watches();
    world.api.put(&pod("b", &[]));
    world.api.settle().await;
    check(
        &log,
        expect![[r#"
        added a -
        added b -"#]],
    );
}

#[tokio::test]
async fn a_server_without_streaming_lists_is_listed() {
    let world = world();
    world.api.put(&pod("a", &[]));
    let refusals = std::sync::atomic::AtomicU32::new(1);
    world.api.react(move |action| {
        let refuse = action.verb == "watch"
            && refusals
                .fetch_update(std::sync::atomic::Ordering::SeqCst, std::sync::atomic::Ordering::SeqCst, |n| {
                    n.checked_sub(1)
                })
                .is_ok();
        refuse.then(|| ApiStatus::failure(Reason::Invalid, "sendInitialEvents is forbidden"))
    });
    let (factory, _, log) = watch_pods(&world);
    factory.wait_for_sync().await.expect("not stopped");
    world.api.put(&pod("b", &[]));
    world.api.settle().await;
    check(
        &log,
        expect![[r#"
        added a -
        added b -"#]],
    );
    let verbs: Vec<_> = world.api.take_actions().iter().map(|action| action.verb).collect();
    assert_eq!(verbs, ["watch", "list", "watch"]);
}

#[tokio::test]
async fn indexes_and_selectors_follow_changes() {
    let world = world();
    world.api.put(&pod("a", &[("app", "web")]));
    world.api.put(&pod("b", &[("app", "db")]));
    let (factory, informer, _) = watch_pods(&world);
    informer.add_index("node", |pod| pod.spec.iter().filter_map(|spec| spec.node_name.clone()).collect());
    factory.wait_for_sync().await.expect("not stopped");
    let lister = informer.lister();
    assert!(lister.by_index("node", "n1").is_empty());

    world.api.edit::<Pod>("ns", "a", |pod| pod.spec.get_or_insert_default().node_name = Some("n1".to_owned()));
    world.api.settle().await;
    let names =
        |pods: Vec<std::sync::Arc<Pod>>| pods.iter().filter_map(|pod| pod.metadata.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(lister.by_index("node", "n1")), ["a"]);
    let selector = Selector::parse("app!=web").expect("a selector");
    assert_eq!(names(lister.list("ns", &selector)), ["b"]);
    assert!(lister.list_all("n").is_empty(), "a namespace is not a prefix");

    world.api.remove::<Pod>("ns", "a");
    world.api.settle().await;
    assert!(lister.by_index("node", "n1").is_empty());
}

#[tokio::test]
async fn all_share_one_decoded_object() {
    let world = world();
    world.api.put(&pod("a", &[]));
    let (factory, informer, _) = watch_pods(&world);
    let other = factory.informer::<Pod>();
    factory.wait_for_sync().await.expect("not stopped");
    let key = ObjectKey::new("ns", "a");
    let (one, two) = (informer.lister().get(&key), other.lister().get(&key));
    assert!(std::sync::Arc::ptr_eq(&one.expect("it is there"), &two.expect("it is there")));
}
