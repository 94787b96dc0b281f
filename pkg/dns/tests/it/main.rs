//! Cluster DNS over real sockets on loopback: answers, forwarding, size limits and hostile input.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use rkube_apimachinery::clock::SystemClock;
use rkube_apimachinery::key::ObjectKey;
use rkube_dns::forward::StubDomain;
use rkube_dns::zone::{Endpoint, ServiceKind, ServiceRecord, Zone};
use rkube_dns::{DnsConfig, DnsServer};
use tokio_util::sync::CancellationToken;

/// A server with one headless Service of `endpoints` endpoints, and a stub domain `example.` at `upstream`.
async fn server(endpoints: u8, upstream: SocketAddr) -> (SocketAddr, CancellationToken) {
    let zone = Arc::new(Zone::default());
    zone.set_namespace("default", true);
    let endpoint = |n: u8| Endpoint { hostname: format!("e{n}"), address: [10, 42, 0, n].into(), ports: Vec::new() };
    let record = ServiceRecord {
        kind: ServiceKind::Headless,
        ports: Vec::new(),
        endpoints: (1..=endpoints).map(endpoint).collect(),
    };
    zone.set_service(&ObjectKey::new("default", "web"), Some(record));
    let domain = Name::from_ascii("example.").unwrap();
    let config = DnsConfig {
        listen: vec![([127, 0, 0, 1], 0).into()],
        cluster_domain: "cluster.local".to_owned(),
        resolv_conf: "/nonexistent".into(),
        stub_domains: vec![StubDomain { domain, servers: vec![upstream] }],
    };
    let stop = CancellationToken::new();
    let server = DnsServer::new(config, zone, SystemClock::shared()).unwrap();
    let (send, receive) = tokio::sync::oneshot::channel();
    let token = stop.clone();
    tokio::task::spawn_local(async move {
        server.run(|bound| send.send(bound[0]).unwrap(), token).await.unwrap();
    });
    (receive.await.unwrap(), stop)
}

fn query(name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message.to_vec().unwrap()
}

fn ask_udp(server: SocketAddr, query: &[u8]) -> Option<Message> {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    socket.send_to(query, server).unwrap();
    let mut buffer = [0; 4096];
    let length = socket.recv(&mut buffer).ok()?;
    Some(Message::from_vec(&buffer[..length]).unwrap())
}

fn ask_tcp(server: SocketAddr, query: &[u8]) -> Message {
    let mut stream = TcpStream::connect(server).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    stream.write_all(&u16::try_from(query.len()).unwrap().to_be_bytes()).unwrap();
    stream.write_all(query).unwrap();
    let mut length = [0; 2];
    stream.read_exact(&mut length).unwrap();
    let mut reply = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut reply).unwrap();
    Message::from_vec(&reply).unwrap()
}

/// Answers one question with 192.0.2.1 and counts no more.
fn upstream() -> (SocketAddr, std::thread::JoinHandle<()>) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let handle = std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        let (length, from) = socket.recv_from(&mut buffer).unwrap();
        let asked = Message::from_vec(&buffer[..length]).unwrap();
        let mut reply = Message::response(asked.metadata.id, OpCode::Query);
        reply.queries = asked.queries.clone();
        let name = asked.queries[0].name().clone();
        reply.add_answer(Record::from_rdata(name, 60, RData::A(A::new(192, 0, 2, 1))));
        socket.send_to(&reply.to_vec().unwrap(), from).unwrap();
    });
    (address, handle)
}

/// Runs blocking client code beside a server on this thread's runtime.
fn with_server<T: Send + 'static>(
    endpoints: u8,
    up: SocketAddr,
    client: impl FnOnce(SocketAddr) -> T + Send + 'static,
) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        let (address, stop) = server(endpoints, up).await;
        let result = tokio::task::spawn_blocking(move || client(address)).await.unwrap();
        stop.cancel();
        result
    })
}

const NOWHERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9);

#[test]
fn cluster_names_answer_over_udp_and_tcp() {
    with_server(3, NOWHERE, |server| {
        let question = query("web.default.svc.cluster.local.", RecordType::A);
        let reply = ask_udp(server, &question).unwrap();
        assert_eq!(reply.answers.len(), 3);
        assert!(reply.metadata.authoritative && reply.metadata.recursion_available);
        assert_eq!(ask_tcp(server, &question).answers.len(), 3);
        let missing = ask_udp(server, &query("x.default.svc.cluster.local.", RecordType::A)).unwrap();
        assert_eq!(missing.metadata.response_code, hickory_proto::op::ResponseCode::NXDomain);
        assert_eq!(missing.authorities.len(), 1);
    });
}

#[test]
fn a_reply_too_large_for_a_datagram_is_cut_and_whole_over_tcp() {
    with_server(200, NOWHERE, |server| {
        let question = query("web.default.svc.cluster.local.", RecordType::A);
        let reply = ask_udp(server, &question).unwrap();
        assert!(reply.metadata.truncation);
        assert_eq!(ask_tcp(server, &question).answers.len(), 200);
    });
}

#[test]
fn other_names_are_forwarded_once_and_then_remembered() {
    let (up, answered) = upstream();
    with_server(1, up, |server| {
        let question = query("www.example.", RecordType::A);
        let first = ask_udp(server, &question).unwrap();
        let second = ask_udp(server, &question).unwrap();
        assert_eq!(first.answers[0].data, RData::A(A::new(192, 0, 2, 1)));
        assert_eq!(second.answers[0].data, first.answers[0].data);
        assert!(second.answers[0].ttl <= 30);
    });
    answered.join().unwrap();
}

#[test]
fn what_is_not_a_question_is_dropped_or_refused_and_serving_goes_on() {
    with_server(1, NOWHERE, |server| {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut reply_to_us = query("web.default.svc.cluster.local.", RecordType::A);
        reply_to_us[2] |= 0x80;
        for hostile in [&b""[..], b"x", &[0xff; 600], &reply_to_us] {
            socket.send_to(hostile, server).unwrap();
        }
        let any = ask_udp(server, &query("web.default.svc.cluster.local.", RecordType::ANY)).unwrap();
        assert_eq!(any.metadata.response_code, hickory_proto::op::ResponseCode::NotImp);
        let good = ask_udp(server, &query("web.default.svc.cluster.local.", RecordType::A)).unwrap();
        assert_eq!(good.answers.len(), 1);
    });
}
