//! One clear sentence with the remedy, an exit code, and nothing damaged.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use rkube_apimachinery::clock::SystemClock;
use rkube_pki::{CertificateAuthority, Leaf};

use crate::process::Machine;

/// Exit code 1 for what failed, 2 for wrong settings.
#[track_caller]
fn check(machine: &Machine, more: &[&str], code: i32, expected: &str) {
    let before = machine.contents("");
    let outcome = machine.run_server(more);
    assert_eq!((outcome.code, outcome.last.as_str()), (Some(code), expected), "{}", outcome.stderr);
    assert_eq!(machine.contents(""), before, "a file was changed");
}

#[test]
fn settings_are_named_with_their_source() {
    let machine = Machine::new();
    for (config, expected) in [
        ("cluster-cdir: x\n", "rkube: D/config.yaml: unknown key \"cluster-cdir\", did you mean \"cluster-cidr\"?"),
        (
            "https-listen-port: many\n",
            "rkube: D/config.yaml: https-listen-port must be a port between 1 and 65535, not \"many\"",
        ),
        ("- a\n", "rkube: D/config.yaml must hold keys and values"),
        ("cluster-cidr: 10.43.0.0/16\n", "rkube: cluster-cidr 10.43.0.0/16 and service-cidr 10.43.0.0/16 overlap"),
        ("node-name: a\n", "rkube: D/config.yaml sets node-name, but disable-agent leaves no node to have it"),
        (
            "stub-domain: [a=192.0.2.1]\n",
            "rkube: D/config.yaml sets stub-domain, but disable-agent leaves no node to have it",
        ),
        ("datastore-cafile: a\n", "rkube: datastore-cafile, -certfile and -keyfile need datastore-endpoint"),
    ] {
        machine.write("config.yaml", config);
        check(&machine, &[], 2, expected);
    }
    machine.write("config.yaml", "a: [\n");
    let outcome = machine.run_server(&[]);
    assert!(outcome.code == Some(2) && outcome.stderr.contains("config.yaml is not YAML: "), "{}", outcome.stderr);
}

#[test]
fn a_port_that_is_taken_is_said() {
    let machine = Machine::new();
    let _taken = TcpListener::bind(("127.0.0.1", machine.port)).unwrap();
    // The certificates are made before; nothing of a datastore is.
    let outcome = machine.run_server(&[]);
    assert_eq!(outcome.code, Some(1));
    assert_eq!(
        outcome.last,
        "rkube: 127.0.0.1:PORT is in use or cannot be listened on: stop what listens there, or use --https-listen-port: \
         Address already in use (os error 98)"
    );
    assert!(!machine.path("data/server/db").exists());
}

