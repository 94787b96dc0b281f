//! A listener that serves HTTP/1.1 and HTTP/2, over TLS or plain, within limits, and drains on shutdown.
//!
//! Limits: connections at once, time for the handshake and for a request's head, size of the head, streams
//! and resets of an HTTP/2 connection. A connection over the limit waits in the kernel's backlog; a peer
//! that is too slow or resets too often is disconnected.
//! Behaves as `k8s.io/apiserver/pkg/server/secure_serving.go`, v1.36.

use std::any::Any;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::Service;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use rkube_apimachinery::clock::SharedClock;
use rkube_apimachinery::{chain::chain, task};
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, debug_span, info_span, warn};

use crate::body::Body;
use crate::tls::SharedServerConfig;

/// What answers requests.
///
/// # Assumptions
/// A handler catches its own panics; one that escapes ends the connection it came over.
pub trait Handler: Send + Sync + 'static {
    /// The request carries [`ConnectionInfo`] (as `Arc`) in its extensions, and hyper's upgrade handle.
    fn call(&self, request: Request<Body>) -> BoxFuture<'static, Response<Body>>;
}

impl<F> Handler for F
where
    F: Fn(Request<Body>) -> BoxFuture<'static, Response<Body>> + Send + Sync + 'static,
{
    fn call(&self, request: Request<Body>) -> BoxFuture<'static, Response<Body>> {
        self(request)
    }
}

/// Where a request came from.
#[derive(Debug)]
pub struct ConnectionInfo {
    pub remote: SocketAddr,
    pub local: SocketAddr,
    pub tls: bool,
    /// As the client showed it, leaf first, verified only for possession of the key.
    pub peer_certificates: Vec<CertificateDer<'static>>,
    /// Kept for whoever judges the peer, so that not every request of a connection is judged anew.
    pub judgement: Judgement,
    /// Cancelled by a handler that wants no further request over an HTTP/2 connection: it ends with those under way.
    pub last_requests: CancellationToken,
}

/// A place for one value of each type that belongs to a connection: as many as there are judges.
#[derive(Debug, Default)]
pub struct Judgement(Mutex<Vec<Arc<dyn Any + Send + Sync>>>);

impl Judgement {
    /// The `T` that was kept last.
    pub fn get<T: Any + Send + Sync>(&self) -> Option<Arc<T>> {
        self.0.lock().iter().find_map(|kept| Arc::clone(kept).downcast().ok())
    }

    pub fn set<T: Any + Send + Sync>(&self, value: Arc<T>) {
        let mut all = self.0.lock();
        all.retain(|kept| !kept.as_ref().is::<T>());
        all.push(value);
    }
}

/// See the module header. The defaults are upstream's where upstream has the limit.
#[derive(Clone, Debug)]
pub struct Limits {
    pub connections_max: usize,
    pub handshake_timeout: Duration,
    /// For the head of an HTTP/1 request, and so for an idle connection.
    pub head_timeout: Duration,
    /// Bytes of a request's head.
    pub head_bytes_max: u32,
    pub http2_streams_max: u32,
    /// Streams a peer may reset before they are served; more is an attack (CVE-2023-44487).
    pub http2_pending_resets_max: usize,
    pub http2_keep_alive_interval: Duration,
    pub http2_keep_alive_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 16 * 1024,
            handshake_timeout: Duration::from_secs(10),
            head_timeout: Duration::from_secs(32),
            head_bytes_max: 1024 * 1024,
            http2_streams_max: 250,
            http2_pending_resets_max: 50,
            http2_keep_alive_interval: Duration::from_secs(30),
            http2_keep_alive_timeout: Duration::from_secs(15),
        }
    }
}

/// Flow control windows: a body of typical size fits one stream's window, as upstream reasons for its
/// 256 KiB (`resourceBody99Percentile`).
const HTTP2_STREAM_WINDOW: u32 = 256 * 1024;
const HTTP2_CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;
const HTTP1_BUFFER_MIN: usize = 16 * 1024;
/// After an accept failed for want of file descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves connections until told to stop.
pub struct Listener {
    name: &'static str,
    socket: TcpListener,
    tls: Option<SharedServerConfig>,
    limits: Limits,
    clock: SharedClock,
}

impl Listener {
    /// `name` is the component in log lines.
    pub fn new(name: &'static str, socket: TcpListener, tls: Option<SharedServerConfig>, clock: SharedClock) -> Self {
        Self { name, socket, tls, limits: Limits::default(), clock }
    }

    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Accepts until `shutdown`, then stops accepting, tells every connection to finish (GOAWAY), waits up
    /// to `drain_timeout` for those that have requests under way, and breaks off the rest.
    pub async fn serve(self, handler: Arc<dyn Handler>, shutdown: CancellationToken, drain_timeout: Duration) {
        let Self { name, socket, tls, limits, clock } = self;
        let connections = TaskTracker::new();
        let permits = Arc::new(Semaphore::new(limits.connections_max));
        let break_off = CancellationToken::new();
        let limits = Arc::new(limits);
        loop {
            let accept = async {
                let permit = Arc::clone(&permits).acquire_owned().await;
                (permit, socket.accept().await)
            };
            let (permit, accepted) = tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                accepted = accept => accepted,
            };
            // The semaphore is never closed.
            let Ok(permit) = permit else { break };
            let (stream, remote) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // A connection that was reset while it waited, or no file descriptors left.
                    debug!(component = name, error = %chain(&error), "Accepting a connection failed");
                    clock.sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let connection = Connection {
                tls: tls.as_ref().map(|tls| TlsAcceptor::from(tls.load_full())),
                limits: Arc::clone(&limits),
                handler: Arc::clone(&handler),
                shutdown: shutdown.clone(),
                _permit: permit,
            };
            let break_off = break_off.clone();
            let run = async move {
                tokio::select! {
                    () = connection.run(stream, remote) => {}
                    () = break_off.cancelled() => {}
                }
            };
            task::spawn(debug_span!("connection", component = name, %remote), connections.track_future(run));
        }
        drop(socket);
        connections.close();
        if tokio::time::timeout(drain_timeout, connections.wait()).await.is_err() {
            warn!(
                component = name,
                connections = connections.len(),
                "Connections were still busy at the end of draining"
            );
            break_off.cancel();
            connections.wait().await;
        }
    }

    /// As [`Self::serve`], in a task of its own.
    pub fn spawn(
        self,
        handler: Arc<dyn Handler>,
        shutdown: CancellationToken,
        drain_timeout: Duration,
    ) -> tokio::task::JoinHandle<()> {
        let span = info_span!("listener", component = self.name);
        task::spawn(span, self.serve(handler, shutdown, drain_timeout))
    }

    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.socket.local_addr()
    }
}

