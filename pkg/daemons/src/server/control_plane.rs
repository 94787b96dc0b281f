//! Opens everything a control plane consists of and lists what runs.

use std::collections::BTreeSet;
use std::fs::{File, TryLockError};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rkube_apimachinery::arguments::ArgumentError;
use rkube_apimachinery::clock::SharedClock;
use rkube_apimachinery::random::{SharedRandom, SystemRandom};
use rkube_apimachinery::status::ApiStatus;
use rkube_apimachinery::task;
use rkube_apiserver::admission::{Chain, Objects};
use rkube_apiserver::auth::Authorizer;
use rkube_apiserver::auth::basic::{AUTHENTICATED, CertificateAuthenticator, MASTERS, NoAudit, StaticTokens};
use rkube_apiserver::auth::bootstrap_token::{self, BootstrapTokens};
use rkube_apiserver::auth::cluster::ClusterAuthenticator;
use rkube_apiserver::auth::flow::MaxInFlight;
use rkube_apiserver::auth::impersonation::ByAuthorization;
use rkube_apiserver::auth::node::{NodeAuthorizer, Union};
use rkube_apiserver::auth::request_header::{self, RequestHeaderAuthenticator};
use rkube_apiserver::auth::service_account::{Signer, TokenSettings, Verifier};
use rkube_apiserver::health::Check;
use rkube_apiserver::openapi::{Builtin, Served};
use rkube_apiserver::proxy::RegistryNodes;
use rkube_apiserver::rbac::RbacAuthorizer;
use rkube_apiserver::server::{Extensions, OpenId, REQUEST_TIMEOUT};
use rkube_apiserver::{ApiServer, Config};
use rkube_client::Client;
use rkube_controllers::cluster_authentication_trust::AuthenticationTrust;
use rkube_controllers::{AsAccount, ControllerConfig, kubernetes_service};
use rkube_http::listener::Listener;
use rkube_http::tls::{self, ClientVerifier, TlsError};
use rkube_pki::join_token::Credential;
use rkube_pki::tree::Tree;
use rkube_pki::{PkiError, files};
use rkube_registry::registry::RegistryError;
use rkube_registry::{Registry, UserInfo};
use rkube_scheduler::SchedulerConfig;
use rkube_storage::Storage;
use rkube_storage::observed::Observed;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::{info, info_span};

use super::bootstrap::{self, BootstrapError};
use super::certificates::{Certificates, CertificatesError};
use super::datastore::{self, DatastoreError};
use super::managers::{self, Leadership};
use super::tokens::{self, Tokens, TokensError};
use super::{manifests, role, seed};
use crate::address;
use crate::component::{Component, component};
use crate::config::{Datastore, Paths, ServerConfig};
use crate::fitness::{self, Unfit};
use crate::node::{self, ClusterFacts, NodeError, Trust};

/// Who the controllers are in user agents and managed fields.
const CONTROLLER_MANAGER: &str = "kube-controller-manager";
/// Where the service accounts of controllers are.
const CONTROLLERS_NAMESPACE: &str = "kube-system";

