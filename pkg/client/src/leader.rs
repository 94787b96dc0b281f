//! Leader election on a Lease, for components that run on several machines and must act on one.
//!
//! Every acquisition and renewal is an update at the resourceVersion last seen, so that of two candidates
//! one loses. The lease of another is judged by how long it was seen unchanged on this machine's own
//! monotonic clock: clocks of different machines are never compared.
//! Behaves as `k8s.io/client-go/tools/leaderelection`, v1.36, defaults included.
//!
//! # Caveats
//! As any lease, it does not keep a paused leader from a late write; conditional writes do.

use std::time::Duration;

use jiff::Timestamp;
use rkube_api::k8s::coordination::v1::{Lease, LeaseSpec};
use rkube_api::meta::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use rkube_apimachinery::backoff::jitter;
use rkube_apimachinery::chain::chain;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::api::Api;
use crate::client::Client;
use crate::request_metrics::requests;
use crate::transport::ClientError;

/// Waits between tries are up to this much longer at random.
const JITTER: f64 = 1.2;

#[derive(Clone, Debug)]
pub struct LeaderConfig {
    pub namespace: String,
    /// The lease's name: `kube-controller-manager`.
    pub name: String,
    /// Unique among candidates.
    pub identity: String,
    /// How long others wait after the last renewal they saw.
    pub lease_duration: Duration,
    /// How long the leader tries to renew before it stops.
    pub renew_deadline: Duration,
    pub retry_period: Duration,
}

impl LeaderConfig {
    pub fn new(namespace: &str, name: &str, identity: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            identity: identity.to_owned(),
            lease_duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry_period: Duration::from_secs(2),
        }
    }
}

/// One candidate.
pub struct LeaderElector {
    client: Client,
    api: Api<Lease>,
    config: LeaderConfig,
    observed: Option<Observed>,
}

struct Observed {
    lease: Lease,
    at: Duration,
}

impl LeaderElector {
    pub fn new(client: Client, config: LeaderConfig) -> Self {
        let api = client.namespaced(&config.namespace);
        requests().leads(&config.name, false);
        Self { client, api, config, observed: None }
    }

    /// Waits until this candidate leads, then runs `lead` until it ends, leadership is lost, or `stop`.
    /// The token given to `lead` is cancelled when leadership is lost. The lease is given back at the end.
    ///
    /// Returns whether leadership was lost, as opposed to given up.
    pub async fn run<F: Future<Output = ()>>(
        mut self,
        stop: CancellationToken,
        lead: impl FnOnce(CancellationToken) -> F,
    ) -> bool {
        tokio::select! {
            () = stop.cancelled() => return false,
            () = self.acquire() => {}
        }
        info!(lease = self.config.name, identity = self.config.identity, "Became leader");
        requests().leads(&self.config.name, true);
        let leading = stop.child_token();
        let lost = tokio::select! {
            () = lead(leading.clone()) => false,
            () = stop.cancelled() => false,
            () = self.renew() => true,
        };
        leading.cancel();
        requests().leads(&self.config.name, false);
        if lost {
            warn!(lease = self.config.name, "Lost leadership");
        } else {
            self.release().await;
        }
        lost
    }

    async fn acquire(&mut self) {
        while !self.try_acquire_or_renew().await {
            let wait = jitter(self.config.retry_period, JITTER, self.client.random().as_ref());
            self.client.clock().sleep(wait).await;
        }
    }

    /// Ends when the lease could not be renewed within the deadline.
    async fn renew(&mut self) {
        let clock = self.client.clock().clone();
        let mut renewed = clock.monotonic();
        loop {
            clock.sleep(self.config.retry_period).await;
            let left = self.config.renew_deadline.saturating_sub(clock.monotonic().saturating_sub(renewed));
            let renewal = tokio::select! {
                renewal = self.try_acquire_or_renew() => renewal,
                () = clock.sleep(left) => false,
            };
            let now = clock.monotonic();
            if renewal {
                renewed = now;
            } else if now.saturating_sub(renewed) >= self.config.renew_deadline {
                return;
            }
        }
    }

    fn leads(&self) -> bool {
        self.observed.as_ref().is_some_and(|observed| holder(&observed.lease) == self.config.identity)
    }

