//! Connections to servers: TCP, and TLS with a configuration that is swapped while running.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::Uri;
use hyper_util::client::legacy::connect::{CaptureConnection, Connected, Connection};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::tls::SharedClientConfig;

/// TCP and TLS together.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a server could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("no host in {uri}")]
    NoHost { uri: String },
    #[error("{host:?} is no name that a certificate can have")]
    Name { host: String },
    #[error("dial tcp {address}")]
    Tcp {
        address: String,
        #[source]
        source: io::Error,
    },
    #[error("TLS handshake with {address}")]
    Tls {
        address: String,
        #[source]
        source: io::Error,
    },
    #[error("connecting to {address} took longer than {} s", CONNECT_TIMEOUT.as_secs())]
    Timeout { address: String },
}

/// Opens connections. `https` needs a TLS configuration; other schemes go plain.
#[derive(Clone)]
pub struct Connector {
    tls: Option<SharedClientConfig>,
    /// Dialled instead of the address in the URL, as `host:port`.
    address: Option<Arc<str>>,
    /// Checked against the certificate instead of the URL's host.
    server_name: Option<Arc<str>>,
    http2: bool,
}

impl Connector {
    pub fn new(tls: Option<SharedClientConfig>) -> Self {
        Self { tls, address: None, server_name: None, http2: false }
    }

    #[must_use]
    pub fn address(mut self, address: impl Into<Arc<str>>) -> Self {
        self.address = Some(address.into());
        self
    }

    #[must_use]
    pub fn server_name(mut self, name: impl Into<Arc<str>>) -> Self {
        self.server_name = Some(name.into());
        self
    }

    /// Offers HTTP/2 before HTTP/1.1.
    #[must_use]
    pub fn http2(mut self, http2: bool) -> Self {
        self.http2 = http2;
        self
    }

    pub async fn connect(&self, uri: &Uri) -> Result<Stream, ConnectError> {
        let host = uri.host().ok_or_else(|| ConnectError::NoHost { uri: uri.to_string() })?;
        let tls = uri.scheme_str() == Some("https");
        let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let address = match &self.address {
            Some(address) => address.to_string(),
            None => format!("{host}:{port}"),
        };
        let connect = async {
            let tcp = TcpStream::connect(&address)
                .await
                .map_err(|source| ConnectError::Tcp { address: address.clone(), source })?;
            // Requests are small and wait for their answer; a failure here only costs latency.
            let _ = tcp.set_nodelay(true);
            let Some(config) = self.tls.as_ref().filter(|_| tls) else {
                return Ok(Stream::Plain(tcp));
            };
            let host = self.server_name.as_deref().unwrap_or(host);
            let host = host.trim_start_matches('[').trim_end_matches(']');
            let name =
                ServerName::try_from(host.to_owned()).map_err(|_| ConnectError::Name { host: host.to_owned() })?;
            let mut config = rustls::ClientConfig::clone(&config.load());
            config.alpn_protocols =
                if self.http2 { vec![b"h2".to_vec(), b"http/1.1".to_vec()] } else { vec![b"http/1.1".to_vec()] };
            let stream = TlsConnector::from(Arc::new(config))
                .connect(name, tcp)
                .await
                .map_err(|source| ConnectError::Tls { address: address.clone(), source })?;
            Ok(Stream::Tls(Box::new(stream)))
        };
        match tokio::time::timeout(CONNECT_TIMEOUT, connect).await {
            Ok(result) => result,
            Err(_) => Err(ConnectError::Timeout { address: address.clone() }),
        }
    }
}

/// A connection of either kind.
#[derive(Debug)]
pub enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    /// Whether the server chose HTTP/2.
    pub fn is_http2(&self) -> bool {
        match self {
            Self::Plain(_) => false,
            Self::Tls(stream) => stream.get_ref().1.alpn_protocol() == Some(b"h2"),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(context, data),
            Self::Tls(stream) => Pin::new(stream).poll_write(context, data),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

/// What hyper's pooling client holds.
pub struct Pooled<S = Stream> {
    io: TokioIo<S>,
    pub(crate) lifetime: Lifetime,
    /// Dropped after `io`.
    _end: DropGuard,
}

impl<S> Pooled<S> {
    /// `ended` is cancelled when the connection is dropped.
    pub(crate) fn new(stream: S, ended: CancellationToken) -> Self {
        Self { io: TokioIo::new(stream), lifetime: Lifetime(ended.clone()), _end: ended.drop_guard() }
    }
}

/// Tells when a connection of the pool has ended.
#[derive(Clone)]
pub(crate) struct Lifetime(CancellationToken);

impl Lifetime {
    /// That of the connection which a request was given last; waits until it was given one.
    pub(crate) async fn of_request(captured: &mut CaptureConnection) -> Self {
        captured.wait_for_connection_metadata().await;
        let mut extras = http::Extensions::new();
        if let Some(connected) = captured.connection_metadata().as_ref() {
            connected.get_extras(&mut extras);
        }
        // Every connection of the pool has one; what has none never ends.
        extras.remove().unwrap_or_else(|| Self(CancellationToken::new()))
    }

    pub(crate) async fn ended(&self) {
        self.0.cancelled().await;
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.0.is_cancelled()
    }
}

impl Connection for Pooled {
    fn connected(&self) -> Connected {
        let connected = Connected::new().extra(self.lifetime.clone());
        if self.io.inner().is_http2() { connected.negotiated_h2() } else { connected }
    }
}

impl<S: AsyncRead + Unpin> hyper::rt::Read for Pooled<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> hyper::rt::Write for Pooled<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

impl tower::Service<Uri> for Connector {
    type Response = Pooled;
    type Error = ConnectError;
    type Future = BoxFuture<'static, Result<Pooled, ConnectError>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(
            async move { connector.connect(&uri).await.map(|stream| Pooled::new(stream, CancellationToken::new())) },
        )
    }
}
