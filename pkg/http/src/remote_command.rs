//! The streams of exec and attach, both ends, whichever protocol carries them: WebSocket
//! (`v5`, `v4`, `channel.k8s.io` and their base64 forms) or SPDY/3.1 (`v4` to `v1`).
//!
//! Behaves as `k8s.io/cri-streaming/pkg/streaming/remotecommand` and
//! `k8s.io/client-go/tools/remotecommand`, v1.36.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rkube_apimachinery::task;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::debug_span;

use crate::body::Body;
use crate::mux::{MuxReader, MuxStream, MuxWriter};
use crate::spdy::{Role as SpdyRole, SPDY_31, SpdyConnection, SpdyError};
use crate::upgrade::{is_spdy, is_websocket, refuse, switching_protocols, take};
use crate::websocket::{self, ChannelProtocol, WebSocketError};

/// WebSocket subprotocols of exec and attach, best first.
pub const WEBSOCKET_PROTOCOLS: &[&str] = &[
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "channel.k8s.io",
    "base64.channel.k8s.io",
    "",
];
/// SPDY subprotocols, best first.
pub const SPDY_PROTOCOLS: &[&str] = &["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"];
/// Names the SPDY subprotocol, offered and chosen.
pub const PROTOCOL_VERSION: HeaderName = HeaderName::from_static("x-stream-protocol-version");
const ACCEPTED_PROTOCOLS: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-versions");
/// Says what a SPDY stream is for.
pub const STREAM_TYPE: HeaderName = HeaderName::from_static("streamtype");

/// How long the client may take to open its streams.
pub const STREAM_CREATION_TIMEOUT: Duration = Duration::from_secs(30);
/// Resize events that wait; more are dropped, the newest matter.
const RESIZES_MAX: usize = 16;
/// A resize event is some thirty bytes of JSON.
const RESIZE_BYTES_MAX: usize = 4096;

/// Which streams a request asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

impl Options {
    /// Reads the query of an exec or attach request, under the kubelet's (`input`, `output`, `error`) or the
    /// API's (`stdin`, `stdout`, `stderr`) names.
    ///
    /// # Errors
    /// The text upstream answers with when no stream is asked for.
    pub fn from_query(query: &str) -> Result<Self, &'static str> {
        let is_on = |names: &[&str]| {
            query.split('&').filter_map(|pair| pair.split_once('=')).any(|(name, value)| {
                names.contains(&name) && matches!(value, "1" | "t" | "T" | "true" | "TRUE" | "True")
            })
        };
        let tty = is_on(&["tty"]);
        let mut options = Self {
            stdin: is_on(&["input", "stdin"]),
            stdout: is_on(&["output", "stdout"]),
            stderr: is_on(&["error", "stderr"]),
            tty,
        };
        if tty {
            // A terminal has one output.
            options.stderr = false;
        }
        if !options.stdin && !options.stdout && !options.stderr {
            return Err("you must specify at least 1 of stdin, stdout, stderr");
        }
        Ok(options)
    }
}

/// A terminal's size, as it travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct TerminalSize {
    pub width: u16,
    pub height: u16,
}

/// The server's ends of the streams.
#[derive(Debug)]
pub struct ServerStreams {
    pub stdin: Option<MuxReader>,
    pub stdout: Option<MuxWriter>,
    pub stderr: Option<MuxWriter>,
    /// Sizes as the client reports them; only with a terminal.
    pub resize: Option<mpsc::Receiver<TerminalSize>>,
    pub status: StatusWriter,
    /// Cancelled when the client is gone.
    pub closed: CancellationToken,
    /// Ends of streams that nobody uses are kept: dropping them would close them.
    _idle: Vec<MuxWriter>,
}

/// Tells the client how it ended.
#[derive(Debug)]
pub struct StatusWriter {
    stream: Option<MuxWriter>,
    json: bool,
}

impl StatusWriter {
    /// Writes `status` (a `metav1.Status`) and closes the stream. Before version 4 only failures are told, as text.
    pub async fn write(self, status: &rkube_apimachinery::status::Status) -> std::io::Result<()> {
        let Some(mut stream) = self.stream else { return Ok(()) };
        if self.json {
            stream.write_all(&serde_json::to_vec(status)?).await?;
        } else if status.status != "Success" {
            stream.write_all(status.message.as_bytes()).await?;
        }
        stream.shutdown().await
    }
}

