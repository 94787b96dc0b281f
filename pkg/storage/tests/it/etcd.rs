//! The suite over a real etcd, with and without TLS, and what happens when etcd goes away and comes back.
//!
//! Needs the program `etcd`, in `PATH` or named by `RKUBE_TEST_ETCD`. Without it these tests fail.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use rkube_apimachinery::clock::SystemClock;
use rkube_storage::etcd::{ClientIdentity, EtcdOptions, EtcdStorage};
use rkube_storage::observed::Observed;
use rkube_storage::{Precondition, StorageError, WriteOutcome};

use crate::conformance::{self, Store, changes_until, create, current, get, update, value, watch, within};

fn program() -> PathBuf {
    let named = std::env::var_os("RKUBE_TEST_ETCD").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = named.or_else(|| std::env::split_paths(&path).map(|dir| dir.join("etcd")).find(|file| file.is_file()));
    found.expect("these tests need etcd in PATH or in RKUBE_TEST_ETCD: `hack/install-deps test`")
}

/// PEM files for both sides.
struct Certificates {
    ca: String,
    server: (String, String),
    client: (String, String),
}

impl Certificates {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let leaf = |usages: &[ExtendedKeyUsagePurpose]| {
            let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
            params.extended_key_usages = usages.to_vec();
            let key = KeyPair::generate().unwrap();
            let certificate = params.signed_by(&key, &ca).unwrap();
            (certificate.pem(), key.serialize_pem())
        };
        // etcd's gateway connects to itself, so its certificate serves both ways.
        let server = leaf(&[ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth]);
        let client = leaf(&[ExtendedKeyUsagePurpose::ClientAuth]);
        Self { ca: ca.pem(), server, client }
    }
}

/// One etcd process with a directory and ports of its own.
struct Etcd {
    program: PathBuf,
    directory: tempfile::TempDir,
    ports: (u16, u16),
    certificates: Option<Certificates>,
    process: Option<Child>,
}

impl Etcd {
    fn start(tls: bool) -> Self {
        let program = program();
        let listeners = (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
        let ports = (listeners.0.local_addr().unwrap().port(), listeners.1.local_addr().unwrap().port());
        drop(listeners);
        let directory = tempfile::tempdir().unwrap();
        let certificates = tls.then(Certificates::new);
        let mut etcd = Self { program, directory, ports, certificates, process: None };
        etcd.run();
        etcd
    }

    fn url(&self) -> String {
        let scheme = if self.certificates.is_some() { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}", self.ports.0)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Starts the process and waits until it says that it serves.
    fn run(&mut self) {
        let (url, peer) = (self.url(), format!("http://127.0.0.1:{}", self.ports.1));
        let mut command = Command::new(&self.program);
        command.arg("--name=test").arg("--data-dir").arg(self.directory.path().join("data"));
        for (flag, value) in [
            ("--listen-client-urls", &url),
            ("--advertise-client-urls", &url),
            ("--listen-peer-urls", &peer),
            ("--initial-advertise-peer-urls", &peer),
            ("--initial-cluster", &format!("test={peer}")),
        ] {
            command.arg(flag).arg(value);
        }
        if let Some(certificates) = &self.certificates {
            let files = [
                ("--trusted-ca-file", self.write("ca.pem", &certificates.ca)),
                ("--cert-file", self.write("server.pem", &certificates.server.0)),
                ("--key-file", self.write("server.key", &certificates.server.1)),
            ];
            for (flag, file) in files {
                command.arg(flag).arg(file);
            }
            command.arg("--client-cert-auth");
        }
        let mut process = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(process.stderr.take().unwrap());
        let (ready, is_ready) = mpsc::channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if line.contains("ready to serve client requests") {
                    let _ = ready.send(());
                }
            }
        });
        is_ready.recv_timeout(Duration::from_secs(30)).expect("etcd says that it is ready");
        self.process = Some(process);
    }

    fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    async fn store(&self) -> Store {
        let mut options = EtcdOptions::new(&self.url(), SystemClock::shared());
        if let Some(certificates) = &self.certificates {
            options.ca = Some(certificates.ca.clone().into_bytes());
            let (certificate, key) = certificates.client.clone();
            options.identity = Some(ClientIdentity { certificate: certificate.into(), key: key.into() });
        }
        Arc::new(EtcdStorage::connect(options).await.unwrap())
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}

async fn run_suite(tls: bool) {
    let etcd = Etcd::start(tls);
    let store = etcd.store().await;
    for (name, test) in conformance::all() {
        within(name, test(store.clone())).await;
    }
    assert!(etcd.path().exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conformance() {
    run_suite(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conformance_with_tls() {
    run_suite(true).await;
}

/// While etcd is away everything fails with a reason; afterwards everything goes on, watches too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_goes_away_and_comes_back() {
    let mut etcd = Etcd::start(false);
    let observed = Observed::new(etcd.store().await);
    let health = observed.health();
    let store: Store = Arc::new(observed);
    let from = current(&store).await;
    let mut stream = watch(&store, "/away/", from).await;
    let mut expected = Vec::new();
    let mut last = create(&store, "/away/a", "0").await;
    expected.push(last);
    assert_eq!(changes_until(&mut stream, last).await.len(), 1);
    for round in 0..3 {
        let before = current(&store).await;
        etcd.kill();
        let write = store.put("/away/a".to_owned(), value("lost"), Precondition::Unchanged(last));
        let outcome = within("a write without etcd", write).await;
        let refused = matches!(outcome, Err(StorageError::Unavailable(_) | StorageError::Unknown(_)));
        assert!(refused, "{outcome:?}");
        assert!(health.failure().is_some());
        etcd.run();
        let after = within("a read after etcd came back", store.current_revision()).await.unwrap();
        assert!(after >= before, "{after:?} after {before:?}");
        assert_eq!(health.failure(), None);
        let now = get(&store, "/away/a").await.unwrap();
        if now.mod_revision != last {
            // The unknown write had happened.
            expected.push(now.mod_revision);
        }
        last = update(&store, "/away/a", &round.to_string(), now.mod_revision).await;
        expected.push(last);
    }
    let seen: Vec<_> = changes_until(&mut stream, last).await.iter().map(|change| change.revision).collect();
    assert_eq!(seen, expected[1..]);
}

/// Nothing hangs, and a write that was never sent is not called unknown.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_etcd_everything_says_unavailable() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let store: Store = Arc::new(EtcdStorage::connect(EtcdOptions::new(&url, SystemClock::shared())).await.unwrap());
    let read = within("a read without etcd", store.current_revision()).await;
    assert!(matches!(read, Err(StorageError::Unavailable(_))), "{read:?}");
    let write = store.put("/a".to_owned(), value("v"), Precondition::Absent);
    let outcome: Result<WriteOutcome, _> = within("a write without etcd", write).await;
    assert!(matches!(outcome, Err(StorageError::Unavailable(_))), "{outcome:?}");
}
