//! WebSocket handshakes, both ends, and the channel subprotocols in which each message begins with the
//! number of its channel.
//!
//! Behaves as `k8s.io/streaming/pkg/httpstream/wsstream` and `k8s.io/client-go/transport/websocket`, v1.36.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::{SinkExt, Stream, StreamExt};
use http::header::{SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use rkube_apimachinery::{chain::chain, task};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
pub use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_util::sync::CancellationToken;
use tracing::{debug, debug_span};

use crate::body::Body;
use crate::mux::{INBOUND_FRAMES_MAX, MuxStream, OUTBOUND_FRAMES_MAX, Outbound};
use crate::upgrade::{is_websocket, refuse, switching_protocols, take};

/// Messages this side accepts.
const MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Clients ping this often, as upstream's (`pingPeriod`).
pub const PING_PERIOD: Duration = Duration::from_secs(5);
/// Half-closes a channel, in `v5.channel.k8s.io`.
const STREAM_CLOSE: u8 = 255;

pub type WebSocket<IO> = WebSocketStream<IO>;

/// Why a WebSocket could not be had.
#[derive(Debug, thiserror::Error)]
pub enum WebSocketError {
    #[error("taking over the connection")]
    Upgrade(#[source] hyper::Error),
}

/// The outcome of a server's handshake: answer `response`, then await `upgrade`.
pub struct Accepted {
    pub response: Response<Body>,
    /// The negotiated subprotocol, empty for none.
    pub protocol: String,
    upgrade: OnUpgrade,
}

impl Accepted {
    /// Resolves once the response has been sent.
    pub async fn connect(self) -> Result<WebSocket<TokioIo<hyper::upgrade::Upgraded>>, WebSocketError> {
        upgraded(self.upgrade).await
    }

    /// Splits into the response and what becomes the connection.
    pub fn into_parts(self) -> (Response<Body>, String, OnUpgrade) {
        (self.response, self.protocol, self.upgrade)
    }
}

/// A server's connection, once the `101` is out.
pub async fn upgraded(upgrade: OnUpgrade) -> Result<WebSocket<TokioIo<hyper::upgrade::Upgraded>>, WebSocketError> {
    let io = upgrade.await.map_err(WebSocketError::Upgrade)?;
    Ok(over(TokioIo::new(io), Role::Server).await)
}

/// WebSocket frames over a connection whose handshake is done.
pub async fn over<IO: AsyncRead + AsyncWrite + Unpin>(io: IO, role: Role) -> WebSocket<IO> {
    let config =
        WebSocketConfig::default().max_message_size(Some(MESSAGE_BYTES_MAX)).max_frame_size(Some(MESSAGE_BYTES_MAX));
    WebSocketStream::from_raw_socket(io, role, Some(config)).await
}

/// The subprotocols a client offers, in its order.
pub fn offered(headers: &HeaderMap) -> Vec<&str> {
    headers
        .get_all(SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|protocol| !protocol.is_empty())
        .collect()
}

/// Answers a WebSocket handshake with the first offered subprotocol that is `supported`. A client that
/// offers none gets none, where the empty name is supported.
///
/// # Errors
/// The answer to send instead.
#[allow(clippy::result_large_err, reason = "the error is the response to send, made once per handshake")]
pub fn accept<B>(request: &mut Request<B>, supported: &[&str]) -> Result<Accepted, Response<Body>> {
    let headers = request.headers();
    if !is_websocket(headers) {
        return Err(refuse(StatusCode::BAD_REQUEST, "unable to upgrade: missing upgrade headers in request"));
    }
    if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        let mut response = refuse(StatusCode::UPGRADE_REQUIRED, "unsupported WebSocket version");
        response.headers_mut().insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        return Err(response);
    }
    let Some(key) = headers.get(SEC_WEBSOCKET_KEY) else {
        return Err(refuse(StatusCode::BAD_REQUEST, "missing Sec-WebSocket-Key header"));
    };
    let accept_key = derive_accept_key(key.as_bytes());
    let offers = offered(headers);
    let chosen = match offers.as_slice() {
        [] => supported.iter().find(|protocol| protocol.is_empty()).map(|protocol| (*protocol).to_owned()),
        offers => offers.iter().find(|offer| supported.contains(offer)).map(|offer| (*offer).to_owned()),
    };
    let Some(protocol) = chosen else {
        let message = format!("requested protocol(s) are not supported: {offers:?}; supports {supported:?}");
        return Err(refuse(StatusCode::FORBIDDEN, message));
    };
    let Some(upgrade) = take(request) else {
        return Err(refuse(StatusCode::BAD_REQUEST, "unable to upgrade: this connection cannot be taken over"));
    };
    let mut response = switching_protocols("websocket");
    if let Ok(value) = HeaderValue::from_str(&accept_key) {
        response.headers_mut().insert(SEC_WEBSOCKET_ACCEPT, value);
    }
    if !protocol.is_empty()
        && let Ok(value) = HeaderValue::from_str(&protocol)
    {
        response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, value);
    }
    Ok(Accepted { response, protocol, upgrade })
}

