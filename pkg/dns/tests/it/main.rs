//! Cluster DNS over real sockets on loopback: answers, forwarding, size limits and hostile input.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, SOA};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use rkube_apimachinery::clock::SystemClock;
use rkube_apimachinery::key::ObjectKey;
use rkube_dns::zone::{Endpoint, ServiceKind, ServiceRecord, Zone};
use rkube_dns::{DnsConfig, DnsServer};
use tokio_util::sync::CancellationToken;

/// A server with one headless Service of `endpoints` endpoints, aliases, and a stub domain `example.` at `upstreams`.
async fn server(endpoints: u8, upstreams: Vec<SocketAddr>) -> (SocketAddr, CancellationToken) {
    let zone = Arc::new(Zone::default());
    zone.set_namespace("default", true);
    let endpoint = |n: u8| Endpoint { hostname: format!("e{n}"), address: [10, 42, 0, n].into(), ports: Vec::new() };
    let record = ServiceRecord {
        kind: ServiceKind::Headless,
        ports: Vec::new(),
        endpoints: (1..=endpoints).map(endpoint).collect(),
    };
    zone.set_service(&ObjectKey::new("default", "web"), Some(record));
    let cluster = ServiceRecord { kind: ServiceKind::Cluster(vec![[10, 43, 0, 7].into()]), ..ServiceRecord::default() };
    zone.set_service(&ObjectKey::new("default", "cluster"), Some(cluster));
    for (name, target) in [
        ("inside", "cluster.default.svc.cluster.local"),
        ("twice", "inside.default.svc.cluster.local."),
        ("outside", "www.example"),
        ("nowhere", "missing.default.svc.cluster.local"),
        ("round", "about.default.svc.cluster.local"),
        ("about", "round.default.svc.cluster.local"),
    ] {
        let alias = ServiceRecord { kind: ServiceKind::External(target.to_owned()), ..ServiceRecord::default() };
        zone.set_service(&ObjectKey::new("default", name), Some(alias));
    }
    let config = DnsConfig {
        listen: vec![([127, 0, 0, 1], 0).into()],
        cluster_domain: "cluster.local".to_owned(),
        resolv_conf: "/nonexistent".into(),
        stub_domains: [("example".to_owned(), upstreams)].into(),
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

/// Another name server: answers one question for each of `replies`, over UDP, and then no more.
fn upstream(replies: Vec<fn(&mut Message)>) -> (SocketAddr, std::thread::JoinHandle<Vec<Message>>) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let address = socket.local_addr().unwrap();
    let handle = std::thread::spawn(move || {
        let answer = |fill: fn(&mut Message)| {
            let mut buffer = [0; 4096];
            let (length, from) = socket.recv_from(&mut buffer).unwrap();
            let asked = Message::from_vec(&buffer[..length]).unwrap();
            socket.send_to(&reply_to(&asked, fill), from).unwrap();
            asked
        };
        replies.into_iter().map(answer).collect()
    });
    (address, handle)
}

fn reply_to(asked: &Message, fill: fn(&mut Message)) -> Vec<u8> {
    let mut reply = Message::response(asked.metadata.id, OpCode::Query);
    reply.queries = asked.queries.clone();
    fill(&mut reply);
    reply.to_vec().unwrap()
}

fn add_addresses(reply: &mut Message, count: u8) {
    let name = reply.queries[0].name().clone();
    for n in 1..=count {
        reply.add_answer(Record::from_rdata(name.clone(), 60, RData::A(A::new(192, 0, 2, n))));
    }
}

fn one_address(reply: &mut Message) {
    add_addresses(reply, 1);
}

fn does_not_exist(reply: &mut Message) {
    reply.metadata.response_code = ResponseCode::NXDomain;
    let zone = Name::from_ascii("example.").unwrap();
    let soa = SOA::new(zone.clone(), zone.clone(), 1, 60, 60, 60, 60);
    reply.add_authority(Record::from_rdata(zone, 60, RData::SOA(soa)));
}

fn cannot(reply: &mut Message) {
    reply.metadata.response_code = ResponseCode::ServFail;
}

fn text(reply: &Message) -> String {
    let of = |record: &Record| format!("{} {}", record.name, record.data);
    let answers: Vec<String> = reply.answers.iter().map(of).collect();
    let code = reply.metadata.response_code;
    format!("{code}: {}", answers.join(", "))
}

/// Runs blocking client code beside a server on this thread's runtime.
fn with_server<T: Send + 'static>(
    endpoints: u8,
    up: impl Into<Vec<SocketAddr>>,
    client: impl FnOnce(SocketAddr) -> T + Send + 'static,
) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = tokio::task::LocalSet::new();
    let up = up.into();
    local.block_on(&runtime, async {
        let (address, stop) = server(endpoints, up).await;
        let result = tokio::task::spawn_blocking(move || client(address)).await.unwrap();
        stop.cancel();
        result
    })
}

const NOWHERE: [SocketAddr; 1] = [SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9)];