struct Connection {
    tls: Option<TlsAcceptor>,
    limits: Arc<Limits>,
    handler: Arc<dyn Handler>,
    shutdown: CancellationToken,
    _permit: OwnedSemaphorePermit,
}

impl Connection {
    async fn run(self, stream: TcpStream, remote: SocketAddr) {
        // Small answers and watch events go out at once.
        let _ = stream.set_nodelay(true);
        let local = stream.local_addr().unwrap_or(remote);
        let Some(acceptor) = &self.tls else {
            let info = ConnectionInfo {
                remote,
                local,
                tls: false,
                peer_certificates: Vec::new(),
                judgement: Judgement::default(),
                last_requests: CancellationToken::new(),
            };
            return self.http1(stream, info).await;
        };
        let stream = match tokio::time::timeout(self.limits.handshake_timeout, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                debug!(error = %chain(&error), "TLS handshake error");
                return;
            }
            Err(_) => {
                debug!("TLS handshake took too long");
                return;
            }
        };
        let (_, session) = stream.get_ref();
        let peer_certificates = session
            .peer_certificates()
            .map(|chain| chain.iter().map(|certificate| certificate.clone().into_owned()).collect())
            .unwrap_or_default();
        let http2 = session.alpn_protocol() == Some(b"h2");
        let info = ConnectionInfo {
            remote,
            local,
            tls: true,
            peer_certificates,
            judgement: Judgement::default(),
            last_requests: CancellationToken::new(),
        };
        if http2 {
            self.http2(stream, info).await;
        } else {
            self.http1(stream, info).await;
        }
    }

    async fn http1<IO>(self, io: IO, info: ConnectionInfo)
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let service = Dispatch { handler: self.handler, info: Arc::new(info) };
        let mut builder = hyper::server::conn::http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.head_timeout)
            .max_buf_size((self.limits.head_bytes_max as usize).max(HTTP1_BUFFER_MIN))
            .half_close(false);
        let connection = builder.serve_connection(TokioIo::new(io), service).with_upgrades();
        let mut connection = std::pin::pin!(connection);
        let result = tokio::select! {
            result = connection.as_mut() => result,
            () = self.shutdown.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.as_mut().await
            }
        };
        report(result);
    }

    async fn http2<IO>(self, io: IO, info: ConnectionInfo)
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (shutdown, last_requests) = (self.shutdown, info.last_requests.clone());
        let end = async {
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = last_requests.cancelled() => {}
            }
        };
        let service = Dispatch { handler: self.handler, info: Arc::new(info) };
        let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(self.limits.http2_streams_max)
            .max_pending_accept_reset_streams(self.limits.http2_pending_resets_max)
            .max_header_list_size(self.limits.head_bytes_max)
            .initial_stream_window_size(HTTP2_STREAM_WINDOW)
            .initial_connection_window_size(HTTP2_CONNECTION_WINDOW)
            .keep_alive_interval(self.limits.http2_keep_alive_interval)
            .keep_alive_timeout(self.limits.http2_keep_alive_timeout);
        let connection = builder.serve_connection(TokioIo::new(io), service);
        let mut connection = std::pin::pin!(connection);
        let result = tokio::select! {
            result = connection.as_mut() => result,
            () = end => {
                connection.as_mut().graceful_shutdown();
                connection.as_mut().await
            }
        };
        report(result);
    }
}

fn report(result: hyper::Result<()>) {
    if let Err(error) = result {
        debug!(error = %chain(&error), "Connection ended");
    }
}

/// Hands each request of a connection to the handler.
struct Dispatch {
    handler: Arc<dyn Handler>,
    info: Arc<ConnectionInfo>,
}

impl Service<Request<Incoming>> for Dispatch {
    type Response = Response<Body>;
    type Error = std::convert::Infallible;
    type Future = Answer;

    fn call(&self, request: Request<Incoming>) -> Answer {
        let mut request = request.map(Body::from);
        request.extensions_mut().insert(Arc::clone(&self.info));
        Answer(self.handler.call(request))
    }
}

/// Turns the handler's future into one that cannot fail.
struct Answer(BoxFuture<'static, Response<Body>>);

impl Future for Answer {
    type Output = Result<Response<Body>, std::convert::Infallible>;

    fn poll(mut self: std::pin::Pin<&mut Self>, context: &mut std::task::Context<'_>) -> std::task::Poll<Self::Output> {
        self.0.as_mut().poll(context).map(Ok)
    }
}
