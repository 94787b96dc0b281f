//! Two ends of a connection in memory.

use std::time::Duration;

use http::{HeaderMap, HeaderValue};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Role, SpdyConnection, SpdyError};

const IDLE: Duration = Duration::from_secs(60);

fn pair() -> (SpdyConnection, SpdyConnection) {
    let (left, right) = tokio::io::duplex(4096);
    (SpdyConnection::start(left, Role::Client, IDLE), SpdyConnection::start(right, Role::Server, IDLE))
}

fn headers(kind: &'static str) -> HeaderMap {
    HeaderMap::from_iter([("streamtype".parse().unwrap(), HeaderValue::from_static(kind))])
}

#[tokio::test]
async fn streams_carry_bytes_both_ways_and_half_close() {
    let (client, mut server) = pair();
    let serve = async {
        let mut stream = server.accept().await.expect("a stream");
        assert_eq!(stream.header("streamtype"), "data");
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.unwrap();
        stream.write_all(&all).await.unwrap();
        stream.shutdown().await.unwrap();
        all.len()
    };
    let ask = async {
        let mut stream = client.open(headers("data")).await.unwrap();
        let sent: Vec<u8> = (0..300_000_u32).map(|number| number.to_le_bytes()[0]).collect();
        stream.write_all(&sent).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut back = Vec::new();
        stream.read_to_end(&mut back).await.unwrap();
        assert!(back == sent, "the echo differs");
    };
    let (length, ()) = tokio::join!(serve, ask);
    assert_eq!(length, 300_000);
}

#[tokio::test]
async fn a_reset_ends_the_stream_and_only_it() {
    let (client, mut server) = pair();
    let mut first = client.open(headers("one")).await.unwrap();
    let mut second = client.open(headers("two")).await.unwrap();
    server.accept().await.unwrap().reset();
    let mut kept = server.accept().await.unwrap();
    assert_eq!(first.read(&mut [0; 8]).await.unwrap(), 0);
    kept.write_all(b"still here").await.unwrap();
    let mut text = [0; 10];
    second.read_exact(&mut text).await.unwrap();
    assert_eq!(&text, b"still here");
}

#[tokio::test]
async fn closing_ends_everything() {
    let (client, mut server) = pair();
    let mut stream = client.open(headers("one")).await.unwrap();
    let _held = server.accept().await.unwrap();
    let closed = client.closed();
    server.close().await;
    closed.cancelled().await;
    assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
    assert!(matches!(client.open(headers("two")).await, Err(SpdyError::Closed)));
}

#[tokio::test]
async fn garbage_closes_the_connection() {
    for garbage in
        [&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], &[0x80, 3, 0, 1, 0, 0, 0, 2, 1, 2], &[0x80, 2, 0, 6, 0, 0, 0, 0]]
    {
        let (mut raw, io) = tokio::io::duplex(4096);
        let mut server = SpdyConnection::start(io, Role::Server, IDLE);
        raw.write_all(garbage).await.unwrap();
        raw.shutdown().await.unwrap();
        assert!(server.accept().await.is_none());
        server.closed().cancelled().await;
    }
}
