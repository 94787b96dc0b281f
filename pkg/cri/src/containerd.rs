//! containerd beyond CRI: importing an image from a file, and its own event stream.
//!
//! Everything happens in the namespace CRI uses, `k8s.io`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use prost::Message;
use rkube_apimachinery::clock::{Clock, SystemClock};
use rkube_apimachinery::task;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tracing::info_span;

use crate::archive::{self, ArchiveError, Content, Descriptor, Files, Import};
use crate::error::RuntimeError;
use crate::service::{Event, EventStream, ImageService};
use crate::v1::{ImageSpec, ImageStatusRequest};
use crate::wire::{content, events, images, leases};

/// Events waiting for a slow reader before containerd is slowed down.
const EVENTS_MAX: usize = 256;
const NAMESPACE: &str = "k8s.io";
/// A message may be 16 MiB for containerd; blobs are sent in pieces far below that.
const PIECE_BYTES: usize = 1 << 20;
/// How long containerd's CRI half may take to notice an image after it was written.
const NOTICE_TIMEOUT: Duration = Duration::from_secs(30);
/// An import that broke off is forgotten after this.
const LEASE_HOURS: u64 = 1;

/// Why an image could not be imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    #[error("writing image content {digest}")]
    Write {
        digest: String,
        #[source]
        source: RuntimeError,
    },
    #[error("recording image {image}")]
    Record {
        image: String,
        #[source]
        source: RuntimeError,
    },
    #[error("asking the runtime for a lease")]
    Lease(#[source] RuntimeError),
    #[error("waiting for the runtime to see image {image}")]
    Unseen { image: String },
}

/// containerd's services.
#[derive(Clone)]
pub struct Client {
    channel: Channel,
}

impl Client {
    pub(crate) fn new(channel: Channel) -> Self {
        Self { channel }
    }

    /// Imports every image of an archive file and gives their names. Content that is already there is
    /// not written again, so importing twice is cheap.
    pub async fn import(&self, path: &Path) -> Result<Vec<String>, ImportError> {
        let (files, plan) = {
            let path = path.to_owned();
            blocking(move || {
                let files = archive::scan(&path)?;
                let plan = archive::plan(&files)?;
                Ok((files, plan))
            })
            .await?
        };
        let lease = format!("rkube-import-{}", archive::digest(path.as_os_str().as_encoded_bytes()).replace(':', "-"));
        self.create_lease(&lease).await.map_err(ImportError::Lease)?;
        let imported = self.write_all(path, files, &plan, &lease).await;
        // The lease expires by itself; leaving it would only delay collection of what is unreferenced.
        let deleted = self.delete_lease(&lease).await;
        imported?;
        if let Err(error) = deleted {
            tracing::debug!(error = %error, lease, "Lease was left to expire");
        }
        Ok(plan.images.into_iter().map(|(name, _)| name).collect())
    }

