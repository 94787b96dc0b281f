//! What an administrator does, against a server.

use crate::process::{Machine, relative};

#[test]
fn a_second_start_changes_no_file_and_a_stop_is_clean() {
    let machine = Machine::new();
    assert_eq!(machine.start(&[]).stop(), Some(0));
    let first = machine.contents("");
    assert_eq!(machine.start(&[]).stop(), Some(0));
    let second = machine.contents("");
    let changed: Vec<_> = second.keys().filter(|path| first.get(*path) != second.get(*path)).collect();
    assert!(changed.is_empty() && first.len() == second.len(), "{changed:?}");
    for (path, (content, mode)) in &first {
        let name = relative(path, machine.folder.path());
        let text = String::from_utf8_lossy(content);
        let is_secret =
            text.contains("PRIVATE KEY") || text.contains("client-key-data") || name.ends_with("server/token");
        assert!(!is_secret || *mode == 0o600, "{name}: {mode:o}");
    }
}

#[test]
fn a_server_goes_on_without_controllers() {
    let machine = Machine::new();
    let server = machine.start(&["--kube-controller-manager-arg", "controllers=-*"]);
    let kubeconfig = machine.path("admin.yaml").display().to_string();
    assert_eq!(machine.run(&["token", "create", "--kubeconfig", &kubeconfig]).code, Some(0));
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn tokens_are_made_listed_and_deleted() {
    let machine = Machine::new();
    let _server = machine.start(&[]);
    let token = |arguments: &[&str]| {
        let all: Vec<&str> = ["token"].into_iter().chain(arguments.iter().copied()).collect();
        let kubeconfig = machine.path("admin.yaml").display().to_string();
        let outcome = machine.run(&[&all[..], &["--kubeconfig", &kubeconfig]].concat());
        (outcome.code, outcome.stdout, outcome.last)
    };
    let (code, made, _) =
        token(&["create", "--ttl", "15m", "--description", "edge", "--groups", "system:bootstrappers:edge"]);
    assert_eq!(code, Some(0));
    let (hash, rest) = made.trim().split_once("::").unwrap();
    assert!(hash.len() == 67 && machine.token().starts_with(hash), "{made}");
    let (id, secret) = rest.split_once('.').unwrap();

    let (_, join, _) = token(&["create", "--print-join-command"]);
    assert!(
        join.starts_with(&format!("rkube agent --join https://127.0.0.1:{} --token {hash}::", machine.port)),
        "{join}"
    );

    let (_, listed, _) = token(&["list"]);
    let row = listed.lines().find(|line| line.starts_with(id)).unwrap().to_owned();
    assert!(row.contains("14m") && row.contains("edge") && row.ends_with("system:bootstrappers:edge"), "{row}");
    assert!(!listed.contains(secret));
    let (_, json, _) = token(&["list", "-o", "json"]);
    assert!(json.contains("\"authentication\"") && !json.contains(secret));

    assert_eq!(token(&["delete", id]), (Some(0), format!("bootstrap token {id:?} deleted\n"), String::new()));
    assert_eq!(token(&["delete", id]), (Some(1), String::new(), format!("rkube: there is no bootstrap token {id}")));
}

#[test]
fn certificates_are_checked_rotated_and_users_get_kubeconfigs() {
    let machine = Machine::new();
    let mut server = machine.start(&[]);
    let data = machine.path("data").display().to_string();
    let config = machine.path("config.yaml").display().to_string();
    let checked = machine.run(&["certificate", "check", "--data-dir", &data, "--config", &config]);
    assert_eq!(checked.code, Some(0));
    assert!(
        checked.stdout.lines().all(|line| line.ends_with("ok") || line.starts_with("CERTIFICATE")),
        "{}",
        checked.stdout
    );

    let before = machine.contents("");
    let rotated =
        machine.run(&["certificate", "rotate", "apiserver", "client-admin", "--data-dir", &data, "--config", &config]);
    assert_eq!(rotated.stdout, "apiserver renewed\nclient-admin renewed\n");
    // The server that runs shows the new one, and the administrator's kubeconfig has the new client certificate.
    server.wait_for("Took up a new certificate certificate=\"apiserver\"");
    let kubeconfig = machine.path("admin.yaml").display().to_string();
    assert_eq!(machine.run(&["token", "list", "--kubeconfig", &kubeconfig]).code, Some(0));
    let after = machine.contents("");
    let untouched = |name: &str| before[&machine.path(name)] == after[&machine.path(name)];
    assert!(untouched("data/server/tls/ca.crt") && untouched("data/server/tls/client-scheduler.crt"));
    assert!(!untouched("data/server/tls/apiserver.crt"));

    let jane = machine.path("jane.yaml").display().to_string();
    let create = ["kubeconfig", "create", "--user", "jane", "--group", "devs", "--ttl", "8h", "--data-dir", &data];
    let create = [&create[..], &["--write-kubeconfig", &kubeconfig, "--config", &config, "--output", &jane]].concat();
    assert_eq!(machine.run(&create).code, Some(0));
    assert_eq!(machine.contents("")[&machine.path("jane.yaml")].1, 0o600);
    // Known, and allowed nothing.
    let refused = machine.run(&["token", "list", "--kubeconfig", &jane]);
    assert_eq!(refused.code, Some(1));
    assert!(refused.last.contains("User \"jane\" cannot list resource \"secrets\""), "{}", refused.last);
    // What is there is not written over.
    assert_eq!(machine.run(&create).last, "rkube: writing D/jane.yaml: File exists (os error 17)");
}

#[test]
fn log_levels_change_while_it_runs() {
    let machine = Machine::new();
    let mut server = machine.start(&[]);
    machine.write("config.yaml", "log-level: [storage=debug]\n");
    server.signal("HUP");
    server.wait_for("Set the log levels");
    machine.write("config.yaml", "log-level: [everything]\n");
    server.signal("HUP");
    server.wait_for("The log levels stay as they are");
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn help_teaches_and_completion_is_printed() {
    let machine = Machine::new();
    for command in [
        &["--help"][..],
        &["server", "--help"],
        &["agent", "--help"],
        &["token", "create", "--help"],
        &["certificate", "rotate", "--help"],
        &["kubeconfig", "create", "--help"],
        &["check-config", "--help"],
        &["uninstall", "network", "--help"],
        &["completion", "--help"],
    ] {
        let help = machine.run(command);
        assert_eq!(help.code, Some(0));
        assert!(help.stdout.contains("Examples:") || help.stdout.contains("First steps:"), "{command:?}");
    }
    for shell in ["bash", "zsh", "fish"] {
        assert!(machine.run(&["completion", shell]).stdout.contains("check-config"), "{shell}");
    }
    let version = machine.run(&["version", "-o", "json"]).stdout;
    assert!(version.contains("\"kubernetesVersion\": \"v1.36."), "{version}");
}