/// How a connection ends that did what it was for. Clients take an end without a code for a failure.
pub fn normal_closure() -> Message {
    Message::Close(Some(CloseFrame { code: CloseCode::Normal, reason: "".into() }))
}

/// Sends `messages` to a client that only listens, then closes. Ends early when the client leaves.
pub fn send_all<S>(upgrade: OnUpgrade, messages: S)
where
    S: Stream<Item = Message> + Send + 'static,
{
    task::spawn(debug_span!("websocket-messages"), async move {
        let socket = match upgraded(upgrade).await {
            Ok(socket) => socket,
            Err(error) => {
                debug!(error = %chain(&error), "The client left before its first message");
                return;
            }
        };
        let (mut sink, mut source) = socket.split();
        let mut messages = std::pin::pin!(messages);
        loop {
            let message = tokio::select! {
                message = messages.next() => message,
                heard = source.next() => match heard {
                    Some(Ok(heard)) if !heard.is_close() => continue,
                    _ => return,
                },
            };
            let Some(message) = message else { break };
            if sink.send(message).await.is_err() {
                return;
            }
        }
        // The client may be gone already.
        let _ = sink.send(normal_closure()).await;
    });
}

/// The headers of a client's handshake, with a random `nonce`.
pub fn client_headers(protocols: &[&str], nonce: [u8; 16]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(http::header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(http::header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    if let Ok(key) = HeaderValue::from_str(&STANDARD.encode(nonce)) {
        headers.insert(SEC_WEBSOCKET_KEY, key);
    }
    if let Ok(offers) = HeaderValue::from_str(&protocols.join(", "))
        && !protocols.is_empty()
    {
        headers.insert(SEC_WEBSOCKET_PROTOCOL, offers);
    }
    headers
}

/// How channel numbers and data are written into messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChannelProtocol {
    /// Text messages with base64 data and the channel as a digit, for clients that have no binary ones.
    pub base64: bool,
    /// The close signal is understood.
    pub half_close: bool,
}

impl ChannelProtocol {
    /// By subprotocol name: `v5.channel.k8s.io`, `base64.channel.k8s.io`, ...
    pub fn of(protocol: &str) -> Self {
        Self { base64: protocol.contains("base64."), half_close: protocol.starts_with("v5.") }
    }
}

/// A connection whose messages belong to numbered channels.
#[derive(Debug)]
pub struct Channels {
    /// One stream per channel number.
    pub streams: Vec<MuxStream>,
    /// Cancelled when the connection is over; cancelling it closes the connection.
    pub closed: CancellationToken,
}

/// Splits `socket` into `count` channels. A server answers the client's pings; a client sends its own. The
/// connection ends when all writers are dropped, when the peer closes, after `idle_timeout` without a
/// message from the peer, or by the token.
pub fn channels<IO>(
    socket: WebSocket<IO>,
    role: Role,
    protocol: ChannelProtocol,
    count: u8,
    idle_timeout: Duration,
) -> Channels
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let closed = CancellationToken::new();
    let (outbound, commands) = mpsc::channel(OUTBOUND_FRAMES_MAX);
    let mut streams = Vec::with_capacity(count.into());
    let mut inbound = Vec::with_capacity(count.into());
    for number in 0..count {
        let (sender, receiver) = mpsc::channel(INBOUND_FRAMES_MAX);
        inbound.push(Some(sender));
        streams.push(MuxStream::new(number.into(), HeaderMap::new(), receiver, outbound.clone()));
    }
    drop(outbound);
    let (sink, source) = socket.split();
    let writer = Writer { protocol, role, closed: closed.clone() };
    task::spawn(debug_span!("websocket-writer"), writer.run(sink, commands));
    let reader = Reader { protocol, inbound, closed: closed.clone(), idle_timeout };
    task::spawn(debug_span!("websocket-reader"), reader.run(source));
    Channels { streams, closed }
}

struct Writer {
    protocol: ChannelProtocol,
    role: Role,
    closed: CancellationToken,
}

impl Writer {
    async fn run<S>(self, mut sink: S, mut commands: mpsc::Receiver<Outbound>)
    where
        S: SinkExt<Message, Error = tokio_tungstenite::tungstenite::Error> + Unpin,
    {
        let mut pings = tokio::time::interval(PING_PERIOD);
        pings.reset();
        loop {
            let message = tokio::select! {
                command = commands.recv() => match command {
                    None => break,
                    Some(command) => self.encode(command),
                },
                _ = pings.tick(), if self.role == Role::Client => Some(Message::Ping(Bytes::new())),
                () = self.closed.cancelled() => break,
            };
            let Some(message) = message else { continue };
            if let Err(error) = sink.send(message).await {
                debug!(error = %chain(&error), "Writing to a WebSocket ended");
                break;
            }
        }
        self.closed.cancel();
        // The peer may be gone already.
        let _ = sink.send(normal_closure()).await;
    }

