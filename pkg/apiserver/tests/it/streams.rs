//! exec, port-forward, logs and proxies through the API server to a kubelet, with our client and with kubectl.

use std::process::Stdio;
use std::time::Duration;

use futures_util::StreamExt;
use http::{Method, Request};
use rkube_http::body::Body;
use rkube_http::client::HttpClient;
use rkube_http::port_forward::{self, Forwarder, TUNNEL_PROTOCOL};
use rkube_http::remote_command::{self, ClientStreams, Options, spdy_client_headers};
use rkube_http::websocket;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use crate::kubelet::Kubelet;
use crate::server::Server;

/// Long enough for kubectl to start on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(60);
const IDLE: Duration = Duration::from_secs(60);
const POD: &str = "/api/v1/namespaces/default/pods/p";
const ALL: Options = Options { stdin: true, stdout: true, stderr: true, tty: false };

async fn post(client: &HttpClient, path: &str, body: Value) -> u16 {
    let request = Request::builder().method(Method::POST).uri(path).body(Body::from(body.to_string())).unwrap();
    let response = client.request(request).await.expect("an answer");
    let code = response.status().as_u16();
    let text = response.into_body().read(1 << 20).await.unwrap();
    assert!(matches!(code, 201 | 409), "{path}: {}", String::from_utf8_lossy(&text));
    code
}

async fn cluster() -> (Server, Kubelet, HttpClient) {
    let server = Server::start().await;
    let kubelet = Kubelet::start(server.kubelet_tls()).await;
    let client = server.client();
    post(&client, "/api/v1/namespaces", json!({"metadata": {"name": "default"}})).await;
    let status = json!({
        "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": kubelet.address.port()}},
    });
    post(&client, "/api/v1/nodes", json!({"metadata": {"name": "n1"}, "status": status})).await;
    let pod = |name: &str, node: &str| {
        json!({
            "metadata": {"name": name},
            "spec": {"nodeName": node, "containers": [{"name": "c", "image": "i"}]},
        })
    };
    post(&client, "/api/v1/namespaces/default/pods", pod("p", "n1")).await;
    post(&client, "/api/v1/namespaces/default/pods", pod("nowhere", "")).await;
    let mut running = Request::builder()
        .method(Method::PATCH)
        .uri(format!("{POD}/status"))
        .body(Body::from(json!({"status": {"phase": "Running"}}).to_string()))
        .unwrap();
    running.headers_mut().insert("content-type", "application/merge-patch+json".parse().unwrap());
    assert_eq!(client.request(running).await.expect("an answer").status().as_u16(), 200);
    (server, kubelet, client)
}

fn upgrade(method: Method, path: &str, headers: http::HeaderMap) -> Request<Body> {
    let mut request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
    *request.headers_mut() = headers;
    request
}

async fn talk(mut streams: ClientStreams) -> (String, String) {
    let mut stdin = streams.stdin.take().expect("stdin");
    stdin.write_all(b"hello").await.unwrap();
    stdin.shutdown().await.unwrap();
    let (mut out, mut status) = (String::new(), String::new());
    streams.stdout.as_mut().expect("stdout").read_to_string(&mut out).await.unwrap();
    streams.error.read_to_string(&mut status).await.unwrap();
    (out, status)
}

const EXEC: &str = "/api/v1/namespaces/default/pods/p/exec?command=upper&command=7&stdin=true&stdout=true&stderr=true";

#[tokio::test]
async fn commands_run_over_websocket_and_spdy() {
    let (server, _kubelet, client) = cluster().await;
    let check = |(out, status): (String, String)| {
        assert_eq!(out, "HELLO");
        let status: Value = serde_json::from_str(&status).unwrap();
        assert_eq!(status["details"]["causes"][0]["message"], "7");
    };
    let headers = websocket::client_headers(&["v5.channel.k8s.io"], [7; 16]);
    let upgraded = client.upgrade(upgrade(Method::GET, EXEC, headers)).await.unwrap();
    let (response, io) = upgraded.into_io().await.expect("an upgrade");
    assert_eq!(response.headers()["sec-websocket-protocol"], "v5.channel.k8s.io");
    let streams = remote_command::websocket_client(io, "v5.channel.k8s.io", ALL, IDLE).await.expect("channels");
    check(tokio::time::timeout(PATIENCE, talk(streams)).await.expect("an end"));
    let headers = spdy_client_headers(&["v4.channel.k8s.io"]);
    let upgraded = client.upgrade(upgrade(Method::POST, EXEC, headers)).await.unwrap();
    let (_, io) = upgraded.into_io().await.expect("an upgrade");
    let streams = remote_command::spdy_client(io, ALL, IDLE).await.expect("streams");
    check(tokio::time::timeout(PATIENCE, talk(streams)).await.expect("an end"));
    server.stop().await;
}

