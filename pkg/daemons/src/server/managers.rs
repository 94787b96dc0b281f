//! The components of which one acts at a time: controllers and scheduler.
//!
//! Of several servers on one datastore, one runs the controllers and one schedules. A server that is alone with its
//! datastore leads without asking: no lease is written.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use rkube_apimachinery::arguments::ArgumentError;
use rkube_apimachinery::clock::SharedClock;
use rkube_apimachinery::random::SharedRandom;
use rkube_client::leader::{LeaderConfig, LeaderElector};
use rkube_client::{Client, EventRecorder, InformerFactory};
use rkube_controllers::{AsAccount, ControllerConfig, ControllerContext};
use rkube_pki::CertificateAuthority;
use rkube_scheduler::{SchedulerConfig, SchedulerContext};
use tokio_util::sync::CancellationToken;

use crate::address;
use crate::component::{Component, ComponentError, Ready, component};
use crate::config::{Cidr, Datastore, ServerConfig};

const NAMESPACE: &str = "kube-system";

/// Who this server is in elections; `None` where there are none.
#[derive(Clone)]
pub(super) struct Leadership(Option<String>);

#[derive(Debug, thiserror::Error)]
#[error("the lease {0} could not be renewed; another server may lead now")]
struct Lost(&'static str);

impl Leadership {
    pub(super) fn new(config: &ServerConfig, advertise: IpAddr) -> Self {
        // Two servers on one machine differ in their port; one after the other takes over from itself.
        let identity = || format!("{}_{advertise}:{}", address::host_name(), config.https_listen_port);
        Self((config.datastore != Datastore::Embedded).then(identity))
    }

    /// One that waits to lead is as ready as it gets; others are when their work says so.
    fn ready(&self, ready: Ready) -> Option<Ready> {
        if self.0.is_none() {
            return Some(ready);
        }
        ready.ready();
        None
    }

    /// Runs `work` while this server leads, until `stop`. Leadership that is lost is an error: what the work
    /// remembers may be wrong, so the process starts anew.
    async fn lead<F: Future<Output = Result<(), ComponentError>>>(
        self,
        client: &Client,
        lease: &'static str,
        stop: CancellationToken,
        work: impl FnOnce(CancellationToken) -> F,
    ) -> Result<(), ComponentError> {
        let mut outcome = Ok(());
        match self.0 {
            None => outcome = work(stop.clone()).await,
            Some(identity) => {
                let elector = LeaderElector::new(client.clone(), LeaderConfig::new(NAMESPACE, lease, &identity));
                if elector.run(stop.clone(), async |token| outcome = work(token).await).await {
                    return Err(Lost(lease).into());
                }
            }
        }
        // Stopped before the caches were there is stopped.
        if stop.is_cancelled() { Ok(()) } else { outcome }
    }
}

pub(super) fn scheduler(
    config: SchedulerConfig,
    client: Client,
    clock: &SharedClock,
    random: &SharedRandom,
    leadership: Leadership,
) -> Box<dyn Component> {
    let (clock, random) = (clock.clone(), Arc::clone(random));
    component("kube-scheduler", &["kube-apiserver"], move |ready, shutdown| async move {
        let ready = leadership.ready(ready);
        let lead = async |stop: CancellationToken| {
            let context = SchedulerContext {
                informers: InformerFactory::new(client.clone(), stop.clone()),
                recorder: EventRecorder::start(client.clone(), "default-scheduler", stop.clone())
                    .on_host(&address::host_name()),
                config: Arc::new(config),
                clock,
                random,
                shutdown: stop,
                client: client.clone(),
            };
            let synced = || ready.into_iter().for_each(Ready::ready);
            rkube_scheduler::run(context, synced).await.map_err(ComponentError::from)
        };
        leadership.lead(&client, "kube-scheduler", shutdown.token(), lead).await
    })
}

pub(super) fn controllers(
    client: Client,
    as_account: AsAccount,
    settings: Arc<ControllerConfig>,
    leadership: Leadership,
) -> Box<dyn Component> {
    component("kube-controller-manager", &["kube-apiserver"], move |ready, shutdown| async move {
        let ready = leadership.ready(ready);
        let lead = async |stop: CancellationToken| {
            let context = controller_context(&client, "kube-controller-manager", settings, &stop);
            let context = ControllerContext { as_account: Some(as_account), ..context };
            let synced = || ready.into_iter().for_each(Ready::ready);
            rkube_controllers::run(rkube_controllers::descriptors(), context, synced)
                .await
                .map_err(ComponentError::from)
        };
        leadership.lead(&client, "kube-controller-manager", shutdown.token(), lead).await
    })
}

/// Those that run unless the user names others: as with kubeadm, bootstrap tokens sign and expire.
fn enabled_controllers() -> BTreeSet<String> {
    ["*", "bootstrap-signer-controller", "token-cleaner-controller"].map(str::to_owned).into()
}

pub(super) fn controller_config(
    config: &ServerConfig,
    authority: &CertificateAuthority,
) -> Result<ControllerConfig, ArgumentError> {
    let network = |cidr: &Cidr| cidr.to_string().parse().ok();
    let mut settings = ControllerConfig {
        controllers: enabled_controllers(),
        cluster_cidrs: network(&config.cluster_cidr).into_iter().collect(),
        service_cidrs: network(&config.service_cidr).into_iter().collect(),
        api_server_port: Some(config.https_listen_port),
        root_ca: authority.certificate_pem().to_owned(),
        signing_authority: Some(authority.clone()).filter(CertificateAuthority::can_sign),
        ..ControllerConfig::default()
    };
    settings.apply(&config.controller_args)?;
    // It stands for a component, under the name that k3s' users know.
    if config.disable.iter().any(|name| name == "servicelb") {
        settings.controllers.insert("-service-lb-controller".to_owned());
    }
    Ok(settings)
}

pub(super) fn controller_context(
    client: &Client,
    component: &str,
    config: Arc<ControllerConfig>,
    stop: &CancellationToken,
) -> ControllerContext {
    ControllerContext {
        as_account: None,
        informers: InformerFactory::new(client.clone(), stop.clone()),
        recorder: EventRecorder::start(client.clone(), component, stop.clone()),
        config,
        shutdown: stop.clone(),
        client: client.clone(),
    }
}