/// The status of a command that ended: success, or upstream's `NonZeroExitCode`.
pub fn exit_status(code: i32) -> rkube_apimachinery::status::Status {
    use rkube_apimachinery::status::{Status, StatusCause, StatusDetails};

    if code == 0 {
        return Status { status: "Success".to_owned(), ..Status::default() };
    }
    let cause = StatusCause { reason: "ExitCode".to_owned(), message: code.to_string(), field: String::new() };
    Status {
        status: "Failure".to_owned(),
        reason: "NonZeroExitCode".to_owned(),
        message: format!("command terminated with non-zero exit code: exit status {code}"),
        details: Some(StatusDetails { causes: vec![cause], ..StatusDetails::default() }),
        ..Status::default()
    }
}

/// Why the streams could not be had.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    #[error("upgrading the connection")]
    WebSocket(#[from] WebSocketError),
    #[error("upgrading the connection")]
    Upgrade(#[source] hyper::Error),
    #[error("opening streams")]
    Spdy(#[from] SpdyError),
    #[error("the client did not open its streams in time")]
    CreationTimeout,
    #[error("the connection closed before all streams were open")]
    Closed,
}

pub type Pending<T> = BoxFuture<'static, Result<T, StreamError>>;

/// Answers an exec or attach request. Send the response, then await the streams.
///
/// # Errors
/// The answer to send instead.
#[allow(clippy::result_large_err, reason = "the error is the response to send, made once per handshake")]
pub fn accept(
    request: &mut Request<Body>,
    options: Options,
    idle_timeout: Duration,
) -> Result<(Response<Body>, Pending<ServerStreams>), Response<Body>> {
    if is_websocket(request.headers()) {
        let (response, protocol, upgrade) = websocket::accept(request, WEBSOCKET_PROTOCOLS)?.into_parts();
        let streams = async move {
            let socket = websocket::upgraded(upgrade).await?;
            Ok(websocket_streams(socket, &protocol, options, idle_timeout).await)
        };
        return Ok((response, Box::pin(streams)));
    }
    let (response, protocol, upgrade) = accept_spdy(request, SPDY_PROTOCOLS)?;
    let streams = async move {
        let io = TokioIo::new(upgrade.await.map_err(StreamError::Upgrade)?);
        let connection = SpdyConnection::start(io, SpdyRole::Server, idle_timeout);
        tokio::time::timeout(STREAM_CREATION_TIMEOUT, spdy_streams(connection, &protocol, options))
            .await
            .map_err(|_| StreamError::CreationTimeout)?
    };
    Ok((response, Box::pin(streams)))
}

/// Negotiates SPDY and its subprotocol, as upstream's `httpstream.Handshake`.
#[allow(clippy::result_large_err, reason = "the error is the response to send, made once per handshake")]
pub(crate) fn accept_spdy(
    request: &mut Request<Body>,
    supported: &[&str],
) -> Result<(Response<Body>, String, hyper::upgrade::OnUpgrade), Response<Body>> {
    if !is_spdy(request.headers()) {
        return Err(refuse(StatusCode::BAD_REQUEST, "unable to upgrade: missing upgrade headers in request"));
    }
    let offers: Vec<String> = request
        .headers()
        .get_all(PROTOCOL_VERSION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|offer| offer.trim().to_owned())
        .collect();
    let protocol = if offers.is_empty() {
        // Clients from before negotiation speak the oldest.
        String::new()
    } else {
        match offers.iter().find(|offer| supported.contains(&offer.as_str())) {
            Some(chosen) => chosen.clone(),
            None => {
                let message = format!(
                    "unable to upgrade: unable to negotiate protocol: client supports {offers:?}, server accepts {supported:?}"
                );
                let mut response = refuse(StatusCode::FORBIDDEN, message);
                for name in supported {
                    if let Ok(value) = HeaderValue::from_str(name) {
                        response.headers_mut().append(ACCEPTED_PROTOCOLS, value);
                    }
                }
                return Err(response);
            }
        }
    };
    let Some(upgrade) = take(request) else {
        return Err(refuse(StatusCode::BAD_REQUEST, "unable to upgrade: this connection cannot be taken over"));
    };
    let mut response = switching_protocols(SPDY_31);
    if let Ok(value) = HeaderValue::from_str(&protocol)
        && !protocol.is_empty()
    {
        response.headers_mut().insert(PROTOCOL_VERSION, value);
    }
    Ok((response, protocol, upgrade))
}

const STDIN: usize = 0;
const STDOUT: usize = 1;
const STDERR: usize = 2;
const ERROR: usize = 3;
const RESIZE: usize = 4;
const CHANNELS: u8 = 5;

async fn websocket_streams<IO>(
    socket: websocket::WebSocket<IO>,
    protocol: &str,
    options: Options,
    idle_timeout: Duration,
) -> ServerStreams
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    use tokio_tungstenite::tungstenite::protocol::Role;

    let wire = ChannelProtocol::of(protocol);
    let json = protocol.starts_with("v4.") || protocol.starts_with("v5.");
    let channels = websocket::channels(socket, Role::Server, wire, CHANNELS, idle_timeout);
    let mut halves: Vec<Option<(MuxReader, MuxWriter)>> =
        channels.streams.into_iter().map(|stream| Some(stream.split())).collect();
    let mut half = |number: usize| halves.get_mut(number).and_then(Option::take);
    let (stdin, idle_stdin) = half(STDIN).unzip();
    let stdout = half(STDOUT).map(|(_, writer)| writer);
    let stderr = half(STDERR).map(|(_, writer)| writer);
    let status = half(ERROR).map(|(_, writer)| writer);
    let (resize, idle_resize) = half(RESIZE).unzip();
    let mut streams = ServerStreams {
        stdin: stdin.filter(|_| options.stdin),
        stdout: stdout.filter(|_| options.stdout),
        stderr: stderr.filter(|_| options.stderr),
        resize: resize.filter(|_| options.tty).map(sizes),
        status: StatusWriter { stream: status, json },
        closed: channels.closed,
        _idle: [idle_stdin, idle_resize].into_iter().flatten().collect(),
    };
    // An empty message on the first open channel tells the client that the connection stands.
    let greet = streams.stdout.as_mut().or(streams.stderr.as_mut()).or(streams.status.stream.as_mut());
    if let Some(writer) = greet {
        // A client that is gone already shows by `closed`.
        let _ = writer.write_empty().await;
    }
    streams
}

async fn spdy_streams(
    mut connection: SpdyConnection,
    protocol: &str,
    options: Options,
) -> Result<ServerStreams, StreamError> {
    let resizes = options.tty && matches!(protocol, "v4.channel.k8s.io" | "v3.channel.k8s.io");
    let wanted = 1
        + usize::from(options.stdin)
        + usize::from(options.stdout)
        + usize::from(options.stderr)
        + usize::from(resizes);
    let mut streams = ServerStreams {
        stdin: None,
        stdout: None,
        stderr: None,
        resize: None,
        status: StatusWriter { stream: None, json: protocol == "v4.channel.k8s.io" },
        closed: connection.closed(),
        _idle: Vec::new(),
    };
    let mut opened = 0;
    while opened < wanted {
        let stream = connection.accept().await.ok_or(StreamError::Closed)?;
        opened += 1;
        let kind = stream.header(STREAM_TYPE.as_str()).to_owned();
        let (reader, writer) = stream.split();
        match kind.as_str() {
            "error" => streams.status.stream = Some(writer),
            "stdin" => {
                streams.stdin = Some(reader);
                streams._idle.push(writer);
            }
            "stdout" => streams.stdout = Some(writer),
            "stderr" => streams.stderr = Some(writer),
            "resize" => {
                streams.resize = Some(sizes(reader));
                streams._idle.push(writer);
            }
            _ => {
                opened -= 1;
                writer.reset();
            }
        }
    }
    // Later streams are refused: nobody accepts them.
    Ok(streams)
}

/// Decodes resize events until the stream ends.
fn sizes(mut reader: MuxReader) -> mpsc::Receiver<TerminalSize> {
    let (sender, receiver) = mpsc::channel(RESIZES_MAX);
    task::spawn(debug_span!("terminal-resize"), async move {
        let mut text: Vec<u8> = Vec::new();
        loop {
            let bytes = tokio::select! {
                bytes = reader.next() => bytes,
                () = sender.closed() => return,
            };
            let Some(bytes) = bytes else { return };
            text.extend_from_slice(&bytes);
            let mut parser = serde_json::Deserializer::from_slice(&text).into_iter::<TerminalSize>();
            while let Some(Ok(size)) = parser.next() {
                // When the queue is full the terminal is being dragged: intermediate sizes may be lost.
                if let Err(mpsc::error::TrySendError::Closed(_)) = sender.try_send(size) {
                    return;
                }
            }
            let used = parser.byte_offset();
            text.drain(..used);
            if text.len() > RESIZE_BYTES_MAX {
                return;
            }
        }
    });
    receiver
}

/// The client's ends of the streams.
#[derive(Debug)]
pub struct ClientStreams {
    pub stdin: Option<MuxWriter>,
    pub stdout: Option<MuxReader>,
    pub stderr: Option<MuxReader>,
    /// Ends with a `metav1.Status` (or, before version 4, a text) that says how the command ended.
    pub error: MuxReader,
    pub resize: Option<MuxWriter>,
    pub closed: CancellationToken,
    _idle: Vec<MuxWriter>,
}

/// The headers with which a client asks for SPDY.
pub fn spdy_client_headers(protocols: &[&str]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(http::header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(http::header::UPGRADE, HeaderValue::from_static(SPDY_31));
    for protocol in protocols {
        if let Ok(value) = HeaderValue::from_str(protocol) {
            headers.append(PROTOCOL_VERSION, value);
        }
    }
    headers
}

/// A client's streams over an upgraded SPDY connection.
pub async fn spdy_client<IO>(io: IO, options: Options, idle_timeout: Duration) -> Result<ClientStreams, StreamError>
where
    IO: AsyncRead + AsyncWrite + Send + 'static,
{
    let connection = SpdyConnection::start(io, SpdyRole::Client, idle_timeout);
    let open = async |kind: &'static str| -> Result<MuxStream, SpdyError> {
        connection.open(HeaderMap::from_iter([(STREAM_TYPE, HeaderValue::from_static(kind))])).await
    };
    let mut idle = Vec::new();
    // Upstream's order; the error stream comes first.
    let (error, writer) = open("error").await?.split();
    idle.push(writer);
    let stdin = if options.stdin { Some(open("stdin").await?.split().1) } else { None };
    let mut read = async |wanted: bool, kind: &'static str| -> Result<Option<MuxReader>, SpdyError> {
        if !wanted {
            return Ok(None);
        }
        let (reader, writer) = open(kind).await?.split();
        idle.push(writer);
        Ok(Some(reader))
    };
    let stdout = read(options.stdout, "stdout").await?;
    let stderr = read(options.stderr, "stderr").await?;
    let resize = if options.tty { Some(open("resize").await?.split().1) } else { None };
    Ok(ClientStreams { stdin, stdout, stderr, error, resize, closed: connection.closed(), _idle: idle })
}

