//! Ports that answer short questions: by path, without a body to read, each connection once.
//!
//! Own lines instead of a server: what asks are load balancers and scrapers, and the answers are a few lines of text.
//!
//! Invariant: at most [`CONNECTIONS_MAX`] connections to a port, each ended after [`REQUEST_TIMEOUT`].

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rkube_apimachinery::clock::SharedClock;
use rkube_apimachinery::task;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tracing::{debug, info_span, warn};

/// A balancer asks once in some seconds; more at once wait.
const CONNECTIONS_MAX: usize = 64;
const REQUEST_BYTES_MAX: usize = 8 << 10;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two attempts to get a port that somebody else has.
const LISTEN_RETRY_INTERVAL: Duration = Duration::from_secs(5);

const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";

/// What is answered.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) content_type: &'static str,
    /// Whole lines.
    pub(crate) headers: String,
    pub(crate) body: String,
}

impl Response {
    /// 200 or 503 with an object.
    pub(crate) fn health(is_well: bool, body: &serde_json::Value) -> Self {
        let status = if is_well { 200 } else { 503 };
        Self { status, content_type: JSON, headers: String::new(), body: body.to_string() }
    }

    pub(crate) fn text(body: impl Into<String>) -> Self {
        Self { status: 200, content_type: TEXT, headers: String::new(), body: body.into() }
    }

    pub(crate) fn not_found() -> Self {
        Self { status: 404, ..Self::text("404 page not found\n") }
    }
}

/// From a path to its answer.
pub(crate) type Respond = dyn Fn(&str) -> Response + Send + Sync;

/// Listens and answers until it is dropped. A port that is taken is tried again: whoever has it may give it up, as an
/// earlier process of ours.
pub(crate) async fn serve(name: &'static str, address: SocketAddr, clock: SharedClock, respond: Arc<Respond>) {
    let mut is_told = false;
    let listener = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(error) if is_told => debug!(%error, %address, name, "Still cannot listen"),
            Err(error) => warn!(%error, %address, name, "Cannot listen, retrying"),
        }
        is_told = true;
        clock.sleep(LISTEN_RETRY_INTERVAL).await;
    };
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = Arc::clone(&connections).acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else { continue };
        let (respond, clock) = (Arc::clone(&respond), clock.clone());
        task::spawn(info_span!("connection", port = name), async move {
            let _permit = permit;
            tokio::select! {
                // Who asks and goes away is no news.
                _ = answer(stream, &*respond) => {}
                () = clock.sleep(REQUEST_TIMEOUT) => {}
            }
        });
    }
}

async fn answer(mut stream: TcpStream, respond: &Respond) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.windows(4).any(|window| window == b"\r\n\r\n") {
        let read = stream.read_buf(&mut request).await?;
        if read == 0 || request.len() > REQUEST_BYTES_MAX {
            return Ok(());
        }
    }
    let Response { status, content_type, headers, body } = respond(path(&request));
    let reason = match status {
        200 => "OK",
        404 => "Not Found",
        _ => "Service Unavailable",
    };
    let head = format!(
        "HTTP/1.1 {status} {reason}\r\nContent-Type: {content_type}\r\nX-Content-Type-Options: nosniff\r\n{headers}\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

/// Of a request's first line, without the query.
fn path(request: &[u8]) -> &str {
    let line = request.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let target = line.split(|byte| *byte == b' ').nth(1).unwrap_or_default();
    let path = target.split(|byte| *byte == b'?').next().unwrap_or_default();
    std::str::from_utf8(path).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_is_found_in_whatever_comes() {
        assert_eq!(path(b"GET /healthz?verbose HTTP/1.1\r\nHost: x\r\n\r\n"), "/healthz");
        for bad in [&b""[..], b"\r\n\r\n", b"GET", b"GET \xff\xfe HTTP/1.1\r\n\r\n"] {
            assert_eq!(path(bad), "");
        }
    }
}
