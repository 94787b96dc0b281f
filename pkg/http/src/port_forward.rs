//! Port forwarding, both ends: pairs of streams over SPDY (plain, or tunnelled through WebSocket messages),
//! and the older WebSocket form with two channels per port.
//!
//! Behaves as `k8s.io/cri-streaming/pkg/streaming/portforward`, v1.36.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rkube_apimachinery::clock::SharedClock;
use rkube_apimachinery::task;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::protocol::Role as WebSocketRole;
use tokio_util::sync::CancellationToken;
use tracing::{debug, debug_span};

use crate::body::Body;
use crate::mux::MuxStream;
use crate::remote_command::{Pending, STREAM_CREATION_TIMEOUT, STREAM_TYPE, StreamError, accept_spdy};
use crate::spdy::{Role, SpdyConnection, SpdyError, SpdyOpener};
use crate::upgrade::{is_websocket, refuse};
use crate::websocket::{self, ChannelProtocol};

/// The subprotocol over SPDY.
pub const PROTOCOL: &str = "portforward.k8s.io";
/// SPDY inside WebSocket messages.
pub const TUNNEL_PROTOCOL: &str = "SPDY/3.1+portforward.k8s.io";
const PORT: HeaderName = HeaderName::from_static("port");
const REQUEST_ID: HeaderName = HeaderName::from_static("requestid");
const WEBSOCKET_PROTOCOLS: &[&str] = &[TUNNEL_PROTOCOL, "v4.channel.k8s.io", "v4.base64.channel.k8s.io", ""];
/// Pairs that wait for their other half.
const PENDING_PAIRS_MAX: usize = 256;
/// Forwards nobody has taken yet.
const FORWARDS_MAX: usize = 16;
/// Ports of one WebSocket of the older form: channels are numbered in a byte, below the close signal.
const PORTS_MAX: usize = 100;

/// One connection to be forwarded to a port.
#[derive(Debug)]
pub struct Forward {
    pub port: u16,
    pub data: MuxStream,
    pub error: MuxStream,
}

impl Forward {
    /// Tells the client why forwarding failed and resets the pair, as upstream does.
    pub async fn fail(mut self, message: &str) {
        // The client may be gone; there is nobody else to tell.
        let _ = self.error.write_all(message.as_bytes()).await;
        let _ = self.error.shutdown().await;
        self.data.reset();
    }
}

/// The forwards of a session, as the client opens them.
#[derive(Debug)]
pub struct Forwards {
    incoming: mpsc::Receiver<Forward>,
    /// Cancelled when the client is gone.
    pub closed: CancellationToken,
}

impl Forwards {
    /// The next connection; `None` when the session is over.
    pub async fn next(&mut self) -> Option<Forward> {
        self.incoming.recv().await
    }
}

/// Answers a port-forward request. Send the response, then await the session. `ports` come from the query
/// and matter to the older WebSocket form only.
///
/// # Errors
/// The answer to send instead.
#[allow(clippy::result_large_err, reason = "the error is the response to send, made once per handshake")]
pub fn accept(
    request: &mut Request<Body>,
    ports: Vec<u16>,
    idle_timeout: Duration,
    clock: &SharedClock,
) -> Result<(Response<Body>, Pending<Forwards>), Response<Body>> {
    let clock = Arc::clone(clock);
    if is_websocket(request.headers()) {
        let tunnelled = websocket::offered(request.headers()).contains(&TUNNEL_PROTOCOL);
        if !tunnelled && (ports.is_empty() || ports.len() > PORTS_MAX) {
            return Err(refuse(StatusCode::BAD_REQUEST, "query parameter \"port\" is required"));
        }
        let (response, protocol, upgrade) = websocket::accept(request, WEBSOCKET_PROTOCOLS)?.into_parts();
        let session: BoxFuture<'static, _> = Box::pin(async move {
            let socket = websocket::upgraded(upgrade).await?;
            if protocol == TUNNEL_PROTOCOL {
                return Ok(spdy_session(websocket::tunnel(socket), idle_timeout, clock));
            }
            websocket_session(socket, &protocol, &ports, idle_timeout).await
        });
        return Ok((response, session));
    }
    let (response, _, upgrade) = accept_spdy(request, &[PROTOCOL])?;
    let session = async move {
        let io = TokioIo::new(upgrade.await.map_err(StreamError::Upgrade)?);
        Ok(spdy_session(io, idle_timeout, clock))
    };
    Ok((response, Box::pin(session)))
}