    /// Imports an archive and waits until CRI calls see its images.
    pub fn import_for_cri<'a>(
        &'a self,
        service: &'a dyn ImageService,
        path: &'a Path,
    ) -> BoxFuture<'a, Result<Vec<String>, ImportError>> {
        Box::pin(self.import_and_wait(service, path))
    }

    async fn import_and_wait(&self, service: &dyn ImageService, path: &Path) -> Result<Vec<String>, ImportError> {
        // Subscribed before anything is written, so that no news is missed.
        let mut news = self.subscribe(vec!["topic~=\"/images/\"".to_owned()]).await.ok();
        let names = self.import(path).await?;
        for name in &names {
            await_image(service, &mut news, name).await?;
        }
        Ok(names)
    }

    /// Gives an image another name instead of the one it has, and waits until CRI calls see it.
    pub fn rename_for_cri<'a>(
        &'a self,
        service: &'a dyn ImageService,
        from: &'a str,
        to: &'a str,
    ) -> BoxFuture<'a, Result<(), ImportError>> {
        Box::pin(async move {
            // Subscribed before anything is written, so that no news is missed.
            let mut news = self.subscribe(vec!["topic~=\"/images/\"".to_owned()]).await.ok();
            let failed = |status: &tonic::Status| ImportError::Record {
                image: from.to_owned(),
                source: RuntimeError::status("rename_image", status),
            };
            let mut client = images::images_client::ImagesClient::new(self.channel.clone());
            let request = self.request(images::GetImageRequest { name: from.to_owned() }, None);
            let found = client.get(request).await.map_err(|status| failed(&status))?.into_inner();
            let target = found.image.and_then(|image| image.target);
            let target = target.ok_or_else(|| failed(&tonic::Status::not_found("an image without content")))?;
            // CRI keeps an image under its digest, too.
            let digests = [from, to].map(|name| format!("{}@{}", repository(name), target.digest));
            for name in [to, &digests[1]] {
                self.record_target(name, target.clone(), None).await?;
                await_image(service, &mut news, name).await?;
            }
            // The content has its new names before it loses the old ones, or it would be collected.
            for name in [from, &digests[0]] {
                let request = self.request(images::DeleteImageRequest { name: name.to_owned(), sync: false }, None);
                match client.delete(request).await {
                    Err(status) if status.code() != tonic::Code::NotFound => return Err(failed(&status)),
                    _ => {}
                }
                await_absence(service, &mut news, name).await?;
            }
            Ok(())
        })
    }

    /// Starts and ends of tasks, by container id.
    pub(crate) async fn events(&self) -> Result<EventStream, RuntimeError> {
        let filters = ["start", "exit", "oom", "delete", "paused"].map(|topic| format!("topic==\"/tasks/{topic}\""));
        let stream = self.subscribe(filters.into_iter().collect()).await?;
        Ok(stream
            .filter_map(|envelope| async move {
                match envelope {
                    Err(error) => Some(Err(error)),
                    Ok(envelope) if envelope.namespace != NAMESPACE => None,
                    Ok(envelope) => {
                        let value = envelope.event?.value;
                        if envelope.topic == "/tasks/exit" {
                            let exit = events::TaskExit::decode(value.as_slice()).ok()?;
                            let is_container = exit.id.is_empty() || exit.id == exit.container_id;
                            return is_container.then_some(Ok(Event { id: exit.container_id }));
                        }
                        let event = events::TaskEvent::decode(value.as_slice()).ok()?;
                        Some(Ok(Event { id: event.container_id }))
                    }
                }
            })
            .boxed())
    }

    /// containerd answers a subscription with headers only when the first event comes, so the answer is
    /// not waited for here: a task sends the request at once and hands on what arrives. It ends with its
    /// reader.
    async fn subscribe(
        &self,
        filters: Vec<String>,
    ) -> Result<ReceiverStream<Result<events::Envelope, RuntimeError>>, RuntimeError> {
        const CALL: &str = "subscribe";
        let mut client = events::events_client::EventsClient::new(self.channel.clone());
        let request = self.request(events::SubscribeRequest { filters }, None);
        let (sender, receiver) = mpsc::channel(EVENTS_MAX);
        task::spawn(info_span!("containerd-events"), async move {
            let pump = async {
                let mut stream = client.subscribe(request).await?.into_inner();
                while let Some(envelope) = stream.message().await? {
                    if sender.send(Ok(envelope)).await.is_err() {
                        break;
                    }
                }
                Ok::<(), tonic::Status>(())
            };
            tokio::select! {
                ended = pump => if let Err(status) = ended {
                    // A reader that has gone needs no reason.
                    let _ = sender.send(Err(RuntimeError::status(CALL, &status))).await;
                },
                () = sender.closed() => {}
            }
        });
        Ok(ReceiverStream::new(receiver))
    }

    fn request<T>(&self, message: T, lease: Option<&str>) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        request.metadata_mut().insert("containerd-namespace", MetadataValue::from_static(NAMESPACE));
        if let Some(lease) = lease.and_then(|lease| MetadataValue::try_from(lease).ok()) {
            request.metadata_mut().insert("containerd-lease", lease);
        }
        request
    }

    async fn create_lease(&self, id: &str) -> Result<(), RuntimeError> {
        let mut client = leases::leases_client::LeasesClient::new(self.channel.clone());
        let expires = "containerd.io/gc.expire".to_owned();
        // An absolute time by the machine's clock, which is the one containerd compares with.
        let until = SystemClock::new().now() + Duration::from_secs(LEASE_HOURS * 3600);
        let labels = [(expires, until.to_string())].into();
        let request = self.request(leases::CreateRequest { id: id.to_owned(), labels }, None);
        match client.create(request).await {
            Ok(_) => Ok(()),
            Err(status) if status.code() == tonic::Code::AlreadyExists => Ok(()),
            Err(status) => Err(RuntimeError::status("create_lease", &status)),
        }
    }

    async fn delete_lease(&self, id: &str) -> Result<(), RuntimeError> {
        let mut client = leases::leases_client::LeasesClient::new(self.channel.clone());
        let request = self.request(leases::DeleteRequest { id: id.to_owned(), sync: false }, None);
        client.delete(request).await.map(drop).map_err(|status| RuntimeError::status("delete_lease", &status))
    }

    async fn write_all(&self, path: &Path, files: Files, plan: &Import, lease: &str) -> Result<(), ImportError> {
        let mut missing = BTreeMap::new();
        for entry in &plan.contents {
            if entry.bytes.is_none() && !self.has(&entry.digest).await {
                missing.insert(entry.digest.clone(), entry);
            }
        }
        // One name per digest that has to be read from the file.
        let wanted: BTreeMap<String, String> = files
            .into_iter()
            .filter(|(_, blob)| missing.contains_key(&blob.digest))
            .map(|(name, blob)| (blob.digest, name))
            .collect::<BTreeMap<_, _>>()
            .into_iter()
            .map(|(digest, name)| (name, digest))
            .collect();
        if !wanted.is_empty() {
            self.write_blobs(path.to_owned(), wanted, &missing, lease).await?;
        }
        for entry in &plan.contents {
            if let Some(bytes) = &entry.bytes
                && !self.has(&entry.digest).await
            {
                let pieces = futures_util::stream::iter([bytes.clone()]);
                self.write(entry, pieces.boxed(), lease).await?;
            }
        }
        for (name, descriptor) in &plan.images {
            self.record(name, descriptor, lease).await?;
        }
        Ok(())
    }

    async fn write_blobs(
        &self,
        path: PathBuf,
        wanted: BTreeMap<String, String>,
        missing: &BTreeMap<String, &Content>,
        lease: &str,
    ) -> Result<(), ImportError> {
        let (sender, mut pieces) = mpsc::channel::<(String, Vec<u8>, bool)>(4);
        let reading = tokio::task::spawn_blocking(move || {
            archive::stream(&path, wanted, |digest, chunk, last| {
                let piece = (digest.to_owned(), chunk.to_vec(), last);
                sender.blocking_send(piece).map_err(|_| std::io::Error::other("the import was given up"))
            })
        });
        while let Some((digest, first, last)) = pieces.recv().await {
            let Some(entry) = missing.get(&digest) else { continue };
            let (forward, received) = mpsc::channel(4);
            let write = self.write(entry, ReceiverStream::new(received).boxed(), lease);
            let feed = async {
                let mut piece = Some((first, last));
                while let Some((bytes, last)) = piece {
                    if forward.send(bytes).await.is_err() || last {
                        break;
                    }
                    piece = pieces.recv().await.map(|(_, bytes, last)| (bytes, last));
                }
                drop(forward);
            };
            let (written, ()) = tokio::join!(write, feed);
            written?;
        }
        match reading.await {
            Ok(result) => Ok(result?),
            Err(_) => Err(ImportError::Archive(ArchiveError::Missing { what: "readable end".to_owned() })),
        }
    }

    async fn has(&self, digest: &str) -> bool {
        let mut client = content::content_client::ContentClient::new(self.channel.clone());
        let request = self.request(content::InfoRequest { digest: digest.to_owned() }, None);
        client.info(request).await.is_ok()
    }

    fn write<'a>(
        &'a self,
        entry: &'a Content,
        pieces: BoxStream<'static, Vec<u8>>,
        lease: &'a str,
    ) -> BoxFuture<'a, Result<(), ImportError>> {
        let requests = Self::write_requests(entry, pieces);
        let (sender, receiver) = mpsc::channel(4);
        let request = self.request(ReceiverStream::new(receiver), Some(lease));
        let client = content::content_client::ContentClient::new(self.channel.clone())
            .max_encoding_message_size(PIECE_BYTES * 2);
        let failed = |source| ImportError::Write { digest: entry.digest.clone(), source };
        Box::pin(async move {
            let (finished, ()) = tokio::join!(finish_write(client, request), feed(requests, sender));
            match finished {
                Ok(()) => Ok(()),
                Err(status) if status.code() == tonic::Code::AlreadyExists => Ok(()),
                Err(status) => Err(failed(RuntimeError::status("write_content", &status))),
            }
        })
    }

    fn write_requests(
        entry: &Content,
        pieces: BoxStream<'static, Vec<u8>>,
    ) -> BoxStream<'static, content::WriteContentRequest> {
        let reference = format!("rkube-{}", entry.digest);
        let total = i64::try_from(entry.size).unwrap_or(i64::MAX);
        let labels = entry.labels.clone().into_iter().collect();
        let (digest, commit_ref) = (entry.digest.clone(), reference.clone());
        let mut offset = 0i64;
        let writes = pieces.map(move |data| {
            let at = offset;
            offset += i64::try_from(data.len()).unwrap_or(0);
            content::WriteContentRequest {
                action: content::WriteAction::Write.into(),
                r#ref: reference.clone(),
                total,
                offset: at,
                data,
                ..Default::default()
            }
        });
        let commit = content::WriteContentRequest {
            action: content::WriteAction::Commit.into(),
            r#ref: commit_ref,
            total,
            offset: total,
            expected: digest,
            labels,
            ..Default::default()
        };
        writes.chain(futures_util::stream::iter([commit])).boxed()
    }

    async fn record(&self, name: &str, descriptor: &Descriptor, lease: &str) -> Result<(), ImportError> {
        let target = images::Descriptor {
            media_type: descriptor.media_type.clone(),
            digest: descriptor.digest.clone(),
            size: descriptor.size,
            annotations: [].into(),
        };
        self.record_target(name, target, Some(lease)).await
    }

    async fn record_target(
        &self,
        name: &str,
        target: images::Descriptor,
        lease: Option<&str>,
    ) -> Result<(), ImportError> {
        let mut client = images::images_client::ImagesClient::new(self.channel.clone());
        let image = images::Image { name: name.to_owned(), labels: [].into(), target: Some(target) };
        let create = images::CreateImageRequest { image: Some(image.clone()) };
        let failed = |status: &tonic::Status| ImportError::Record {
            image: name.to_owned(),
            source: RuntimeError::status("record_image", status),
        };
        match client.create(self.request(create, lease)).await {
            Ok(_) => Ok(()),
            Err(status) if status.code() == tonic::Code::AlreadyExists => {
                let mask = prost_types::FieldMask { paths: vec!["target".to_owned()] };
                let update = images::UpdateImageRequest { image: Some(image), update_mask: Some(mask) };
                client.update(self.request(update, lease)).await.map(drop).map_err(|status| failed(&status))
            }
            Err(status) => Err(failed(&status)),
        }
    }
}