/// A client's streams over an upgraded WebSocket connection that negotiated `protocol`.
pub async fn websocket_client<IO>(
    io: IO,
    protocol: &str,
    options: Options,
    idle_timeout: Duration,
) -> Option<ClientStreams>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    use tokio_tungstenite::tungstenite::protocol::Role;

    let socket = websocket::over(io, Role::Client).await;
    let channels = websocket::channels(socket, Role::Client, ChannelProtocol::of(protocol), CHANNELS, idle_timeout);
    let mut idle = Vec::new();
    let mut halves: Vec<Option<(MuxReader, MuxWriter)>> =
        channels.streams.into_iter().map(|stream| Some(stream.split())).collect();
    let mut half = |number: usize| halves.get_mut(number).and_then(Option::take);
    let (_, stdin) = half(STDIN)?;
    let (stdout, writer) = half(STDOUT)?;
    idle.push(writer);
    let (stderr, writer) = half(STDERR)?;
    idle.push(writer);
    let (error, writer) = half(ERROR)?;
    idle.push(writer);
    let (_, resize) = half(RESIZE)?;
    Some(ClientStreams {
        stdin: Some(stdin).filter(|_| options.stdin),
        stdout: Some(stdout).filter(|_| options.stdout),
        stderr: Some(stderr).filter(|_| options.stderr),
        error,
        resize: Some(resize).filter(|_| options.tty),
        closed: channels.closed,
        _idle: idle,
    })
}

