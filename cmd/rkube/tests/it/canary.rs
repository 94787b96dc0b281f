//! Secrets that sing when they get out: they must be in no log at any level, no metric, no error, and nowhere another
//! process may look, also when something fails.

use std::collections::BTreeSet;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use serde_json::{Value, json};

use crate::caller::{Answer, Caller};
use crate::process::{Machine, free_port};

const SERVER_TOKEN: &str = "canary-server-token-41a7";
const AGENT_TOKEN: &str = "canary-agent-token-93b2";
const WRONG_TOKEN: &str = "canary-wrong-token-c05d";
const DATA: &str = "canary-of-a-secret-7e31";
const BOOTSTRAP_SECRET: &str = "canarybootstrap7";
const PASSWORD: &str = "canary-password-6d2f";

/// What is looked for, by what it is.
#[derive(Default)]
struct Canaries(Vec<(String, String)>);

impl Canaries {
    fn add(&mut self, what: &str, text: &str) {
        assert!(text.len() >= 12, "{what} is too short to be looked for");
        self.0.push((what.to_owned(), text.to_owned()));
        self.0.push((format!("{what} in base64"), STANDARD.encode(text)));
    }

    /// The base64 of a key's middle, which a log line or a dump would show.
    fn add_key(&mut self, path: &Path) {
        let text = std::fs::read_to_string(path).unwrap();
        let line = text.lines().nth(2).unwrap();
        self.0.push((path.display().to_string(), line.to_owned()));
    }

    #[track_caller]
    fn assert_absent(&self, place: &str, text: &str) {
        for (what, canary) in &self.0 {
            if let Some(at) = text.find(canary) {
                let from = text[..at].rfind('\n').map_or(0, |end| end + 1);
                let line = text[from..].lines().next().unwrap_or_default();
                panic!("{what} is in {place}: {line}");
            }
        }
    }
}

/// Command line and environment of a process and of all its descendants.
fn visible(pid: u32) -> String {
    let mut text = String::new();
    let mut seen = BTreeSet::new();
    let mut left = vec![pid];
    while let Some(pid) = left.pop() {
        let Ok(arguments) = std::fs::read(format!("/proc/{pid}/cmdline")) else { continue };
        text.push_str(&format!("{}\n", String::from_utf8_lossy(&arguments)));
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        text.push_str(&format!("{}\n", String::from_utf8_lossy(&environment)));
        for thread in std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let children = std::fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            left.extend(
                children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()).filter(|pid| seen.insert(*pid)),
            );
        }
    }
    text
}

const SECRETS: &str = "/api/v1/namespaces/default/secrets";

