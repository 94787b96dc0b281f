//! Strangers who try names, tokens and malformed credentials by the thousand: they get a plain refusal, cost no memory
//! that stays, and change nothing.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use http::Method;
use rkube_http::tls;
use rkube_pki::{CertificateAuthority, Leaf, csr};
use rustls_pki_types::ServerName;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::caller::Caller;
use crate::process::{Machine, Server};

/// What may stay of many refused requests: less than any of them kept would take.
const GROWTH_MAX: u64 = 12 << 20;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

/// Resident memory in bytes.
fn memory(server: &Server) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// The certificate shown to who asks for `name` by SNI and sends `host`, and the code of the answer.
async fn shown(machine: &Machine, name: &str, host: &str) -> (Vec<u8>, String) {
    let mut config = tls::unverified_client_config().unwrap();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let tcp = TcpStream::connect(("127.0.0.1", machine.port)).await.unwrap();
    let server = ServerName::try_from(name.to_owned()).unwrap();
    let mut stream = TlsConnector::from(Arc::new(config)).connect(server, tcp).await.unwrap();
    let request =
        format!("GET /version HTTP/1.1\r\nHost: {host}\r\nX-Forwarded-Host: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
    let mut answer = Vec::new();
    // A server that closes without goodbye has answered, too.
    let _ = stream.read_to_end(&mut answer).await;
    let certificate = stream.get_ref().1.peer_certificates().unwrap()[0].to_vec();
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(!answer.contains(host) || host.len() < 4, "{host} came back: {answer}");
    (certificate, answer.split(' ').nth(1).unwrap_or_default().to_owned())
}

#[test]
fn names_that_are_asked_for_are_not_taken_over() {
    let machine = Machine::new();
    let server = machine.start(&[]);
    let before = machine.contents("");
    runtime().block_on(async {
        let (first, code) = shown(&machine, "localhost", "localhost").await;
        assert_eq!(code, "200");
        let all: Vec<usize> = (0..400).collect();
        stream::iter(all)
            .for_each_concurrent(8, |index| {
                let (machine, first) = (&machine, &first);
                async move {
                    let name = match index % 3 {
                        0 => format!("stuffed-{index}.example.com"),
                        1 => format!("10.{}.{}.7", index / 250, index % 250),
                        _ => format!("{}.kubernetes.default.svc", "a".repeat(index % 60 + 1)),
                    };
                    let host = if index % 5 == 0 { format!("stuffed-{index}:99999") } else { name.clone() };
                    let (certificate, code) = shown(machine, &name, &host).await;
                    assert_eq!(&certificate, first, "{name}");
                    assert!(matches!(code.as_str(), "200" | "400"), "{name}: {code}");
                }
            })
            .await;
    });
    assert_eq!(machine.contents(""), before, "a file was changed");
    let after = machine.start_again(server);
    assert_eq!(machine.contents(""), before, "a later start changed a file");
    drop(after);
}

#[test]
fn guessing_tokens_finds_none_and_takes_no_memory() {
    let machine = Machine::new();
    let server = machine.start(&[]);
    let stranger = Caller::stranger(&machine);
    let before = machine.contents("");
    let part = |index: usize| format!("{index:0>16}");
    let guess = |index: usize| match index % 4 {
        0 => format!("node:{}", part(index)),
        1 => format!("{:0>6}.{}", index % 1_000_000, part(index)),
        2 => format!("eyJhbGciOiJFUzI1NiJ9.{}.{}", part(index).repeat(20), part(index)),
        _ => part(index).repeat(200),
    };
    // Several clients at once, each with connections of its own.
    let clients: Vec<Caller> = (0..8).map(|_| Caller::stranger(&machine)).collect();
    let attack = async |from: usize, to: usize| {
        let guessing = clients.iter().enumerate().map(|(number, client)| async move {
            for index in (from..to).filter(|index| index % 8 == number) {
                let token = guess(index);
                assert_eq!(client.code_with(&token, "/api").await, 401, "{token:.80}");
            }
        });
        futures_util::future::join_all(guessing).await;
    };
    runtime().block_on(async {
        // What serving anyone takes is there after the first.
        attack(0, 400).await;
        let start = memory(&server);
        attack(400, 2_000).await;
        let growth = memory(&server).saturating_sub(start);
        assert!(growth < GROWTH_MAX, "{growth} bytes more after 1,600 guesses");
        // The right one still counts.
        let token = machine.token();
        let secret = token.rsplit(':').next().unwrap();
        assert_eq!(stranger.code_with(secret, "/api").await, 200);
        assert_eq!(stranger.code_with(&token, "/api").await, 401, "the text of the file is not the secret");
    });
    assert_eq!(machine.contents(""), before, "a file was changed");
}

#[test]
fn malformed_signing_requests_are_refused_and_leave_nothing() {
    let machine = Machine::new();
    let _server = machine.start(&[]);
    let admin = Caller::admin(&machine);
    let path = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    let good = csr::request(&Leaf::client("jane", &["dev"])).unwrap().request_pem;
    let lines: Vec<&str> = good.lines().collect();
    let cut = [&lines[..2], &lines[lines.len() - 1..]].concat().join("\n");
    let now = rkube_apimachinery::clock::SystemClock::shared().now();
    let certificate = CertificateAuthority::generate("x", now).unwrap().1.certificate_pem;
    let flipped = {
        let body = lines[1..lines.len() - 1].concat();
        let mut der = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, body).unwrap();
        let last = der.len() - 3;
        der[last] ^= 1;
        let text = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, der);
        format!("{}\n{text}\n{}\n", lines[0], lines[lines.len() - 1])
    };
    runtime().block_on(async {
        for (what, request) in [
            ("empty", ""),
            ("garbage", "garbage"),
            ("cut", &cut),
            ("a certificate", &certificate),
            ("a signature that is wrong", &flipped),
            ("an empty block", "-----BEGIN CERTIFICATE REQUEST-----\n-----END CERTIFICATE REQUEST-----\n"),
        ] {
            let encoded = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, request);
            let body = json!({ "metadata": { "name": "bad" }, "spec": { "request": encoded, "usages": ["client auth"],
                "signerName": "kubernetes.io/kube-apiserver-client" } });
            let answer = admin.ask(Method::POST, path, &body).await;
            assert_eq!(answer.code, 422, "{what}: {}", answer.text);
            assert!(answer.message().contains("spec.request: "), "{what}: {}", answer.message());
        }
        let list: Value = serde_json::from_str(&admin.ask(Method::GET, path, &Value::Null).await.text).unwrap();
        assert_eq!(list["items"], json!([]));
    });
}