#[tokio::test]
async fn a_refused_upgrade_is_an_ordinary_answer() {
    let (server, _kubelet, client) = cluster().await;
    let ask = async |client: &HttpClient, path: &str| {
        let headers = websocket::client_headers(&["v5.channel.k8s.io"], [7; 16]);
        let answer = client.upgrade(upgrade(Method::GET, path, headers)).await.unwrap();
        let (code, text) = answer.into_io().await.map(|_| ()).expect_err("no upgrade");
        (code.as_u16(), text)
    };
    let refused = ask(&client, &EXEC.replace("command=upper", "command=refuse")).await;
    assert_eq!(refused, (403, "this command is refused".to_owned()));
    let (code, text) = ask(&client, &EXEC.replace("/p/", "/nowhere/")).await;
    assert!(code == 400 && text.contains("pod nowhere does not have a host assigned"), "{code} {text}");
    let (code, text) = ask(&client, &EXEC.replace("/p/", "/missing/")).await;
    assert!(code == 404 && text.contains("pods \\\"missing\\\" not found"), "{code} {text}");
    let (code, text) = ask(&client, &format!("{EXEC}&container=x")).await;
    assert!(code == 400 && text.contains("container x is not valid for pod p"), "{code} {text}");
    let (code, _) = ask(&server.stranger(), EXEC).await;
    assert_eq!(code, 403);
    server.stop().await;
}

#[tokio::test]
async fn ports_are_forwarded_through_the_tunnel_and_over_spdy() {
    let (server, _kubelet, client) = cluster().await;
    let path = format!("{POD}/portforward");
    let exercise = async |forwarder: Forwarder| {
        let (mut data, _error) = forwarder.open(80).await.expect("a connection");
        data.write_all(b"ping").await.unwrap();
        let mut back = [0; 4];
        data.read_exact(&mut back).await.unwrap();
        assert_eq!(&back, b"ping");
        let (_data, mut error) = forwarder.open(81).await.expect("a connection");
        let mut text = String::new();
        error.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "connection refused");
    };
    let headers = websocket::client_headers(&[TUNNEL_PROTOCOL], [7; 16]);
    let upgraded = client.upgrade(upgrade(Method::GET, &path, headers)).await.unwrap();
    let (_, io) = upgraded.into_io().await.expect("an upgrade");
    let tunnel = websocket::tunnel(websocket::over(io, Role::Client).await);
    tokio::time::timeout(PATIENCE, exercise(Forwarder::start(tunnel, IDLE))).await.expect("an end");
    let headers = spdy_client_headers(&[port_forward::PROTOCOL]);
    let upgraded = client.upgrade(upgrade(Method::POST, &path, headers)).await.unwrap();
    let (_, io) = upgraded.into_io().await.expect("an upgrade");
    tokio::time::timeout(PATIENCE, exercise(Forwarder::start(io, IDLE))).await.expect("an end");
    server.stop().await;
}

#[tokio::test]
async fn logs_and_node_paths_are_passed_on_and_redirects_are_not_followed() {
    let (server, _kubelet, client) = cluster().await;
    let get = async |path: &str| {
        let request = Request::builder().uri(path).body(Body::empty()).unwrap();
        let response = client.request(request).await.expect("an answer");
        let (head, body) = response.into_parts();
        let text = String::from_utf8(body.read(1 << 20).await.unwrap().to_vec()).unwrap();
        (head, text)
    };
    let (head, text) = get(&format!("{POD}/log?tailLines=5&follow=true")).await;
    assert_eq!((head.status.as_u16(), text.as_str()), (200, "log follow=true&tailLines=5&stream=All\n"));
    assert_eq!(head.headers["content-type"], "text/plain");
    let (head, text) = get(&format!("{POD}/log?tailLines=-1")).await;
    assert_eq!(head.status.as_u16(), 422);
    assert!(text.contains("tailLines: Invalid value: -1: must be greater than or equal to 0"), "{text}");
    let (_, text) = get("/api/v1/namespaces/default/pods/nowhere/log").await;
    assert_eq!(text, "");
    let (_, text) = get("/api/v1/nodes/n1/proxy/pods").await;
    assert_eq!(text, "{}");
    let options = Request::builder().method(Method::OPTIONS).uri("/api/v1/nodes/n1/proxy/pods");
    let answer = client.request(options.body(Body::empty()).unwrap()).await.expect("an answer");
    assert_eq!(answer.into_body().read(1 << 20).await.unwrap(), "options");
    let (head, _) = get("/api/v1/nodes/n1/proxy?x=y").await;
    assert_eq!(
        (head.status.as_u16(), head.headers["location"].to_str().unwrap()),
        (301, "/api/v1/nodes/n1/proxy/?x=y")
    );
    let (head, text) = get("/api/v1/nodes/n1/proxy/redirect").await;
    assert_eq!((head.status.as_u16(), text.as_str()), (302, "elsewhere"));
    let (head, _) = get("/api/v1/nodes/n1:9/proxy/").await;
    assert_eq!(head.status.as_u16(), 400);
    server.stop().await;
}