#[test]
fn a_second_server_on_the_same_data_changes_nothing() {
    let machine = Machine::new();
    let server = machine.start(&[]);
    let other = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let before = machine.contents("");
    let outcome = machine.run_server(&["--https-listen-port", &other]);
    assert_eq!(outcome.code, Some(1), "{}", outcome.stderr);
    assert_eq!(
        outcome.last,
        "rkube: D/data is in use by another rkube server: stop it, or give this one its own --data-dir"
    );
    assert_eq!(machine.contents(""), before);
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn folders_that_cannot_be_made_are_named() {
    let machine = Machine::new();
    machine.write("file", "");
    let data = machine.path("file/data").display().to_string();
    check(
        &machine,
        &["--data-dir", &data],
        1,
        "rkube: creating D/file/data/server, as --data-dir must be where this user may write: Not a directory (os error 20)",
    );
}

#[test]
fn certificates_that_are_no_good_are_named_and_kept() {
    let machine = Machine::new();
    assert_eq!(machine.start(&[]).stop(), Some(0));
    let tls = |name: &str| format!("data/server/tls/{name}");
    let good = |name: &str| std::fs::read_to_string(machine.path(&tls(name))).unwrap();
    let (ca, ca_key, leaf, leaf_key) = (good("ca.crt"), good("ca.key"), good("apiserver.crt"), good("apiserver.key"));
    let restore = || {
        for (name, text) in
            [("ca.crt", &ca), ("ca.key", &ca_key), ("apiserver.crt", &leaf), ("apiserver.key", &leaf_key)]
        {
            machine.write(&tls(name), text);
        }
    };
    let now = SystemClock::shared().now();
    let day = Duration::from_secs(24 * 3600);
    let (stranger, stranger_pair) = CertificateAuthority::generate("corporate", now - day * 800).unwrap();
    let expired = stranger.issue(&Leaf::server("x", vec!["x".to_owned()], Vec::new()), now - day * 400).unwrap();

    // What a crash of the file system leaves: an empty file.
    machine.write(&tls("ca.crt"), "");
    check(
        &machine,
        &[],
        1,
        "rkube: restore the authority D/data/server/tls/ca.crt and its key from a backup: D/data/server/tls/ca.crt is not a usable \
         certificate: it holds no PEM certificate",
    );
    restore();
    machine.write(&tls("ca.key"), "-----BEGIN PRIVATE KEY-----\nMIG");
    let outcome = machine.run_server(&[]);
    assert_eq!(outcome.code, Some(1));
    assert!(
        outcome.last.starts_with("rkube: restore the authority D/data/server/tls/ca.crt and its key from a backup: ")
            && outcome.last.contains("is not a usable private key: "),
        "{}",
        outcome.last
    );
    restore();
    machine.write(&tls("ca.key"), &stranger_pair.key_pem);
    check(
        &machine,
        &[],
        1,
        "rkube: restore the authority D/data/server/tls/ca.crt and its key from a backup: D/data/server/tls/ca.crt is not a usable \
         certificate: it does not belong to the private key",
    );
    restore();
    machine.write(&tls("apiserver.crt"), "garbage");
    check(
        &machine,
        &[],
        1,
        "rkube: put a good certificate and key at D/data/server/tls/apiserver.crt, or remove both to have new ones made: \
         D/data/server/tls/apiserver.crt is not a usable certificate: it holds no PEM certificate",
    );
    restore();
    machine.write(&tls("apiserver.crt"), &expired.certificate_pem);
    check(
        &machine,
        &[],
        1,
        "rkube: put a good certificate and key at D/data/server/tls/apiserver.crt, or remove both to have new ones made: \
         D/data/server/tls/apiserver.crt and D/data/server/tls/apiserver.key do not belong together",
    );
    machine.write(&tls("apiserver.key"), &expired.key_pem);
    let outcome = machine.run_server(&[]);
    assert!(
        outcome.last.contains("apiserver.crt expired on ")
            && outcome.last.ends_with("remove both to have new ones made"),
        "{}",
        outcome.last
    );
    // The way out that was told works, and what a crash leaves half done is completed.
    for name in ["apiserver.crt", "apiserver.key"] {
        std::fs::remove_file(machine.path(&tls(name))).unwrap();
    }
    machine.write(&tls("apiserver.key.tmp"), "half");
    assert_eq!(machine.start(&[]).stop(), Some(0));
}

#[test]
fn kubeconfigs_and_tokens_that_are_no_good_are_named() {
    let machine = Machine::new();
    machine.write("bad.yaml", "kind: Config\n");
    let bad = machine.path("bad.yaml").display().to_string();
    let said = |arguments: &[&str]| {
        let outcome = machine.run(arguments);
        (outcome.code, outcome.last)
    };
    assert_eq!(
        said(&["token", "list", "--kubeconfig", &bad]),
        (Some(1), "rkube: kubeconfig D/bad.yaml: it has no current-context".to_owned())
    );
    let (code, text) = said(&["token", "list", "--kubeconfig", "/nowhere/k.yaml"]);
    assert!(code == Some(1) && text.starts_with("rkube: kubeconfig /nowhere/k.yaml: there is no such file"), "{text}");
    machine.write("token", "K10zz::node:sesame\n");
    let token = machine.path("token").display().to_string();
    let outcome = machine.run_server(&["--token-file", &token]);
    assert_eq!(outcome.code, Some(1));
    assert_eq!(outcome.last, "rkube: the token is malformed: the CA hash after K10 is not 64 hexadecimal digits");
    assert!(!outcome.stderr.contains("sesame"));
}

#[test]
fn a_kubeconfig_that_cannot_be_written_is_named() {
    let machine = Machine::new();
    machine.write("file", "");
    let path = machine.path("file/admin.yaml").display().to_string();
    let outcome = machine.run_server(&["--write-kubeconfig", &path]);
    assert_eq!(outcome.code, Some(1));
    assert!(
        outcome.last.starts_with("rkube: writing D/file/admin.yaml: ")
            || outcome.last.starts_with("rkube: reading D/file/admin.yaml: "),
        "{}",
        outcome.last
    );
    let mode = machine.path("data/server/tls/ca.key").metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
}