/// Writes a resize event.
pub async fn write_size(writer: &mut MuxWriter, size: TerminalSize) -> std::io::Result<()> {
    let text = Bytes::from(serde_json::to_vec(&size)?);
    writer.write_all(&text).await
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio_tungstenite::tungstenite::protocol::Role;

    use super::*;

    const IDLE: Duration = Duration::from_secs(60);

    /// A command that upper-cases stdin to stdout, says `done` on stderr and ends with 3.
    async fn serve(mut streams: ServerStreams) {
        let mut input = String::new();
        streams.stdin.take().unwrap().read_to_string(&mut input).await.unwrap();
        streams.stdout.take().unwrap().write_all(input.to_uppercase().as_bytes()).await.unwrap();
        if let Some(mut stderr) = streams.stderr.take() {
            stderr.write_all(b"done").await.unwrap();
        }
        streams.status.write(&exit_status(3)).await.unwrap();
    }

    async fn ask(mut streams: ClientStreams) -> (String, String, String) {
        let mut stdin = streams.stdin.take().unwrap();
        stdin.write_all(b"hello").await.unwrap();
        stdin.shutdown().await.unwrap();
        let (mut out, mut err, mut status) = (String::new(), String::new(), String::new());
        streams.stdout.as_mut().unwrap().read_to_string(&mut out).await.unwrap();
        streams.stderr.as_mut().unwrap().read_to_string(&mut err).await.unwrap();
        streams.error.read_to_string(&mut status).await.unwrap();
        (out, err, status)
    }

    const ALL: Options = Options { stdin: true, stdout: true, stderr: true, tty: false };

    fn check((out, err, status): (String, String, String)) {
        assert_eq!((out.as_str(), err.as_str()), ("HELLO", "done"));
        let status: serde_json::Value = serde_json::from_str(&status).unwrap();
        assert_eq!(status["reason"], "NonZeroExitCode");
        assert_eq!(status["details"]["causes"][0]["message"], "3");
    }

    #[tokio::test]
    async fn spdy_carries_a_command() {
        let (left, right) = tokio::io::duplex(1024);
        let server = async {
            let connection = SpdyConnection::start(right, SpdyRole::Server, IDLE);
            serve(spdy_streams(connection, "v4.channel.k8s.io", ALL).await.unwrap()).await;
        };
        let client = async { ask(spdy_client(left, ALL, IDLE).await.unwrap()).await };
        check(tokio::join!(server, client).1);
    }

    #[tokio::test]
    async fn websocket_v5_carries_a_command_and_half_closes() {
        let (left, right) = tokio::io::duplex(1024);
        let server = async {
            let socket = websocket::over(right, Role::Server).await;
            serve(websocket_streams(socket, "v5.channel.k8s.io", ALL, IDLE).await).await;
        };
        let client = async { ask(websocket_client(left, "v5.channel.k8s.io", ALL, IDLE).await.unwrap()).await };
        check(tokio::join!(server, client).1);
    }

    #[tokio::test]
    async fn terminal_sizes_arrive_in_order() {
        let (left, right) = tokio::io::duplex(1024);
        let terminal = Options { stdin: true, stdout: true, stderr: false, tty: true };
        let server = async {
            let socket = websocket::over(right, Role::Server).await;
            let mut streams = websocket_streams(socket, "v5.channel.k8s.io", terminal, IDLE).await;
            let resize = streams.resize.as_mut().unwrap();
            [resize.recv().await.unwrap(), resize.recv().await.unwrap()]
        };
        let client = async {
            let mut streams = websocket_client(left, "v5.channel.k8s.io", terminal, IDLE).await.unwrap();
            let resize = streams.resize.as_mut().unwrap();
            write_size(resize, TerminalSize { width: 80, height: 24 }).await.unwrap();
            write_size(resize, TerminalSize { width: 100, height: 40 }).await.unwrap();
            streams.closed.cancelled().await;
        };
        let (sizes, ()) = tokio::join!(server, client);
        assert_eq!(sizes.map(|size| (size.width, size.height)), [(80, 24), (100, 40)]);
    }

    #[test]
    fn the_query_says_which_streams() {
        let options = |query| Options::from_query(query).map(|o| (o.stdin, o.stdout, o.stderr, o.tty));
        assert_eq!(options("command=sh&stdin=true&stdout=true&tty=true&stderr=true"), Ok((true, true, false, true)));
        assert_eq!(options("input=1&output=1"), Ok((true, true, false, false)));
        assert!(options("command=ls").is_err());
    }
}
