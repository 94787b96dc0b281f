//! Renewal under load, and what a second start leaves alone.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use http::{Request, Response};
use rkube_apimachinery::clock::SystemClock;
use rkube_apimachinery::task;
use rkube_http::body::Body;
use rkube_http::client::HttpClient;
use rkube_http::connect::Connector;
use rkube_http::listener::Listener;
use rkube_pki::{Leaf, tree};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::component::supervise;
use crate::config::{Cidr, Datastore};

const DAY: Duration = Duration::from_secs(24 * 3600);
/// For what takes milliseconds, on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(60);

pub(in crate::server) fn config(folder: &Path) -> ServerConfig {
    let network = |address: [u8; 4]| Cidr { address: IpAddr::from(address), prefix_length: 16 };
    ServerConfig {
        data_dir: folder.join("data"),
        bind_address: IpAddr::from([127, 0, 0, 1]),
        https_listen_port: 6443,
        advertise_address: None,
        tls_sans: Vec::new(),
        token: None,
        agent_token: None,
        cluster_cidr: network([10, 42, 0, 0]),
        service_cidr: network([10, 43, 0, 0]),
        cluster_dns: IpAddr::from([10, 43, 0, 10]),
        cluster_domain: "cluster.local".to_owned(),
        service_node_ports: (30_000, 32_767),
        write_kubeconfig: folder.join("admin.yaml"),
        write_kubeconfig_mode: 0o600,
        datastore: Datastore::Embedded,
        controller_args: Vec::new(),
        disable: Vec::new(),
        scheduler_config: None,
        agent: None,
    }
}

fn open(folder: &Path, advertise: [u8; 4], now: Timestamp) -> Result<Arc<Certificates>, CertificatesError> {
    Certificates::open(&config(folder), IpAddr::from([10, 43, 0, 1]), IpAddr::from(advertise), now)
}

/// Every file with its content and mode.
fn contents(folder: &Path) -> BTreeMap<PathBuf, (String, u32)> {
    let mut all = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let mode = path.metadata().unwrap().permissions().mode() & 0o777;
                all.insert(path.clone(), (std::fs::read_to_string(path).unwrap(), mode));
            }
        }
    }
    all
}

#[test]
fn a_second_start_changes_no_file_and_secrets_are_private() {
    let folder = tempfile::tempdir().unwrap();
    let now = SystemClock::shared().now();
    open(folder.path(), [192, 0, 2, 1], now).unwrap();
    let first = contents(folder.path());
    open(folder.path(), [192, 0, 2, 1], now + DAY).unwrap();
    assert_eq!(contents(folder.path()), first);
    for (path, (text, mode)) in &first {
        let is_secret = text.contains("PRIVATE KEY") || text.contains("client-key-data");
        assert!(!is_secret || *mode == 0o600, "{}: {mode:o}", path.display());
    }
    assert!(first.keys().any(|path| path.ends_with("admin.yaml")));
}

#[test]
fn a_server_that_moved_shows_its_new_address_and_keeps_the_rest() {
    let folder = tempfile::tempdir().unwrap();
    let now = SystemClock::shared().now();
    open(folder.path(), [192, 0, 2, 1], now).unwrap();
    let before = contents(folder.path());
    open(folder.path(), [192, 0, 2, 7], now).unwrap();
    let after = contents(folder.path());
    let changed: Vec<_> = after
        .iter()
        .filter(|(path, content)| before.get(*path) != Some(content))
        .map(|(path, _)| path.file_name().unwrap().to_string_lossy().into_owned())
        .collect();
    assert_eq!(changed, ["apiserver.crt", "apiserver.key"]);
}

#[test]
fn with_an_external_authority_its_leaves_are_used_and_what_is_missing_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let now = SystemClock::shared().now();
    open(folder.path(), [192, 0, 2, 1], now).unwrap();
    let tls = folder.path().join("data/server/tls");
    for gone in ["ca.key", "client-scheduler.crt", "client-scheduler.key"] {
        std::fs::remove_file(tls.join(gone)).unwrap();
    }
    let before = contents(&tls);
    assert!(!open(folder.path(), [192, 0, 2, 7], now).unwrap().tree.cluster.can_sign());
    assert_eq!(contents(&tls), before);
    std::fs::remove_file(tls.join("apiserver.crt")).unwrap();
    let error = open(folder.path(), [192, 0, 2, 1], now).err().map(|error| error.to_string()).unwrap_or_default();
    assert!(error.contains("apiserver.crt cannot be made, because the key of its authority is not here"), "{error}");
}

