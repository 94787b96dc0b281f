//! Deploys what administrators put into `server/manifests`: every file there is an addon, applied when it appears and
//! when it changes, and taken away when it goes or `--disable` names it.
//!
//! Inputs: files ending in `.yaml`, `.yml` or `.json`, in the folder and in folders below it. `web.yaml` is the addon
//! `web`. A file `web.yaml.skip` beside it leaves the addon as it is.
//! Outputs: the objects of the files; for each addon a ConfigMap `kube-system/addon-<name>` that lists them, and events on it.
//!
//! Invariant: an object is in its addon's list before it is created, so that a crash leaves nothing that would not be
//! pruned.
//! Invariant: only the server that applied an addon last takes it away because its file is gone: other servers never had it.
//! Behaves as k3s' `pkg/deploy/controller.go`. Differs from it: the bookkeeping is a ConfigMap, not a custom resource; and
//! a file that goes takes its objects with it, as k0s does it.

mod files;
mod record;
mod resources;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::select_all;
use rkube_apimachinery::backoff::Backoff;
use rkube_apimachinery::chain::chain;
use rkube_client::{Client, ClientError, DeleteOptions, EventRecorder, Patch, Propagation};
use rkube_kubelet::folder;
use serde_json::Value;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::component::{Component, component};
use files::{File, FileError};
use record::{ObjectRef, Record, Records};
use resources::Resources;

/// Who owns the fields of applied objects.
const FIELD_MANAGER: &str = "rkube-addon";
const EVENT_SOURCE: &str = "rkube-addon";
const RETRY_FIRST: Duration = Duration::from_secs(2);
const RETRY_MAX: Duration = Duration::from_secs(120);

#[derive(Debug, thiserror::Error)]
enum DeployError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("the cluster serves no {kind} of {api_version}")]
    NoResource { api_version: String, kind: String },
    #[error("applying {object}")]
    Apply {
        object: ObjectRef,
        #[source]
        source: ClientError,
    },
    #[error("deleting {object}")]
    Delete {
        object: ObjectRef,
        #[source]
        source: ClientError,
    },
    #[error("asking for the resources of {api_version}")]
    Discover {
        api_version: String,
        #[source]
        source: ClientError,
    },
    #[error("keeping the list of objects of addon {addon}")]
    Record {
        addon: String,
        #[source]
        source: ClientError,
    },
}

pub(super) struct Settings {
    pub(super) folder: PathBuf,
    /// Addons that are not to be, by name.
    pub(super) disable: BTreeSet<String>,
    /// The name of this server among those on the same datastore.
    pub(super) server: String,
}

pub(super) fn manifests(settings: Settings, client: Client) -> Box<dyn Component> {
    component("manifests", &["kube-apiserver"], move |ready, shutdown| async move {
        let stop = shutdown.token();
        let deployer = Deployer::new(settings, client, stop.clone());
        ready.ready();
        tokio::select! {
            outcome = deployer.run() => outcome.map_err(Into::into),
            () = stop.cancelled() => Ok(()),
        }
    })
}

struct Deployer {
    settings: Settings,
    client: Client,
    resources: Resources,
    records: Records,
    recorder: EventRecorder,
}

impl Deployer {
    fn new(settings: Settings, client: Client, stop: CancellationToken) -> Self {
        let recorder = EventRecorder::start(client.clone(), EVENT_SOURCE, stop).on_host(&settings.server);
        Self {
            settings,
            resources: Resources::new(client.clone()),
            records: Records::new(client.clone()),
            recorder,
            client,
        }
    }

    /// One pass after another: when a file changed, or after a while when something could not be done.
    async fn run(self) -> std::io::Result<()> {
        let mut backoff = Backoff::doubling(RETRY_FIRST, RETRY_MAX);
        loop {
            let changed = Arc::new(Notify::new());
            let watches = files::folders(&self.settings.folder)?
                .into_iter()
                .map(|folder| Box::pin(folder::watch(folder, Arc::clone(&changed))));
            let work = async {
                let is_done = self.pass().await;
                if is_done {
                    backoff = Backoff::doubling(RETRY_FIRST, RETRY_MAX);
                    changed.notified().await;
                } else {
                    let retry = backoff.step(self.client.random().as_ref());
                    tokio::select! {
                        () = changed.notified() => {}
                        () = self.client.clock().sleep(retry) => {}
                    }
                }
            };
            // The watches come first: what changes during the pass is seen after it.
            tokio::select! {
                biased;
                (ended, _, _) = select_all(watches) => ended?,
                () = work => {}
            }
        }
    }

    /// Brings the cluster in line with the files. Returns whether nothing is left to be done.
    async fn pass(&self) -> bool {
        let found = files::find(&self.settings.folder);
        let records = match self.records.list().await {
            Ok(records) => records,
            Err(error) => {
                warn!(error = %chain(&error), "Addons were not listed");
                return false;
            }
        };
        let mut is_done = true;
        for (name, record) in &records {
            let is_disabled = self.settings.disable.contains(name);
            let is_gone = !found.contains_key(name) && record.server == self.settings.server;
            if is_disabled || is_gone {
                is_done &= self.note(record, "deleting", self.remove(record)).await;
            }
        }
        for (name, file) in &found {
            if file.is_skipped || self.settings.disable.contains(name) {
                continue;
            }
            let record = records.get(name).cloned().unwrap_or_else(|| Record::new(name));
            is_done &= self.note(&record, "applying", self.deploy(&record, file)).await;
        }
        is_done
    }

