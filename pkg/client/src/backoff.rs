//! The back-off of reflectors, on the injected clock.
//!
//! Behaves as the defaults of `k8s.io/client-go/tools/cache/reflector.go`, v1.36.

use std::time::Duration;

use rkube_apimachinery::backoff::Backoff;

use crate::client::Client;

/// After this long without a fault the delays start over.
const RESET_AFTER: Duration = Duration::from_secs(120);

/// Delays of 0.8 s to 30 s, each up to doubled by jitter.
pub(crate) struct ReflectorBackoff {
    backoff: Backoff,
    last: Duration,
}

impl ReflectorBackoff {
    pub(crate) fn new(client: &Client) -> Self {
        Self { backoff: fresh(), last: client.clock().monotonic() }
    }

    /// Waits for the next delay.
    pub(crate) async fn wait(&mut self, client: &Client) {
        let clock = client.clock();
        if clock.monotonic().saturating_sub(self.last) > RESET_AFTER {
            self.backoff = fresh();
        }
        clock.sleep(self.backoff.step(client.random().as_ref())).await;
        self.last = clock.monotonic();
    }
}

fn fresh() -> Backoff {
    Backoff::doubling(Duration::from_millis(800), Duration::from_secs(30)).with_jitter(1.0)
}
