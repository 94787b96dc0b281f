//! A kubelet that runs one command: it upper-cases its input, and exits with the number it is given.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::{Request, Response, StatusCode, header};
use rkube_apimachinery::clock::SystemClock;
use rkube_apimachinery::task;
use rkube_apiserver::query::Query;
use rkube_http::body::Body;
use rkube_http::listener::{ConnectionInfo, Handler, Listener};
use rkube_http::remote_command::{self, Options, ServerStreams, exit_status};
use rkube_http::{port_forward, tls};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::info_span;

const IDLE: Duration = Duration::from_secs(60);

pub(crate) struct Kubelet {
    pub(crate) address: SocketAddr,
    shutdown: CancellationToken,
}

impl Kubelet {
    pub(crate) async fn start(tls: tls::SharedServerConfig) -> Self {
        let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a socket");
        let address = socket.local_addr().expect("its address");
        let shutdown = CancellationToken::new();
        let listener = Listener::new("kubelet", socket, Some(tls), SystemClock::shared());
        listener.spawn(Arc::new(Answers), shutdown.clone(), Duration::from_secs(1));
        Self { address, shutdown }
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

struct Answers;

fn plain(code: u16, text: impl Into<String>) -> Response<Body> {
    let mut response = Response::new(Body::from(text.into()));
    *response.status_mut() = StatusCode::from_u16(code).expect("a code");
    response
}

impl Handler for Answers {
    fn call(&self, request: Request<Body>) -> BoxFuture<'static, Response<Body>> {
        Box::pin(answer(request))
    }
}

async fn answer(mut request: Request<Body>) -> Response<Body> {
    let uri = request.uri().clone();
    let known = request.extensions().get::<Arc<ConnectionInfo>>().is_some_and(|one| !one.peer_certificates.is_empty());
    let path = uri.path();
    if request.headers().contains_key(header::AUTHORIZATION) {
        return plain(500, "a client's credentials reached the kubelet");
    }
    if !known {
        return plain(401, "who are you?");
    }
    let query = Query::of(&uri);
    if path.starts_with("/exec/") {
        let command: Vec<String> = query.all("command").map(str::to_owned).collect();
        if command.first().is_some_and(|word| word == "refuse") {
            return plain(403, "this command is refused");
        }
        let options = Options::from_query(uri.query().unwrap_or_default()).expect("streams");
        return match remote_command::accept(&mut request, options, IDLE) {
            Ok((response, streams)) => {
                task::spawn(info_span!("command"), async move { run(command, streams.await.expect("streams")).await });
                response
            }
            Err(response) => response,
        };
    }
    if path.starts_with("/portForward/") {
        return match port_forward::accept(&mut request, Vec::new(), IDLE, &SystemClock::shared()) {
            Ok((response, session)) => {
                task::spawn(info_span!("forwards"), async move {
                    let mut session = session.await.expect("a session");
                    while let Some(forward) = session.next().await {
                        task::spawn(info_span!("forward"), echo(forward));
                    }
                });
                response
            }
            Err(response) => response,
        };
    }
    match path {
        "/containerLogs/default/p/c" => plain(200, format!("log {}\n", uri.query().unwrap_or_default())),
        "/pods" if request.method() == http::Method::OPTIONS => plain(200, "options"),
        "/pods" => plain(200, "{}"),
        "/redirect" => {
            let mut response = plain(302, "elsewhere");
            response.headers_mut().insert(header::LOCATION, "https://169.254.169.254/".parse().expect("a header"));
            response
        }
        _ => plain(404, "no such path"),
    }
}

async fn echo(mut forward: port_forward::Forward) {
    if forward.port != 80 {
        return forward.fail("connection refused").await;
    }
    let mut first = [0; 64];
    while let Ok(length @ 1..) = forward.data.read(&mut first).await {
        if forward.data.write_all(&first[..length]).await.is_err() {
            return;
        }
    }
}

async fn run(command: Vec<String>, mut streams: ServerStreams) {
    let code = command.get(1).and_then(|word| word.parse().ok()).unwrap_or_default();
    if let Some(mut stdin) = streams.stdin.take() {
        let mut input = String::new();
        stdin.read_to_string(&mut input).await.expect("text");
        let out = streams.stdout.as_mut().expect("stdout");
        out.write_all(input.to_uppercase().as_bytes()).await.expect("written");
    } else if let Some(out) = streams.stdout.as_mut() {
        out.write_all(b"no input\n").await.expect("written");
    }
    drop(streams.stdout.take());
    drop(streams.stderr.take());
    let mut status = exit_status(code);
    status.kind = "Status".to_owned();
    status.api_version = "v1".to_owned();
    streams.status.write(&status).await.expect("written");
}
