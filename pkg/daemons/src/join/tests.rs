//! A worker that has joined goes on without its servers.

use rkube_apimachinery::clock::{Clock, FakeClock};
use rkube_apimachinery::random::SystemRandom;
use rkube_pki::{CertificateAuthority, join_token};
use tempfile::TempDir;

use super::*;

/// A folder as an earlier start left it, and no server anywhere.
struct Worker {
    folder: TempDir,
    clock: FakeClock,
    authority: CertificateAuthority,
}

impl Worker {
    fn new() -> Self {
        let clock = FakeClock::new("2030-01-01T00:00:00Z".parse().unwrap());
        let folder = tempfile::tempdir().unwrap();
        let (authority, _) = CertificateAuthority::generate("kubernetes", clock.now()).unwrap();
        let worker = Self { folder, clock, authority };
        let pair =
            worker.authority.issue(&Leaf::client("system:node:w1", &["system:nodes"]), worker.clock.now()).unwrap();
        keep(worker.folder.path(), CLIENT_FILE, &pair).unwrap();
        worker.write(AUTHORITY_FILE, worker.authority.certificate_pem());
        worker.write(FACTS_FILE, &serde_json::json!(facts()).to_string());
        worker
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.folder.path().join(name), text).unwrap();
    }

    fn token(&self, authority: &CertificateAuthority) -> JoinToken {
        let chain = authority::certificates(authority.certificate_pem(), "ca").unwrap();
        JoinToken::parse(&format!("K10{}::node:sesame", join_token::ca_hash(&chain[0]))).unwrap()
    }

    fn joiner(&self, node_name: &str, token: JoinToken) -> Joiner {
        Joiner {
            // Nothing listens on port 1 of this machine.
            url: "https://127.0.0.1:1".to_owned(),
            servers: vec!["127.0.0.1:1".to_owned(), "127.0.0.1:2".to_owned()],
            member_url: "https://127.0.0.1:3".to_owned(),
            token,
            node_name: node_name.to_owned(),
            folder: self.folder.path().to_owned(),
            clock: self.clock.shared(),
            random: Arc::new(SystemRandom),
        }
    }

    async fn join(&self) -> Result<Joined, String> {
        self.join_by(self.joiner("w1", self.token(&self.authority))).await
    }

    /// Time passes whenever everything waits for it.
    async fn join_by(&self, joiner: Joiner) -> Result<Joined, String> {
        let join = joiner.join();
        tokio::pin!(join);
        loop {
            tokio::select! {
                biased;
                joined = &mut join => return joined.map_err(|error| error.to_string()),
                () = tokio::task::yield_now() => {
                    if let Some(next) = self.clock.next_wake() {
                        self.clock.advance(next.saturating_sub(self.clock.monotonic()));
                    }
                }
            }
        }
    }
}

fn facts() -> ClusterFacts {
    ClusterFacts {
        dns: "10.43.0.10".parse().unwrap(),
        domain: "cluster.local".to_owned(),
        pods: "10.42.0.0/16".to_owned(),
    }
}

const AWAY: &str =
    "asking https://127.0.0.1:1 for the cluster's authority: is the server running, and is this its address?";

#[tokio::test]
async fn it_starts_with_what_it_kept() {
    let worker = Worker::new();
    let joined = worker.join().await.unwrap();
    assert!(joined.is_from_kept);
    assert_eq!((joined.facts, joined.authority.as_str()), (facts(), worker.authority.certificate_pem()));
    // As long as its certificate is good, even if it is due.
    worker.clock.advance(Duration::from_secs(364 * 24 * 3600));
    assert!(worker.join().await.unwrap().is_from_kept);
    worker.clock.advance(Duration::from_secs(2 * 24 * 3600));
    assert_eq!(worker.join().await.err().unwrap(), AWAY);
}

#[tokio::test]
async fn what_is_not_this_nodes_or_this_clusters_is_not_used() {
    let worker = Worker::new();
    let other = CertificateAuthority::generate("kubernetes", worker.clock.now()).unwrap().0;
    for (name, token) in [("w2", worker.token(&worker.authority)), ("w1", worker.token(&other))] {
        let error = worker.join_by(worker.joiner(name, token)).await.err().unwrap();
        assert_eq!(error, AWAY, "{name}");
    }
    // What a crash or a disk leaves.
    for (name, text) in
        [(FACTS_FILE, "{"), (AUTHORITY_FILE, ""), ("client-kubelet.key", "x"), ("client-kubelet.crt", "")]
    {
        let worker = Worker::new();
        worker.write(name, text);
        assert_eq!(worker.join().await.err().unwrap(), AWAY, "{name}");
    }
}

#[tokio::test]
async fn a_server_that_says_nothing_is_not_waited_for() {
    let worker = Worker::new();
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", silent.local_addr().unwrap());
    let joiner = Joiner { url, ..worker.joiner("w1", worker.token(&worker.authority)) };
    assert!(worker.join_by(joiner).await.unwrap().is_from_kept);
}

#[tokio::test]
async fn a_serving_certificate_is_kept_for_its_names() {
    let worker = Worker::new();
    let names = Names { dns_names: vec!["w1".to_owned()], ip_addresses: vec!["192.0.2.1".parse().unwrap()] };
    let leaf = Leaf::server("system:node:w1", names.dns_names.clone(), names.ip_addresses.clone());
    let pair = worker.authority.issue(&leaf, worker.clock.now()).unwrap();
    keep(worker.folder.path(), SERVING_FILE, &pair).unwrap();
    let client = worker.join().await.unwrap().client;
    let serving = ServingCertificate {
        client,
        clock: worker.clock.shared(),
        node_name: "w1".to_owned(),
        names: names.clone(),
        roots: roots(worker.authority.certificate_pem()).unwrap(),
        authority: worker.authority.certificate_pem().to_owned(),
        folder: worker.folder.path().to_owned(),
    };
    let (_, found) = serving.first().await.unwrap();
    assert_eq!(found.certificate_pem, pair.certificate_pem);
    let moved = Names { ip_addresses: vec!["192.0.2.2".parse().unwrap()], ..names };
    assert!(!tree::is_for(&found.certificate_pem, &moved), "a node that moved needs another");
}
