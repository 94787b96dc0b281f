//! client-go's promises about work queues.

use std::time::Duration;

use rkube_apimachinery::clock::FakeClock;
use rkube_client::WorkQueue;

fn queue() -> (FakeClock, WorkQueue<&'static str>) {
    let clock = FakeClock::new("2030-01-01T00:00:00Z".parse().expect("a timestamp"));
    let queue = WorkQueue::new("test", clock.shared());
    (clock, queue)
}

/// Lets the queue's timer run.
async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_key_is_queued_once_and_worked_on_by_one() {
    let (_, queue) = queue();
    queue.add("a");
    queue.add("b");
    queue.add("a");
    assert_eq!(queue.len(), 2);
    assert_eq!(queue.get().await, Some("a"));
    // Added while with a worker: not handed out until it is done.
    queue.add("a");
    queue.add("a");
    assert_eq!(queue.get().await, Some("b"));
    assert_eq!(queue.len(), 0);
    queue.done(&"a");
    assert_eq!(queue.get().await, Some("a"));
    queue.done(&"a");
    assert!(!queue.is_idle());
    queue.done(&"b");
    assert!(queue.is_idle());
}

#[tokio::test]
async fn of_two_delays_the_earlier_counts() {
    let (clock, queue) = queue();
    queue.add_after("a", Duration::from_secs(10));
    queue.add_after("a", Duration::from_secs(2));
    queue.add_after("a", Duration::from_secs(5));
    settle().await;
    clock.advance(Duration::from_secs(1));
    settle().await;
    assert!(queue.is_empty());
    clock.advance(Duration::from_secs(1));
    settle().await;
    assert_eq!(queue.get().await, Some("a"));
    queue.done(&"a");
    clock.advance(Duration::from_secs(60));
    settle().await;
    assert!(queue.is_empty(), "superseded delays do not fire");
}

#[tokio::test]
async fn failures_back_off_until_forgotten() {
    let (clock, queue) = queue();
    for expected in [5, 10, 20, 40] {
        queue.add_rate_limited("a");
        settle().await;
        clock.advance(Duration::from_millis(expected - 1));
        settle().await;
        assert!(queue.is_empty(), "before {expected} ms");
        clock.advance(Duration::from_millis(1));
        settle().await;
        assert_eq!(queue.get().await, Some("a"));
        queue.done(&"a");
    }
    assert_eq!(queue.num_requeues(&"a"), 4);
    queue.forget(&"a");
    assert_eq!(queue.num_requeues(&"a"), 0);
}

#[tokio::test]
async fn shutting_down_hands_out_what_is_queued_and_ends() {
    let (_, queue) = queue();
    queue.add("a");
    queue.shut_down();
    queue.add("b");
    assert_eq!(queue.get().await, Some("a"));
    queue.done(&"a");
    assert_eq!(queue.get().await, None);
}
