//! What the scheduler is given.

use std::sync::Arc;

use rkube_apimachinery::clock::SharedClock;
use rkube_apimachinery::random::SharedRandom;
use rkube_client::{Client, EventRecorder, InformerFactory};
use tokio_util::sync::CancellationToken;

use crate::config::SchedulerConfig;

/// The world as the scheduler sees it: the API by client and caches, events, time, chance, and settings.
#[derive(Clone)]
pub struct SchedulerContext {
    pub client: Client,
    pub informers: InformerFactory,
    pub recorder: EventRecorder,
    pub clock: SharedClock,
    pub random: SharedRandom,
    pub config: Arc<SchedulerConfig>,
    /// Ends the scheduler.
    pub shutdown: CancellationToken,
}
