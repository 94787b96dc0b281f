//! Flow control as it was before priorities: at most so many reads and so many writes at once. What the cluster lives
//! by waits for its turn, as in a priority level's queues; all others are refused at once.
//!
//! Behaves as `k8s.io/apiserver/pkg/server/filters/maxinflight.go`, v1.36.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use rkube_apimachinery::status::ApiStatus;
use rkube_registry::UserInfo;
use tokio::sync::Semaphore;

use super::basic::MASTERS;
use super::{FlowControl, FlowRequest, Permit};

/// Upstream's `--max-requests-inflight` and `--max-mutating-requests-inflight`.
const READS_MAX: usize = 400;
const WRITES_MAX: usize = 200;
/// Requests of the system that may wait for a place. A controller may start hundreds of writes at once; the wait of each
/// ends with its request's deadline.
const WAITING_MAX: usize = 5_000;
const RETRY_AFTER_SECONDS: u16 = 1;
const SYSTEM_GROUPS: [&str; 2] = ["system:nodes", "system:serviceaccounts:kube-system"];
const SYSTEM_USERS: [&str; 3] = ["system:apiserver", "system:kube-controller-manager", "system:kube-scheduler"];

/// What the cluster lives by has places of its own, so that nobody else can take them all.
struct Places {
    reads: Arc<Semaphore>,
    writes: Arc<Semaphore>,
    /// Places in the line of those that wait for one of the others.
    line: Semaphore,
}

impl Places {
    fn new(reads_max: usize, writes_max: usize, waiting_max: usize) -> Self {
        let places = |max| Arc::new(Semaphore::new(max));
        Self { reads: places(reads_max), writes: places(writes_max), line: Semaphore::new(waiting_max) }
    }
}

/// Refuses what is over the limit, or lets the system wait. Administrators, health checks and leases are never refused:
/// an overloaded cluster must be able to see that it lives, and be helped.
///
/// Upstream tells these apart by flow schemas and priority levels; here are its three that matter: `exempt`,
/// `system` (with the levels of nodes, leader election and controllers), and all others.
pub struct MaxInFlight {
    system: Places,
    others: Places,
}

impl Default for MaxInFlight {
    fn default() -> Self {
        Self::new(READS_MAX, WRITES_MAX)
    }
}

impl MaxInFlight {
    pub fn new(reads_max: usize, writes_max: usize) -> Self {
        let places = |waiting_max| Places::new(reads_max, writes_max, waiting_max);
        Self { system: places(WAITING_MAX), others: places(0) }
    }
}

fn is_exempt(request: &FlowRequest<'_>) -> bool {
    let info = request.info;
    let is_probe = !info.is_resource && ["/healthz", "/livez", "/readyz"].iter().any(|path| is_below(&info.path, path));
    let is_lease = info.group == "coordination.k8s.io" && info.resource == "leases" && is_system(request.user);
    is_probe || is_lease || request.user.groups.iter().any(|group| group == MASTERS)
}

fn is_below(path: &str, root: &str) -> bool {
    path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Nodes, the control plane's components, and its controllers with their service accounts.
fn is_system(user: &UserInfo) -> bool {
    let by_group = user.groups.iter().any(|group| SYSTEM_GROUPS.contains(&group.as_str()));
    by_group || SYSTEM_USERS.contains(&user.name.as_str())
}

impl FlowControl for MaxInFlight {
    fn admit<'a>(&'a self, request: &'a FlowRequest<'a>) -> BoxFuture<'a, Result<Permit, ApiStatus>> {
        if is_exempt(request) {
            return Box::pin(std::future::ready(Ok(Permit::default())));
        }
        let places = if is_system(request.user) { &self.system } else { &self.others };
        Box::pin(places.take(request.info.is_read_only()))
    }
}

impl Places {
    /// Those that wait get their places in the order in which they came.
    async fn take(&self, is_read: bool) -> Result<Permit, ApiStatus> {
        let places = if is_read { &self.reads } else { &self.writes };
        let refused =
            || ApiStatus::too_many_requests("Too many requests, please try again later.", RETRY_AFTER_SECONDS);
        let place = match Arc::clone(places).try_acquire_owned() {
            Ok(place) => place,
            Err(_) => {
                let _waiting = self.line.try_acquire().map_err(|_| refused())?;
                Arc::clone(places).acquire_owned().await.map_err(|_| refused())?
            }
        };
        Ok(Permit { held: Some(Box::new(place)), ..Permit::default() })
    }
}
