//! Workers that cannot join, and are told why before anything of a node runs.

use crate::process::{Machine, free_port};

fn agent(machine: &Machine, join: &str, token: &str) -> (Option<i32>, String) {
    let data = machine.path("agent").display().to_string();
    let config = machine.path("config.yaml").display().to_string();
    machine.write("join-token", token);
    let token = machine.path("join-token").display().to_string();
    let outcome = machine.run(&[
        "agent",
        "--join",
        join,
        "--token-file",
        &token,
        "--data-dir",
        &data,
        "--config",
        &config,
        "--node-name",
        "w1",
        "--lb-server-port",
        &free_port(),
        "--network-backend",
        "none",
        "--container-runtime-endpoint",
        "unix:///nowhere/containerd.sock",
    ]);
    (outcome.code, outcome.last.replace(&join.replace(&machine.port.to_string(), "PORT"), "URL"))
}

#[test]
fn a_wrong_server_token_or_authority_is_reported_as_that() {
    let machine = Machine::new();
    let _server = machine.start(&[]);
    let url = format!("https://127.0.0.1:{}", machine.port);
    let good = machine.token();
    let (hash, _) = good.split_once("::").unwrap();

    let other = format!("K10{}::node:sesame", "0".repeat(64));
    assert_eq!(
        agent(&machine, &url, &other),
        (
            Some(1),
            "rkube: the authority of the server at URL is not the one in the token: wrong server, wrong token, or an attack"
                .to_owned()
        )
    );
    let (code, text) = agent(&machine, &url, &format!("{hash}::node:sesame"));
    let refused =
        "rkube: the cluster refused the token: it is wrong, or it has expired; `rkube token create` makes a new one";
    assert!(code == Some(1) && text.starts_with(refused) && !text.contains("sesame"), "{text}");
    let (_, text) = agent(&machine, &url, &format!("{hash}::abcdef.0123456789abcdef"));
    assert!(text.starts_with(refused), "{text}");
    // A token without the authority's hash knows the server by a signature, and this server knows no such token.
    let (code, text) = agent(&machine, &url, "abcdef.0123456789abcdef");
    assert!(code == Some(1) && text.starts_with("rkube: the server at URL does not know the token abcdef: "), "{text}");
    assert!(!text.contains("0123456789abcdef"), "{text}");

    let (code, text) = agent(&machine, "https://127.0.0.1:1", &good);
    assert!(
        code == Some(1)
            && text.starts_with(
                "rkube: asking URL for the cluster's authority: is the server running, and is this its address?"
            ),
        "{text}"
    );
    let (code, text) = agent(&machine, "http://127.0.0.1:1", &good);
    assert_eq!((code, text.as_str()), (Some(2), "rkube: join must be an https:// URL, not \"URL\""));
    let (code, text) = agent(&machine, &url, "two words");
    assert!(code == Some(1) && text.starts_with("rkube: the token is malformed: "), "{text}");
    // Nobody joined.
    assert!(!machine.path("agent/agent/client-kubelet.crt").exists());
}

#[test]
fn a_bare_bootstrap_token_verifies_the_server_by_its_signature() {
    let machine = Machine::new();
    let mut server = machine.start(&[]);
    let url = format!("https://127.0.0.1:{}", machine.port);
    let kubeconfig = machine.path("admin.yaml").display().to_string();
    let made = machine.run(&["token", "create", "--kubeconfig", &kubeconfig]).stdout;
    let bare = made.trim().split_once("::").unwrap().1.to_owned();
    // It gets as far as its certificate; then the runtime is missing, and that is waited for. The server says so.
    let agent = {
        let machine_data = machine.path("agent").display().to_string();
        let config = machine.path("config.yaml").display().to_string();
        machine.write("join-token", &bare);
        let token = machine.path("join-token").display().to_string();
        std::process::Command::new(env!("CARGO_BIN_EXE_rkube"))
            .args(["agent", "--join", &url, "--token-file", &token, "--data-dir", &machine_data, "--config", &config])
            .args(["--node-name", "w1", "--network-backend", "none", "--lb-server-port", &free_port()])
            .args(["--container-runtime-endpoint", "no-socket"])
            .env_clear()
            .output()
            .unwrap()
    };
    server.wait_for("Signed certificate");
    let said = String::from_utf8_lossy(&agent.stderr);
    assert!(said.contains("Joined the cluster"), "{said}");
    assert!(!said.contains("believed"), "{said}");
    assert_eq!(agent.status.code(), Some(1));
    assert!(
        said.lines().last().unwrap_or_default().starts_with("rkube: --container-runtime-endpoint no-socket"),
        "{said}"
    );
    assert!(machine.path("agent/agent/client-kubelet.crt").exists());
}
