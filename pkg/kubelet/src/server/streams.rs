//! exec, attach and port-forward: both ends speak WebSocket or SPDY as they like, here they are joined.
//!
//! The runtime serves its half on a loopback address; we dial it, take the streams of both sides and copy
//! between them. Redirects are never followed: the address comes from the runtime over its own socket.
//! Behaves as pkg/kubelet/server/server.go and k8s.io/kubelet/pkg/cri/streaming, v1.36.

use http::{HeaderMap, Request, Response, StatusCode, Uri};
use rkube_apimachinery::status::{Status, StatusCause, StatusDetails};
use rkube_apimachinery::task;
use rkube_cri::v1::{AttachRequest, ExecRequest, ExecSyncRequest, PortForwardRequest};
use rkube_http::body::Body;
use rkube_http::client::{Upgrade, upgrade};
use rkube_http::connect::Connector;
use rkube_http::mux::{MuxReader, MuxWriter};
use rkube_http::port_forward::{self, Forward, Forwarder};
use rkube_http::remote_command::{self, Options, ServerStreams};
use rkube_http::upgrade::UpgradedIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tracing::info_span;

use crate::pod::PodExt;
use crate::runtime::state::State;
use crate::server::{Answer, KubeletServer, Query, STREAM_IDLE_TIMEOUT, text};

/// What the runtime's server understands.
const COMMAND_PROTOCOLS: [&str; 1] = ["v4.channel.k8s.io"];
const FORWARD_PROTOCOLS: [&str; 1] = ["portforward.k8s.io"];
/// A final status is a small object.
const STATUS_BYTES_MAX: u64 = 64 << 10;

impl KubeletServer {
    /// The id of the running container.
    #[allow(clippy::result_large_err, reason = "the error is the response to send")]
    fn running_container(&self, namespace: &str, pod: &str, container: Option<&str>) -> Result<String, Answer> {
        let (pod, name) = self.find(namespace, pod, container)?;
        let runtime = self.inner.cache.get(&pod.uid());
        let found = runtime.as_ref().and_then(|runtime| {
            runtime.containers.iter().find(|held| held.name == name && held.state == State::Running)
        });
        found
            .map(|held| held.id.clone())
            .ok_or_else(|| text(StatusCode::INTERNAL_SERVER_ERROR, format!("container not found (\"{name}\")")))
    }

