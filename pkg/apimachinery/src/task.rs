//! Named tasks: every spawned future carries a span from its first poll, so its log lines say which
//! component they belong to. Bare `tokio::spawn` is banned in `clippy.toml`.

use std::future::Future;

use tokio::task::JoinHandle;
use tracing::{Instrument, Span};

/// Spawns `future` inside `span`. Name the component, and the key or request where there is one:
/// `task::spawn(info_span!("watch-cache", resource = %name), run)`.
#[allow(clippy::disallowed_methods, reason = "the one place that spawns")]
pub fn spawn<F>(span: Span, future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    tokio::spawn(future.instrument(span))
}