#[tokio::test]
async fn logs_come_over_websocket_too() {
    let (server, _kubelet, client) = cluster().await;
    for (protocol, expected) in
        [("binary.k8s.io", "log stream=All\n"), ("base64.binary.k8s.io", "bG9nIHN0cmVhbT1BbGwK")]
    {
        let headers = websocket::client_headers(&[protocol], [7; 16]);
        let answer = client.upgrade(upgrade(Method::GET, &format!("{POD}/log"), headers)).await.unwrap();
        let (_, io) = answer.into_io().await.expect("an upgrade");
        let mut socket = websocket::over(io, Role::Client).await;
        let mut text = Vec::new();
        let end = loop {
            let message = tokio::time::timeout(PATIENCE, socket.next()).await.expect("a message of the log");
            match message.expect("an end").expect("a message") {
                websocket::Message::Close(frame) => break frame,
                message => text.extend_from_slice(&message.into_data()),
            }
        };
        assert_eq!(String::from_utf8(text).unwrap(), expected);
        assert_eq!(end.expect("a code").code, CloseCode::Normal);
    }
    let headers = websocket::client_headers(&["v9.k8s.io"], [7; 16]);
    let answer = client.upgrade(upgrade(Method::GET, &format!("{POD}/log"), headers)).await.unwrap();
    assert_eq!(answer.into_io().await.map(|_| ()).expect_err("no upgrade").0, 403);
    server.stop().await;
}

/// The client everyone uses, where it is installed.
#[tokio::test]
async fn kubectl_streams() {
    let (server, _kubelet, _client) = cluster().await;
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("kubeconfig");
    std::fs::write(&file, server.kubeconfig()).expect("a kubeconfig");
    for (websockets, name) in [("true", "WebSocket"), ("false", "SPDY")] {
        let spawn = |arguments: &[&str]| {
            let mut command = tokio::process::Command::new("kubectl");
            command.args(arguments).env("KUBECONFIG", &file).env("KUBECACHEDIR", folder.path()).kill_on_drop(true);
            command.env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", websockets);
            command.env("KUBECTL_PORT_FORWARD_WEBSOCKETS", websockets);
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            command.spawn().ok()
        };
        let kubectl = async |arguments: &[&str], input: &str| {
            let mut child = spawn(arguments)?;
            let mut stdin = child.stdin.take().expect("stdin");
            stdin.write_all(input.as_bytes()).await.expect("written");
            drop(stdin);
            let ended = tokio::time::timeout(PATIENCE, child.wait_with_output()).await;
            let output = ended.expect("kubectl ends").expect("output");
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            Some((output.status.code(), text(&output.stdout), text(&output.stderr)))
        };
        let Some((code, out, err)) = kubectl(&["exec", "-i", "p", "--", "upper", "7"], "hello").await else {
            println!("kubectl is not installed: its streams are not tried");
            break;
        };
        assert_eq!((code, out.as_str()), (Some(7), "HELLO"), "{name} {err}");
        let (code, out, err) = kubectl(&["exec", "p", "--", "upper", "0"], "").await.expect("kubectl");
        assert_eq!((code, out.as_str()), (Some(0), "no input\n"), "{name} {err}");
        let (code, out, err) = kubectl(&["logs", "p"], "").await.expect("kubectl");
        assert_eq!((code, out.as_str()), (Some(0), "log stream=All\n"), "{name} {err}");
        let (code, _, err) = kubectl(&["exec", "p", "--", "refuse"], "").await.expect("kubectl");
        assert!(code == Some(1) && err.contains("this command is refused"), "{name} {code:?} {err}");
        tokio::time::timeout(PATIENCE, forwarded(spawn(&["port-forward", "pod/p", ":80"]))).await.expect("an echo");
    }
    server.stop().await;
}

/// Speaks through a running `kubectl port-forward`.
async fn forwarded(child: Option<tokio::process::Child>) {
    let mut child = child.expect("kubectl");
    let mut lines = tokio::io::BufReader::new(child.stdout.take().expect("stdout")).lines();
    let line = lines.next_line().await.expect("text").expect("a line");
    let address = line.strip_prefix("Forwarding from ").and_then(|rest| rest.split(' ').next()).expect("an address");
    let mut stream = tokio::net::TcpStream::connect(address).await.expect("a connection");
    stream.write_all(b"through the tunnel").await.expect("written");
    let mut back = [0; 18];
    stream.read_exact(&mut back).await.expect("an echo");
    assert_eq!(&back, b"through the tunnel");
    child.kill().await.expect("kubectl ends");
}