#[test]
fn cluster_names_answer_over_udp_and_tcp() {
    with_server(3, NOWHERE, |server| {
        let question = query("web.default.svc.cluster.local.", RecordType::A);
        let reply = ask_udp(server, &question).unwrap();
        assert_eq!(reply.answers.len(), 3);
        assert!(reply.metadata.authoritative && reply.metadata.recursion_available);
        assert_eq!(ask_tcp(server, &question).answers.len(), 3);
        // The name is echoed as it was written: some resolvers insist on it.
        let mixed = ask_udp(server, &query("wEb.DEFAULT.svc.cluster.LOCAL.", RecordType::A)).unwrap();
        assert_eq!(mixed.queries[0].name().to_ascii(), "wEb.DEFAULT.svc.cluster.LOCAL.");
        assert_eq!(mixed.answers[0].name.to_ascii(), "wEb.DEFAULT.svc.cluster.LOCAL.");
        let missing = ask_udp(server, &query("x.default.svc.cluster.local.", RecordType::A)).unwrap();
        assert_eq!(missing.metadata.response_code, ResponseCode::NXDomain);
        assert_eq!(missing.authorities.len(), 1);
    });
}

#[test]
fn a_reply_too_large_for_a_datagram_is_cut_and_whole_over_tcp() {
    with_server(200, NOWHERE, |server| {
        let question = query("web.default.svc.cluster.local.", RecordType::A);
        let reply = ask_udp(server, &question).unwrap();
        // Resolvers that never ask over TCP have something to go on.
        assert!(reply.metadata.truncation && !reply.answers.is_empty());
        assert_eq!(ask_tcp(server, &question).answers.len(), 200);
    });
}

#[test]
fn other_names_are_forwarded_once_and_then_remembered() {
    let (up, asked) = upstream(vec![one_address, does_not_exist]);
    with_server(1, [up], |server| {
        let question = query("www.example.", RecordType::A);
        let first = ask_udp(server, &question).unwrap();
        let second = ask_udp(server, &question).unwrap();
        assert_eq!(first.answers[0].data, RData::A(A::new(192, 0, 2, 1)));
        assert_eq!(second.answers[0].data, first.answers[0].data);
        assert!(second.answers[0].ttl <= 30);
        // That a name does not exist is remembered, too.
        for _ in 0..2 {
            let missing = ask_udp(server, &query("missing.example.", RecordType::A)).unwrap();
            assert_eq!(missing.metadata.response_code, ResponseCode::NXDomain);
            assert_eq!(missing.authorities.len(), 1);
        }
    });
    // Another server learns the question and nothing else of who asked.
    let asked = asked.join().unwrap();
    assert_eq!(asked.len(), 2);
    assert!(asked.iter().all(|query| query.metadata.recursion_desired && query.edns.is_some()));
}

#[test]
fn the_next_server_is_asked_when_one_is_gone_or_cannot_answer() {
    let (ill, ill_asked) = upstream(vec![cannot, cannot]);
    let (well, well_asked) = upstream(vec![one_address, cannot]);
    with_server(1, [NOWHERE[0], ill, well], |server| {
        let found = ask_udp(server, &query("www.example.", RecordType::A)).unwrap();
        assert_eq!(text(&found), "No Error: www.example. 192.0.2.1");
        // The one that knew is asked first now; what all cannot answer is said so.
        let unknown = ask_udp(server, &query("other.example.", RecordType::A)).unwrap();
        assert_eq!(text(&unknown), "Server Failure: ");
    });
    assert_eq!(well_asked.join().unwrap().len(), 2);
    assert_eq!(ill_asked.join().unwrap().len(), 2);
}

#[test]
fn what_is_too_large_for_another_server_is_asked_over_tcp() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let socket = UdpSocket::bind(address).unwrap();
    let serving = std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        let (length, from) = socket.recv_from(&mut buffer).unwrap();
        let asked = Message::from_vec(&buffer[..length]).unwrap();
        socket.send_to(&reply_to(&asked, |reply| reply.metadata.truncation = true), from).unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        let mut again = vec![0; length + 2];
        stream.read_exact(&mut again).unwrap();
        assert_eq!(again[2..], buffer[..length]);
        let reply = reply_to(&asked, |reply| add_addresses(reply, 200));
        stream.write_all(&u16::try_from(reply.len()).unwrap().to_be_bytes()).unwrap();
        stream.write_all(&reply).unwrap();
    });
    with_server(1, [address], |server| {
        let question = query("large.example.", RecordType::A);
        let part = ask_udp(server, &question).unwrap();
        assert!(part.metadata.truncation && part.answers.len() > 20);
        assert_eq!(ask_tcp(server, &question).answers.len(), 200);
    });
    serving.join().unwrap();
}

