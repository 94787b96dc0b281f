//! kubectl, where it is installed, on an object of every kind. `RKUBE_KUBECTL` names another one than that on the path.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use expect_test::expect_file;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use crate::requests::send;
use crate::server::Server;

/// For one command on some sixty objects, on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(120);

const OBJECTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/objects.yaml");

/// A server, and kubectl set up for it.
struct Walk {
    server: Server,
    folder: tempfile::TempDir,
}

struct Output {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Walk {
    /// Needs kubectl in `PATH` or in `RKUBE_KUBECTL`.
    async fn begin() -> Self {
        let server = Server::start().await;
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("kubeconfig"), server.kubeconfig()).unwrap();
        let walk = Self { server, folder };
        let found = walk.command(&["version", "--client"]).output().await;
        found.expect("these tests need kubectl: `hack/install-deps test`");
        // The test's server has no controllers, and no bootstrap that would make these.
        walk.ok(&["create", "namespace", "default"]).await;
        walk
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let program = std::env::var("RKUBE_KUBECTL").unwrap_or_else(|_| "kubectl".to_owned());
        let mut command = Command::new(program);
        let path = |name: &str| self.folder.path().join(name);
        command.args(arguments).env("KUBECONFIG", path("kubeconfig")).env("KUBECACHEDIR", path("cache"));
        command.env("KUBERC", "off").env("TMPDIR", self.folder.path()).kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    async fn run_with(&self, arguments: &[&str], environment: &[(&str, &Path)]) -> Output {
        let mut command = self.command(arguments);
        command.envs(environment.iter().copied());
        let ended = tokio::time::timeout(PATIENCE, command.output()).await;
        let output = ended.unwrap_or_else(|_| panic!("kubectl {arguments:?} does not end")).unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Output { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) }
    }

    async fn run(&self, arguments: &[&str]) -> Output {
        self.run_with(arguments, &[]).await
    }

    /// The output of a command that succeeds.
    async fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments).await;
        assert_eq!(output.code, Some(0), "kubectl {arguments:?}\n{}\n{}", output.out, output.err);
        output.out
    }

    /// Runs a command on all objects; each line of its output ends with one of `endings`.
    async fn on_all(&self, arguments: &[&str], endings: &[&str]) {
        let out = self.ok(&[arguments, &["-f", OBJECTS]].concat()).await;
        let other: Vec<&str> = out.lines().filter(|line| !endings.iter().any(|end| line.ends_with(end))).collect();
        assert_eq!(other, Vec::<&str>::new(), "kubectl {arguments:?}");
        assert!(out.lines().count() > 50, "kubectl {arguments:?}\n{out}");
    }

    async fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.ok(&[arguments, &["-o", "json"]].concat()).await).unwrap()
    }

    async fn resource_versions(&self) -> Vec<Value> {
        let list = self.json(&["get", "-f", OBJECTS]).await;
        list["items"].as_array().unwrap().iter().map(|item| item["metadata"]["resourceVersion"].clone()).collect()
    }
}

/// Tables without what differs from run to run: widths, ages, dates.
fn normal(text: &str) -> String {
    let mut out = String::new();
    for line in text.lines() {
        let cell = |cell: &str| {
            let is_age = cell.strip_suffix('s').is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
            let is_old = cell.strip_suffix('d').is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
            let is_date = cell.starts_with("20") && cell.ends_with('Z');
            let cell = if is_age || is_old { "AGE" } else { cell };
            if is_date { "DATE".to_owned() } else { cell.to_owned() }
        };
        // A job's selector has its uid in it.
        let cells: Vec<String> = line
            .split_whitespace()
            .map(cell)
            .map(|cell| cell.split("-uid=").next().unwrap_or_default().to_owned())
            .collect();
        // Newer versions of kubectl say where.
        out.push_str(cells.join(" ").strip_suffix(" from default namespace").unwrap_or(&cells.join(" ")));
        out.push('\n');
    }
    out
}

#[test]
fn every_kind_has_an_object() {
    let text = std::fs::read_to_string(OBJECTS).unwrap();
    let field = |document: &str, name: &str| {
        document.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().to_owned()
    };
    let found: Vec<(String, String)> =
        text.split("\n---\n").map(|document| (field(document, "apiVersion: "), field(document, "kind: "))).collect();
    for row in rkube_api::resources().iter().filter(|row| row.has_verb("create") && row.has_verb("delete")) {
        let wanted = (row.gvk().api_version(), row.kind.to_string());
        assert!(found.contains(&wanted), "{wanted:?} is not in {OBJECTS}");
    }
}

