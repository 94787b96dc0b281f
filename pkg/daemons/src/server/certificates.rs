//! The certificates a server shows, kept fresh while it runs.
//!
//! Inputs: the files under `server/tls`. Outputs: TLS configurations that are swapped in place, and the kubeconfigs that
//! carry client certificates.
//!
//! Invariant: a connection is never broken off for a renewal; the next one gets the new certificate.
//! Invariant: what `rkube certificate rotate` or an administrator puts there is taken up, and never written over
//! here; only a leaf of ours that is due is made anew, at the latest [`CHECK_INTERVAL`] after it is.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::StreamExt;
use inotify::{EventStream, Inotify, WatchMask};
use jiff::Timestamp;
use parking_lot::Mutex;
use rkube_apimachinery::chain::chain;
use rkube_apimachinery::clock::SharedClock;
use rkube_apiserver::auth::basic::MASTERS;
use rkube_http::tls::{self, SharedClientConfig, SharedServerConfig, TlsError};
use rkube_pki::tree::{Names, Tree};
use rkube_pki::{CertifiedKey, PkiError, authority, files, kubeconfig};
use rustls::RootCertStore;
use tracing::{info, warn};

use crate::component::{Component, component};
use crate::config::{Paths, ServerConfig};
use crate::{address, node};

/// Leaves last a year and are due four months before their end.
const CHECK_INTERVAL: Duration = Duration::from_secs(3600);
const EVENTS_BUFFER: usize = 4096;

const SERVING: &str = "apiserver";
const KUBELET_CLIENT: &str = "apiserver-kubelet-client";
const KUBELET_SERVING: &str = "kubelet";
/// File, user in the kubeconfig, certificate's name, user and groups.
const CLIENTS: [(&str, &str, &str, &str, &[&str]); 3] = [
    ("", "admin", "client-admin", "kubernetes-admin", &[MASTERS]),
    (
        "controller-manager.kubeconfig",
        "controller-manager",
        "client-controller-manager",
        "system:kube-controller-manager",
        &[],
    ),
    ("scheduler.kubeconfig", "scheduler", "client-scheduler", "system:kube-scheduler", &[]),
];