/// Everything that touches a secret, rightly and wrongly. Returns what was refused.
async fn touch(admin: &Caller, stranger: &Caller) -> Vec<Answer> {
    let secret = |name: &str, data: Value| json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": name }, "stringData": data });
    let mut refused = Vec::new();
    let good = secret("good", json!({ "key": DATA }));
    for (method, path, body, code) in [
        (Method::POST, SECRETS.to_owned(), good.clone(), 201),
        (Method::POST, SECRETS.to_owned(), good.clone(), 409),
        (Method::GET, format!("{SECRETS}/good"), Value::Null, 200),
        (Method::GET, format!("{SECRETS}?watch=true&timeoutSeconds=1"), Value::Null, 200),
        (Method::PUT, format!("{SECRETS}/good"), secret("other", json!({ "key": DATA })), 400),
        (Method::PATCH, format!("{SECRETS}/good"), json!({ "type": "other", "stringData": { "key": DATA } }), 422),
        (Method::PATCH, format!("{SECRETS}/good"), json!({ "data": { "key": format!("!{DATA}") } }), 422),
        (Method::PATCH, format!("{SECRETS}/good"), json!({ "immutable": true, "stringData": { "key": DATA } }), 200),
        (Method::PATCH, format!("{SECRETS}/good"), json!({ "stringData": { "key": format!("{DATA}-changed") } }), 422),
        (Method::POST, SECRETS.to_owned(), secret("bad name", json!({ "key": DATA })), 422),
        (Method::POST, SECRETS.to_owned(), secret("big", json!({ "key": DATA.repeat(60_000) })), 422),
        (Method::POST, SECRETS.to_owned(), secret("huge", json!({ "key": DATA.repeat(200_000) })), 413),
        (Method::POST, "/api/v1/namespaces/default/configmaps".to_owned(), json!({ "data": DATA }), 400),
    ] {
        let answer = admin.ask(method.clone(), &path, &body).await;
        assert_eq!(answer.code, code, "{method} {path}: {:.300}", answer.text);
        if code >= 400 {
            refused.push(answer);
        }
    }
    for (kind, body) in [
        ("application/json", format!("{{\"kind\": \"{DATA}")),
        ("application/yaml", format!("a: [{DATA}")),
        ("application/vnd.kubernetes.protobuf", format!("k8s\0{DATA}")),
        ("text/plain", DATA.to_owned()),
    ] {
        let answer = admin.send(Method::POST, SECRETS, &[("content-type", kind)], body.into_bytes()).await;
        assert!(matches!(answer.code, 400 | 415), "{kind}: {answer:?}");
        refused.push(answer);
    }
    let review =
        json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": { "token": WRONG_TOKEN } });
    let answer = admin.ask(Method::POST, "/apis/authentication.k8s.io/v1/tokenreviews", &review).await;
    assert_eq!(answer.code, 201);
    for token in [WRONG_TOKEN.to_owned(), format!("a.{WRONG_TOKEN}.b"), format!("canary.{BOOTSTRAP_SECRET}")] {
        assert_eq!(stranger.code_with(&token, SECRETS).await, 401);
    }
    let basic = STANDARD.encode(format!("root:{PASSWORD}"));
    let headers = [("authorization", format!("Basic {basic}")), ("cookie", format!("token={WRONG_TOKEN}"))];
    let headers = headers.each_ref().map(|(name, value)| (*name, value.as_str()));
    refused.push(stranger.send(Method::GET, SECRETS, &headers, Vec::new()).await);
    refused.push(stranger.ask(Method::POST, SECRETS, &good).await);
    refused
}

