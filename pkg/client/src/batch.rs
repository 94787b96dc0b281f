//! Doing many writes of a kind without flooding the server when they all fail the same way.
//!
//! Behaves as `slowStartBatch` of `pkg/controller/replicaset/replica_set.go`, v1.36.

use futures_util::future::join_all;

/// Calls `step` for `0..count` in batches of 1, 2, 4, ..., each batch at once. Stops after the batch in which
/// a call failed: after the first failure at most as many more are tried as succeeded before.
///
/// Returns how many succeeded, how many were not tried, and the first error.
pub async fn slow_start<E, F>(count: usize, initial: usize, mut step: impl FnMut(usize) -> F) -> SlowStart<E>
where
    F: Future<Output = Result<(), E>>,
{
    let mut done = SlowStart { succeeded: 0, skipped: count, error: None };
    let mut size = initial.max(1).min(count);
    let mut next = 0;
    while size > 0 {
        let results = join_all((next..next + size).map(&mut step)).await;
        next += size;
        done.skipped = count - next;
        for result in results {
            match result {
                Ok(()) => done.succeeded += 1,
                Err(error) => {
                    done.error.get_or_insert(error);
                }
            }
        }
        if done.error.is_some() {
            break;
        }
        size = (size * 2).min(count - next);
    }
    done
}

/// The outcome of [`slow_start`].
#[derive(Debug)]
pub struct SlowStart<E> {
    pub succeeded: usize,
    /// Not tried because an earlier batch had a failure.
    pub skipped: usize,
    pub error: Option<E>,
}
