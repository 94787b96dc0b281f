//! Machines that cannot run it, or have been hurt: one clear sentence with the remedy, an exit code, and nothing damaged.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::process::{Machine, WITH_AGENT};

/// What `rkube server` with a node says; nothing was made.
#[track_caller]
fn refuses(machine: &Machine, expected: &str) {
    let outcome = machine.run_server(&[WITH_AGENT]);
    assert_eq!((outcome.code, outcome.last.as_str()), (Some(1), expected), "{}", outcome.stderr);
    assert!(!machine.path("data").exists(), "something was made");
}

#[test]
fn a_node_needs_root() {
    let machine = Machine::new();
    let outcome = machine.run_server_as_nobody(&[WITH_AGENT]);
    assert_eq!(
        (outcome.code, outcome.last.as_str()),
        (Some(1), "rkube: not running as root: run it with sudo; a node mounts, and makes network links")
    );
    assert!(!machine.path("data").exists(), "something was made");
}

#[test]
fn a_kernel_that_is_too_old_is_told() {
    let machine = Machine::new().mounting("mount --bind release /proc/sys/kernel/osrelease");
    machine.write("release", "4.4.0-amd64\n");
    refuses(&machine, "rkube: Linux 4.4.0-amd64 is too old: upgrade to Linux 5.4 or newer");
}

#[test]
fn a_machine_without_cgroups_is_told() {
    let machine = Machine::new().mounting("mount -t tmpfs cgroups /sys/fs/cgroup");
    refuses(
        &machine,
        "rkube: not mounted: mount cgroups at /sys/fs/cgroup; enable cpu, memory, pids (on a Raspberry Pi: \
         cgroup_enable=memory in cmdline.txt) and reboot",
    );
}

#[test]
fn a_missing_runtime_is_told() {
    let machine = Machine::new().mounting("mount -t tmpfs run /run");
    refuses(
        &machine,
        "rkube: no container runtime was found: install containerd, or name its socket with --container-runtime-endpoint",
    );
}

#[test]
fn a_disk_that_is_full_or_read_only_is_told() {
    for (mounts, expected) in [
        (
            "mkdir -p data; mount -t tmpfs -o size=16k data data",
            "No space left on device (os error 28); free space there, or choose a folder elsewhere",
        ),
        (
            "mkdir -p data; mount -t tmpfs -o ro data data",
            "Read-only file system (os error 30); mount it for writing, or choose a folder elsewhere",
        ),
    ] {
        let machine = Machine::new().mounting(mounts);
        let outcome = machine.run_server(&[]);
        assert_eq!(outcome.code, Some(1), "{}", outcome.stderr);
        assert!(outcome.last.starts_with("rkube: ") && outcome.last.contains("D/data"), "{}", outcome.last);
        assert!(outcome.last.ends_with(expected), "{}", outcome.last);
    }
}

/// Writes that a full disk may still have room for.
const TRIES: usize = 200;

/// A disk that fills up while the server runs: writes are refused with a reason, reads go on, and when there is room
/// again nothing has to be done. What was acknowledged is there after the next start.
#[test]
fn a_disk_that_fills_up_stops_writes_only() {
    let machine = Machine::new();
    machine.write("outside", "");
    let machine = machine.mounting("mkdir -p data; mount -t tmpfs -o size=24m data data");
    let server = machine.start(&[]);
    let kubeconfig = machine.path("admin.yaml").display().to_string();
    let token = |words: &[&str]| {
        let outcome = machine.run(&[&["token"], words, &["--kubeconfig", &kubeconfig]].concat());
        (outcome.code, outcome.last, outcome.stdout)
    };
    let create = |description: &str| token(&["create", "--description", description]);
    assert_eq!(create("before").0, Some(0));

    let filler = server.path(&machine.path("data/filler"));
    let mut file = fs::File::create(&filler).unwrap();
    while file.write_all(&[1; 4096]).is_ok() {}
    // The log may have room for a little more.
    let mut tries = std::iter::repeat_with(|| create("while full")).take(TRIES);
    let refusal = tries.find(|(code, ..)| *code != Some(0)).map(|(_, last, _)| last);
    // What upstream's API server says when etcd is full.
    let full = "rkube: creating the token: etcdserver: mvcc: database space exceeded";
    assert_eq!(refusal.as_deref(), Some(full), "after {TRIES} writes");
    let (code, _, listed) = token(&["list"]);
    assert_eq!(code, Some(0), "reads go on");
    let accepted = 1 + listed.matches("while full").count();

    fs::remove_file(&filler).unwrap();
    drop(file);
    assert_eq!(create("after").0, Some(0), "there is room again");
    let (_, _, listed) = token(&["list"]);
    assert_eq!(listed.matches("before").count() + listed.matches("while full").count(), accepted, "{listed}");
    assert!(listed.contains("after"), "{listed}");
    assert_eq!(server.stop(), Some(0));
}