    /// Says what went wrong. The next pass tries again.
    async fn note(
        &self,
        record: &Record,
        doing: &'static str,
        work: impl Future<Output = Result<(), DeployError>>,
    ) -> bool {
        match work.await {
            Ok(()) => true,
            Err(error) => {
                warn!(addon = record.name, doing, error = %chain(&error), "Addon was not brought in line");
                let reason = match &error {
                    DeployError::File(_) => "ParseManifestFailed",
                    DeployError::Delete { .. } => "DeleteManifestFailed",
                    _ => "ApplyManifestFailed",
                };
                self.recorder.warning(&record.config_map(), reason, chain(&error).to_string());
                false
            }
        }
    }

    async fn deploy(&self, old: &Record, file: &File) -> Result<(), DeployError> {
        let (bytes, checksum) = file.read()?;
        // Somebody is about to write it, or a crash took what was written. To take an addon away, its file goes.
        if bytes.is_empty() {
            return Ok(());
        }
        if old.checksum == checksum && old.server == self.settings.server {
            return Ok(());
        }
        let path = file.path.display();
        let objects = files::objects(&bytes, &file.path)?;
        let mut wanted = Vec::new();
        for object in &objects {
            wanted.push(self.reference(object).await?);
        }
        // Until all of it is done the list holds what was and what will be, and no checksum says it is complete.
        let mut all = old.objects.clone();
        all.extend(wanted.iter().filter(|object| !old.objects.contains(object)).cloned());
        let mut record = old.clone();
        record.server = self.settings.server.clone();
        record.source = path.to_string();
        record.checksum = String::new();
        record.objects = all;
        self.records.keep(&record).await?;
        self.recorder.normal(&record.config_map(), "ApplyingManifest", format!("Applying manifest at {path}"));
        for (reference, object) in wanted.iter().zip(&objects) {
            self.apply(reference, object).await?;
        }
        for object in old.objects.iter().filter(|object| !wanted.contains(object)).rev() {
            self.delete(object).await?;
        }
        record.objects = wanted;
        record.checksum = checksum;
        self.records.keep(&record).await?;
        info!(addon = record.name, objects = record.objects.len(), "Applied addon");
        self.recorder.normal(&record.config_map(), "AppliedManifest", format!("Applied manifest at {path}"));
        Ok(())
    }

    async fn remove(&self, record: &Record) -> Result<(), DeployError> {
        let message = format!("Deleting manifest at {}", record.source);
        self.recorder.normal(&record.config_map(), "DeletingManifest", message);
        for object in record.objects.iter().rev() {
            self.delete(object).await?;
        }
        self.records.forget(record).await?;
        info!(addon = record.name, "Deleted addon");
        Ok(())
    }

    async fn reference(&self, object: &Value) -> Result<ObjectRef, DeployError> {
        let mut reference = ObjectRef::of(object);
        match self.resources.find(&reference).await {
            Ok(resource) if !resource.namespaced => reference.namespace = String::new(),
            Ok(_) if reference.namespace.is_empty() => reference.namespace = "default".to_owned(),
            Ok(_) => {}
            // A kind that another object of this file defines is asked for again when its turn comes.
            Err(DeployError::NoResource { .. }) => {}
            Err(error) => return Err(error),
        }
        Ok(reference)
    }

    async fn apply(&self, reference: &ObjectRef, object: &Value) -> Result<(), DeployError> {
        let resource = self.resources.find(reference).await?;
        let namespace = match reference.namespace.as_str() {
            "" if resource.namespaced => "default",
            namespace => namespace,
        };
        let patch = Patch::Apply { object: object.clone(), field_manager: FIELD_MANAGER.to_owned(), force: true };
        let api = self.client.dynamic(resource, namespace);
        let applied = api.patch(&reference.name, &patch).await;
        applied.map(drop).map_err(|source| DeployError::Apply { object: reference.clone(), source })
    }

    async fn delete(&self, object: &ObjectRef) -> Result<(), DeployError> {
        let resource = match self.resources.find(object).await {
            Ok(resource) => resource,
            // Its kind went before it, and took it along.
            Err(DeployError::NoResource { .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        let options = DeleteOptions::default().propagation(Propagation::Background);
        match self.client.dynamic(resource, &object.namespace).delete(&object.name, &options).await {
            Err(error) if !error.is_not_found() => Err(DeployError::Delete { object: object.clone(), source: error }),
            _ => Ok(()),
        }
    }
}

/// Addons by name.
type ByName<T> = BTreeMap<String, T>;

/// The addon's name of a manifest, if the file is one.
fn addon_name(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    let stem = ["yaml", "yml", "json"].iter().find_map(|ending| name.strip_suffix(&format!(".{ending}")))?;
    (!stem.is_empty() && !stem.starts_with('.')).then(|| stem.to_owned())
}
