//! Runs one probe once.
//!
//! Behaves as pkg/kubelet/prober/prober.go and pkg/probe, v1.36.

use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rkube_api::k8s::core::v1::{Container, Probe};
use rkube_cri::v1::ExecSyncRequest;
use rkube_cri::{Code, RuntimeService};
use tokio::net::TcpStream;

use crate::prober::http::{HttpProbe, dial_text, get};
use crate::runtime::hooks::{port_text, resolve_port};

const USER_AGENT: &str = "kube-probe/1.36";
/// gRPC health checking's SERVING.
const SERVING: u64 = 1;

/// What a probe found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Success,
    /// Success, with something to tell.
    Warning(String),
    Failure(String),
    /// It could not be run at all, which counts as neither.
    Error(String),
}

pub async fn run(
    runtime: &Arc<dyn RuntimeService>,
    container: &Container,
    container_id: &str,
    probe: &Probe,
    pod_ip: &str,
) -> Outcome {
    let seconds = probe.timeout_seconds.filter(|seconds| *seconds > 0).unwrap_or(1);
    let timeout = Duration::from_secs(u64::try_from(seconds).unwrap_or(1));
    if let Some(action) = &probe.exec {
        let command = action.command.clone().unwrap_or_default();
        return exec(runtime, container_id, command, i64::from(seconds)).await;
    }
    if let Some(action) = &probe.http_get {
        let Some(port) = resolve_port(&action.port, container) else {
            return Outcome::Error(format!("invalid port number: {}", port_text(&action.port)));
        };
        let host = action.host.as_deref().filter(|host| !host.is_empty()).unwrap_or(pod_ip);
        return http(&HttpProbe::new(action, host, port, USER_AGENT), timeout).await;
    }
    if let Some(action) = &probe.tcp_socket {
        let Some(port) = resolve_port(&action.port, container) else {
            return Outcome::Error(format!("invalid port number: {}", port_text(&action.port)));
        };
        let host = action.host.as_deref().filter(|host| !host.is_empty()).unwrap_or(pod_ip);
        return tcp(host, port, timeout).await;
    }
    if let Some(action) = &probe.grpc {
        let Ok(port) = u16::try_from(action.port) else {
            return Outcome::Error(format!("invalid port number: {}", action.port));
        };
        let service = action.service.as_deref().unwrap_or_default();
        return match tokio::time::timeout(timeout, grpc(pod_ip, port, service)).await {
            Ok(outcome) => outcome,
            Err(_) => Outcome::Failure(format!(
                "timeout: failed to connect service \"{}:{port}\" within {seconds}s: context deadline exceeded",
                pod_ip
            )),
        };
    }
    Outcome::Error("missing probe handler".to_owned())
}

async fn exec(runtime: &Arc<dyn RuntimeService>, id: &str, cmd: Vec<String>, timeout: i64) -> Outcome {
    let request = ExecSyncRequest { container_id: id.to_owned(), cmd: cmd.clone(), timeout };
    match runtime.exec_sync(request).await {
        Ok(answer) if answer.exit_code == 0 => Outcome::Success,
        Ok(answer) => {
            let output = [answer.stdout, answer.stderr].concat();
            Outcome::Failure(String::from_utf8_lossy(&output).into_owned())
        }
        Err(error) if error.code() == Code::DeadlineExceeded => {
            Outcome::Failure(format!("command timed out: {:?} timed out after {timeout}s", cmd.join(" ")))
        }
        Err(error) => Outcome::Error(error.to_string()),
    }
}

