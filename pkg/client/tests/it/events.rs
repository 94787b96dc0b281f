//! What becomes of recorded events.

use std::time::Duration;

use expect_test::expect;
use rkube_api::k8s::core::v1::Event;
use rkube_client::{EventRecorder, EventType};
use tokio_util::sync::CancellationToken;

use crate::{World, pod, world};

fn stored(world: &World) -> String {
    let mut lines: Vec<String> = world
        .api
        .list::<Event>("ns")
        .iter()
        .map(|event| {
            format!(
                "{} {} x{}: {}",
                event.type_.as_deref().unwrap_or_default(),
                event.reason.as_deref().unwrap_or_default(),
                event.count.unwrap_or(0),
                event.message.as_deref().unwrap_or_default()
            )
        })
        .collect();
    lines.sort();
    lines.join("\n")
}

#[tokio::test]
async fn repeats_are_counted_on_one_event() {
    let world = world();
    let recorder = EventRecorder::start(world.client.clone(), "test-controller", CancellationToken::new());
    let pod = pod("a", &[]);
    for _ in 0..3 {
        recorder.normal(&pod, "Pulled", "image is there");
    }
    recorder.warning(&pod, "Failed", "it broke");
    world.api.settle().await;
    expect![[r#"
        Normal Pulled x3: image is there
        Warning Failed x1: it broke"#]]
    .assert_eq(&stored(&world));
}

#[tokio::test]
async fn many_similar_events_are_combined() {
    let world = world();
    let recorder = EventRecorder::start(world.client.clone(), "test-controller", CancellationToken::new());
    for index in 0..12 {
        recorder.normal(&pod("a", &[]), "Pulled", format!("image {index}"));
    }
    world.api.settle().await;
    let lines = stored(&world);
    // Nine on their own, the rest as one whose count grows.
    assert_eq!(lines.lines().count(), 10, "{lines}");
    assert!(lines.contains("x3: (combined from similar events): image 11"), "{lines}");
}

#[tokio::test]
async fn a_source_may_say_25_things_about_an_object_at_once() {
    let world = world();
    let recorder = EventRecorder::start(world.client.clone(), "test-controller", CancellationToken::new());
    for index in 0..40 {
        recorder.normal(&pod("a", &[]), &format!("Reason{index}"), "text");
    }
    world.api.settle().await;
    assert_eq!(world.api.list::<Event>("ns").len(), 25);
    world.clock.advance(Duration::from_secs(300));
    recorder.normal(&pod("a", &[]), "Later", "text");
    recorder.normal(&pod("a", &[]), "TooMany", "text");
    world.api.settle().await;
    assert_eq!(world.api.list::<Event>("ns").len(), 26);
}

#[tokio::test]
async fn events_with_an_action_repeat_as_a_series() {
    let world = world();
    let recorder = EventRecorder::start(world.client.clone(), "default-scheduler", CancellationToken::new());
    let say = |note: &str| {
        let about = rkube_client::events::reference_to(&pod("a", &[]));
        recorder.on_host("h").event_with_action(
            about,
            None,
            EventType::Warning,
            "FailedScheduling",
            "Scheduling",
            note,
        );
    };
    say("0/1 nodes are available");
    world.api.settle().await;
    let events = world.api.list::<Event>("ns");
    let [event] = events.as_slice() else { panic!("one event: {events:?}") };
    assert_eq!((event.count, event.first_timestamp.is_some(), event.event_time.is_some()), (None, false, true));
    assert_eq!(event.reporting_instance.as_deref(), Some("default-scheduler-h"));
    world.api.take_actions();
    for _ in 0..40 {
        say("0/2 nodes are available");
    }
    world.api.settle().await;
    // The second makes it a series; those that follow are counted, and written when there are no more.
    assert_eq!(world.api.take_actions().len(), 1);
    world.clock.advance(Duration::from_secs(400));
    world.api.settle().await;
    let counts: Vec<_> = world.api.list::<Event>("ns").iter().map(|event| event.series.clone()?.count).collect();
    assert_eq!(counts, [Some(41)]);
    assert_eq!(world.api.take_actions().len(), 1);
    world.clock.advance(Duration::from_secs(4000));
    world.api.settle().await;
    assert_eq!(world.api.take_actions().len(), 0);
}
