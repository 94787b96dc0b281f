//! Drives the container runtime: sandboxes, containers, images.
//!
//! [`state`] is what the runtime says, [`actions`] decides what to do, [`sync`] does it, [`kill`] takes it
//! back, [`query`] asks. The rest makes configurations out of specs.
//! Behaves as pkg/kubelet/kuberuntime, v1.36.

pub mod actions;
pub mod container;
pub mod dns;
pub mod env;
pub mod gc;
pub mod hooks;
pub mod images;
pub mod kill;
pub mod labels;
pub mod query;
pub mod resize;
pub mod resources;
pub mod sandbox;
pub mod security;
pub mod start;
pub mod state;
pub mod sync;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;
use rkube_apimachinery::clock::SharedClock;
use rkube_cri::RuntimeService;

use crate::allocation::store::Store;
use crate::backoff::Backoff;
use crate::events::Events;
use crate::objects::Objects;
use crate::runtime::images::ImageManager;
use crate::volumes::mounter::Mounter;

/// What of the node the runtime half needs.
#[derive(Clone, Debug)]
pub struct RuntimeSettings {
    /// `/var/lib/kubelet`
    pub root_dir: PathBuf,
    /// `/var/log/pods`
    pub logs_root: PathBuf,
    /// `/var/log/containers`, where log agents look.
    pub container_logs_root: PathBuf,
    pub memory_capacity: i64,
    pub cgroup_v2: bool,
    pub hugepage_sizes: Vec<u64>,
    pub apparmor_enabled: bool,
    /// `containerd`, before `://` in container ids.
    pub runtime_name: String,
}

impl RuntimeSettings {
    pub fn pod_dir(&self, uid: &crate::pod::PodUid) -> PathBuf {
        self.root_dir.join("pods").join(uid.as_str())
    }

    pub fn seccomp_root(&self) -> PathBuf {
        self.root_dir.join("seccomp")
    }
}

/// The runtime and what is remembered about it.
pub struct Runtime {
    pub service: Arc<dyn RuntimeService>,
    pub images: ImageManager,
    pub clock: SharedClock,
    pub events: Events,
    pub objects: Arc<Objects>,
    pub mounter: Arc<dyn Mounter>,
    pub settings: RuntimeSettings,
    backoff: Mutex<Backoff>,
    /// What pods were given, and what of it the runtime was told.
    pub allocations: Arc<Store>,
    /// Containers whose removal is under way.
    removing: Mutex<HashSet<String>>,
}

impl Runtime {
    #[expect(clippy::too_many_arguments, reason = "the parts it is composed of, each named where it is kept")]
    pub fn new(
        service: Arc<dyn RuntimeService>,
        images: ImageManager,
        clock: SharedClock,
        events: Events,
        objects: Arc<Objects>,
        mounter: Arc<dyn Mounter>,
        settings: RuntimeSettings,
        allocations: Arc<Store>,
    ) -> Self {
        Self {
            service,
            images,
            clock,
            events,
            objects,
            mounter,
            settings,
            backoff: Mutex::new(Backoff::crash_loop()),
            allocations,
            removing: Mutex::default(),
        }
    }
}
