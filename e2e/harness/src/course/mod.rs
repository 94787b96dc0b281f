//! The course: what a class on Kubernetes does in its practice sessions, step by step, each asserting what a
//! student would see. Every step has a namespace of its own and needs nothing of another.

mod addons;
mod batch;
mod charts;
mod configuration;
mod deployments;
mod limits;
mod services;
mod stateful;
mod storage;

use anyhow::Result;
use futures_util::future::LocalBoxFuture;

use crate::world::World;

/// One practice session.
pub(crate) struct Step {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    /// Whether it changes what the whole cluster shares, and so runs while no other step does.
    pub(crate) is_alone: bool,
    /// A program that it needs and not every machine has: without it the step is left out, and that is said.
    pub(crate) program: Option<&'static str>,
    /// Archives of e2e/images it needs.
    pub(crate) images: &'static [&'static str],
    pub(crate) run: for<'a> fn(&'a World<'a>) -> LocalBoxFuture<'a, Result<()>>,
}

macro_rules! step {
    (alone $($rest:tt)*) => {
        Step { is_alone: true, ..step!($($rest)*) }
    };
    (with $program:literal $($rest:tt)*) => {
        Step { program: Some($program), ..step!($($rest)*) }
    };
    ($name:literal, $about:literal, $images:expr, $function:path) => {
        Step {
            name: $name,
            about: $about,
            is_alone: false,
            program: None,
            images: &$images,
            run: |world| Box::pin($function(world)),
        }
    };
}

/// Every step, in the order of the course.
pub(crate) const STEPS: &[Step] = &[
    step!("page", "a Deployment of nginx with a page from a ConfigMap", ["nginx", "busybox"], deployments::page),
    step!("scale", "a Deployment scaled up and down", ["nginx"], deployments::scale),
    step!(
        "rollout",
        "a rolling update, its history, a rollback and a release that cannot start",
        ["nginx", "nginx-next"],
        deployments::rollout
    ),
    step!(
        "environment",
        "ConfigMap and Secret as environment and files, and a change that arrives",
        ["busybox"],
        configuration::environment
    ),
    step!(
        "probes",
        "a pod that is not ready, one that is restarted and one that starts slowly",
        ["busybox"],
        configuration::probes
    ),
    step!("limits", "defaults and bounds from a LimitRange, a quota that is reached", ["busybox"], limits::limits),
    step!(
        "names",
        "Services by name, across namespaces, without an address of their own",
        ["busybox"],
        services::names
    ),
    step!("node-port", "a Service on every node's port", ["busybox"], services::node_port),
    step!("looking", "logs, exec, port-forward and describe", ["busybox"], services::looking),
    step!("stateful", "a StatefulSet of redis with stable names and volumes", ["redis"], stateful::redis),
    step!("jobs", "Jobs that complete and one that fails", ["busybox"], batch::jobs),
    step!("daemons", "a DaemonSet on every node, then on those with a label", ["busybox"], batch::daemons),
    step!("volumes", "a PersistentVolume on the node's disk that outlives its pod", ["busybox"], storage::volumes),
    step!(
        alone "taints",
        "a tainted node: a DaemonSet and a pod that do not tolerate it, and ones that do",
        ["busybox"],
        batch::taints
    ),
    step!("addons", "manifests in the server's folder", [], addons::addons),
    step!(
        with "helm" "helm",
        "a chart installed with a hook, upgraded, rolled back and uninstalled by helm",
        ["busybox"],
        charts::helm
    ),
    step!("cron", "a CronJob by hand, on time and suspended", ["busybox"], batch::cron),
    step!(
        "wordpress",
        "WordPress, MariaDB and nginx; the page outlives the database's pod",
        ["mariadb", "nginx", "wordpress"],
        storage::wordpress
    ),
];