#[test]
fn a_bootstrap_token_is_good_until_it_is_deleted_or_ends() {
    let machine = Machine::new();
    let _server = machine.start(&[]);
    let kubeconfig = machine.path("admin.yaml").display().to_string();
    let token = |ttl: &str| {
        let made = machine.run(&["token", "create", "--ttl", ttl, "--kubeconfig", &kubeconfig]).stdout;
        made.trim().split_once("::").unwrap().1.to_owned()
    };
    let (long, short) = (token("1h"), token("1s"));
    let (stranger, admin) = (Caller::stranger(&machine), Caller::admin(&machine));
    runtime().block_on(async {
        assert_eq!(stranger.code_with(&long, "/api").await, 200);
        // Its end comes by time; the cleaner takes the Secret away, which is seen by a watch.
        let path = "/api/v1/namespaces/kube-system/secrets";
        let id = short.split('.').next().unwrap();
        let query = format!("{path}?watch=true&timeoutSeconds=60&fieldSelector=metadata.name%3Dbootstrap-token-{id}");
        let gone = async {
            loop {
                if admin.ask(Method::GET, &format!("{path}/bootstrap-token-{id}"), &Value::Null).await.code == 404 {
                    return;
                }
                admin.ask(Method::GET, &query.replace("60", "1"), &Value::Null).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), gone).await.expect("the token cleaner deletes what has ended");
        assert_eq!(stranger.code_with(&short, "/api").await, 401, "it has ended");
        let deleted = machine.run(&["token", "delete", long.split('.').next().unwrap(), "--kubeconfig", &kubeconfig]);
        assert_eq!(deleted.code, Some(0), "{}", deleted.stderr);
        admin.ask(Method::GET, path, &Value::Null).await;
        assert_eq!(stranger.code_with(&long, "/api").await, 401, "it was deleted");
    });
}