/// Puts a certificate of ours there that was made `age` ago.
fn make_old(certificates: &Certificates, age: Duration, now: Timestamp) -> CertifiedKey {
    let names = &certificates.names;
    let leaf = Leaf::server("kube-apiserver", names.dns_names.clone(), names.ip_addresses.clone());
    let pair = certificates.tree.cluster.issue(&leaf, now - age).unwrap();
    let (certificate, key) = certificates.tree.paths(SERVING);
    files::write(&key, pair.key_pem.as_bytes(), files::PRIVATE).unwrap();
    files::write(&certificate, pair.certificate_pem.as_bytes(), files::PUBLIC).unwrap();
    pair
}

/// Goal: no request fails while certificates change under it. Requests run on connections of their own and on one
/// that stays, all through a renewal by time and a rotation by hand.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_change_under_load_and_no_request_fails() {
    let folder = tempfile::tempdir().unwrap();
    let now = SystemClock::shared().now();
    let certificates = open(folder.path(), [127, 0, 0, 1], now).unwrap();
    let old = make_old(&certificates, DAY * 300, now);
    certificates.reload(SERVING, now).unwrap();
    assert_eq!(certificates.current.lock()[SERVING], old.certificate_pem);

    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("https://{}", socket.local_addr().unwrap()).parse().unwrap();
    let handler = |_: Request<Body>| -> futures_util::future::BoxFuture<'static, Response<Body>> {
        Box::pin(std::future::ready(Response::new(Body::empty())))
    };
    let stop = CancellationToken::new();
    let listener = Listener::new("test", socket, Some(Arc::clone(&certificates.serving)), SystemClock::shared());
    let serving = task::spawn(tracing::Span::none(), listener.serve(Arc::new(handler), stop.clone(), PATIENCE));

    let trusting = || Arc::new(ArcSwap::from_pointee(tls::client_config(certificates.roots.clone(), None).unwrap()));
    let (answered, done) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let load = |keeps_connection: bool| {
        let (tls, base, answered, done): (_, http::Uri, _, _) =
            (trusting(), http::Uri::clone(&base), Arc::clone(&answered), Arc::clone(&done));
        task::spawn(tracing::Span::none(), async move {
            let new = || HttpClient::new(&base, Connector::new(Some(Arc::clone(&tls)))).unwrap();
            let mut client = new();
            while !done.load(Ordering::Relaxed) {
                if !keeps_connection {
                    client = new();
                }
                let request = Request::get("/").body(Body::empty()).unwrap();
                let response = client.request(request).await.expect("no request fails");
                assert!(response.status().is_success());
                answered.fetch_add(1, Ordering::Relaxed);
            }
        })
    };
    let loads = [load(true), load(false)];
    let more = async || {
        let target = answered.load(Ordering::Relaxed) + 20;
        while answered.load(Ordering::Relaxed) < target {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, async {
        more().await;
        certificates.renew(now).unwrap();
        let renewed = certificates.current.lock()[SERVING].clone();
        assert_ne!(renewed, old.certificate_pem);
        assert!(!tree::inspect(&certificates.tree.paths(SERVING).0, now).unwrap().is_due);
        more().await;

        // By hand, as `rkube certificate rotate` does it, and found by watching the folder.
        let (ready, is_ready) = tokio::sync::oneshot::channel();
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let component = Arc::clone(&certificates).component(SystemClock::shared());
        let running = supervise(vec![component], SystemClock::shared(), async { ended.await.unwrap() }, || {
            ready.send(()).unwrap();
        });
        let rotating = async {
            is_ready.await.unwrap();
            let pair = certificates.tree.rotate(SERVING, now).unwrap();
            while certificates.current.lock()[SERVING] != pair.certificate_pem {
                tokio::task::yield_now().await;
            }
            more().await;
            end.send(()).unwrap();
        };
        let (ran, ()) = tokio::join!(running, rotating);
        ran.unwrap();
    })
    .await
    .expect("certificates are taken up in time");
    done.store(true, Ordering::Relaxed);
    for load in loads {
        load.await.unwrap();
    }
    stop.cancel();
    serving.await.unwrap();
}
