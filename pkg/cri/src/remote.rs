//! The client of a runtime's Unix socket.
//!
//! One HTTP/2 connection, made when first needed and again after it broke: a runtime that is away makes
//! calls fail at once with `Unavailable`, a runtime that comes back is used by the next call.
//! Behaves as staging/src/k8s.io/cri-client/pkg/remote_runtime.go, v1.36.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::calls::{image_calls, runtime_calls};
use crate::containerd;
use crate::error::RuntimeError;
use crate::service::{Event, EventStream, ImageService, RuntimeService};
use crate::v1::image_service_client::ImageServiceClient;
use crate::v1::runtime_service_client::RuntimeServiceClient;
use crate::v1::*;

/// Upstream's `--runtime-request-timeout`.
const TIMEOUT: Duration = Duration::from_secs(120);
/// Upstream's limit for one message: a list of a full node's containers is about 1 MiB.
const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// Where runtimes usually listen, in the order they are tried.
const USUAL_SOCKETS: [&str; 4] = [
    "/run/containerd/containerd.sock",
    "/run/k3s/containerd/containerd.sock",
    "/run/crio/crio.sock",
    "/var/run/cri-dockerd.sock",
];

/// How long calls may take.
#[derive(Clone, Copy, Debug)]
struct Limits {
    request: Duration,
}

impl Limits {
    fn short<R>(self, _: &R) -> Duration {
        self.request
    }

    fn long<R>(self, _: &R) -> Duration {
        self.request * 2
    }

    fn forever<R>(self, _: &R) -> Duration {
        Duration::MAX
    }

    fn grace(self, request: &StopContainerRequest) -> Duration {
        self.request + seconds(request.timeout)
    }

    fn command(self, request: &ExecSyncRequest) -> Duration {
        if request.timeout > 0 { self.request + seconds(request.timeout) } else { Duration::MAX }
    }
}

/// A runtime behind a Unix socket. Clones share the connection.
#[derive(Clone)]
pub struct Remote {
    channel: Channel,
    socket: PathBuf,
    limits: Limits,
}

impl Remote {
    /// `endpoint` is a path or `unix:///path`. Nothing is dialled yet.
    pub fn new(endpoint: &str) -> Result<Self, RuntimeError> {
        let path = endpoint.strip_prefix("unix://").unwrap_or(endpoint);
        if !path.starts_with('/') {
            return Err(RuntimeError::Endpoint { endpoint: endpoint.to_owned() });
        }
        let socket = PathBuf::from(path);
        let limits = Limits { request: TIMEOUT };
        Ok(Self { channel: dial_lazily(socket.clone()), socket, limits })
    }

    /// The first usual socket that exists.
    pub fn discover() -> Option<&'static str> {
        USUAL_SOCKETS.into_iter().find(|path| Path::new(path).exists())
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// containerd's own services on the same socket.
    pub fn containerd(&self) -> containerd::Client {
        containerd::Client::new(self.channel.clone())
    }

    fn runtime(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    fn images(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }
}

fn dial_lazily(socket: PathBuf) -> Channel {
    // The authority is never resolved; h2 insists on one, and runtimes expect no path in it.
    Endpoint::from_static("http://localhost").connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    }))
}

fn seconds(value: i64) -> Duration {
    Duration::from_secs(u64::try_from(value).unwrap_or(0))
}

async fn within<T>(
    call: &'static str,
    limit: Duration,
    answer: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, RuntimeError> {
    match tokio::time::timeout(limit, answer).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(RuntimeError::status(call, &status)),
        Err(_) => Err(RuntimeError::Timeout { call, limit }),
    }
}

macro_rules! remote_runtime {
    ($($(#[$doc:meta])* $name:ident($request:ident) -> $response:ident within $limit:ident;)*) => {
        impl RuntimeService for Remote {
            $(fn $name(&self, request: $request) -> BoxFuture<'_, Result<$response, RuntimeError>> {
                let limit = self.limits.$limit(&request);
                async move { within(stringify!($name), limit, self.runtime().$name(request)).await }.boxed()
            })*

            fn events(&self) -> BoxFuture<'_, Result<EventStream, RuntimeError>> {
                self.container_events().boxed()
            }
        }
    };
}

macro_rules! remote_images {
    ($($(#[$doc:meta])* $name:ident($request:ident) -> $response:ident within $limit:ident;)*) => {
        impl ImageService for Remote {
            $(fn $name(&self, request: $request) -> BoxFuture<'_, Result<$response, RuntimeError>> {
                let limit = self.limits.$limit(&request);
                async move { within(stringify!($name), limit, self.images().$name(request)).await }.boxed()
            })*
        }
    };
}

runtime_calls!(remote_runtime);
image_calls!(remote_images);

impl Remote {
    /// CRI's events; containerd's own where the runtime is a containerd without them (before 1.7).
    async fn container_events(&self) -> Result<EventStream, RuntimeError> {
        const CALL: &str = "get_container_events";
        let call = within(CALL, self.limits.request, async {
            let mut stream = self.runtime().get_container_events(GetEventsRequest {}).await?.into_inner();
            // An old server reports that it lacks the call with the first message.
            let first = tokio::time::timeout(Duration::from_millis(200), stream.message()).await;
            match first {
                Ok(Err(status)) => Err(status),
                Ok(Ok(first)) => Ok(tonic::Response::new((first, stream))),
                Err(_) => Ok(tonic::Response::new((None, stream))),
            }
        });
        match call.await {
            Ok((first, stream)) => Ok(futures_util::stream::iter(first.map(Ok))
                .chain(stream)
                .map(|event| match event {
                    Ok(event) => Ok(Event { id: event.container_id }),
                    Err(status) => Err(RuntimeError::status(CALL, &status)),
                })
                .boxed()),
            Err(error) if error.is_unimplemented() => self.containerd().events().await,
            Err(error) => Err(error),
        }
    }
}