    fn encode(&self, command: Outbound) -> Option<Message> {
        match command {
            Outbound::Data { id, bytes } => {
                let number = u8::try_from(id).ok()?;
                if self.protocol.base64 {
                    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4 + 1);
                    text.push(char::from(b'0' + number));
                    STANDARD.encode_string(&bytes, &mut text);
                    return Some(Message::text(text));
                }
                let mut message = Vec::with_capacity(bytes.len() + 1);
                message.push(number);
                message.extend_from_slice(&bytes);
                Some(Message::binary(message))
            }
            Outbound::Close { id } if self.protocol.half_close && self.role == Role::Client => {
                Some(Message::binary(vec![STREAM_CLOSE, u8::try_from(id).ok()?]))
            }
            // The protocols have no words for the rest: a closed channel falls silent.
            _ => None,
        }
    }
}

struct Reader {
    protocol: ChannelProtocol,
    inbound: Vec<Option<mpsc::Sender<Bytes>>>,
    closed: CancellationToken,
    idle_timeout: Duration,
}

impl Reader {
    async fn run<S>(mut self, mut source: S)
    where
        S: Stream<Item = Result<Message, tokio_tungstenite::tungstenite::Error>> + Unpin,
    {
        loop {
            let next = tokio::select! {
                next = tokio::time::timeout(self.idle_timeout, source.next()) => next,
                () = self.closed.cancelled() => break,
            };
            match next {
                Err(_) => {
                    debug!("A WebSocket was idle for too long");
                    break;
                }
                Ok(None) => break,
                Ok(Some(Err(error))) => {
                    debug!(error = %chain(&error), "Reading from a WebSocket ended");
                    break;
                }
                Ok(Some(Ok(message))) => {
                    if !self.take(message).await {
                        break;
                    }
                }
            }
        }
        self.closed.cancel();
    }

    /// False when the connection is to end.
    async fn take(&mut self, message: Message) -> bool {
        let data = match message {
            Message::Binary(bytes) => bytes,
            Message::Text(text) => Bytes::copy_from_slice(text.as_bytes()),
            // Reading a ping has queued its pong already.
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => return true,
            Message::Close(_) => return false,
        };
        let Some(&first) = data.first() else { return true };
        if self.protocol.half_close && first == STREAM_CLOSE {
            let [_, number] = data.as_ref() else { return false };
            return match self.inbound.get_mut(usize::from(*number)) {
                Some(sender) => {
                    *sender = None;
                    true
                }
                None => false,
            };
        }
        let number = if self.protocol.base64 { first.wrapping_sub(b'0') } else { first };
        let bytes = if self.protocol.base64 {
            match STANDARD.decode(&data[1..]) {
                Ok(bytes) => Bytes::from(bytes),
                Err(_) => return true,
            }
        } else {
            data.slice(1..)
        };
        // Data for a channel that does not exist, is closed or has no reader is dropped.
        if let Some(Some(sender)) = self.inbound.get(usize::from(number))
            && !bytes.is_empty()
        {
            let closed = self.closed.clone();
            tokio::select! {
                _ = sender.send(bytes) => {}
                () = closed.cancelled() => return false,
            }
        }
        true
    }
}

/// A byte stream in binary messages, as the port-forward tunnel carries SPDY. Closing either end closes both.
pub fn tunnel<IO>(socket: WebSocket<IO>) -> tokio::io::DuplexStream
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    const PIPE_BYTES: usize = 64 * 1024;
    let (near, far) = tokio::io::duplex(PIPE_BYTES);
    let (mut sink, mut source) = socket.split();
    let (mut reader, mut writer) = tokio::io::split(far);
    let pump = async move {
        let outward = async {
            let mut buffer = vec![0; crate::mux::FRAME_BYTES_MAX];
            while let Ok(length @ 1..) = reader.read(&mut buffer).await {
                if sink.send(Message::binary(buffer[..length].to_vec())).await.is_err() {
                    break;
                }
            }
            // The peer may be gone already.
            let _ = sink.send(normal_closure()).await;
        };
        let inward = async {
            while let Some(Ok(message)) = source.next().await {
                let data = match message {
                    Message::Binary(data) => data,
                    Message::Close(_) => break,
                    _ => continue,
                };
                if writer.write_all(&data).await.is_err() {
                    break;
                }
            }
            let _ = writer.shutdown().await;
        };
        tokio::select! {
            () = outward => {}
            () = inward => {}
        }
    };
    task::spawn(debug_span!("websocket-tunnel"), pump);
    near
}
