//! An etcd of one's own, for tests against the real thing.
//!
//! Needs the program `etcd`, in `PATH` or named by `RKUBE_TEST_ETCD` (`hack/install-deps test` installs it), and panics
//! without.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};

const START_TIMEOUT: Duration = Duration::from_secs(30);
const MADE: &str = "certificates of these parameters can be made";
const WRITABLE: &str = "the folder is writable";

/// How to run it.
#[derive(Clone, Debug, Default)]
pub struct EtcdConfig {
    /// Speak TLS, and only to clients with a certificate.
    pub tls: bool,
    /// Refuse writes when the database is larger.
    pub quota_bytes: Option<u64>,
}

/// PEM files for both sides.
pub struct Certificates {
    pub ca: String,
    /// Certificate and key.
    pub server: (String, String),
    pub client: (String, String),
}

impl Certificates {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::<String>::new()).expect(MADE);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().expect(MADE)).expect(MADE);
        let leaf = |usages: &[ExtendedKeyUsagePurpose]| {
            let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()]).expect(MADE);
            params.extended_key_usages = usages.to_vec();
            let key = KeyPair::generate().expect(MADE);
            let certificate = params.signed_by(&key, &ca).expect(MADE);
            (certificate.pem(), key.serialize_pem())
        };
        // etcd's gateway connects to itself, so its certificate serves both ways.
        let server = leaf(&[ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth]);
        let client = leaf(&[ExtendedKeyUsagePurpose::ClientAuth]);
        Self { ca: ca.pem(), server, client }
    }
}

/// One etcd process with a directory and ports of its own. It is killed when this is dropped.
pub struct Etcd {
    program: PathBuf,
    directory: tempfile::TempDir,
    ports: (u16, u16),
    certificates: Option<Certificates>,
    quota_bytes: Option<u64>,
    process: Option<Child>,
}

impl Etcd {
    /// Starts one and waits until it serves.
    pub fn start(config: EtcdConfig) -> Self {
        let free = || TcpListener::bind("127.0.0.1:0").expect("there is a free port");
        let listeners = (free(), free());
        let port = |listener: &TcpListener| listener.local_addr().expect("it is bound").port();
        let ports = (port(&listeners.0), port(&listeners.1));
        drop(listeners);
        let mut etcd = Self {
            program: program(),
            directory: tempfile::tempdir().expect(WRITABLE),
            ports,
            certificates: config.tls.then(Certificates::new),
            quota_bytes: config.quota_bytes,
            process: None,
        };
        etcd.run();
        etcd
    }

    /// Where clients connect to.
    pub fn url(&self) -> String {
        let scheme = if self.certificates.is_some() { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}", self.ports.0)
    }

    pub fn certificates(&self) -> Option<&Certificates> {
        self.certificates.as_ref()
    }

    /// Another size at which writes are refused, from the next `run` on.
    pub fn set_quota(&mut self, bytes: u64) {
        self.quota_bytes = Some(bytes);
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path().join(name);
        std::fs::write(&path, text).expect(WRITABLE);
        path
    }

    /// Starts the process again and waits until it says that it serves.
    pub fn run(&mut self) {
        let (url, peer) = (self.url(), format!("http://127.0.0.1:{}", self.ports.1));
        let mut command = Command::new(&self.program);
        command.arg("--name=test").arg("--data-dir").arg(self.path().join("data"));
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
        if let Some(bytes) = self.quota_bytes {
            command.arg(format!("--quota-backend-bytes={bytes}"));
        }
        let mut process = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("etcd starts");
        let output = BufReader::new(process.stderr.take().expect("it is piped"));
        let (ready, is_ready) = mpsc::channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if line.contains("ready to serve client requests") {
                    let _ = ready.send(());
                }
            }
        });
        self.process = Some(process);
        is_ready.recv_timeout(START_TIMEOUT).expect("etcd says that it is ready");
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            // It may have ended by itself.
            let _ = process.kill();
            let _ = process.wait();
        }
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

fn program() -> PathBuf {
    let named = std::env::var_os("RKUBE_TEST_ETCD").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = named.or_else(|| std::env::split_paths(&path).map(|dir| dir.join("etcd")).find(|file| file.is_file()));
    found.expect("these tests need etcd in PATH or in RKUBE_TEST_ETCD: `hack/install-deps test`")
}