#[test]
fn authorities_of_another_time_are_told_from_wrong_ones() {
    let machine = Machine::new();
    let now = rkube_apimachinery::clock::SystemClock::shared().now();
    let year = Duration::from_secs(365 * 24 * 3600);
    for (at, said) in [(now + year, "and the clock says "), (now - year * 11, " expired on ")] {
        let (_, pair) = CertificateAuthority::generate("kubernetes", at).unwrap();
        machine.write("data/server/tls/ca.crt", &pair.certificate_pem);
        machine.write("data/server/tls/ca.key", &pair.key_pem);
        let outcome = machine.run_server(&[]);
        assert!(outcome.code == Some(1) && outcome.last.contains(said), "{}", outcome.last);
        assert!(outcome.last.contains("D/data/server/tls/ca.crt"), "{}", outcome.last);
        assert_eq!(std::fs::read_to_string(machine.path("data/server/tls/ca.crt")).unwrap(), pair.certificate_pem);
        assert!(!machine.path("data/server/tls/apiserver.crt").exists() && !machine.path("admin.yaml").exists());
    }
}

/// What no editor makes.
#[test]
fn files_that_are_no_configuration_are_refused_in_a_sentence() {
    let machine = Machine::new();
    let bomb = (1..10).fold("a: &a0 [x,x,x,x,x,x,x,x,x]\n".to_owned(), |text, level| {
        let before = level - 1;
        text + &format!("b{level}: &a{level} [{}]\n", vec![format!("*a{before}"); 9].join(","))
    });
    for (what, content, said) in [
        ("not text", vec![0xff, 0xfe, 0x00, 0x01], "reading D/config.yaml: it is not text in UTF-8"),
        ("too large", vec![b'#'; (1 << 20) + 1], "reading D/config.yaml: it is larger than 1 MiB"),
        ("twice the same", b"debug: true\ndebug: false\n".to_vec(), "D/config.yaml is not YAML: "),
        ("deep", "[".repeat(100_000).into_bytes(), "D/config.yaml"),
        ("a bomb", bomb.into_bytes(), "D/config.yaml"),
        ("a device's name", b"\0\0\0\0".to_vec(), "D/config.yaml"),
        ("a tag", b"debug: !!binary AAAA\n".to_vec(), "D/config.yaml"),
        ("a list of lists", b"tls-san: [[a]]\n".to_vec(), "D/config.yaml: tls-san must be"),
    ] {
        std::fs::write(machine.path("config.yaml"), content).unwrap();
        let outcome = machine.run_server(&[]);
        assert_eq!(outcome.code, Some(2), "{what}: {}", outcome.last);
        assert!(outcome.last.contains(said), "{what}: {}", outcome.last);
        assert!(outcome.last.len() < 600, "{what}: {}", outcome.last);
        assert!(!machine.path("data").exists(), "{what}");
    }
    machine.write("config.yaml", "");
    let outcome = machine.run_server(&["--token-file", "/dev/zero"]);
    assert_eq!((outcome.code, outcome.last.as_str()), (Some(2), "rkube: reading /dev/zero: it is larger than 1 MiB"));
    let good =
        "apiVersion: v1\nkind: Config\ncurrent-context: a\ncontexts: [{name: a, context: {cluster: a, user: a}}]\n";
    for (content, said) in [
        ("\u{0}", "it is not YAML"),
        ("current-context: a\n", "it has no context \"a\""),
        (good, "it has no cluster \"a\""),
        (
            &format!(
                "{good}clusters: [{{name: a, cluster: {{server: 'http://x'}}}}]\nusers: [{{name: a, user: {{}}}}]\n"
            ),
            "is not an https:// URL",
        ),
        (
            &format!(
                "{good}clusters: [{{name: a, cluster: {{server: 'https://x', certificate-authority-data: '!'}}}}]\nusers: [{{name: a, user: {{}}}}]\n"
            ),
            "its certificate-authority-data is not base64 of text",
        ),
        (
            &format!(
                "{good}clusters: [{{name: a, cluster: {{server: 'https://x', certificate-authority-data: eA==}}}}]\nusers: [{{name: a, user: {{client-certificate-data: eA==}}}}]\n"
            ),
            "a client certificate or a client key, but not both",
        ),
        (
            &format!(
                "{good}clusters: [{{name: a, cluster: {{server: 'https://x', certificate-authority-data: eA==}}}}]\nusers: [{{name: a, user: {{token: t}}}}]\n"
            ),
            "is not a usable certificate",
        ),
    ] {
        machine.write("k.yaml", content);
        let path = machine.path("k.yaml").display().to_string();
        let outcome = machine.run(&["token", "list", "--kubeconfig", &path]);
        assert!(outcome.code == Some(1) && outcome.last.contains(said), "{said}: {}", outcome.last);
    }
}
