//! Damaged frames on SPDY and WebSocket connections: the connection ends, and nothing panics or waits for ever.

use std::time::Duration;

use futures_util::future::join_all;
use http::{HeaderMap, HeaderValue};
use rkube_apimachinery::task;
use rkube_testing::fuzz::Fuzz;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::protocol::Role as SocketRole;
use tracing::Span;

use crate::mux::MuxStream;
use crate::spdy::{Role, SpdyConnection};
use crate::websocket::{self, ChannelProtocol};

const IDLE: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(60);
/// No case is larger, so that what is written need not be read at once.
const PIPE_BYTES: usize = 256 * 1024;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Reads a stream beside whatever else is done: one that nobody reads holds up the others.
fn drain(mut stream: MuxStream) -> JoinHandle<usize> {
    task::spawn(Span::none(), async move {
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.unwrap_or_default()
    })
}

async fn sum(drains: Vec<JoinHandle<usize>>) -> usize {
    join_all(drains).await.into_iter().map(Result::unwrap).sum()
}

/// The other end sends a case and closes.
async fn with_case(case: &[u8]) -> (DuplexStream, DuplexStream) {
    let (mut raw, io) = tokio::io::duplex(PIPE_BYTES);
    raw.write_all(case).await.unwrap();
    raw.shutdown().await.unwrap();
    (raw, io)
}

/// What a client sends to open a stream.
async fn opening() -> Vec<u8> {
    let (mut raw, io) = tokio::io::duplex(PIPE_BYTES);
    let client = SpdyConnection::start(io, Role::Client, IDLE);
    let headers = HeaderMap::from_iter([("streamtype".parse().unwrap(), HeaderValue::from_static("data"))]);
    let mut sent = vec![0; 4096];
    let length = tokio::select! {
        _ = client.open(headers) => 0,
        length = raw.read(&mut sent) => length.unwrap(),
    };
    sent.truncate(length);
    sent
}

#[test]
fn spdy_frames() {
    let opening = runtime().block_on(opening());
    let data = [&[0, 0, 0, 1, 0, 0, 0, 3][..], b"abc"].concat();
    let control = |kind: u8, payload: &[u8]| {
        let mut frame = vec![0x80, 3, 0, kind, 0, 0, 0, u8::try_from(payload.len()).unwrap()];
        frame.extend_from_slice(payload);
        frame
    };
    let seeds = [
        [opening.clone(), data.clone(), control(6, &[0, 0, 0, 1])].concat(),
        [opening.clone(), control(9, &[0, 0, 0, 1, 0, 0, 1, 0]), control(3, &[0, 0, 0, 1, 0, 0, 0, 5])].concat(),
        [control(4, &[0, 0, 0, 1, 0, 0, 0, 4, 0, 0, 0, 100]), opening, control(7, &[0, 0, 0, 1, 0, 0, 0, 0])].concat(),
        [data, control(2, &[0, 0, 0, 2]), control(8, &[0, 0, 0, 1])].concat(),
    ];
    Fuzz::new("SPDY frames", &["\0\0\0\u{1}", "\u{7f}", "\0"], seeds).run(|case| {
        runtime().block_on(async {
            let (_raw, io) = with_case(case).await;
            let mut server = SpdyConnection::start(io, Role::Server, IDLE);
            let serve = async {
                let mut drains = Vec::new();
                while let Some(stream) = server.accept().await {
                    drains.push(drain(stream));
                }
                sum(drains).await
            };
            let read = tokio::time::timeout(PATIENCE, serve).await.expect("the connection ends");
            assert!(read <= case.len(), "{read} bytes from {}", case.len());
        });
    });
}

/// A client's frame, with a mask of zeros.
fn frame(head: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![head, 0x80 | u8::try_from(payload.len()).unwrap(), 0, 0, 0, 0];
    frame.extend_from_slice(payload);
    frame
}

#[test]
fn websocket_messages() {
    let seeds = [
        [frame(0x82, b"\0hello"), frame(0x82, b"\x01\0\0"), frame(0x88, &[3, 232])].concat(),
        [frame(0x81, b"0aGVsbG8="), frame(0x89, b"ping"), frame(0x82, &[255, 0])].concat(),
        [frame(0x02, b"\0a"), frame(0x00, b"b"), frame(0x80, b"c"), frame(0x8a, b"")].concat(),
        vec![0x82, 0xfe, 1, 0, 0, 0, 0, 0, 2],
        vec![0x82, 0xff, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2],
    ];
    Fuzz::new("WebSocket messages", &["\u{1}", "\u{7f}", "\0\0\0\0"], seeds).run(|case| {
        runtime().block_on(async {
            for name in ["v5.channel.k8s.io", "base64.channel.k8s.io"] {
                let (_raw, io) = with_case(case).await;
                let socket = websocket::over(io, SocketRole::Server).await;
                let protocol = ChannelProtocol::of(name);
                let channels = websocket::channels(socket, SocketRole::Server, protocol, 5, IDLE);
                let read = tokio::time::timeout(PATIENCE, sum(channels.streams.into_iter().map(drain).collect())).await;
                assert!(read.expect("the connection ends") <= case.len());
            }
            let (_raw, io) = with_case(case).await;
            let mut tunnel = websocket::tunnel(websocket::over(io, SocketRole::Server).await);
            let mut all = Vec::new();
            let read = tokio::time::timeout(PATIENCE, tunnel.read_to_end(&mut all)).await;
            let _ = read.expect("the connection ends");
            assert!(all.len() <= case.len());
        });
    });
}
