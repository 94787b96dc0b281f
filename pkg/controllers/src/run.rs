//! The table of controllers, and running those that are enabled as one component.
//!
//! Behaves as cmd/kube-controller-manager/app/controller_descriptor.go, v1.36.

use rkube_apimachinery::task;
use rkube_client::factory::NotSynced;
use tracing::{error, info, info_span};

use crate::context::{ControllerContext, Descriptor};

/// All controllers, by name.
pub fn descriptors() -> &'static [Descriptor] {
    &[
        crate::certificates::APPROVER,
        crate::certificates::SIGNER,
        crate::deployment::DEPLOYMENT,
        crate::disruption::DISRUPTION,
        crate::endpoints::ENDPOINTS,
        crate::endpointslice::ENDPOINTSLICE,
        crate::garbagecollector::GARBAGECOLLECTOR,
        crate::job::JOB,
        crate::namespace::NAMESPACE,
        crate::node_ipam::NODEIPAM,
        crate::nodelifecycle::NODELIFECYCLE,
        crate::podgc::PODGC,
        crate::replicaset::REPLICASET,
        crate::replicaset::REPLICATIONCONTROLLER,
        crate::resourcequota::RESOURCEQUOTA,
        crate::root_ca::ROOT_CA,
        crate::service_lb::SERVICE_LB,
        crate::serviceaccount::SERVICEACCOUNT,
        crate::statefulset::STATEFULSET,
        crate::taint_eviction::TAINTEVICTION,
    ]
}

/// Runs the enabled controllers until shutdown. `ready` is called when their caches have synced.
pub async fn run(context: ControllerContext, ready: impl FnOnce()) -> Result<(), NotSynced> {
    let enabled = descriptors().iter().filter(|descriptor| descriptor.is_enabled(&context.config.controllers));
    let running: Vec<_> = enabled.map(|descriptor| (descriptor.name, (descriptor.start)(&context))).collect();
    context.informers.start();
    context.informers.wait_for_sync().await?;
    ready();
    let tasks: Vec<_> = running
        .into_iter()
        .map(|(name, controller)| {
            info!(controller = name, "Started controller");
            (name, task::spawn(info_span!("controller", component = name), controller))
        })
        .collect();
    for (name, task) in tasks {
        if task.await.is_err() {
            error!(controller = name, "Controller ended abnormally");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_names_are_unique() {
        let names: Vec<_> = descriptors().iter().map(|descriptor| descriptor.name).collect();
        let mut sorted = names.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(names, sorted);
    }
}
