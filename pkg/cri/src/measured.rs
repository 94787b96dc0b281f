//! A runtime whose calls are counted and timed.
//!
//! Names of operations are those under which kubelets have always told of them.
//! Behaves as pkg/kubelet/kuberuntime/instrumented_services.go, v1.36.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use rkube_apimachinery::clock::SharedClock;

use crate::calls::{image_calls, runtime_calls};
use crate::error::RuntimeError;
use crate::service::{EventStream, ImageService, RuntimeService};
use crate::v1::*;

/// Upper bounds of the buckets in seconds: 5 ms, and 2.5 times that, 14 times over.
pub const BUCKETS: [f64; 14] = [
    0.005,
    0.0125,
    0.03125,
    0.078_125,
    0.195_312_5,
    0.488_281_25,
    1.220_703_125,
    3.051_757_812_5,
    7.629_394_531_25,
    19.073_486_328_125,
    47.683_715_820_312_5,
    119.209_289_550_781_25,
    298.023_223_876_953_1,
    745.058_059_692_382_8,
];

/// What is known of one kind of call.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Operation {
    pub count: u64,
    pub errors: u64,
    pub seconds: f64,
    /// How many took as long as each bucket's bound or less.
    pub buckets: [u64; BUCKETS.len()],
}

/// All calls so far, by operation.
#[derive(Debug, Default)]
pub struct Operations(Mutex<BTreeMap<&'static str, Operation>>);

impl Operations {
    pub fn all(&self) -> BTreeMap<&'static str, Operation> {
        self.0.lock().clone()
    }

    fn note(&self, call: &'static str, took: Duration, failed: bool) {
        let seconds = took.as_secs_f64();
        let mut operations = self.0.lock();
        let operation = operations.entry(operation_of(call)).or_default();
        operation.count += 1;
        operation.errors += u64::from(failed);
        operation.seconds += seconds;
        for (count, bound) in operation.buckets.iter_mut().zip(BUCKETS) {
            *count += u64::from(seconds <= bound);
        }
    }
}

fn operation_of(call: &'static str) -> &'static str {
    match call {
        "run_pod_sandbox" => "run_podsandbox",
        "stop_pod_sandbox" => "stop_podsandbox",
        "remove_pod_sandbox" => "remove_podsandbox",
        "pod_sandbox_status" => "podsandbox_status",
        "list_pod_sandbox" => "list_podsandbox",
        "pod_sandbox_stats" => "podsandbox_stats",
        "list_pod_sandbox_stats" => "list_podsandbox_stats",
        "update_container_resources" => "update_container",
        other => other,
    }
}

/// Passes calls on, and notes what they took.
#[derive(Clone)]
pub struct Measured {
    runtime: Arc<dyn RuntimeService>,
    images: Arc<dyn ImageService>,
    clock: SharedClock,
    operations: Arc<Operations>,
}

impl Measured {
    pub fn new(runtime: Arc<dyn RuntimeService>, images: Arc<dyn ImageService>, clock: SharedClock) -> Self {
        Self { runtime, images, clock, operations: Arc::default() }
    }

    pub fn operations(&self) -> Arc<Operations> {
        self.operations.clone()
    }

    /// A call that nobody waits for any more took no time that would say anything.
    async fn timed<T>(
        &self,
        call: &'static str,
        answer: impl Future<Output = Result<T, RuntimeError>>,
    ) -> Result<T, RuntimeError> {
        let began = self.clock.monotonic();
        let answer = answer.await;
        self.operations.note(call, self.clock.monotonic().saturating_sub(began), answer.is_err());
        answer
    }
}

macro_rules! measured_runtime {
    ($($(#[$doc:meta])* $name:ident($request:ident) -> $response:ident within $limit:ident;)*) => {
        impl RuntimeService for Measured {
            $(fn $name(&self, request: $request) -> BoxFuture<'_, Result<$response, RuntimeError>> {
                self.timed(stringify!($name), self.runtime.$name(request)).boxed()
            })*

            fn events(&self) -> BoxFuture<'_, Result<EventStream, RuntimeError>> {
                self.runtime.events()
            }
        }
    };
}

macro_rules! measured_images {
    ($($(#[$doc:meta])* $name:ident($request:ident) -> $response:ident within $limit:ident;)*) => {
        impl ImageService for Measured {
            $(fn $name(&self, request: $request) -> BoxFuture<'_, Result<$response, RuntimeError>> {
                self.timed(stringify!($name), self.images.$name(request)).boxed()
            })*
        }
    };
}

runtime_calls!(measured_runtime);
image_calls!(measured_images);

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use rkube_apimachinery::clock::FakeClock;

    use super::*;
    use crate::error::Code;
    use crate::fake::FakeRuntime;

    #[tokio::test]
    async fn calls_are_counted_under_upstreams_names() {
        let fake = FakeRuntime::new();
        fake.fail("pod_sandbox_status", Code::Unknown, "broken");
        let clock = FakeClock::new(Timestamp::UNIX_EPOCH);
        let measured = Measured::new(Arc::new(fake.clone()), Arc::new(fake), clock.shared());
        measured.pod_sandbox_status(PodSandboxStatusRequest::default()).await.unwrap_err();
        measured.list_images(ListImagesRequest::default()).await.unwrap();
        measured.operations.note("list_images", Duration::from_millis(20), false);
        let text: Vec<String> = measured
            .operations()
            .all()
            .into_iter()
            .map(|(name, one)| format!("{name} {} {} {} {:?}", one.count, one.errors, one.seconds, &one.buckets[..4]))
            .collect();
        assert_eq!(text, ["list_images 2 0 0.02 [1, 1, 2, 2]", "podsandbox_status 1 1 0 [1, 1, 1, 1]"]);
    }
}