/// How long requests under way may take when the server stops.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a control plane could not be opened. Nothing runs then.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error(transparent)]
    Certificates(#[from] CertificatesError),
    #[error(transparent)]
    Pki(#[from] PkiError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Datastore(#[from] DatastoreError),
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
    #[error("loading the cluster's state")]
    Registry(#[from] RegistryError),
    #[error("reading roles and bindings")]
    Policy(#[source] ApiStatus),
    #[error("{address} is in use or cannot be listened on: stop what listens there, or use --https-listen-port")]
    Listen {
        address: SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error("--service-cidr {0} has no room for the kubernetes Service")]
    ServiceCidr(String),
    #[error("finding the address of the default route: use --advertise-address")]
    Address(#[source] std::io::Error),
    #[error("service-cidr: {0}")]
    Network(String),
    #[error("--{flag} {network} contains this machine's own address {address}: give the cluster another network")]
    OwnAddress { flag: &'static str, network: String, address: IpAddr },
    #[error(transparent)]
    Node(#[from] NodeError),
    #[error("reading {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("scheduler-config {path} is not YAML: {detail}")]
    SchedulerYaml { path: PathBuf, detail: String },
    #[error("scheduler-config {path}")]
    Scheduler {
        path: PathBuf,
        #[source]
        source: rkube_scheduler::ConfigError,
    },
    #[error("--kube-controller-manager-arg")]
    ControllerArgument(#[from] ArgumentError),
    #[error(transparent)]
    Unfit(#[from] Unfit),
    #[error(transparent)]
    Tokens(#[from] TokensError),
    #[error("{data_dir} is in use by another rkube server: stop it, or give this one its own --data-dir")]
    InUse { data_dir: PathBuf },
    #[error("creating {path}, as --data-dir must be where this user may write")]
    Folder {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

pub(crate) struct ControlPlane {
    /// Held until the datastore is closed.
    lock: File,
    config: ServerConfig,
    scheduler: SchedulerConfig,
    controllers: ControllerConfig,
    clock: SharedClock,
    random: SharedRandom,
    storage: Arc<dyn Storage>,
    registry: Arc<Registry>,
    api: ApiServer,
    listener: Listener,
    service_ip: IpAddr,
    advertise: IpAddr,
    certificates: Arc<Certificates>,
    stop: CancellationToken,
}

impl ControlPlane {
    pub(crate) async fn open(config: ServerConfig, clock: SharedClock) -> Result<Self, OpenError> {
        // What cannot work is said before anything is made.
        fitness::require(config.agent.as_ref())?;
        let scheduler = scheduler_config(config.scheduler_config.as_deref())?;
        let paths = Paths::new(&config.data_dir);
        let now = clock.now();
        let random: SharedRandom = Arc::new(SystemRandom);
        let stop = CancellationToken::new();
        files::create_folder(&paths.server()).map_err(|source| OpenError::Folder { path: paths.server(), source })?;
        let lock = lock(&config.data_dir, &paths)?;

        let service_ip =
            config.service_cidr.nth(1).ok_or_else(|| OpenError::ServiceCidr(config.service_cidr.to_string()))?;
        let advertise = match config.advertise_address {
            Some(address) => address,
            None => address::own().map_err(OpenError::Address)?.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        };
        for (flag, network) in [("cluster-cidr", &config.cluster_cidr), ("service-cidr", &config.service_cidr)] {
            if network.contains(advertise) {
                return Err(OpenError::OwnAddress { flag, network: network.to_string(), address: advertise });
            }
        }
        // The port before the datastore: a second server is told before it touches anything.
        let address = SocketAddr::new(config.bind_address, config.https_listen_port);
        let socket = TcpListener::bind(address).await.map_err(|source| OpenError::Listen { address, source })?;
        let shared = shared_datastore(&config, &paths, &clock).await?;
        let certificates = Certificates::open(&config, service_ip, advertise, now)?;
        info!(folder = %paths.tls().display(), "Loaded the certificates");
        let tree = &certificates.tree;
        let controllers = managers::controller_config(&config, &tree.cluster)?;
        let tokens = Tokens::open(&config, &paths, tree.cluster.certificate_pem())?;
        let listener = Listener::new("kube-apiserver", socket, Some(Arc::clone(&certificates.serving)), clock.clone());

        let storage = match shared {
            Some(storage) => storage,
            None => datastore::open(&config.datastore, &paths.db(), &clock).await?,
        };
        let storage = Observed::new(storage);
        let health = storage.health();
        let storage: Arc<dyn Storage> = Arc::new(storage);
        let network = config.service_cidr.to_string();
        let service_cidr = network.parse().map_err(|error| OpenError::Network(format!("{network}: {error}")))?;
        let settings = TokenSettings { issuer: issuer(&config), audiences: audiences(&config) };
        let signer = Signer::new(tree.service_accounts.clone(), settings.clone(), clock.clone());
        let registry_config = rkube_registry::Config {
            token_signer: Some(Arc::new(signer)),
            service_cidrs: vec![service_cidr],
            node_ports: config.service_node_ports,
            ..rkube_registry::Config::default()
        };
        let registry = Registry::new(Arc::clone(&storage), clock.clone(), Arc::clone(&random), registry_config).await;
        let registry = registry.map_err(|error| match config.datastore {
            Datastore::Embedded if datastore::is_damage(&error) => {
                DatastoreError::Damaged { folder: paths.db(), source: Box::new(error) }.into()
            }
            _ => OpenError::from(error),
        })?;
        let authorizer =
            RbacAuthorizer::start(&registry, clock.clone(), stop.clone()).await.map_err(OpenError::Policy)?;
        let authorizer: Arc<dyn Authorizer> = Arc::new(Union(vec![
            Arc::new(NodeAuthorizer::new(Objects::new(Arc::clone(&registry)))),
            Arc::new(authorizer),
        ]));

        let cluster_tls = tls::unverified_client_config()?;
        let nodes = RegistryNodes::new(
            Arc::clone(&registry),
            Arc::clone(&certificates.kubelet_client),
            Arc::new(ArcSwap::from_pointee(cluster_tls)),
        );
        let verifier = ClientVerifier::new(certificates.roots.clone())?;
        let front_proxy = ClientVerifier::new(certificates.front_proxy_roots.clone())?;
        let api = ApiServer::new(Config {
            registry: Arc::clone(&registry),
            clock: clock.clone(),
            resources: rkube_api::resources().to_vec(),
            authenticator: Arc::new(ClusterAuthenticator {
                front_proxy: RequestHeaderAuthenticator::new(front_proxy, clock.clone()),
                certificates: CertificateAuthenticator::new(verifier, clock.clone()),
                tokens: tokens.bearers().fold(StaticTokens::default(), |all, token| all.with(&token, joiner())),
                bootstrap: BootstrapTokens::new(Objects::new(Arc::clone(&registry)), clock.clone()),
                service_accounts: Verifier::new(
                    tree.service_accounts.clone(),
                    settings,
                    clock.clone(),
                    Objects::new(Arc::clone(&registry)),
                ),
            }),
            anonymous: true,
            authorizer: Arc::clone(&authorizer),
            impersonation: Arc::new(ByAuthorization),
            audit: Arc::new(NoAudit),
            flow: Arc::new(MaxInFlight::default()),
            admission: Arc::new(Chain::new(Chain::builtin(&registry, &authorizer, clock.clone(), Arc::clone(&random)))),
            nodes: Arc::new(nodes),
            openapi: Arc::new(Served::new(Arc::new(Builtin))),
            metrics: component_metrics(),
            // Not for liveness: to start the server again helps no datastore.
            checks: vec![Check::new("etcd", &["readyz", "healthz"], move || health.failure().map_or(Ok(()), Err))],
            advertise_address: SocketAddr::new(advertise, config.https_listen_port).to_string(),
            extensions: Extensions { openid: Some(openid(&config, tree)), ..Extensions::default() },
            request_timeout: REQUEST_TIMEOUT,
        });
        info!(datastore = datastore::name(&config.datastore), "Opened the datastore");
        Ok(Self {
            lock,
            config,
            scheduler,
            controllers,
            clock,
            random,
            storage,
            registry,
            api,
            listener,
            service_ip,
            advertise,
            certificates,
            stop,
        })
    }

    /// Everything that runs, in the order it starts.
    pub(crate) fn components(self) -> Result<Vec<Box<dyn Component>>, OpenError> {
        let config = &self.config;
        let client = |agent: &str, user: UserInfo| client_as(&self.api, agent, user, &self.clock, &self.random);
        let root_ca = self.certificates.tree.cluster.certificate_pem().to_owned();
        let cluster = ClusterFacts {
            dns: config.cluster_dns,
            domain: config.cluster_domain.clone(),
            pods: config.cluster_cidr.to_string(),
        };
        let api_server = kubernetes_service::ApiServer {
            service_ip: self.service_ip,
            https_port: config.https_listen_port,
            // A loopback address leads nowhere for others.
            address: Some(self.advertise).filter(|address| !address.is_loopback() && !address.is_unspecified()),
            shares_datastore: config.datastore != Datastore::Embedded,
        };
        let settings = ControllerConfig {
            service_account_keys: Some(self.certificates.tree.service_accounts.clone()),
            api_server: Some(api_server.clone()),
            authentication_trust: Some(authentication_trust(&self.certificates.tree)),
            ..self.controllers.clone()
        };
        let leadership = Leadership::new(config, self.advertise);
        let manager = client(CONTROLLER_MANAGER, named("system:kube-controller-manager", &[]));
        let accounts = as_account(&self.api, &self.clock, &self.random);
        let controllers = managers::controllers(manager, accounts, Arc::new(settings.clone()), leadership.clone());
        let node = match &config.agent {
            Some(agent) => {
                let name = format!("system:node:{}", agent.node_name);
                let folder = Paths::new(&config.data_dir).agent();
                let client = client("kubelet", named(&name, &["system:nodes"]));
                let trust = Trust { authority: root_ca.clone(), serving: self.certificates.kubelet_serving.clone() };
                node::components(agent, folder, &cluster, &client, &self.clock, trust, &["kube-apiserver"])?
            }
            None => Vec::new(),
        };
        let scheduler = client("kube-scheduler", named("system:kube-scheduler", &[]));
        let scheduler = managers::scheduler(self.scheduler.clone(), scheduler, &self.clock, &self.random, leadership);
        let folder = manifests::Settings {
            folder: Paths::new(&config.data_dir).manifests(),
            disable: config.disable.iter().cloned().collect(),
            server: address::host_name(),
        };
        let addons = manifests::manifests(folder, client("rkube-addons", named("system:rkube-addons", &[MASTERS])));
        let own_node = config.agent.as_ref().map(|agent| agent.node_name.clone());
        let role = own_node
            .map(|name| role::keep(client("rkube-node-role", named("system:rkube-node-role", &[MASTERS])), name));
        // The API server's own work, before and beside the roles it seeds.
        let seeder = client("kube-apiserver", named("system:apiserver", &[MASTERS]));
        let seed = seed::Seed {
            server: format!("https://{}", SocketAddr::new(self.advertise, config.https_listen_port)),
            authority: root_ca.clone(),
            facts: cluster.clone(),
            is_shared: config.datastore != Datastore::Embedded,
        };
        let certificates = Arc::clone(&self.certificates).component(self.clock.clone());
        let Self { lock, storage, registry, api, listener, stop, .. } = self;
        let server = component("kube-apiserver", &[], move |ready, shutdown| async move {
            seed::run(&seeder, &seed).await?;
            kubernetes_service::seed(&seeder, &api_server).await?;
            let closing = CancellationToken::new();
            let serving = listener.serve(Arc::new(api.clone()), closing.clone(), DRAIN_TIMEOUT);
            tokio::pin!(serving);
            let beside = CancellationToken::new();
            // Which controllers run is the controller manager's setting; these belong to the API server.
            let settings = ControllerConfig { controllers: BTreeSet::new(), ..settings };
            let context = managers::controller_context(&seeder, "kube-apiserver", Arc::new(settings), &beside);
            let own = rkube_controllers::run(rkube_controllers::server_descriptors(), context, || ());
            let own = task::spawn(info_span!("controllers", component = "kube-apiserver"), own);
            info!(url = seed.server, "Serving the Kubernetes API");
            ready.ready();
            tokio::select! {
                () = &mut serving => {}
                () = shutdown.requested() => {
                    // They say goodbye through the API, so they go first.
                    beside.cancel();
                    let _ = own.await;
                    api.stop();
                    closing.cancel();
                    serving.await;
                }
            }
            stop.cancel();
            registry.shutdown();
            drop(registry);
            let closed = storage.close().await;
            drop(lock);
            Ok(closed?)
        });
        let mut all = vec![certificates, server, controllers, scheduler, addons];
        all.extend(role);
        all.extend(node);
        Ok(all)
    }
}

/// A datastore that other servers use, too, before anything of this one: the cluster's authorities come from there.
async fn shared_datastore(
    config: &ServerConfig,
    paths: &Paths,
    clock: &SharedClock,
) -> Result<Option<Arc<dyn Storage>>, OpenError> {
    if config.datastore == Datastore::Embedded {
        return Ok(None);
    }
    let storage = datastore::open(&config.datastore, &paths.db(), clock).await?;
    let secret = tokens::known(config, paths)?.as_ref().map(Credential::bearer);
    let make = || tokens::make(paths);
    bootstrap::share(storage.as_ref(), config, &paths.tls(), secret, make, clock.now()).await?;
    Ok(Some(storage))
}

/// What extension API servers are told to trust, as kubeadm sets kube-apiserver up.
fn authentication_trust(tree: &Tree) -> AuthenticationTrust {
    let one = |text: &str| vec![text.to_owned()];
    AuthenticationTrust {
        client_ca: tree.cluster.certificate_pem().to_owned(),
        request_header_ca: tree.front_proxy.certificate_pem().to_owned(),
        allowed_names: one(request_header::ALLOWED_NAME),
        username_headers: one(request_header::USER),
        uid_headers: one(request_header::UID),
        group_headers: one(request_header::GROUP),
        extra_headers_prefix: one(request_header::EXTRA_PREFIX),
    }
}

/// The metrics of what runs beside the API server and has no port of its own: they are served with the API's.
fn component_metrics() -> Arc<Mutex<prometheus_client::registry::Registry>> {
    let mut metrics = prometheus_client::registry::Registry::default();
    rkube_client::metrics::register(&mut metrics);
    rkube_scheduler::metrics::register(&mut metrics);
    rkube_controllers::register_metrics(&mut metrics);
    Arc::new(Mutex::new(metrics))
}

/// The defaults, or what `--scheduler-config` says.
fn scheduler_config(file: Option<&Path>) -> Result<SchedulerConfig, OpenError> {
    let Some(file) = file else { return Ok(SchedulerConfig::default()) };
    let path = || file.to_owned();
    let text = files::text(file).map_err(|source| OpenError::Read { path: path(), source })?;
    let value: serde_json::Value = serde_saphyr::from_str(&text)
        .map_err(|error| OpenError::SchedulerYaml { path: path(), detail: error.to_string() })?;
    SchedulerConfig::from_value(&value).map_err(|source| OpenError::Scheduler { path: path(), source })
}

fn named(name: &str, groups: &[&str]) -> UserInfo {
    let groups = groups.iter().chain(&[AUTHENTICATED]).map(|group| (*group).to_owned()).collect();
    UserInfo { name: name.to_owned(), groups, ..UserInfo::default() }
}

/// Clients of the controllers, each with its service account in `kube-system`, by which roles are bound.
fn as_account(api: &ApiServer, clock: &SharedClock, random: &SharedRandom) -> AsAccount {
    let (api, clock, random) = (api.clone(), clock.clone(), Arc::clone(random));
    Arc::new(move |account| {
        let name = format!("system:serviceaccount:{CONTROLLERS_NAMESPACE}:{account}");
        let groups = ["system:serviceaccounts", "system:serviceaccounts:kube-system"];
        client_as(&api, CONTROLLER_MANAGER, named(&name, &groups), &clock, &random)
    })
}

/// A client of a component. The component's name is the manager of the fields it writes.
fn client_as(api: &ApiServer, component: &str, user: UserInfo, clock: &SharedClock, random: &SharedRandom) -> Client {
    let agent = crate::version::user_agent(component);
    Client::new(api.transport_as(user), clock.clone(), Arc::clone(random)).with_user_agent(&agent)
}

/// Holds the data directory for this process: a second server is told before it changes anything.
fn lock(data_dir: &Path, paths: &Paths) -> Result<File, OpenError> {
    let path = paths.server().join("lock");
    let open = || File::options().write(true).create(true).truncate(false).mode(files::PRIVATE).open(&path);
    let file = open().map_err(|source| OpenError::Folder { path: path.clone(), source })?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse { data_dir: data_dir.to_owned() }),
        Err(TryLockError::Error(source)) => Err(OpenError::Folder { path, source }),
    }
}

fn openid(config: &ServerConfig, tree: &Tree) -> OpenId {
    let issuer = issuer(config);
    let document = serde_json::json!({
        "issuer": issuer,
        "jwks_uri": format!("{issuer}/openid/v1/jwks"),
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["ES256"],
    });
    OpenId { configuration: document.to_string().into(), keys: tree.service_accounts.jwks().to_string().into() }
}

/// As kubeadm: a name every pod can resolve.
fn issuer(config: &ServerConfig) -> String {
    format!("https://kubernetes.default.svc.{}", config.cluster_domain)
}

/// Who comes with the server's own token: a node that is about to join.
fn joiner() -> UserInfo {
    let groups = vec![bootstrap_token::GROUP.to_owned()];
    UserInfo { name: "system:bootstrap:rkube".to_owned(), groups, ..UserInfo::default() }
}

/// Who a token without audience is for: this server, by the names it has always had.
fn audiences(config: &ServerConfig) -> Vec<String> {
    vec![issuer(config), "rkube".to_owned()]
}