    /// `/exec/<namespace>/<pod>[/<uid>]/<container>`
    pub(super) async fn exec(
        &self,
        request: &mut Request<Body>,
        namespace: &str,
        pod: &str,
        rest: &[&str],
        query: &Query,
    ) -> Answer {
        let options = match Options::from_query(request.uri().query().unwrap_or_default()) {
            Ok(options) => options,
            Err(message) => return text(StatusCode::BAD_REQUEST, message),
        };
        let container_id = match self.running_container(namespace, pod, rest.last().copied()) {
            Ok(id) => id,
            Err(answer) => return answer,
        };
        let command = query.all("command");
        let exec = ExecRequest {
            container_id,
            cmd: command,
            tty: options.tty,
            stdin: options.stdin,
            stdout: options.stdout,
            stderr: options.stderr,
        };
        match self.inner.runtime.service.exec(exec).await {
            Ok(answer) => self.join(request, &answer.url, options).await,
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.message()),
        }
    }

    pub(super) async fn attach(
        &self,
        request: &mut Request<Body>,
        namespace: &str,
        pod: &str,
        rest: &[&str],
    ) -> Answer {
        let options = match Options::from_query(request.uri().query().unwrap_or_default()) {
            Ok(options) => options,
            Err(message) => return text(StatusCode::BAD_REQUEST, message),
        };
        let container_id = match self.running_container(namespace, pod, rest.last().copied()) {
            Ok(id) => id,
            Err(answer) => return answer,
        };
        // Whether it is a terminal was decided when the container was made.
        let name = rest.last().copied();
        let tty =
            self.find(namespace, pod, name).ok().and_then(|(pod, name)| pod.container(&name)?.1.tty).unwrap_or(false);
        let options = Options { tty, stderr: options.stderr && !tty, ..options };
        let attach =
            AttachRequest { container_id, tty, stdin: options.stdin, stdout: options.stdout, stderr: options.stderr };
        match self.inner.runtime.service.attach(attach).await {
            Ok(answer) => self.join(request, &answer.url, options).await,
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.message()),
        }
    }

    /// Accepts the client's streams and copies between them and the runtime's.
    async fn join(&self, request: &mut Request<Body>, url: &str, options: Options) -> Answer {
        let io = match dial(url, &remote_command::spdy_client_headers(&COMMAND_PROTOCOLS)).await {
            Ok(io) => io,
            Err(message) => return text(StatusCode::INTERNAL_SERVER_ERROR, message),
        };
        let (answer, pending) = match remote_command::accept(request, options, STREAM_IDLE_TIMEOUT) {
            Ok(accepted) => accepted,
            Err(refusal) => return refusal,
        };
        task::spawn(info_span!("stream"), async move {
            match pending.await {
                Ok(streams) => copy_command(io, streams, options).await,
                Err(error) => {
                    let error = rkube_apimachinery::chain::chain(&error).to_string();
                    tracing::debug!(error, "Client's streams were not opened");
                }
            }
        });
        answer
    }

    pub(super) async fn port_forward(
        &self,
        request: &mut Request<Body>,
        namespace: &str,
        pod: &str,
        query: &Query,
    ) -> Answer {
        let Some(pod) = self.inner.pods.by_name(namespace, pod) else {
            return text(StatusCode::NOT_FOUND, "pod does not exist");
        };
        let runtime = self.inner.cache.get(&pod.uid());
        let sandbox = runtime.as_ref().and_then(|runtime| runtime.sandboxes.iter().find(|sandbox| sandbox.ready));
        let Some(sandbox) = sandbox else {
            return text(
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("failed to find sandbox of pod \"{}\"", pod.full_text()),
            );
        };
        let ports: Vec<u16> =
            query.all("port").iter().flat_map(|list| list.split(',')).filter_map(|port| port.parse().ok()).collect();
        let forward = PortForwardRequest {
            pod_sandbox_id: sandbox.id.clone(),
            port: ports.iter().map(|port| i32::from(*port)).collect(),
        };
        let url = match self.inner.runtime.service.port_forward(forward).await {
            Ok(answer) => answer.url,
            Err(error) => return text(StatusCode::INTERNAL_SERVER_ERROR, error.message()),
        };
        let io = match dial(&url, &remote_command::spdy_client_headers(&FORWARD_PROTOCOLS)).await {
            Ok(io) => io,
            Err(message) => return text(StatusCode::INTERNAL_SERVER_ERROR, message),
        };
        let (answer, pending) = match port_forward::accept(request, ports, STREAM_IDLE_TIMEOUT, &self.inner.clock) {
            Ok(accepted) => accepted,
            Err(refusal) => return refusal,
        };
        task::spawn(info_span!("port-forward", pod = %pod.key()), async move {
            let Ok(mut session) = pending.await else { return };
            let forwarder = std::sync::Arc::new(Forwarder::start(io, STREAM_IDLE_TIMEOUT));
            while let Some(forward) = session.next().await {
                let forwarder = forwarder.clone();
                task::spawn(info_span!("forward", port = forward.port), copy_forward(forwarder, forward));
            }
        });
        answer
    }

    pub(super) async fn run(&self, namespace: &str, pod: &str, rest: &[&str], query: &Query) -> Answer {
        let container_id = match self.running_container(namespace, pod, rest.last().copied()) {
            Ok(id) => id,
            Err(answer) => return answer,
        };
        let cmd = query.get("cmd").unwrap_or_default().split(' ').map(str::to_owned).collect();
        let request = ExecSyncRequest { container_id, cmd, timeout: 0 };
        match self.inner.runtime.service.exec_sync(request).await {
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.message()),
            Ok(answer) => {
                let output = [answer.stdout, answer.stderr].concat();
                let status = if answer.exit_code == 0 { StatusCode::OK } else { StatusCode::INTERNAL_SERVER_ERROR };
                text(status, String::from_utf8_lossy(&output).into_owned())
            }
        }
    }
}

/// Connects to the runtime's streaming server.
async fn dial(url: &str, headers: &HeaderMap) -> Result<UpgradedIo, String> {
    let uri: Uri = url.parse().map_err(|error| format!("the runtime named no usable URL: {error}"))?;
    let mut request = Request::new(Body::empty());
    *request.method_mut() = http::Method::POST;
    *request.headers_mut() = headers.clone();
    if let Some(host) = uri.authority().and_then(|authority| http::HeaderValue::from_str(authority.as_str()).ok()) {
        request.headers_mut().insert(http::header::HOST, host);
    }
    let upgraded = upgrade(&Connector::new(None), &uri, request).await;
    let upgraded: Upgrade = upgraded.map_err(|error| rkube_apimachinery::chain::chain(&error).to_string())?;
    let (_, io): (Response<()>, UpgradedIo) =
        upgraded.into_io().await.map_err(|(status, text)| format!("the runtime answered {status}: {text}"))?;
    Ok(io)
}