#[test]
fn aliases_are_followed_inside_and_outside() {
    let (up, asked) = upstream(vec![one_address]);
    with_server(1, [up], |server| {
        let ask = |name: &str, kind| {
            let name = format!("{name}.default.svc.cluster.local.");
            ask_udp(server, &query(&name, kind)).unwrap()
        };
        let inside = "inside.default.svc.cluster.local. cluster.default.svc.cluster.local., \
                      cluster.default.svc.cluster.local. 10.43.0.7";
        assert_eq!(text(&ask("inside", RecordType::A)), format!("No Error: {inside}"));
        assert_eq!(
            text(&ask("twice", RecordType::A)),
            format!("No Error: twice.default.svc.cluster.local. inside.default.svc.cluster.local., {inside}")
        );
        let none = ask("inside", RecordType::AAAA);
        let alias = "inside.default.svc.cluster.local. cluster.default.svc.cluster.local.";
        assert_eq!(text(&none), format!("No Error: {alias}"));
        assert_eq!(none.authorities.len(), 1);
        assert_eq!(text(&ask("inside", RecordType::CNAME)), format!("No Error: {alias}"));
        // The second time from memory.
        for _ in 0..2 {
            let outside = "outside.default.svc.cluster.local. www.example., www.example. 192.0.2.1";
            assert_eq!(text(&ask("outside", RecordType::A)), format!("No Error: {outside}"));
        }
        let missing = ask("nowhere", RecordType::A);
        assert_eq!((missing.metadata.response_code, missing.answers.len()), (ResponseCode::NXDomain, 1));
        assert_eq!(ask("round", RecordType::A).metadata.response_code, ResponseCode::ServFail);
    });
    assert_eq!(asked.join().unwrap().len(), 1);
}

#[test]
fn datagrams_are_never_larger_than_asked_for_and_no_amplifiers() {
    with_server(200, NOWHERE, |server| {
        let size = |payload: Option<u16>| {
            let mut message = Message::from_vec(&query("web.default.svc.cluster.local.", RecordType::A)).unwrap();
            if let Some(payload) = payload {
                let mut edns = Edns::new();
                edns.set_max_payload(payload);
                message.set_edns(edns);
            }
            let reply = ask_udp(server, &message.to_vec().unwrap()).unwrap();
            assert_eq!(reply.edns.is_some(), payload.is_some());
            assert!(reply.metadata.truncation && !reply.answers.is_empty());
            reply.to_vec().unwrap().len()
        };
        // Within the limit and with as many answers as that holds, of 16 bytes each.
        for (payload, limit) in [(None, 512), (Some(100), 512), (Some(900), 900), (Some(65_535), 1_232)] {
            let size = size(payload);
            assert!(size <= limit && size > limit - 16, "{payload:?}: {size}");
        }
    });
}

#[test]
fn what_is_not_a_question_is_dropped_or_refused_and_serving_goes_on() {
    with_server(1, NOWHERE, |server| {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let good = query("web.default.svc.cluster.local.", RecordType::A);
        let mut reply_to_us = good.clone();
        reply_to_us[2] |= 0x80;
        for noise in [&b""[..], b"x", &[0xff; 600], &reply_to_us, &good[..11]] {
            socket.send_to(noise, server).unwrap();
        }
        // A question that ends too soon, counts that lie, a name that points to itself.
        let mut lying = good.clone();
        lying[4] = 0xff;
        let mut circle = good[..12].to_vec();
        circle.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1]);
        for malformed in [&good[..good.len() - 3], &lying, &circle] {
            let reply = ask_udp(server, malformed).unwrap();
            assert_eq!((reply.metadata.id, reply.metadata.response_code), (7, ResponseCode::FormErr));
            assert!(reply.queries.is_empty() && reply.answers.is_empty());
        }
        let any = ask_udp(server, &query("web.default.svc.cluster.local.", RecordType::ANY)).unwrap();
        assert_eq!(any.metadata.response_code, ResponseCode::NotImp);
        // Every byte of a question broken in turn: at most as much comes back as for a good one.
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        for index in 0..good.len() {
            for value in [0, 0x3f, 0x80, 0xc0, 0xff] {
                let mut broken = good.clone();
                broken[index] = value;
                socket.send_to(&broken, server).unwrap();
            }
        }
        assert_eq!(ask_udp(server, &good).unwrap().answers.len(), 1);
    });
}

#[test]
fn one_client_cannot_take_all_connections() {
    with_server(1, NOWHERE, |server| {
        let held: Vec<TcpStream> = (0..32).map(|_| TcpStream::connect(server).unwrap()).collect();
        let mut refused = TcpStream::connect(server).unwrap();
        refused.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        // Closed, before or after it is seen that we sent nothing.
        assert!(!matches!(refused.read(&mut [0]), Ok(1..)));
        drop(held);
        // Others are free again once the server has noticed.
        let question = query("web.default.svc.cluster.local.", RecordType::A);
        let other = std::net::SocketAddr::from(([127, 0, 0, 1], server.port()));
        assert_eq!(ask_udp(other, &question).unwrap().answers.len(), 1);
    });
}