async fn http(probe: &HttpProbe, timeout: Duration) -> Outcome {
    let scheme = if probe.https { "https" } else { "http" };
    let host = if probe.host.contains(':') { format!("[{}]", probe.host) } else { probe.host.clone() };
    let url = format!("{scheme}://{host}:{}{}", probe.port, probe.path);
    match tokio::time::timeout(timeout, get(probe, true)).await {
        Err(_) => Outcome::Failure(format!(
            "Get {url:?}: context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
        )),
        Ok(Err(error)) => Outcome::Failure(format!("Get {url:?}: {error}")),
        Ok(Ok(answer)) => match (answer.foreign_redirect, answer.status) {
            (Some(location), _) => Outcome::Warning(format!(
                "Probe terminated redirects, Response body: {}, location: {location}",
                answer.body
            )),
            (None, 200..400) => Outcome::Success,
            (None, status) => Outcome::Failure(format!("HTTP probe failed with statuscode: {status}")),
        },
    }
}

async fn tcp(host: &str, port: u16, timeout: Duration) -> Outcome {
    let address = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    match tokio::time::timeout(timeout, TcpStream::connect(&address)).await {
        Ok(Ok(_)) => Outcome::Success,
        Ok(Err(error)) => Outcome::Failure(format!("dial tcp {address}: {}", dial_text(&error))),
        Err(_) => Outcome::Failure(format!("dial tcp {address}: i/o timeout")),
    }
}

/// `grpc.health.v1.Health/Check`, written out: one message of one field each way.
async fn grpc(host: &str, port: u16, service: &str) -> Outcome {
    let address = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    let failed = |text: String| Outcome::Failure(format!("error: health rpc probe failed: {text}"));
    let stream = match TcpStream::connect(&address).await {
        Ok(stream) => stream,
        Err(error) => return Outcome::Failure(format!("timeout: failed to connect service {address:?}: {error}")),
    };
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
    let (mut sender, connection) = match handshake {
        Ok(pair) => pair,
        Err(error) => return failed(error.to_string()),
    };
    let request = Request::post(format!("http://{address}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", USER_AGENT)
        .body(Full::new(health_request(service)));
    let request = match request {
        Ok(request) => request,
        Err(error) => return failed(error.to_string()),
    };
    let exchange = async {
        let answer = sender.send_request(request).await?;
        let early = answer.headers().get("grpc-status").cloned();
        let collected = answer.into_body().collect().await?;
        let late = collected.trailers().and_then(|trailers| trailers.get("grpc-status").cloned());
        Ok::<_, hyper::Error>((early.or(late), collected.to_bytes()))
    };
    let result = tokio::select! {
        result = exchange => result,
        _ = connection => return failed("the connection was closed".to_owned()),
    };
    match result {
        Err(error) => failed(error.to_string()),
        Ok((status, _)) if status.as_ref().is_some_and(|status| status != "0") => {
            let code = status.and_then(|status| status.to_str().ok().map(str::to_owned)).unwrap_or_default();
            match code.as_str() {
                "12" => Outcome::Failure(
                    "error: this server does not implement the grpc health protocol (grpc.health.v1.Health)".to_owned(),
                ),
                code => failed(format!("rpc error: code = {code}")),
            }
        }
        Ok((_, body)) if serving(&body) => Outcome::Success,
        Ok(_) => Outcome::Failure("service unhealthy (responded with \"NOT_SERVING\")".to_owned()),
    }
}

/// A frame of one message with field 1, the service's name.
fn health_request(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        message.put_u8(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            message.put_u8((length as u8 & 0x7f) | 0x80);
            length >>= 7;
        }
        message.put_u8(length as u8);
        message.put_slice(service.as_bytes());
    }
    let mut frame = BytesMut::with_capacity(5 + message.len());
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    frame.put(message);
    frame.freeze()
}

/// Field 1 of the answer is the state.
fn serving(frame: &[u8]) -> bool {
    matches!(frame.get(5..), Some([0x08, state, ..]) if u64::from(*state) == SERVING)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_messages_are_framed() {
        assert_eq!(&health_request("ab")[..], b"\0\0\0\0\x04\x0a\x02ab");
        assert_eq!(&health_request("")[..], b"\0\0\0\0\0");
        assert!(serving(b"\0\0\0\0\x02\x08\x01"));
        assert!(!serving(b"\0\0\0\0\x02\x08\x02"));
        assert!(!serving(b"\0\0\0\0\0"));
    }
}