#[tokio::test]
async fn every_kind_is_read_and_written() {
    let walk = Walk::begin().await;
    walk.on_all(&["create"], &[" created"]).await;
    let wide = walk.ok(&["get", "-o", "wide", "-f", OBJECTS]).await;
    expect_file!["../data/wide.txt"].assert_eq(&normal(&wide));
    let items = walk.json(&["get", "-f", OBJECTS]).await["items"].as_array().unwrap().len();
    for format in ["yaml", "name", "custom-columns=KIND:.kind,NAME:.metadata.name"] {
        assert!(walk.ok(&["get", "-o", format, "-f", OBJECTS]).await.lines().count() >= items, "{format}");
    }
    let described = walk.run(&["describe", "-f", OBJECTS]).await;
    // An old kubectl asks for beta versions of some kinds.
    let missed = described.err.matches("the server could not find the requested resource").count();
    assert!(described.out.matches("Name:  ").count() >= items - missed, "{}", described.out);
    assert!(missed <= 3 && (described.code == Some(0)) == (missed == 0), "{}", described.err);

    assert_eq!(walk.ok(&["diff", "-f", OBJECTS]).await, "");
    walk.on_all(&["apply"], &[" configured"]).await;
    let before = walk.resource_versions().await;
    // kubectl cannot tell that defaults within lists it must replace are no difference; the server can.
    walk.on_all(&["apply"], &[" unchanged", " configured"]).await;
    assert_eq!(walk.resource_versions().await, before);

    walk.on_all(&["label", "step=1"], &[" labeled"]).await;
    let refused = walk.run(&["label", "step=2", "-f", OBJECTS]).await;
    assert_eq!((refused.code, refused.err.matches("already has a value (1)").count()), (Some(1), items));
    walk.on_all(&["label", "step=2", "--overwrite"], &[" labeled"]).await;
    walk.on_all(&["annotate", "note=1"], &[" annotated"]).await;
    walk.on_all(&["annotate", "note-"], &[" annotated"]).await;
    walk.on_all(&["patch", "--type=merge", "-p", r#"{"metadata":{"labels":{"step":"3"}}}"#], &[" patched"]).await;
    walk.on_all(&["patch", "--type=strategic", "-p", r#"{"metadata":{"labels":{"step":"4"}}}"#], &[" patched"]).await;
    let json =
        r#"[{"op":"test","path":"/metadata/labels/step","value":"4"},{"op":"remove","path":"/metadata/labels/step"}]"#;
    walk.on_all(&["patch", "--type=json", "-p", json], &[" patched"]).await;

    let editor = walk.folder.path().join("editor");
    std::fs::write(&editor, "#!/bin/sh\nsed -i 's/^    name: /    labels: {edited: \"yes\"}\\n    name: /' \"$1\"\n")
        .unwrap();
    std::fs::set_permissions(&editor, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let only = ["edit", "configmap/walk", "deployment/walk", "node/walk"];
    let edited = walk.run_with(&only, &[("KUBE_EDITOR", &editor)]).await;
    assert_eq!((edited.code, edited.out.matches(" edited").count()), (Some(0), 3), "{}{}", edited.out, edited.err);

    let replaced = walk.run(&["replace", "-f", OBJECTS]).await;
    // The selector the server chose for a job cannot be taken back.
    assert_eq!(replaced.out.lines().count(), items - 1, "{}", replaced.err);
    assert!(
        replaced.err.contains("The Job \"walk\" is invalid: \n* spec.selector: Required value"),
        "{}",
        replaced.err
    );

    // kubectl 1.33 and newer say from which namespace.
    let endings = [" deleted", " force deleted", " deleted from default namespace"];
    walk.on_all(&["delete", "--wait=false"], &endings).await;
    let gone = walk.run(&["get", "-f", OBJECTS]).await;
    // No controller ends the namespace here.
    assert_eq!(gone.err.matches("Error from server (NotFound)").count(), items - 1, "{}", gone.err);
    walk.server.stop().await;
}

#[tokio::test]
async fn every_kind_is_applied_by_the_server() {
    let walk = Walk::begin().await;
    walk.on_all(&["apply", "--server-side"], &[" serverside-applied"]).await;
    let before = walk.resource_versions().await;
    walk.on_all(&["apply", "--server-side"], &[" serverside-applied"]).await;
    assert_eq!(walk.resource_versions().await, before);
    assert_eq!(walk.ok(&["diff", "--server-side", "-f", OBJECTS]).await, "");
    let other = ["apply", "--server-side", "--field-manager=other", "-f", "-"];
    let mut command = walk.command(&other);
    let file = walk.folder.path().join("map.yaml");
    std::fs::write(&file, r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"walk"},"data":{"key":"x"}}"#)
        .unwrap();
    let conflict = command.stdin(std::fs::File::open(&file).unwrap()).output().await.unwrap();
    let text = String::from_utf8_lossy(&conflict.stderr).into_owned();
    assert!(text.starts_with("error: Apply failed with 1 conflict: conflict with \"kubectl\": .data.key\n"), "{text}");
    walk.ok(&["delete", "-f", OBJECTS, "--wait=false"]).await;
    walk.server.stop().await;
}

#[tokio::test]
async fn the_commands_of_workloads_work() {
    let walk = Walk::begin().await;
    walk.ok(&["create", "deployment", "web", "--image=example.org/web:1", "--replicas=2"]).await;
    let mut text = String::new();
    for arguments in [
        &["scale", "deployment/web", "--replicas=3"][..],
        &["scale", "deployment/web", "--replicas=4", "--current-replicas=3"],
        &["autoscale", "deployment/web", "--min=1", "--max=5"],
        &["set", "image", "deployment/web", "web=example.org/web:2"],
        &["set", "resources", "deployment/web", "--requests=cpu=10m"],
        &["set", "env", "deployment/web", "A=b"],
        &["rollout", "pause", "deployment/web"],
        &["rollout", "resume", "deployment/web"],
        &["rollout", "history", "deployment/web"],
        &["expose", "deployment/web", "--port=80"],
        &["wait", "--for=jsonpath={.spec.replicas}=4", "deployment/web"],
        &["get", "deployment/web", "-o", "jsonpath={.spec.template.spec.containers[0]}{\"\\n\"}"],
        &["get", "hpa/web", "-o", "jsonpath={.spec}{\"\\n\"}"],
        &["run", "one", "--image=example.org/one:1"],
        &["get", "pods", "--field-selector=status.phase=Pending", "-l", "run=one", "-o", "name"],
        &["delete", "deployment/web", "--cascade=orphan", "--wait=false"],
        &["delete", "hpa/web", "--cascade=foreground", "--wait=false"],
        &["get", "deployment/web", "hpa/web", "-o", "jsonpath={.items[*].metadata.finalizers}{\"\\n\"}"],
        &["delete", "service/web", "--cascade=background"],
        &["delete", "pod/one", "--force"],
        &["wait", "--for=delete", "pod/one"],
        &["create", "job", "j", "--image=example.org/j:1"],
        &["create", "quota", "q", "--hard=pods=1"],
        &["create", "role", "r", "--verb=get", "--resource=pods"],
        &["create", "rolebinding", "r", "--role=r", "--user=u"],
        &["create", "ingress", "i", "--rule=a.example/=s:80"],
        &["create", "priorityclass", "p", "--value=1"],
        &["create", "pdb", "d", "--selector=a=b", "--min-available=1"],
        &["get", "all"],
        &["auth", "can-i", "get", "pods"],
        &["explain", "deployment.spec.replicas"],
    ] {
        text.push_str(&format!("$ kubectl {}\n{}", arguments.join(" "), normal(&walk.ok(arguments).await)));
    }
    expect_file!["../data/commands.txt"].assert_eq(&text);
    let refused = walk.run(&["scale", "deployment/none", "--replicas=3"]).await;
    assert!(refused.err.contains("deployments.apps \"none\" not found"), "{}", refused.err);
    walk.server.stop().await;
}

#[tokio::test]
async fn a_watching_get_shows_what_happens() {
    let walk = Walk::begin().await;
    let mut child = walk.command(&["get", "configmaps", "-w", "--output-watch-events"]).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    walk.ok(&["create", "configmap", "a"]).await;
    walk.ok(&["label", "configmap/a", "x=y"]).await;
    walk.ok(&["delete", "configmap/a"]).await;
    let mut seen = String::new();
    while !seen.contains("DELETED") {
        let line = tokio::time::timeout(PATIENCE, lines.next_line()).await.expect("an event").unwrap();
        seen.push_str(&normal(&line.expect("the watch goes on")));
    }
    // The first line shows how far kubectl was when the map came.
    assert!(seen.starts_with("EVENT NAME DATA AGE\nADDED a 0 AGE\n"), "{seen}");
    assert!(seen.ends_with("DELETED a 0 AGE\n"), "{seen}");
    child.kill().await.unwrap();
    walk.server.stop().await;
}

#[tokio::test]
async fn every_kind_is_explained() {
    let walk = Walk::begin().await;
    // The raw documents are what explain reads: every kind has one, and what it refers to is in it.
    let client = walk.server.client();
    let index = send(&client, http::Method::GET, "/openapi/v3", &[], "").await.json();
    assert!(index["paths"].as_object().unwrap().len() > 20, "{index}");
    for row in rkube_api::resources().iter().filter(|row| row.has_verb("list")) {
        let version = format!("--api-version={}", row.gvk().api_version());
        let out = walk.ok(&["explain", "--recursive", &row.plural, &version]).await;
        assert!(out.contains("\nDESCRIPTION:\n") && !out.contains("<empty>"), "{out}");
    }
    walk.server.stop().await;
}
