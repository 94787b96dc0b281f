//! What the kubelet asks of a container runtime, as traits.

use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;

use crate::calls::{image_calls, runtime_calls};
use crate::error::RuntimeError;
use crate::v1::*;

/// Something happened to a container of this sandbox or container id. What, the reader finds out by
/// asking: events may be lost, and states are what counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The id of the container or of the sandbox.
    pub id: String,
}

pub type EventStream = BoxStream<'static, Result<Event, RuntimeError>>;

macro_rules! runtime_trait {
    ($($(#[$doc:meta])* $name:ident($request:ident) -> $response:ident within $limit:ident;)*) => {
        /// Sandboxes and containers.
        ///
        /// # Guarantees
        /// Every call ends: with the answer, the runtime's status, or a timeout.
        /// # Assumptions
        /// Stop and remove calls may be repeated; they succeed for what is gone already.
        pub trait RuntimeService: Send + Sync + 'static {
            $($(#[$doc])* fn $name(&self, request: $request) -> BoxFuture<'_, Result<$response, RuntimeError>>;)*

            /// Events from now on. Ends when the runtime does. `Unimplemented` if the runtime has none.
            fn events(&self) -> BoxFuture<'_, Result<EventStream, RuntimeError>>;
        }
    };
}

macro_rules! image_trait {
    ($($(#[$doc:meta])* $name:ident($request:ident) -> $response:ident within $limit:ident;)*) => {
        /// Images.
        pub trait ImageService: Send + Sync + 'static {
            $($(#[$doc])* fn $name(&self, request: $request) -> BoxFuture<'_, Result<$response, RuntimeError>>;)*
        }
    };
}

runtime_calls!(runtime_trait);
image_calls!(image_trait);
