//! Flow control as it was before priorities: at most so many reads and so many writes at once.
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
const RETRY_AFTER_SECONDS: u16 = 1;
const SYSTEM_GROUPS: [&str; 2] = ["system:nodes", "system:serviceaccounts:kube-system"];
const SYSTEM_USERS: [&str; 3] = ["system:apiserver", "system:kube-controller-manager", "system:kube-scheduler"];

/// What the cluster lives by has places of its own, so that nobody else can take them all.
struct Places {
    reads: Arc<Semaphore>,
    writes: Arc<Semaphore>,
}

impl Places {
    fn new(reads_max: usize, writes_max: usize) -> Self {
        Self { reads: Arc::new(Semaphore::new(reads_max)), writes: Arc::new(Semaphore::new(writes_max)) }
    }
}

/// Refuses at once what is over the limit. Administrators, health checks and leases are never refused: an
/// overloaded cluster must be able to see that it lives, and be helped.
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
        Self { system: Places::new(reads_max, writes_max), others: Places::new(reads_max, writes_max) }
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
        let result = if is_exempt(request) { Ok(Permit::default()) } else { self.place(request) };
        Box::pin(std::future::ready(result))
    }
}

impl MaxInFlight {
    fn place(&self, request: &FlowRequest<'_>) -> Result<Permit, ApiStatus> {
        let places = if is_system(request.user) { &self.system } else { &self.others };
        let places = if request.info.is_read_only() { &places.reads } else { &places.writes };
        match Arc::clone(places).try_acquire_owned() {
            Ok(place) => Ok(Permit { held: Some(Box::new(place)), ..Permit::default() }),
            Err(_) => {
                Err(ApiStatus::too_many_requests("Too many requests, please try again later.", RETRY_AFTER_SECONDS))
            }
        }
    }
}
