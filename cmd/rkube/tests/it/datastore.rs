//! A server on etcd, and on a datastore that is full: what clients are told, and that nothing is lost.
//!
//! Needs etcd, kubectl and, to mount small file systems, root: `hack/install-deps test`.

use std::path::PathBuf;
use std::process::{Command, Output};

use rkube_testing::etcd::{Etcd, EtcdConfig};

use crate::process::Machine;

/// Larger than anything that a server writes at its start.
const SMALL_QUOTA_BYTES: u64 = 4 * 1024 * 1024;
const LARGE_QUOTA_BYTES: u64 = 64 * 1024 * 1024;
const VALUE_BYTES: usize = 200 * 1024;

fn kubectl(machine: &Machine, arguments: &[&str]) -> Output {
    let kubeconfig = machine.path("admin.yaml");
    let mut command = Command::new("kubectl");
    command.arg("--kubeconfig").arg(kubeconfig).args(["--request-timeout", "60s"]).args(arguments);
    command.env("HOME", machine.folder.path()).output().expect("kubectl is in PATH: hack/install-deps test")
}

/// Creates a ConfigMap; what kubectl says if it could not.
fn create(machine: &Machine, name: &str) -> Result<(), String> {
    let value = format!("--from-literal=value={}", "x".repeat(VALUE_BYTES / 2));
    let more = format!("--from-literal=more={}", "y".repeat(VALUE_BYTES / 2));
    let done = kubectl(machine, &["create", "configmap", name, &value, &more]);
    if done.status.success() { Ok(()) } else { Err(String::from_utf8(done.stderr).unwrap()) }
}

fn config_maps(machine: &Machine) -> Vec<String> {
    let listed = kubectl(machine, &["get", "configmaps", "-o", "name"]);
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    let names = String::from_utf8(listed.stdout).unwrap();
    names.lines().filter_map(|name| name.strip_prefix("configmap/kept-")).map(str::to_owned).collect()
}

/// Writes until that is refused; the names of what was acknowledged, and the refusal.
fn fill(machine: &Machine) -> (Vec<String>, String) {
    let mut kept = Vec::new();
    loop {
        let number = format!("{:04}", kept.len());
        match create(machine, &format!("kept-{number}")) {
            Ok(()) => kept.push(number),
            Err(refusal) => return (kept, refusal),
        }
        assert!(kept.len() < 2000, "the datastore is never full");
    }
}

fn etcd_arguments(machine: &Machine, etcd: &Etcd) -> Vec<String> {
    let mut arguments = vec!["--datastore-endpoint".to_owned(), etcd.url()];
    if let Some(certificates) = etcd.certificates() {
        let files = [
            ("--datastore-cafile", "etcd-ca.pem", &certificates.ca),
            ("--datastore-certfile", "etcd.pem", &certificates.client.0),
            ("--datastore-keyfile", "etcd.key", &certificates.client.1),
        ];
        for (flag, name, text) in files {
            machine.write(name, text);
            arguments.extend([flag.to_owned(), machine.path(name).display().to_string()]);
        }
    }
    arguments
}

#[test]
fn etcd_is_spoken_to_over_tls_with_a_client_certificate() {
    let etcd = Etcd::start(EtcdConfig { tls: true, ..EtcdConfig::default() });
    let machine = Machine::new();
    let arguments = etcd_arguments(&machine, &etcd);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let server = machine.start(&arguments);
    create(&machine, "kept-0000").unwrap();
    assert_eq!(server.stop(), Some(0));

    let _server = machine.start(&arguments);
    assert_eq!(config_maps(&machine), ["0000"]);
}

#[test]
fn an_etcd_without_space_is_said_and_gone_on_with_when_it_has_space() {
    let mut etcd = Etcd::start(EtcdConfig { quota_bytes: Some(SMALL_QUOTA_BYTES), ..EtcdConfig::default() });
    let machine = Machine::new();
    let arguments = etcd_arguments(&machine, &etcd);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let server = machine.start(&arguments);
    let (kept, refusal) = fill(&machine);
    assert_eq!(refusal, "error: failed to create configmap: etcdserver: mvcc: database space exceeded\n");
    // etcd may carry out the very write that it refuses first (quotaApplierV3): it answers after it looked.
    let stored = config_maps(&machine);
    let refused = format!("{:04}", kept.len());
    assert!(stored == kept || stored == [&kept[..], &[refused]].concat(), "{stored:?} after {kept:?}");

    // What etcd's administrator does: more room, and the alarm off. rkube runs on.
    etcd.kill();
    etcd.set_quota(LARGE_QUOTA_BYTES);
    etcd.run();
    let disarmed = Command::new("etcdctl")
        .args(["--endpoints", &etcd.url(), "alarm", "disarm"])
        .env("ETCDCTL_API", "3")
        .output()
        .expect("etcdctl is in PATH: hack/install-deps test");
    assert!(disarmed.status.success(), "{}", String::from_utf8_lossy(&disarmed.stderr));
    create(&machine, "kept-9999").unwrap();
    let expected: Vec<String> = stored.into_iter().chain(["9999".to_owned()]).collect();
    assert_eq!(config_maps(&machine), expected);
    assert_eq!(server.stop(), Some(0));
}

/// A file system of its own, as large as it is told.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(path: PathBuf, bytes: u64) -> Self {
        std::fs::create_dir_all(&path).unwrap();
        let disk = Self(path);
        disk.run("mount", &["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"]);
        disk
    }

    fn resize(&self, bytes: u64) {
        self.run("mount", &["-o", &format!("remount,size={bytes}")]);
    }

    fn run(&self, program: &str, arguments: &[&str]) {
        let done = Command::new(program).args(arguments).arg(&self.0).output().unwrap();
        let text = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "mounting a small file system needs root: {text}");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: the server may still have it open.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_is_said_and_gone_on_with_when_it_has_space() {
    let machine = Machine::new();
    let disk = SmallDisk::mount(machine.path("data/server/db"), 16 * 1024 * 1024);
    let mut server = machine.start(&[]);
    let (kept, refusal) = fill(&machine);
    assert_eq!(refusal, "error: failed to create configmap: etcdserver: mvcc: database space exceeded\n");
    assert!(kept.len() > 10, "{kept:?}");
    // Reads go on.
    assert_eq!(config_maps(&machine), kept);

    disk.resize(LARGE_QUOTA_BYTES);
    create(&machine, "kept-9999").unwrap();
    let expected: Vec<String> = kept.into_iter().chain(["9999".to_owned()]).collect();
    assert_eq!(config_maps(&machine), expected);

    // Nothing acknowledged is lost either when the server dies.
    server.kill();
    let _server = machine.start(&[]);
    assert_eq!(config_maps(&machine), expected);
}