#[derive(Debug, thiserror::Error)]
pub(crate) enum CertificatesError {
    #[error(transparent)]
    Pki(#[from] PkiError),
    #[error(transparent)]
    Tls(#[from] TlsError),
}

pub(super) struct Certificates {
    pub(super) tree: Tree,
    config: ServerConfig,
    names: Names,
    /// The user and the names of the own node's kubelet.
    kubelet: Option<(String, Names)>,
    /// In use, by name: the certificate.
    current: Mutex<BTreeMap<&'static str, String>>,
    pub(super) roots: RootCertStore,
    /// What a front proxy's certificate is of.
    pub(super) front_proxy_roots: RootCertStore,
    /// The authorities that are named to clients of the API server, so that they choose a certificate.
    named: RootCertStore,
    pub(super) serving: SharedServerConfig,
    pub(super) kubelet_client: SharedClientConfig,
    pub(super) kubelet_serving: Option<SharedServerConfig>,
    kubeconfig_server: String,
}

impl Certificates {
    /// Makes what is missing or due, and loads everything.
    pub(super) fn open(
        config: &ServerConfig,
        service_ip: IpAddr,
        advertise: IpAddr,
        now: Timestamp,
    ) -> Result<Arc<Self>, CertificatesError> {
        let tree = Tree::open(&Paths::new(&config.data_dir).tls(), now)?;
        let mut names = Names::api_server(&config.cluster_domain, &address::host_name(), service_ip);
        names.add(&advertise.to_string());
        config.tls_sans.iter().for_each(|name| names.add(name));
        let kubelet = config.agent.as_ref().map(|agent| {
            let names = node::names(&agent.node_name, agent.node_ip.unwrap_or(advertise));
            (format!("system:node:{}", agent.node_name), names)
        });
        let roots = tls::roots(&authority::certificates(tree.cluster.certificate_pem(), "cluster CA")?)?;
        let front_proxy = authority::certificates(tree.front_proxy.certificate_pem(), "front-proxy CA")?;
        let front_proxy_roots = tls::roots(&front_proxy)?;
        let mut named = roots.clone();
        named.extend(front_proxy_roots.roots.iter().cloned());
        let server = |pair: &CertifiedKey, named: &RootCertStore| {
            tls::server_config(pair.chain()?, pair.key()?, named).map_err(CertificatesError::from)
        };
        let pair = tree.serving(&names, now)?;
        let client = tree.kubelet_client(now)?;
        let client_tls = tls::client_config(roots.clone(), Some((client.chain()?, client.key()?)))?;
        let mut current =
            BTreeMap::from([(SERVING, pair.certificate_pem.clone()), (KUBELET_CLIENT, client.certificate_pem.clone())]);
        let kubelet_serving = match &kubelet {
            Some((user, names)) => {
                let pair = tree.server(KUBELET_SERVING, user, names, now)?;
                current.insert(KUBELET_SERVING, pair.certificate_pem.clone());
                Some(Arc::new(ArcSwap::from_pointee(server(&pair, &roots)?)))
            }
            None => None,
        };
        if !tree.cluster.can_sign() {
            warn!(
                "The cluster's authority has no key here: certificates of nodes and users are not signed, and none is renewed"
            );
        }
        let certificates = Self {
            serving: Arc::new(ArcSwap::from_pointee(server(&pair, &named)?)),
            kubelet_client: Arc::new(ArcSwap::from_pointee(client_tls)),
            kubelet_serving,
            kubeconfig_server: kubeconfig_server(config, advertise),
            current: Mutex::new(current),
            config: config.clone(),
            names,
            kubelet,
            roots,
            front_proxy_roots,
            named,
            tree,
        };
        certificates.write_front_proxy(now)?;
        certificates.write_kubeconfigs(now)?;
        Ok(Arc::new(certificates))
    }

    /// Makes anew what is due, and takes up what changed.
    fn renew(&self, now: Timestamp) -> Result<(), CertificatesError> {
        self.apply(SERVING, &self.tree.serving(&self.names, now)?)?;
        self.apply(KUBELET_CLIENT, &self.tree.kubelet_client(now)?)?;
        if let Some((user, names)) = &self.kubelet {
            self.apply(KUBELET_SERVING, &self.tree.server(KUBELET_SERVING, user, names, now)?)?;
        }
        self.write_front_proxy(now)?;
        self.write_kubeconfigs(now)
    }

    /// What a front proxy shows, for whoever runs one on this machine.
    fn write_front_proxy(&self, now: Timestamp) -> Result<(), CertificatesError> {
        match self.tree.front_proxy_client(now) {
            Err(error @ PkiError::ExternalAuthority { .. }) => warn!(%error, "Made no certificate of a front proxy"),
            pair => drop(pair?),
        }
        Ok(())
    }

    /// Takes up the files of one certificate, if they are whole.
    fn reload(&self, name: &str, now: Timestamp) -> Result<(), CertificatesError> {
        if let Some(known) = [SERVING, KUBELET_CLIENT, KUBELET_SERVING].into_iter().find(|known| *known == name) {
            return match self.tree.read(known)? {
                Some(pair) => self.apply(known, &pair),
                None => Ok(()),
            };
        }
        if CLIENTS.iter().any(|(_, _, file, ..)| *file == name) && self.tree.read(name)?.is_some() {
            return self.write_kubeconfigs(now);
        }
        Ok(())
    }

    fn apply(&self, name: &'static str, pair: &CertifiedKey) -> Result<(), CertificatesError> {
        let mut current = self.current.lock();
        if current.get(name) == Some(&pair.certificate_pem) {
            return Ok(());
        }
        let server = |named: &RootCertStore| {
            tls::server_config(pair.chain()?, pair.key()?, named).map_err(CertificatesError::from)
        };
        match name {
            SERVING => self.serving.store(Arc::new(server(&self.named)?)),
            KUBELET_CLIENT => {
                let identity = Some((pair.chain()?, pair.key()?));
                self.kubelet_client.store(Arc::new(tls::client_config(self.roots.clone(), identity)?));
            }
            _ => {
                if let Some(serving) = &self.kubelet_serving {
                    serving.store(Arc::new(server(&self.roots)?));
                }
            }
        }
        current.insert(name, pair.certificate_pem.clone());
        info!(certificate = name, "Took up a new certificate");
        Ok(())
    }

    /// The administrator's kubeconfig, and those of the components an administrator may want to run apart. One
    /// whose certificate would have to come from elsewhere is left to whoever has the authority's key.
    fn write_kubeconfigs(&self, now: Timestamp) -> Result<(), CertificatesError> {
        let folder = Paths::new(&self.config.data_dir).credentials();
        for (file, user, name, common_name, groups) in CLIENTS {
            let pair = match self.tree.client(name, common_name, groups, now) {
                Err(error @ PkiError::ExternalAuthority { .. }) => {
                    warn!(user, error = %error, "Wrote no kubeconfig");
                    continue;
                }
                pair => pair?,
            };
            let user_of = kubeconfig::User::Certificate(pair);
            let authority = self.tree.cluster.certificate_pem();
            let text = kubeconfig::render("rkube", &self.kubeconfig_server, authority, user, &user_of);
            let (path, mode) = match file {
                "" => (self.config.write_kubeconfig.clone(), self.config.write_kubeconfig_mode),
                file => (folder.join(file), files::PRIVATE),
            };
            if files::read(&path)?.as_deref() != Some(text.as_str()) {
                files::write(&path, text.as_bytes(), mode)?;
            }
        }
        Ok(())
    }

    /// Renews until shutdown.
    pub(super) fn component(self: Arc<Self>, clock: SharedClock) -> Box<dyn Component> {
        component("certificates", &[], move |ready, shutdown| async move {
            let mut changes = watch(self.tree.folder());
            ready.ready();
            loop {
                let changed = async {
                    match &mut changes {
                        Some(changes) => next_name(changes).await,
                        None => std::future::pending().await,
                    }
                };
                let outcome = tokio::select! {
                    () = shutdown.requested() => return Ok(()),
                    () = clock.sleep(CHECK_INTERVAL) => self.renew(clock.now()),
                    changed = changed => match changed {
                        Some(name) => self.reload(&name, clock.now()),
                        None => {
                            changes = None;
                            Ok(())
                        }
                    },
                };
                if let Err(error) = outcome {
                    warn!(error = %chain(&error), "Could not renew certificates; those in use stay");
                }
            }
        })
    }
}

/// The administrator is on this machine, unless the server only listens elsewhere.
fn kubeconfig_server(config: &ServerConfig, advertise: IpAddr) -> String {
    let local = config.bind_address.is_unspecified() || config.bind_address.is_loopback();
    let address = if local { IpAddr::from([127, 0, 0, 1]) } else { advertise };
    format!("https://{}", SocketAddr::new(address, config.https_listen_port))
}

/// Changes of the folder's files; without them, renewal by time is left.
fn watch(folder: &Path) -> Option<EventStream<Vec<u8>>> {
    let open = || {
        let inotify = Inotify::init()?;
        inotify.watches().add(folder, WatchMask::MOVED_TO | WatchMask::CLOSE_WRITE)?;
        inotify.into_event_stream(vec![0; EVENTS_BUFFER])
    };
    open()
        .inspect_err(|error| warn!(%error, "Could not watch the certificates; files put there count after an hour"))
        .ok()
}

/// The next certificate or key that was written, without its extension; `None` at the end of the watch.
async fn next_name(changes: &mut EventStream<Vec<u8>>) -> Option<String> {
    loop {
        let event = changes.next().await?.ok()?;
        let Some(name) = event.name.as_ref().and_then(|name| name.to_str()) else { continue };
        if let Some(stem) = name.strip_suffix(".crt").or_else(|| name.strip_suffix(".key")) {
            return Some(stem.to_owned());
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
