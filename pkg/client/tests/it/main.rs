//! The client machinery against the in-memory API, on one thread and a fake clock.

mod controller;
mod events;
mod informer;
mod leader;
mod owner;
mod workqueue;

use std::sync::Arc;

use rkube_api::k8s::core::v1::Pod;
use rkube_api::meta::pkg::apis::meta::v1::ObjectMeta;
use rkube_apimachinery::clock::FakeClock;
use rkube_apimachinery::random::SeededRandom;
use rkube_client::Client;
use rkube_client::fake::FakeApi;

/// A server, a client of it, and the clock both live by.
pub(crate) struct World {
    pub(crate) clock: FakeClock,
    pub(crate) api: FakeApi,
    pub(crate) client: Client,
}

pub(crate) fn world() -> World {
    let clock = FakeClock::new("2030-01-01T00:00:00Z".parse().expect("a timestamp"));
    let api = FakeApi::new(clock.shared());
    let client = Client::new(api.connect(), clock.shared(), SeededRandom::shared(1));
    World { clock, api, client }
}

pub(crate) fn pod(name: &str, labels: &[(&str, &str)]) -> Pod {
    let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    Pod {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some("ns".to_owned()),
            labels: Some(labels),
            ..ObjectMeta::default()
        },
        ..Pod::default()
    }
}

/// Collects lines from handlers.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<parking_lot::Mutex<Vec<String>>>);

impl Log {
    pub(crate) fn add(&self, line: impl Into<String>) {
        self.0.lock().push(line.into());
    }

    pub(crate) fn take(&self) -> String {
        std::mem::take(&mut *self.0.lock()).join("\n")
    }
}
