//! Two servers on one etcd: the second has everything from the first but the token.
//!
//! Needs the program `etcd`, in `PATH` or named by `RKUBE_TEST_ETCD`. Without it these tests fail.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use http::Method;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::caller::Caller;
use crate::process::{Machine, free_port};

struct Etcd {
    process: Child,
    url: String,
    _folder: TempDir,
}

impl Etcd {
    /// Starts it and waits until it says that it serves.
    fn start() -> Self {
        let named = std::env::var_os("RKUBE_TEST_ETCD").map_or_else(|| PathBuf::from("etcd"), PathBuf::from);
        let folder = tempfile::tempdir().unwrap();
        let url = format!("http://127.0.0.1:{}", free_port());
        let peer = format!("http://127.0.0.1:{}", free_port());
        let mut process = Command::new(named)
            .args(["--data-dir", &folder.path().display().to_string(), "--name", "one", "--unsafe-no-fsync"])
            .args(["--listen-client-urls", &url, "--advertise-client-urls", &url])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("one={peer}")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("these tests need etcd in PATH or in RKUBE_TEST_ETCD: `hack/install-deps test`");
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let is_up = lines.by_ref().map_while(Result::ok).any(|line| line.contains("ready to serve client requests"));
        assert!(is_up, "etcd ended");
        // Read on: a full pipe would stop it.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        Self { process, url, _folder: folder }
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn the_second_server_needs_the_token_and_nothing_else() {
    let etcd = Etcd::start();
    let (first, second) = (Machine::new(), Machine::new());
    let datastore = ["--datastore-endpoint", etcd.url.as_str()];
    let one = first.start(&datastore);
    let token = first.token();
    assert!(token.contains("::server:"), "the first made a token of its own");

    let refused = second.run_server(&datastore);
    assert_eq!(
        (refused.code, refused.last.as_str()),
        (
            Some(1),
            "rkube: the datastore holds a cluster already: give this server the token of another one with --token-file"
        )
    );
    second.write("wrong", "sesame");
    let wrong = second.path("wrong").display().to_string();
    let refused = second.run_server(&[&datastore[..], &["--token-file", &wrong]].concat());
    assert!(
        refused.last.starts_with("rkube: the token is not that of the cluster in the datastore"),
        "{}",
        refused.last
    );
    second.write("token", &token);
    let file = second.path("token").display().to_string();
    let with_token = [&datastore[..], &["--token-file", &file]].concat();
    let other = second.run_server(&[&with_token[..], &["--cluster-domain", "other.local"]].concat());
    assert_eq!(
        other.last,
        "rkube: cluster-domain is other.local here and cluster.local on the cluster's other servers: they must agree"
    );
    assert!(!second.path("data/server/tls").exists(), "nothing was made in vain");

    let two = second.start(&with_token);
    for name in ["ca.crt", "ca.key", "front-proxy-ca.crt", "etcd/ca.key", "sa.key", "sa.pub"] {
        let read = |machine: &Machine| std::fs::read(machine.path(&format!("data/server/tls/{name}"))).unwrap();
        assert_eq!(read(&first), read(&second), "{name}");
    }
    assert_eq!(first.token(), second.token());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let (at_first, at_second) = (Caller::admin(&first), Caller::admin(&second));
        let maps = "/api/v1/namespaces/default/configmaps";
        let made = at_first.ask(Method::POST, maps, &json!({ "metadata": { "name": "a" } })).await;
        assert_eq!(made.code, 201, "{}", made.text);
        assert_eq!(at_second.ask(Method::GET, &format!("{maps}/a"), &Value::Null).await.code, 200);
        // What one signs the other knows.
        let account = "/api/v1/namespaces/kube-system/serviceaccounts/default/token";
        let signed: Value = serde_json::from_str(&at_first.ask(Method::POST, account, &json!({})).await.text).unwrap();
        let signed = signed["status"]["token"].as_str().unwrap();
        let secret = token.rsplit(':').next().unwrap();
        for token in [signed, secret] {
            assert_eq!(Caller::stranger(&second).code_with(token, "/api").await, 200);
        }
    });
    // Each starts again by itself, from what it has.
    assert_eq!((one.stop(), two.stop()), (Some(0), Some(0)));
    let before = second.contents("");
    let two = second.start(&datastore);
    assert_eq!(second.contents(""), before);
    assert_eq!(two.stop(), Some(0));
}