    /// One step; whether this candidate holds the lease after it.
    async fn try_acquire_or_renew(&mut self) -> bool {
        match self.step().await {
            Ok(leads) => leads,
            Err(error) => {
                debug!(lease = self.config.name, error = %chain(&error), "Could not update lease");
                // What was seen may be outdated; the next step reads again.
                self.forget_version();
                false
            }
        }
    }

    async fn step(&mut self) -> Result<bool, ClientError> {
        let leads = self.leads();
        let known_version = self.observed.as_ref().and_then(|o| o.lease.metadata.resource_version.clone());
        if !leads || known_version.is_none() {
            match self.api.get(&self.config.name).await {
                Ok(lease) => self.observe(lease),
                Err(error) if error.is_not_found() => {
                    let lease = self.wanted(None);
                    let stored = self.api.create(&lease).await?;
                    self.observe(stored);
                    return Ok(true);
                }
                Err(error) => return Err(error),
            }
        }
        let Some(observed) = &self.observed else { return Ok(false) };
        let spec = observed.lease.spec.clone().unwrap_or_default();
        let duration = Duration::from_secs(u64::try_from(spec.lease_duration_seconds.unwrap_or(0)).unwrap_or(0));
        let valid = self.client.clock().monotonic() < observed.at.saturating_add(duration);
        if !holder(&observed.lease).is_empty() && valid && !self.leads() {
            return Ok(false);
        }
        let lease = self.wanted(Some(&observed.lease));
        let stored = self.api.update(&lease).await?;
        self.observe(stored);
        Ok(true)
    }

    /// Remembers a lease; the time counts from when it was first seen like this.
    fn observe(&mut self, lease: Lease) {
        let unchanged = self.observed.as_ref().is_some_and(|observed| observed.lease.spec == lease.spec);
        let at = match &self.observed {
            Some(observed) if unchanged => observed.at,
            _ => self.client.clock().monotonic(),
        };
        self.observed = Some(Observed { lease, at });
    }

    fn forget_version(&mut self) {
        if let Some(observed) = &mut self.observed {
            observed.lease.metadata.resource_version = None;
        }
    }

    fn wanted(&self, previous: Option<&Lease>) -> Lease {
        let now: Timestamp = self.client.clock().now();
        let old = previous.and_then(|lease| lease.spec.clone()).unwrap_or_default();
        let ours = previous.is_some_and(|lease| holder(lease) == self.config.identity);
        let transitions = old.lease_transitions.unwrap_or(0);
        let mut lease = previous.cloned().unwrap_or_else(|| Lease {
            metadata: ObjectMeta {
                name: Some(self.config.name.clone()),
                namespace: Some(self.config.namespace.clone()),
                ..ObjectMeta::default()
            },
            ..Lease::default()
        });
        lease.spec = Some(LeaseSpec {
            holder_identity: Some(self.config.identity.clone()),
            lease_duration_seconds: i32::try_from(self.config.lease_duration.as_secs()).ok(),
            acquire_time: if ours { old.acquire_time.clone() } else { Some(MicroTime(now)) },
            renew_time: Some(MicroTime(now)),
            lease_transitions: Some(if ours || previous.is_none() { transitions } else { transitions + 1 }),
            ..old
        });
        lease
    }

    /// Gives the lease back so that another candidate need not wait.
    async fn release(&mut self) {
        let Some(observed) = self.observed.take() else { return };
        let mut lease = observed.lease;
        if holder(&lease) != self.config.identity {
            return;
        }
        let now = self.client.clock().now();
        let transitions = lease.spec.as_ref().and_then(|spec| spec.lease_transitions);
        lease.spec = Some(LeaseSpec {
            holder_identity: Some(String::new()),
            lease_duration_seconds: Some(1),
            acquire_time: Some(MicroTime(now)),
            renew_time: Some(MicroTime(now)),
            lease_transitions: transitions,
            ..LeaseSpec::default()
        });
        if let Err(error) = self.api.update(&lease).await {
            debug!(lease = self.config.name, error = %chain(&error), "Could not release lease");
        }
    }
}

fn holder(lease: &Lease) -> &str {
    lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default()
}