async fn copy_command(io: UpgradedIo, client: ServerStreams, options: Options) {
    let runtime = match remote_command::spdy_client(io, options, STREAM_IDLE_TIMEOUT).await {
        Ok(streams) => streams,
        Err(error) => {
            let message = rkube_apimachinery::chain::chain(&error).to_string();
            // The client may be gone.
            let _ = client.status.write(&failure(&message)).await;
            return;
        }
    };
    let ServerStreams { stdin, stdout, stderr, resize, status, closed, .. } = client;
    let input = async {
        if let (Some(from), Some(to)) = (stdin, runtime.stdin) {
            copy(from, to).await;
        }
        // Input may end long before the command.
        std::future::pending::<()>().await;
    };
    let sizes = async {
        if let (Some(mut from), Some(mut to)) = (resize, runtime.resize) {
            while let Some(size) = from.recv().await {
                if remote_command::write_size(&mut to, size).await.is_err() {
                    break;
                }
            }
        }
        std::future::pending::<()>().await;
    };
    let output = async {
        let mut error = runtime.error;
        let out = async {
            if let (Some(from), Some(to)) = (runtime.stdout, stdout) {
                copy(from, to).await
            }
        };
        let err = async {
            if let (Some(from), Some(to)) = (runtime.stderr, stderr) {
                copy(from, to).await
            }
        };
        let end = async {
            let mut bytes = Vec::new();
            // What did arrive is told.
            let _ = (&mut error).take(STATUS_BYTES_MAX).read_to_end(&mut bytes).await;
            bytes
        };
        let (bytes, (), ()) = tokio::join!(end, out, err);
        bytes
    };
    tokio::select! {
        bytes = output => {
            // The client may be gone.
            let _ = status.write(&final_status(&bytes)).await;
        }
        () = input => {}
        () = sizes => {}
        // Dropping the runtime's streams ends what runs on the other side.
        () = closed.cancelled() => {}
    }
}

/// What the runtime said in the end: nothing for success, a status, or a text.
fn final_status(bytes: &[u8]) -> Status {
    if bytes.is_empty() {
        return Status { status: "Success".to_owned(), ..Status::default() };
    }
    serde_json::from_slice(bytes).unwrap_or_else(|_| failure(&String::from_utf8_lossy(bytes)))
}

fn failure(message: &str) -> Status {
    let cause = StatusCause { message: message.to_owned(), ..StatusCause::default() };
    Status {
        status: "Failure".to_owned(),
        reason: "InternalError".to_owned(),
        message: message.to_owned(),
        code: 500,
        details: Some(StatusDetails { causes: vec![cause], ..StatusDetails::default() }),
        ..Status::default()
    }
}

async fn copy(mut from: MuxReader, mut to: MuxWriter) {
    while let Some(bytes) = from.next().await {
        if to.write_all(&bytes).await.is_err() {
            return;
        }
    }
    // The other side may have closed first.
    let _ = to.shutdown().await;
}

async fn copy_forward(forwarder: std::sync::Arc<Forwarder>, forward: Forward) {
    let (data, error) = match forwarder.open(forward.port).await {
        Ok(pair) => pair,
        Err(error) => {
            let message = rkube_apimachinery::chain::chain(&error).to_string();
            forward.fail(&message).await;
            return;
        }
    };
    let (client_in, client_out) = forward.data.split();
    let (runtime_in, runtime_out) = data.split();
    let (_, client_error) = forward.error.split();
    let (runtime_error, _keep) = error.split();
    tokio::join!(copy(client_in, runtime_out), copy(runtime_in, client_out), copy(runtime_error, client_error));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_runtimes_last_word_is_passed_on() {
        assert_eq!(final_status(b"").status, "Success");
        let exit = remote_command::exit_status(7);
        assert_eq!(final_status(&serde_json::to_vec(&exit).unwrap()), exit);
        assert_eq!(final_status(b"boom").message, "boom");
    }
}