type News = ReceiverStream<Result<events::Envelope, RuntimeError>>;

/// A name without its tag or digest.
fn repository(name: &str) -> &str {
    let name = name.split_once('@').map_or(name, |(repository, _)| repository);
    let end = name.rfind('/').map_or(0, |at| at + 1);
    name[end..].find(':').map_or(name, |at| &name[..end + at])
}

/// Waits until containerd's CRI half has an image that was written.
async fn await_image(service: &dyn ImageService, news: &mut Option<News>, name: &str) -> Result<(), ImportError> {
    await_names(service, news, name, |is_known| is_known).await
}

/// Waits until it knows an image by this name no more.
async fn await_absence(service: &dyn ImageService, news: &mut Option<News>, name: &str) -> Result<(), ImportError> {
    await_names(service, news, name, |is_known| !is_known).await
}

async fn await_names(
    service: &dyn ImageService,
    news: &mut Option<News>,
    name: &str,
    holds: impl Fn(bool) -> bool + Send,
) -> Result<(), ImportError> {
    let seen = async {
        loop {
            let image = Some(ImageSpec { image: name.to_owned(), ..ImageSpec::default() });
            let status = service.image_status(ImageStatusRequest { image, verbose: false }).await;
            if status.is_ok_and(|answer| holds(answer.image.is_some())) {
                return;
            }
            // containerd announces an image before its CRI half has it, so an event is not the last word; the
            // short limit is for that gap.
            let next = async {
                match &mut *news {
                    Some(news) => drop(news.next().await),
                    None => std::future::pending().await,
                }
            };
            let _ = tokio::time::timeout(Duration::from_millis(50), next).await;
        }
    };
    let waited = tokio::time::timeout(NOTICE_TIMEOUT, seen).await;
    waited.map_err(|_| ImportError::Unseen { image: name.to_owned() })
}

type ContentClient = content::content_client::ContentClient<Channel>;

/// The stream of requests is a concrete type here: the compiler cannot prove a boxed one `Send`.
async fn finish_write(
    mut client: ContentClient,
    request: tonic::Request<ReceiverStream<content::WriteContentRequest>>,
) -> Result<(), tonic::Status> {
    let mut stream = client.write(request).await?.into_inner();
    while stream.message().await?.is_some() {}
    Ok(())
}

async fn feed(
    mut requests: BoxStream<'static, content::WriteContentRequest>,
    sender: mpsc::Sender<content::WriteContentRequest>,
) {
    while let Some(request) = requests.next().await {
        if sender.send(request).await.is_err() {
            return;
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ArchiveError> + Send + 'static,
) -> Result<T, ArchiveError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(_) => Err(ArchiveError::Missing { what: "readable structure".to_owned() }),
    }
}