#[test]
fn no_secret_gets_out_of_a_server() {
    let machine = Machine::new();
    machine.write("token", SERVER_TOKEN);
    machine.write("config.yaml", &format!("agent-token: {AGENT_TOKEN}\n"));
    let token = machine.path("token").display().to_string();
    let mut server = machine.start(&["--token-file", &token, "--debug", "--log-level", "trace"]);
    let mut canaries = Canaries::default();
    for (what, text) in [
        ("the server's token", SERVER_TOKEN),
        ("the agents' token", AGENT_TOKEN),
        ("a wrong token", WRONG_TOKEN),
        ("a Secret's data", DATA),
        ("a bootstrap token", BOOTSTRAP_SECRET),
        ("a password", PASSWORD),
    ] {
        canaries.add(what, text);
    }
    for path in machine.contents("data/server").keys().filter(|path| path.extension().is_some_and(|kind| kind == "key"))
    {
        canaries.add_key(path);
    }

    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (admin, stranger) = (Caller::admin(&machine), Caller::stranger(&machine));
    let mut shown = runtime.block_on(async {
        let mut refused = touch(&admin, &stranger).await;
        let bootstrap = json!({
            "metadata": { "name": "bootstrap-token-canary" }, "type": "bootstrap.kubernetes.io/token",
            "stringData": { "token-id": "canary", "token-secret": BOOTSTRAP_SECRET, "usage-bootstrap-signing": "true",
                "usage-bootstrap-authentication": "true", "expiration": "2100-01-01T00:00:00Z" } });
        let secrets = "/api/v1/namespaces/kube-system/secrets";
        assert_eq!(admin.ask(Method::POST, secrets, &bootstrap).await.code, 201);
        let account = "/api/v1/namespaces/kube-system/serviceaccounts/default/token";
        let made = admin.ask(Method::POST, account, &json!({})).await;
        let made: Value = serde_json::from_str(&made.text).unwrap();
        let token = made["status"]["token"].as_str().unwrap();
        let signature = token.rsplit('.').next().unwrap();
        assert_eq!(stranger.code_with(token, "/api").await, 200);
        assert_eq!(stranger.code_with(&format!("canary.{BOOTSTRAP_SECRET}"), "/api").await, 200);
        assert_eq!(stranger.code_with(AGENT_TOKEN, "/api").await, 200);
        for path in ["/metrics", "/readyz?verbose", "/api/v1/events", "/version", "/openapi/v2"] {
            let answer = admin.ask(Method::GET, path, &Value::Null).await;
            assert_eq!(answer.code, 200, "{path}");
            refused.push(answer);
        }
        (refused, signature.to_owned())
    });
    canaries.add("a service account's token", &shown.1);

    // A worker that gets in, and workers that do not.
    for (token, code) in [(AGENT_TOKEN, 1), (WRONG_TOKEN, 1), (&*format!("{WRONG_TOKEN} {WRONG_TOKEN}"), 1)] {
        machine.write("join-token", token);
        let (file, folder) =
            (machine.path("join-token").display().to_string(), machine.path("agent").display().to_string());
        let join = format!("https://127.0.0.1:{}", machine.port);
        let config = machine.path("empty.yaml").display().to_string();
        machine.write("empty.yaml", "");
        let outcome = machine.run(&[
            "agent",
            "--join",
            &join,
            "--token-file",
            &file,
            "--data-dir",
            &folder,
            "--config",
            &config,
            "--node-name",
            "w1",
            "--network-backend",
            "none",
            "--container-runtime-endpoint",
            "no-socket",
            "--lb-server-port",
            &free_port(),
            "--debug",
            "--log-level",
            "trace",
        ]);
        assert_eq!(outcome.code, Some(code), "{}", outcome.stderr);
        canaries.assert_absent("a worker's log", &outcome.stderr);
        canaries.assert_absent("a worker's output", &outcome.stdout);
        std::fs::remove_dir_all(machine.path("agent")).unwrap();
    }
    // Settings that are wrong while it runs.
    machine.write("config.yaml", &format!("agent-token: {{a: {AGENT_TOKEN}}}\n"));
    server.signal("HUP");
    server.wait_for("The log levels stay as they are");

    canaries.assert_absent("the processes' arguments and environment", &visible(server.pid()));
    for answer in shown.0.drain(..) {
        canaries.assert_absent("an answer", &answer.text);
    }
    let log = server.stop_and_tell();
    assert!(log.contains("TRACE") || log.contains("DEBUG"), "the log is not as full as it can be");
    canaries.assert_absent("the log", &log);
}

#[test]
fn no_secret_gets_out_of_a_server_that_cannot_start() {
    let machine = Machine::new();
    let mut canaries = Canaries::default();
    canaries.add("a token", SERVER_TOKEN);
    canaries.add("a password", PASSWORD);
    for (config, said) in [
        (format!("token: \"{SERVER_TOKEN} {SERVER_TOKEN}\"\n"), "the token is malformed"),
        (format!("token: [{SERVER_TOKEN}]\n"), "config.yaml: token must be"),
        (format!("token: {SERVER_TOKEN}\ntoken-file: /nowhere\n"), "token and token-file are both set"),
        (format!("datastore-endpoint: https://root:{PASSWORD}@127.0.0.1:1\n"), "holds a user name or password"),
        (format!("datastore-endpoint: mysql://root:{PASSWORD}@tcp(127.0.0.1)/k\n"), "holds a user name or password"),
    ] {
        machine.write("config.yaml", &config);
        let outcome = machine.run_server(&["--debug", "--log-level", "trace"]);
        assert!(outcome.last.contains(said), "{said}: {}", outcome.last);
        canaries.assert_absent("the log", &outcome.stderr);
    }
}