/// What a crash of the machine may leave: the end of the log is torn, drafts lie about, small files are empty.
#[test]
fn what_a_crash_leaves_half_written_is_completed_or_named() {
    let machine = Machine::new();
    // Killed, not stopped: the last record may be cut off.
    drop(machine.start(&[]));
    let log = newest(&machine.path("data/server/db"));
    let whole = fs::read(&log).unwrap();
    fs::write(&log, &whole[..whole.len() - 7]).unwrap();
    machine.write("data/server/tls/apiserver.key.tmp", "half");
    machine.write("data/server/manifests/half.yaml", "");
    machine.write("admin.yaml", "");
    assert_eq!(machine.start(&[]).stop(), Some(0), "the end of a log may be torn");
    assert!(fs::metadata(machine.path("admin.yaml")).unwrap().len() > 0, "the kubeconfig is written again");

    // A token that is empty is a new one: the old secret is nowhere else.
    machine.write("data/server/token", "");
    let outcome = machine.run_server(&[]);
    assert_eq!(
        (outcome.code, outcome.last.as_str()),
        (Some(1), "rkube: D/data/server/token is empty: put the token back, or remove the file to have a new one made")
    );
    fs::remove_file(machine.path("data/server/token")).unwrap();
    assert_eq!(machine.start(&[]).stop(), Some(0));
}

#[test]
fn a_damaged_datastore_is_named_and_left_alone() {
    let machine = Machine::new();
    assert_eq!(machine.start(&[]).stop(), Some(0));
    let folder = machine.path("data/server/db");
    // In the middle, where no crash could have left it.
    let log = newest(&folder);
    let mut bytes = fs::read(&log).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xff;
    fs::write(&log, &bytes).unwrap();
    let stored = || {
        let mut files = machine.contents("data/server/db");
        // Says which process looked last.
        files.retain(|path, _| !path.ends_with("LOCK"));
        files
    };
    let before = stored();
    let outcome = machine.run_server(&[]);
    assert_eq!(outcome.code, Some(1), "{}", outcome.stderr);
    assert!(
        outcome.last.starts_with(
            "rkube: the datastore in D/data/server/db is damaged: restore the folder from a backup; nothing in it was \
             changed: "
        ) && outcome.last.contains("the datastore is corrupt: checksum mismatch"),
        "{}",
        outcome.last
    );
    assert!(stored() == before, "a file was changed");
}

/// The file of the datastore that was written last.
fn newest(folder: &Path) -> std::path::PathBuf {
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file());
    files.max_by_key(|path| (path.metadata().unwrap().len(), path.clone())).unwrap()
}

#[test]
fn an_etcd_that_is_none_is_told() {
    let machine = Machine::new();
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let outcome = machine.run_server(&["--datastore-endpoint", &format!("http://{nobody}")]);
    let expected = format!(
        "rkube: etcd at http://{nobody} cannot be used: start it, or correct --datastore-endpoint and its certificates: \
         the datastore is unavailable: "
    );
    assert_eq!(outcome.code, Some(1), "{}", outcome.stderr);
    assert!(outcome.last.starts_with(&expected) && outcome.last.contains("Connection refused"), "{}", outcome.last);

    // Somebody who speaks another protocol.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n");
        }
    });
    let outcome = machine.run_server(&["--datastore-endpoint", &format!("http://{address}")]);
    assert_eq!(outcome.code, Some(1), "{}", outcome.stderr);
    let start = format!("rkube: etcd at http://{address} cannot be used: start it, or correct");
    assert!(outcome.last.starts_with(&start) && !outcome.last.contains('{'), "{}", outcome.last);
}

/// A server with authorities of its own on the etcd of another cluster would lock that one's workers out.
#[test]
fn another_clusters_etcd_is_left_alone() {
    let first = Machine::new();
    let etcd = Etcd::start(&first);
    assert_eq!(first.start(&["--datastore-endpoint", &etcd.url]).stop(), Some(0));
    let second = Machine::new();
    let outcome = second.run_server(&["--datastore-endpoint", &etcd.url]);
    assert_eq!(outcome.code, Some(1), "{}", outcome.stderr);
    assert_eq!(
        outcome.last,
        "rkube: the datastore holds a cluster already: give this server the token of another one with --token-file"
    );
    // The first goes on where it was.
    assert_eq!(first.start(&["--datastore-endpoint", &etcd.url]).stop(), Some(0));
}

/// An etcd that ends with the test.
struct Etcd {
    child: Child,
    url: String,
}

impl Etcd {
    fn start(machine: &Machine) -> Self {
        let port = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (url, peers) = (format!("http://127.0.0.1:{}", port()), format!("http://127.0.0.1:{}", port()));
        let socket = machine.path("notify");
        let ready = std::os::unix::net::UnixDatagram::bind(&socket).unwrap();
        ready.set_read_timeout(Some(std::time::Duration::from_secs(120))).unwrap();
        let child = Command::new("etcd")
            .args(["--name=default", &format!("--data-dir={}", machine.path("etcd").display())])
            .args([format!("--listen-client-urls={url}"), format!("--advertise-client-urls={url}")])
            .args([format!("--listen-peer-urls={peers}"), format!("--initial-advertise-peer-urls={peers}")])
            .arg(format!("--initial-cluster=default={peers}"))
            .env("NOTIFY_SOCKET", &socket)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let etcd = Self { child, url };
        let mut said = [0; 64];
        let length = ready.recv(&mut said).expect("etcd says that it is ready");
        assert!(said[..length].starts_with(b"READY=1"));
        etcd
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
