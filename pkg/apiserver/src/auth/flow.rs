//! Flow control as it was before priorities: at most so many reads and so many writes at once.
//!
//! Behaves as `k8s.io/apiserver/pkg/server/filters/maxinflight.go`, v1.36.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use rkube_apimachinery::status::ApiStatus;
use tokio::sync::Semaphore;

use super::basic::MASTERS;
use super::{FlowControl, FlowRequest, Permit};

/// Upstream's `--max-requests-inflight` and `--max-mutating-requests-inflight`.
const READS_MAX: usize = 400;
const WRITES_MAX: usize = 200;
const RETRY_AFTER_SECONDS: u16 = 1;

/// Refuses at once what is over the limit. Administrators are never refused.
pub struct MaxInFlight {
    reads: Arc<Semaphore>,
    writes: Arc<Semaphore>,
}

impl Default for MaxInFlight {
    fn default() -> Self {
        Self::new(READS_MAX, WRITES_MAX)
    }
}

impl MaxInFlight {
    pub fn new(reads_max: usize, writes_max: usize) -> Self {
        Self { reads: Arc::new(Semaphore::new(reads_max)), writes: Arc::new(Semaphore::new(writes_max)) }
    }
}

impl FlowControl for MaxInFlight {
    fn admit<'a>(&'a self, request: &'a FlowRequest<'a>) -> BoxFuture<'a, Result<Permit, ApiStatus>> {
        let places = if request.info.is_read_only() { &self.reads } else { &self.writes };
        let result = match Arc::clone(places).try_acquire_owned() {
            Ok(place) => Ok(Permit { held: Some(Box::new(place)), ..Permit::default() }),
            Err(_) if request.user.groups.iter().any(|group| group == MASTERS) => Ok(Permit::default()),
            Err(_) => {
                Err(ApiStatus::too_many_requests("Too many requests, please try again later.", RETRY_AFTER_SECONDS))
            }
        };
        Box::pin(std::future::ready(result))
    }
}