/// Pairs up streams until the connection ends.
fn spdy_session<IO>(io: IO, idle_timeout: Duration, clock: SharedClock) -> Forwards
where
    IO: AsyncRead + AsyncWrite + Send + 'static,
{
    let connection = SpdyConnection::start(io, Role::Server, idle_timeout);
    let closed = connection.closed();
    let (sender, incoming) = mpsc::channel(FORWARDS_MAX);
    task::spawn(debug_span!("port-forward-pairs"), pair_up(connection, sender, clock));
    Forwards { incoming, closed }
}

/// The half of a pair that came first.
struct Half {
    is_data: bool,
    stream: MuxStream,
    since: Duration,
}

async fn pair_up(mut connection: SpdyConnection, forwards: mpsc::Sender<Forward>, clock: SharedClock) {
    let mut halves: HashMap<String, Half> = HashMap::new();
    loop {
        let oldest = halves.values().map(|half| half.since).min();
        let expiry = async {
            match oldest {
                Some(since) => clock.sleep((since + STREAM_CREATION_TIMEOUT).saturating_sub(clock.monotonic())).await,
                None => std::future::pending().await,
            }
        };
        let stream = tokio::select! {
            stream = connection.accept() => stream,
            () = forwards.closed() => break,
            () = expiry => {
                let now = clock.monotonic();
                for (_, half) in halves.extract_if(|_, half| now >= half.since + STREAM_CREATION_TIMEOUT) {
                    debug!("A port-forward stream waited too long for its pair");
                    half.stream.reset();
                }
                continue;
            }
        };
        let Some(stream) = stream else { break };
        let is_data = match stream.header(STREAM_TYPE.as_str()) {
            "data" => true,
            "error" => false,
            _ => {
                stream.reset();
                continue;
            }
        };
        let Some(port) = stream.header(PORT.as_str()).parse::<u16>().ok().filter(|port| *port > 0) else {
            stream.reset();
            continue;
        };
        let request = request_id(&stream, is_data);
        match halves.remove(&request) {
            Some(first) if first.is_data != is_data => {
                let (data, error) = if is_data { (stream, first.stream) } else { (first.stream, stream) };
                if forwards.send(Forward { port, data, error }).await.is_err() {
                    break;
                }
            }
            Some(first) => {
                // Two of a kind for one request: the newcomer is wrong.
                stream.reset();
                halves.insert(request, first);
            }
            None if halves.len() >= PENDING_PAIRS_MAX => stream.reset(),
            None => {
                halves.insert(request, Half { is_data, stream, since: clock.monotonic() });
            }
        }
    }
}

/// Old clients send no request id: their streams come in pairs with consecutive numbers, error first.
fn request_id(stream: &MuxStream, is_data: bool) -> String {
    let given = stream.header(REQUEST_ID.as_str());
    if !given.is_empty() {
        return given.to_owned();
    }
    let id = if is_data { stream.id().saturating_sub(2) } else { stream.id() };
    id.to_string()
}

