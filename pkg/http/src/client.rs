//! An HTTP(S) client for one server: pooled HTTP/2 or HTTP/1.1, its own certificate or a bearer token, and
//! upgrades on a connection of their own. It follows no redirects.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use http::header::{AUTHORIZATION, HOST};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Request, Response, StatusCode, Uri};
use hyper_util::client::legacy::Client as Pool;
use hyper_util::client::legacy::connect::{self, capture_connection};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rkube_apimachinery::{chain::chain, task};
use tracing::{debug, debug_span};

use crate::body::Body;
use crate::connect::{ConnectError, Connector, Lifetime};
use crate::upgrade::UpgradedIo;

const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(90);
/// As client-go's `http2.Transport`: a connection that does not answer pings is given up.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a request waits for the pool's word after its connection ended: a fault, or another connection.
const LAST_WORD: Duration = Duration::from_secs(10);
/// How much of a refused upgrade's answer is read.
const REFUSAL_BYTES_MAX: usize = 64 * 1024;

/// Gives the token for each request, so that a renewed one is used at once.
pub type TokenSource = Arc<dyn Fn() -> Option<String> + Send + Sync>;

/// Why a request got no answer.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    #[error("the URL is not valid")]
    Url(#[source] http::Error),
    #[error("the token is not valid in a header")]
    Token,
    #[error("sending the request")]
    Send(#[source] hyper_util::client::legacy::Error),
    #[error("connecting")]
    Connect(#[from] ConnectError),
    #[error("the connection ended before the answer")]
    Ended,
    #[error("speaking HTTP")]
    Http(#[source] hyper::Error),
}

/// The answer to a request that asked for an upgrade.
#[derive(Debug)]
pub enum Upgrade {
    Done {
        response: Response<()>,
        io: UpgradedIo,
    },
    /// Anything but `101`; the connection is closed after it.
    Refused(Response<Body>),
}

/// A client of one server.
#[derive(Clone)]
pub struct HttpClient {
    scheme: Scheme,
    authority: Authority,
    connector: Connector,
    /// Clones share it, and get the new one when it is replaced.
    pool: Arc<ArcSwap<Pool<Connector, Body>>>,
    http2: bool,
    token: Option<TokenSource>,
}

impl HttpClient {
    /// Speaks HTTP/2 where the server does. `base` gives scheme and authority.
    pub fn new(base: &Uri, connector: Connector) -> Result<Self, RequestError> {
        Self::build(base, connector, true)
    }

    /// Speaks HTTP/1.1 only: as many connections as requests are in flight.
    pub fn http1(base: &Uri, connector: Connector) -> Result<Self, RequestError> {
        Self::build(base, connector, false)
    }

    /// The host and port that requests go to.
    pub fn authority(&self) -> &str {
        self.authority.as_str()
    }

    fn build(base: &Uri, connector: Connector, http2: bool) -> Result<Self, RequestError> {
        let no_authority = || ConnectError::NoHost { uri: base.to_string() };
        let authority = base.authority().cloned().ok_or_else(no_authority)?;
        let scheme = base.scheme().cloned().unwrap_or(Scheme::HTTPS);
        let pool = Arc::new(ArcSwap::from_pointee(pool(&connector, http2)));
        Ok(Self { scheme, authority, connector, pool, http2, token: None })
    }

    /// Later requests go over new connections, with the TLS configuration of now: for when this side's certificate
    /// was renewed. Those under way end on the connections they have.
    pub fn reconnect(&self) {
        self.pool.store(Arc::new(pool(&self.connector, self.http2)));
    }

    #[must_use]
    pub fn with_token(mut self, token: TokenSource) -> Self {
        self.token = Some(token);
        self
    }

    /// Sends a request whose URI needs only a path, and returns when the answer's head is there.
    pub async fn request(&self, mut request: Request<Body>) -> Result<Response<Body>, RequestError> {
        self.authorize(&mut request)?;
        *request.uri_mut() = self.absolute(request.uri())?;
        send(&self.pool.load_full(), request, LAST_WORD).await
    }

    /// Sends a request with upgrade headers over a new HTTP/1.1 connection.
    pub async fn upgrade(&self, mut request: Request<Body>) -> Result<Upgrade, RequestError> {
        self.authorize(&mut request)?;
        let uri = self.absolute(request.uri())?;
        if let Ok(host) = HeaderValue::from_str(self.authority.as_str()) {
            request.headers_mut().entry(HOST).or_insert(host);
        }
        upgrade(&self.connector, &uri, request).await
    }

    fn authorize(&self, request: &mut Request<Body>) -> Result<(), RequestError> {
        let Some(token) = self.token.as_ref().and_then(|token| token()) else { return Ok(()) };
        let mut value = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| RequestError::Token)?;
        value.set_sensitive(true);
        request.headers_mut().insert(AUTHORIZATION, value);
        Ok(())
    }

    fn absolute(&self, uri: &Uri) -> Result<Uri, RequestError> {
        let path = uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        Uri::builder()
            .scheme(self.scheme.clone())
            .authority(self.authority.clone())
            .path_and_query(path)
            .build()
            .map_err(RequestError::Url)
    }
}

/// Sends a request over a connection of the pool.
///
/// A request handed to a connection at the moment it ends can stay in hyper's queue to that connection, with nobody left to
/// read it or to refuse it; so the end of the connection is watched for beside the answer, which then has `last_word` left.
async fn send<C>(
    pool: &Pool<C, Body>,
    mut request: Request<Body>,
    last_word: Duration,
) -> Result<Response<Body>, RequestError>
where
    C: connect::Connect + Clone + Send + Sync + 'static,
{
    let mut captured = capture_connection(&mut request);
    let answer = async {
        let response = pool.request(request).await.map_err(RequestError::Send)?;
        Ok(response.map(Body::from))
    };
    let mut answer = pin!(answer);
    loop {
        tokio::select! {
            biased;
            response = &mut answer => return response,
            () = async { Lifetime::of_request(&mut captured).await.ended().await } => {}
        }
        match tokio::time::timeout(last_word, &mut answer).await {
            Ok(response) => return response,
            Err(_) if Lifetime::of_request(&mut captured).await.has_ended() => return Err(RequestError::Ended),
            // The pool has given it to another connection.
            Err(_) => {}
        }
    }
}

fn pool(connector: &Connector, http2: bool) -> Pool<Connector, Body> {
    Pool::builder(TokioExecutor::new())
        .pool_idle_timeout(POOL_IDLE_TIMEOUT)
        .pool_timer(TokioTimer::new())
        .timer(TokioTimer::new())
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .http2_keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .build(connector.clone().http2(http2))
}

/// Sends one request over a connection of its own to `uri`'s authority. The request line holds the path of
/// `uri`; `Host` is the caller's business.
pub async fn upgrade(connector: &Connector, uri: &Uri, mut request: Request<Body>) -> Result<Upgrade, RequestError> {
    let response = send_alone(connector, uri, &mut request).await?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(Upgrade::Refused(response));
    }
    let (parts, _) = response.into_parts();
    let mut response = Response::from_parts(parts, ());
    let on_upgrade = response.extensions_mut().remove::<hyper::upgrade::OnUpgrade>();
    match on_upgrade {
        Some(on_upgrade) => {
            let io = TokioIo::new(on_upgrade.await.map_err(RequestError::Http)?);
            Ok(Upgrade::Done { response, io })
        }
        // Hyper puts the handle into every 101 answer.
        None => Ok(Upgrade::Refused(response.map(|()| Body::empty()))),
    }
}

/// One HTTP/1.1 request over a fresh connection; the answer may be an upgrade.
pub(crate) async fn send_alone(
    connector: &Connector,
    uri: &Uri,
    request: &mut Request<Body>,
) -> Result<Response<Body>, RequestError> {
    let stream = connector.clone().http2(false).connect(uri).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(RequestError::Http)?;
    task::spawn(debug_span!("http-connection"), async move {
        if let Err(error) = connection.with_upgrades().await {
            debug!(error = %chain(&error), "Connection ended");
        }
    });
    let mut outgoing = Request::new(std::mem::take(request.body_mut()));
    *outgoing.method_mut() = request.method().clone();
    *outgoing.headers_mut() = std::mem::take(request.headers_mut());
    let path = uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    *outgoing.uri_mut() = Uri::from(path);
    let response = sender.send_request(outgoing).await.map_err(RequestError::Http)?;
    Ok(response.map(Body::from))
}

impl Upgrade {
    /// The upgraded connection, or what the server said instead, as text.
    pub async fn into_io(self) -> Result<(Response<()>, UpgradedIo), (StatusCode, String)> {
        match self {
            Self::Done { response, io } => Ok((response, io)),
            Self::Refused(response) => {
                let status = response.status();
                // An answer that cannot be read leaves the status code to speak for itself.
                let text = response.into_body().read(REFUSAL_BYTES_MAX).await.unwrap_or_default();
                Err((status, String::from_utf8_lossy(&text).into_owned()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll};

    use futures_util::future::{Ready, ready};
    use hyper_util::client::legacy::connect::{Connected, Connection};
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::connect::Pooled;

    /// One connection in memory that a test ends by word only.
    #[derive(Clone)]
    struct InMemory {
        stream: Arc<parking_lot::Mutex<Option<DuplexStream>>>,
        ended: CancellationToken,
    }

    impl tower::Service<Uri> for InMemory {
        type Response = Pooled<DuplexStream>;
        type Error = std::io::Error;
        type Future = Ready<Result<Self::Response, std::io::Error>>;

        fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), std::io::Error>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _uri: Uri) -> Self::Future {
            let stream = self.stream.lock().take().ok_or(std::io::ErrorKind::ConnectionRefused.into());
            ready(stream.map(|stream| Pooled::new(stream, self.ended.clone())))
        }
    }

    impl Connection for Pooled<DuplexStream> {
        fn connected(&self) -> Connected {
            Connected::new().extra(self.lifetime.clone())
        }
    }

    /// A request that has reached the server, whose connection has ended: the answer, and the server's side.
    async fn request_without_connection(
        last_word: Duration,
    ) -> (impl Future<Output = Result<Response<Body>, RequestError>>, DuplexStream) {
        let (client, mut server) = tokio::io::duplex(4096);
        let ended = CancellationToken::new();
        let connector = InMemory { stream: Arc::new(parking_lot::Mutex::new(Some(client))), ended: ended.clone() };
        let pool = Pool::builder(TokioExecutor::new()).build(connector);
        let request = Request::get("http://server/").body(Body::empty()).unwrap();
        let answer = task::spawn(debug_span!("request"), async move { send(&pool, request, last_word).await });
        assert_ne!(server.read(&mut [0; 4096]).await.unwrap(), 0);
        ended.cancel();
        (async { answer.await.unwrap() }, server)
    }

    #[tokio::test]
    async fn a_request_is_not_left_waiting_for_a_connection_that_ended() {
        let (answer, _server) = request_without_connection(Duration::ZERO).await;
        assert!(matches!(answer.await, Err(RequestError::Ended)));
    }

    #[tokio::test]
    async fn what_a_connection_brought_before_it_ended_is_the_answer() {
        let (answer, mut server) = request_without_connection(LAST_WORD).await;
        server.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
        assert_eq!(answer.await.unwrap().status(), StatusCode::NO_CONTENT);
    }
}
