//! What clients see: bodies, codes, headers.

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use http::{HeaderMap, Method, Request};
use rkube_client::transport::{ListRequest, WatchEvent, WatchRequest};
use rkube_http::body::Body;
use rkube_http::client::HttpClient;
use rkube_registry::UserInfo;
use serde_json::{Value, json};

use crate::server::Server;

const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Reply {
    code: u16,
    headers: HeaderMap,
    body: Bytes,
}

impl Reply {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| json!(String::from_utf8_lossy(&self.body)))
    }
}

pub(crate) async fn send(
    client: &HttpClient,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Reply {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Body::from(body.to_owned())).expect("a request");
    let response = tokio::time::timeout(PATIENCE, client.request(request)).await.expect("an answer in time");
    let (head, body) = response.expect("an answer").into_parts();
    Reply { code: head.status.as_u16(), headers: head.headers, body: body.read(1 << 26).await.expect("its body") }
}

async fn get(client: &HttpClient, path: &str) -> Reply {
    send(client, Method::GET, path, &[], "").await
}

fn config_map(name: &str, data: &str) -> String {
    json!({"metadata": {"name": name}, "data": {"key": data}}).to_string()
}

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

async fn with_namespace() -> (Server, HttpClient) {
    let server = Server::start().await;
    let client = server.client();
    let body = json!({"metadata": {"name": "default"}}).to_string();
    let reply = send(&client, Method::POST, "/api/v1/namespaces", &[], &body).await;
    assert!(matches!(reply.code, 201 | 409), "{}", reply.json());
    (server, client)
}

