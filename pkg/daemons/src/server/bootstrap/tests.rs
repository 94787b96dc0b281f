//! Servers on one datastore, one after the other and at once.

use rkube_apimachinery::clock::SystemClock;
use rkube_storage::memory::MemoryStorage;
use tempfile::TempDir;

use super::*;
use crate::server::certificates::tests::config;

struct Server {
    folder: TempDir,
    config: ServerConfig,
}

impl Server {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = config(folder.path());
        Self { folder, config }
    }

    fn tls(&self) -> PathBuf {
        self.folder.path().join("tls")
    }

    async fn share(&self, storage: &MemoryStorage, secret: Option<&str>) -> Result<(), String> {
        let made = || Ok("made-here".to_owned());
        let now = SystemClock::shared().now();
        let outcome = share(storage, &self.config, &self.tls(), secret.map(str::to_owned), made, now).await;
        outcome.map_err(|error| error.to_string().replace(&self.folder.path().display().to_string(), "D"))
    }

    fn files(&self) -> BTreeMap<String, String> {
        assert!(!self.folder.path().join("tls.draft").exists());
        present(&self.tls()).unwrap()
    }
}

#[tokio::test]
async fn further_servers_get_the_first_ones_authorities_by_the_token() {
    let storage = MemoryStorage::new();
    let (first, second) = (Server::new(), Server::new());
    first.share(&storage, Some("sesame")).await.unwrap();
    let files = first.files();
    assert_eq!(files.len(), FILES.len());
    let kept = read(&storage).await.unwrap().unwrap();
    assert!(!kept.contains("PRIVATE") && !kept.contains("sesame"));

    assert_eq!(
        second.share(&storage, None).await.unwrap_err(),
        "the datastore holds a cluster already: give this server the token of another one with --token-file"
    );
    assert_eq!(
        second.share(&storage, Some("Sesame")).await.unwrap_err(),
        "the token is not that of the cluster in the datastore: give this server the token of another one with --token-file"
    );
    assert!(second.files().is_empty());
    second.share(&storage, Some("sesame")).await.unwrap();
    assert_eq!(second.files(), files);
    // Again, and after a crash in the middle of writing.
    std::fs::remove_file(second.tls().join("sa.key")).unwrap();
    std::fs::create_dir_all(second.folder.path().join("tls.draft/etcd")).unwrap();
    second.share(&storage, Some("sesame")).await.unwrap();
    first.share(&storage, Some("sesame")).await.unwrap();
    assert_eq!((first.files(), second.files()), (files.clone(), files));
    assert_eq!(read(&storage).await.unwrap().unwrap(), kept, "nothing was written again");
}

#[tokio::test]
async fn what_differs_is_named_and_nothing_is_changed() {
    let storage = MemoryStorage::new();
    let (first, mut second) = (Server::new(), Server::new());
    first.share(&storage, Some("sesame")).await.unwrap();
    Tree::open(&second.tls(), SystemClock::shared().now()).unwrap();
    let own = second.files();
    let error = second.share(&storage, Some("sesame")).await.unwrap_err();
    assert!(
        error.starts_with("D/tls/ca.crt is not the cluster's: remove it to have it from the datastore."),
        "{error}"
    );
    assert_eq!(second.files(), own);

    std::fs::remove_dir_all(second.tls()).unwrap();
    second.config.cluster_domain = "example.local".to_owned();
    assert_eq!(
        second.share(&storage, Some("sesame")).await.unwrap_err(),
        "cluster-domain is example.local here and cluster.local on the cluster's other servers: they must agree"
    );
    assert!(second.files().is_empty());
    // Public keys of before are added on one server after the other.
    let keys = first.tls().join(PUBLIC_KEYS);
    let more = format!("{0}{0}", std::fs::read_to_string(&keys).unwrap());
    std::fs::write(&keys, &more).unwrap();
    first.share(&storage, Some("sesame")).await.unwrap();
    assert_eq!(first.files()[PUBLIC_KEYS], more);
    storage_holds_garbage(&storage, &first).await;
}

async fn storage_holds_garbage(storage: &MemoryStorage, server: &Server) {
    let (found, _) = storage.get(KEY).await.unwrap();
    let unchanged = Precondition::Unchanged(found.unwrap().mod_revision);
    storage.put(KEY.to_owned(), "garbage".into(), unchanged).await.unwrap();
    let error = server.share(storage, Some("sesame")).await.unwrap_err();
    assert_eq!(error, "what the datastore holds under /rkube/bootstrap cannot be read: sealed text: it is not JSON");
}

#[tokio::test]
async fn of_servers_that_start_at_once_one_makes_the_authorities() {
    let storage = MemoryStorage::new();
    let servers = [Server::new(), Server::new(), Server::new()];
    let outcomes =
        futures_util::future::join_all(servers.iter().map(|server| server.share(&storage, Some("sesame")))).await;
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    let files = servers[0].files();
    assert_eq!(files.len(), FILES.len());
    assert!(servers.iter().all(|server| server.files() == files));

    // Without a token, the first makes one, and the others are told to ask for it.
    let storage = MemoryStorage::new();
    let (first, second) = (Server::new(), Server::new());
    first.share(&storage, None).await.unwrap();
    assert!(second.share(&storage, None).await.unwrap_err().starts_with("the datastore holds a cluster already"));
    second.share(&storage, Some("made-here")).await.unwrap();
    assert_eq!(first.files(), second.files());
}

#[tokio::test]
async fn a_cluster_from_before_gives_what_it_has() {
    let storage = MemoryStorage::new();
    let (old, second) = (Server::new(), Server::new());
    Tree::open(&old.tls(), SystemClock::shared().now()).unwrap();
    // The key of the authority is kept elsewhere.
    std::fs::remove_file(old.tls().join("ca.key")).unwrap();
    let files = old.files();
    old.share(&storage, Some("sesame")).await.unwrap();
    second.share(&storage, Some("sesame")).await.unwrap();
    assert_eq!((old.files(), second.files()), (files.clone(), files));
}