/// The older form: channel `2n` is the data and `2n+1` the errors of the `n`th port, and both begin with the
/// port's number, little-endian.
async fn websocket_session<IO>(
    socket: websocket::WebSocket<IO>,
    protocol: &str,
    ports: &[u16],
    idle_timeout: Duration,
) -> Result<Forwards, StreamError>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let count = u8::try_from(ports.len() * 2).map_err(|_| StreamError::Closed)?;
    let channels =
        websocket::channels(socket, WebSocketRole::Server, ChannelProtocol::of(protocol), count, idle_timeout);
    let (sender, incoming) = mpsc::channel(ports.len().max(1));
    let mut streams = channels.streams.into_iter();
    for port in ports {
        let (Some(mut data), Some(mut error)) = (streams.next(), streams.next()) else { break };
        for stream in [&mut data, &mut error] {
            stream.write_all(&port.to_le_bytes()).await.map_err(|_| StreamError::Closed)?;
        }
        // There is room for one forward of each port.
        let _ = sender.send(Forward { port: *port, data, error }).await;
    }
    Ok(Forwards { incoming, closed: channels.closed })
}

/// The client's end of a session.
#[derive(Debug)]
pub struct Forwarder {
    opener: SpdyOpener,
    connection: SpdyConnection,
    next_request: std::sync::atomic::AtomicU64,
}

impl Forwarder {
    /// Over a connection upgraded to SPDY with [`PROTOCOL`].
    pub fn start<IO>(io: IO, idle_timeout: Duration) -> Self
    where
        IO: AsyncRead + AsyncWrite + Send + 'static,
    {
        let connection = SpdyConnection::start(io, Role::Client, idle_timeout);
        Self { opener: connection.opener(), connection, next_request: std::sync::atomic::AtomicU64::new(0) }
    }

    /// Opens a connection to `port`: the data stream, and the one on which the server reports failure.
    pub async fn open(&self, port: u16) -> Result<(MuxStream, MuxStream), SpdyError> {
        let request = self.next_request.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let headers = |kind: &'static str| {
            HeaderMap::from_iter([
                (STREAM_TYPE, HeaderValue::from_static(kind)),
                (PORT, HeaderValue::from(port)),
                (REQUEST_ID, HeaderValue::from(request)),
            ])
        };
        let error = self.opener.open(headers("error")).await?;
        let data = self.opener.open(headers("data")).await?;
        Ok((data, error))
    }

    pub fn closed(&self) -> CancellationToken {
        self.connection.closed()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use rkube_apimachinery::clock::SystemClock;

    use super::*;

    const IDLE: Duration = Duration::from_secs(60);

    async fn echo_or_fail(mut forwards: Forwards) {
        while let Some(mut forward) = forwards.next().await {
            if forward.port == 80 {
                let mut input = Vec::new();
                forward.data.read_to_end(&mut input).await.unwrap();
                forward.data.write_all(&input).await.unwrap();
            } else {
                forward.fail("connection refused").await;
            }
        }
    }

    async fn exercise(forwarder: Forwarder) {
        let (mut data, mut error) = forwarder.open(80).await.unwrap();
        data.write_all(b"ping").await.unwrap();
        data.shutdown().await.unwrap();
        let mut back = String::new();
        data.read_to_string(&mut back).await.unwrap();
        assert_eq!(back, "ping");
        let mut text = String::new();
        error.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "");
        let (_data, mut error) = forwarder.open(81).await.unwrap();
        error.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "connection refused");
    }

    #[tokio::test]
    async fn pairs_are_forwarded_over_spdy() {
        let (left, right) = tokio::io::duplex(1024);
        tokio::join!(
            echo_or_fail(spdy_session(right, IDLE, SystemClock::shared())),
            exercise(Forwarder::start(left, IDLE))
        );
    }

    #[tokio::test]
    async fn pairs_are_forwarded_through_the_tunnel() {
        let (left, right) = tokio::io::duplex(1024);
        let server = async {
            let socket = websocket::over(right, WebSocketRole::Server).await;
            echo_or_fail(spdy_session(websocket::tunnel(socket), IDLE, SystemClock::shared())).await;
        };
        let client = async {
            let socket = websocket::over(left, WebSocketRole::Client).await;
            exercise(Forwarder::start(websocket::tunnel(socket), IDLE)).await;
        };
        tokio::join!(server, client);
    }
}