#[tokio::test]
async fn objects_live_through_all_verbs() {
    let (server, client) = with_namespace().await;
    let created = send(&client, Method::POST, MAPS, &[], &config_map("a", "1")).await;
    assert_eq!(created.code, 201, "{}", created.json());
    let again = send(&client, Method::POST, MAPS, &[], &config_map("a", "1")).await;
    assert_eq!((again.code, again.json()["message"].clone()), (409, json!("configmaps \"a\" already exists")));
    let mut object = get(&client, &format!("{MAPS}/a")).await.json();
    assert_eq!(object["kind"], "ConfigMap");
    object["data"]["key"] = json!("2");
    let put = send(&client, Method::PUT, &format!("{MAPS}/a"), &[], &object.to_string()).await;
    assert_eq!((put.code, put.json()["data"]["key"].clone()), (200, json!("2")));
    let stale = send(&client, Method::PUT, &format!("{MAPS}/a"), &[], &object.to_string()).await;
    assert_eq!((stale.code, stale.json()["reason"].clone()), (409, json!("Conflict")));
    let merge = [("content-type", "application/merge-patch+json")];
    let patched = send(&client, Method::PATCH, &format!("{MAPS}/a"), &merge, r#"{"data":{"key":"3"}}"#).await;
    assert_eq!((patched.code, patched.json()["data"]["key"].clone()), (200, json!("3")));
    let list = get(&client, MAPS).await.json();
    assert_eq!(list["kind"], "ConfigMapList");
    let item = &list["items"][0];
    assert_eq!((item["metadata"]["name"].clone(), item.get("kind")), (json!("a"), None));
    let deleted = send(&client, Method::DELETE, &format!("{MAPS}/a"), &[], "").await;
    assert_eq!((deleted.code, deleted.json()["status"].clone()), (200, json!("Success")));
    let gone = get(&client, &format!("{MAPS}/a")).await;
    assert_eq!(gone.code, 404);
    assert_eq!(gone.json()["message"], "configmaps \"a\" not found");
    server.stop().await;
}

#[tokio::test]
async fn what_cannot_be_answered_is_refused_in_upstreams_words() {
    let (server, client) = with_namespace().await;
    let text = |reply: &Reply| reply.json()["message"].as_str().unwrap_or_default().to_owned();
    let not_found = "the server could not find the requested resource";
    for (method, path, code, message) in [
        (Method::GET, "/api/v1/nothings", 404, not_found),
        (Method::GET, "/api/v1/namespaces/default/pods/x/nothing", 404, not_found),
        (Method::GET, "/api/v1/namespaces/default/nodes", 404, not_found),
        (Method::GET, "/api/v1/namespaces/%2e%2e/pods", 404, not_found),
        (Method::GET, "/api/v1/namespaces/default/pods/%2e%2e/log", 404, not_found),
        (Method::GET, "/api/v1/watch", 400, "unable to determine kind and namespace from url, /api/v1/watch"),
        (
            Method::PUT,
            "/api/v1/namespaces/default/pods",
            405,
            "the server does not allow this method on the requested resource",
        ),
        (Method::POST, "/api/v1/pods", 405, "the server does not allow this method on the requested resource"),
        (Method::GET, "/api/v1/pods?limit=x", 400, "strconv.ParseInt: parsing \"x\": invalid syntax"),
        (
            Method::GET,
            "/api/v1/pods?timeout=x",
            400,
            "invalid timeout specified in the request URL - time: invalid duration \"x\"",
        ),
    ] {
        let reply = send(&client, method.clone(), path, &[], "{}").await;
        assert_eq!((reply.code, text(&reply)), (code, message.to_owned()), "{method} {path}");
        assert_eq!(reply.json()["kind"], "Status");
    }
    let unknown = get(&client, "/apis/nobody.example/v1/things").await;
    assert_eq!((unknown.code, unknown.body.as_ref()), (404, b"404 page not found\n".as_slice()));
    let picky = send(&client, Method::GET, MAPS, &[("accept", "text/plain")], "").await;
    assert_eq!(picky.code, 406);
    let review = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let table = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
    let body = r#"{"spec":{"nonResourceAttributes":{"path":"/","verb":"get"}}}"#;
    assert_eq!(send(&client, Method::POST, review, &table, body).await.code, 406);
    let strange = send(&client, Method::POST, MAPS, &[("content-type", "text/plain")], "x").await;
    assert_eq!(strange.code, 415);
    let wrong = send(&client, Method::POST, MAPS, &[], r#"{"kind":"Secret","apiVersion":"v1"}"#).await;
    assert_eq!(wrong.code, 400, "{}", wrong.json());
    let huge = send(&client, Method::POST, MAPS, &[], &"x".repeat(3 * 1024 * 1024 + 1)).await;
    assert_eq!((huge.code, text(&huge)), (413, "Request entity too large: limit is 3145728".to_owned()));
    server.stop().await;
}

#[tokio::test]
async fn strangers_see_only_what_is_public() {
    let server = Server::start().await;
    let stranger = server.stranger();
    let denied = get(&stranger, "/api/v1/pods").await;
    assert_eq!(denied.code, 403);
    let message = "pods is forbidden: User \"system:anonymous\" cannot list resource \"pods\" in API group \"\" at the cluster scope";
    assert_eq!(denied.json()["message"], message);
    let path = get(&stranger, "/metrics").await;
    assert_eq!(path.json()["message"], "forbidden: User \"system:anonymous\" cannot get path \"/metrics\"");
    let bad = send(&stranger, Method::GET, "/version", &[("authorization", "Bearer wrong")], "").await;
    assert_eq!((bad.code, bad.json()["message"].clone()), (401, json!("Unauthorized")));
    let good = [("authorization", concat!("Bearer ", "an-administrators-token"))];
    assert_eq!(send(&stranger, Method::GET, "/api/v1/pods", &good, "").await.code, 200);
    assert_eq!(get(&stranger, "/version").await.json()["gitVersion"], "v1.36.2+rkube.1");
    assert_eq!(get(&stranger, "/readyz").await.body, "ok");
    let acting = [("authorization", good[0].1), ("impersonate-user", "someone")];
    assert_eq!(send(&stranger, Method::GET, "/api/v1/pods", &acting, "").await.code, 403);
    server.stop().await;
}

#[tokio::test]
async fn discovery_is_served_in_both_forms() {
    let server = Server::start().await;
    let client = server.client();
    let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
    let aggregated = send(&client, Method::GET, "/apis", &[("accept", accept)], "").await;
    let content_type = aggregated.headers["content-type"].to_str().unwrap().to_owned();
    assert_eq!(content_type, "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList");
    let etag = aggregated.headers["etag"].to_str().unwrap().to_owned();
    let cached = send(&client, Method::GET, "/apis", &[("accept", accept), ("if-none-match", &etag)], "").await;
    assert_eq!((cached.code, cached.body.len()), (304, 0));
    assert_eq!(get(&client, "/apis").await.json()["kind"], "APIGroupList");
    assert_eq!(get(&client, "/apis/apps/v1").await.json()["groupVersion"], "apps/v1");
    server.stop().await;
}

#[tokio::test]
async fn watches_deliver_each_event_at_once_and_end_at_shutdown() {
    let (server, client) = with_namespace().await;
    let request = Request::builder()
        .uri(format!(
            "{MAPS}?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"
        ))
        .body(Body::empty())
        .unwrap();
    let response = client.request(request).await.expect("a watch");
    let mut chunks = response.into_body().into_stream();
    let mut next = async || -> Option<Value> {
        loop {
            let chunk = tokio::time::timeout(PATIENCE, chunks.next()).await.expect("an event in time")?;
            let chunk = chunk.expect("a chunk");
            // HTTP/2 ends with an empty one.
            if !chunk.is_empty() {
                return Some(serde_json::from_slice(&chunk).expect("one event"));
            }
        }
    };
    let bookmark = next().await.unwrap();
    assert_eq!(bookmark["type"], "BOOKMARK");
    assert_eq!(bookmark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    send(&client, Method::POST, MAPS, &[], &config_map("w", "1")).await;
    let added = next().await.unwrap();
    assert_eq!((added["type"].clone(), added["object"]["metadata"]["name"].clone()), (json!("ADDED"), json!("w")));
    send(&client, Method::DELETE, &format!("{MAPS}/w"), &[], "").await;
    assert_eq!(next().await.unwrap()["type"], "DELETED");
    server.api.stop();
    assert_eq!(next().await, None);
    server.stop().await;
}

#[tokio::test]
async fn tables_and_partial_metadata_are_made_on_request() {
    let (server, client) = with_namespace().await;
    send(&client, Method::POST, MAPS, &[], &config_map("t", "1")).await;
    let table = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json")];
    let reply = send(&client, Method::GET, MAPS, &table, "").await.json();
    assert_eq!(reply["kind"], "Table");
    assert_eq!(reply["rows"][0]["cells"][0], "t");
    assert_eq!(reply["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    let partial = [("accept", "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io")];
    let reply = send(&client, Method::GET, MAPS, &partial, "").await.json();
    assert_eq!(reply["kind"], "PartialObjectMetadataList");
    assert_eq!(reply["items"][0].as_object().unwrap().keys().collect::<Vec<_>>(), ["apiVersion", "kind", "metadata"]);
    server.stop().await;
}

#[tokio::test]
async fn long_lists_are_streamed_and_compressed() {
    let (server, client) = with_namespace().await;
    let filler = "x".repeat(20_000);
    for index in 0..20 {
        let reply = send(&client, Method::POST, MAPS, &[], &config_map(&format!("big-{index}"), &filler)).await;
        assert_eq!(reply.code, 201);
    }
    let plain = get(&client, MAPS).await;
    assert_eq!(plain.json()["items"].as_array().map(Vec::len), Some(20));
    let packed = send(&client, Method::GET, MAPS, &[("accept-encoding", "gzip")], "").await;
    assert_eq!(packed.headers["content-encoding"], "gzip");
    assert!(packed.body.len() < plain.body.len() / 10);
    let mut unpacked = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(packed.body.as_ref()), &mut unpacked).unwrap();
    assert_eq!(unpacked, plain.body);
    server.stop().await;
}

#[tokio::test]
async fn components_in_the_process_share_the_cache_and_pass_the_chain() {
    let (server, client) = with_namespace().await;
    let group = |group: &str| UserInfo { name: "c".to_owned(), groups: vec![group.to_owned()], ..UserInfo::default() };
    let transport = server.api.transport_as(group("system:masters"));
    let resource = rkube_api::resource_named("", "v1", "configmaps").unwrap().clone();
    let watch = WatchRequest {
        resource: resource.clone(),
        namespace: String::new(),
        label_selector: String::new(),
        field_selector: String::new(),
        resource_version: String::new(),
        send_initial_events: true,
        allow_bookmarks: true,
        timeout_seconds: 0,
    };
    let mut events = transport.watch(watch.clone()).await.expect("a watch");
    assert!(matches!(events.next().await, Some(Ok(WatchEvent::Bookmark { initial_events_end: true, .. }))));
    send(&client, Method::POST, MAPS, &[], &config_map("p", "1")).await;
    let Some(Ok(WatchEvent::Added(watched))) = events.next().await else { panic!("no event") };
    let list = ListRequest {
        resource,
        namespace: "default".to_owned(),
        label_selector: String::new(),
        field_selector: String::new(),
        resource_version: String::new(),
        resource_version_match: String::new(),
        limit: 0,
        continue_token: String::new(),
    };
    let listed = transport.list(list.clone()).await.expect("a list");
    assert!(listed.items.iter().any(|item| std::sync::Arc::ptr_eq(item, &watched)), "the object is shared");
    let nobody = server.api.transport_as(group("nobodies"));
    let refused = nobody.list(list).await.expect_err("no permission");
    assert_eq!(refused.status().map(|status| status.code()), Some(403));
    assert!(nobody.watch(watch).await.is_err());
    let missing = transport.send(Request::builder().uri(format!("{MAPS}/none")).body(Bytes::new()).unwrap()).await;
    assert!(missing.expect_err("nothing there").is_not_found());
    server.stop().await;
}

#[tokio::test]
async fn events_come_over_websocket_too() {
    use futures_util::SinkExt;
    use rkube_http::websocket::{self, Message};
    use tokio_tungstenite::tungstenite::protocol::Role;

    let (server, client) = with_namespace().await;
    let mut request = Request::builder().uri(format!("{MAPS}?watch=true")).body(Body::empty()).unwrap();
    *request.headers_mut() = websocket::client_headers(&[], [1; 16]);
    let (_, io) = client.upgrade(request).await.unwrap().into_io().await.expect("an upgrade");
    let mut socket = websocket::over(io, Role::Client).await;
    send(&client, Method::POST, MAPS, &[], &config_map("socket", "1")).await;
    let message = tokio::time::timeout(PATIENCE, socket.next()).await.expect("in time").expect("a message").unwrap();
    let event: Value = serde_json::from_str(message.to_text().unwrap()).unwrap();
    assert_eq!((event["type"].clone(), event["object"]["metadata"]["name"].clone()), (json!("ADDED"), json!("socket")));
    server.api.stop();
    let last = tokio::time::timeout(PATIENCE, socket.next()).await.expect("in time");
    assert!(matches!(last, Some(Ok(Message::Close(Some(_))))), "{last:?}");
    socket.flush().await.ok();
    server.stop().await;
}

#[tokio::test]
async fn protobuf_and_yaml_go_in_and_out() {
    let (server, client) = with_namespace().await;
    let yaml = "metadata:\n  name: doc\ndata:\n  key: value\n";
    let created = send(&client, Method::POST, MAPS, &[("content-type", "application/yaml")], yaml).await;
    assert_eq!(created.code, 201, "{}", created.json());
    let protobuf = [("accept", "application/vnd.kubernetes.protobuf")];
    let object = send(&client, Method::GET, &format!("{MAPS}/doc"), &protobuf, "").await;
    assert!(object.body.starts_with(b"k8s\0"));
    assert_eq!(object.headers["content-type"], "application/vnd.kubernetes.protobuf");
    let list = send(&client, Method::GET, MAPS, &protobuf, "").await;
    assert!(list.body.starts_with(b"k8s\0") && list.body.windows(5).any(|part| part == b"value"));
    let failure = send(&client, Method::GET, &format!("{MAPS}/none"), &protobuf, "").await;
    assert!(failure.code == 404 && failure.body.starts_with(b"k8s\0"));
    let metadata = [("accept", "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1")];
    let partial = send(&client, Method::GET, MAPS, &metadata, "").await;
    assert!(partial.body.starts_with(b"k8s\0") && !partial.body.windows(5).any(|part| part == b"value"));
    let out = send(&client, Method::GET, &format!("{MAPS}/doc"), &[("accept", "application/yaml")], "").await;
    assert!(String::from_utf8_lossy(&out.body).contains("kind: ConfigMap\n"));
    let strict = send(
        &client,
        Method::POST,
        &format!("{MAPS}?fieldValidation=Strict"),
        &[],
        r#"{"metadata":{"name":"z"},"datum":{}}"#,
    )
    .await;
    assert_eq!(strict.code, 400);
    let warned = send(&client, Method::POST, MAPS, &[], r#"{"metadata":{"name":"z"},"datum":{}}"#).await;
    assert_eq!(
        (warned.code, warned.headers["warning"].to_str().unwrap()),
        (201, "299 - \"unknown field \\\"datum\\\"\"")
    );
    server.stop().await;
}
