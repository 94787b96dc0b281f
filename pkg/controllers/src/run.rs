//! The table of controllers, and running those that are enabled as one component.
//!
//! Behaves as cmd/kube-controller-manager/app/controller_descriptor.go, v1.36.

use rkube_apimachinery::task;
use rkube_client::factory::NotSynced;
use tracing::{debug, error, info, info_span};

use crate::context::{ControllerContext, Descriptor};
use crate::metrics::metrics;

/// All controllers, by name.
pub fn descriptors() -> &'static [Descriptor] {
    &[
        crate::bootstrap::BOOTSTRAP_SIGNER,
        crate::certificates::APPROVER,
        crate::certificate_cleaner::CSR_CLEANER,
        crate::certificates::SIGNER,
        crate::clusterrole_aggregation::CLUSTERROLE_AGGREGATION,
        crate::cronjob::CRONJOB,
        crate::daemonset::DAEMONSET,
        crate::deployment::DEPLOYMENT,
        crate::disruption::DISRUPTION,
        crate::endpoints::ENDPOINTS,
        crate::endpointslice::ENDPOINTSLICE,
        crate::endpointslicemirroring::ENDPOINTSLICE_MIRRORING,
        crate::ephemeral_volume::EPHEMERAL_VOLUME,
        crate::garbagecollector::GARBAGECOLLECTOR,
        crate::podautoscaler::HORIZONTAL_POD_AUTOSCALER,
        crate::job::JOB,
        crate::serviceaccount_tokens::LEGACY_SERVICEACCOUNT_TOKEN_CLEANER,
        crate::namespace::NAMESPACE,
        crate::node_ipam::NODEIPAM,
        crate::nodelifecycle::NODELIFECYCLE,
        crate::persistentvolume::PERSISTENTVOLUME_BINDER,
        crate::volume_expand::PERSISTENTVOLUME_EXPANDER,
        crate::storageprotection::PERSISTENTVOLUME_PROTECTION,
        crate::storageprotection::PERSISTENTVOLUMECLAIM_PROTECTION,
        crate::podgc::PODGC,
        crate::replicaset::REPLICASET,
        crate::replicaset::REPLICATIONCONTROLLER,
        crate::resourcequota::RESOURCEQUOTA,
        crate::root_ca::ROOT_CA,
        crate::service_cidr::SERVICE_CIDR,
        crate::service_lb::SERVICE_LB,
        crate::serviceaccount::SERVICEACCOUNT,
        crate::serviceaccount_tokens::SERVICEACCOUNT_TOKEN,
        crate::statefulset::STATEFULSET,
        crate::taint_eviction::TAINTEVICTION,
        crate::bootstrap::TOKEN_CLEANER,
        crate::ttl_after_finished::TTL_AFTER_FINISHED,
        crate::storageprotection::VOLUMEATTRIBUTESCLASS_PROTECTION,
    ]
}

/// Those that every server runs beside its API, by name; kube-apiserver has them upstream.
pub fn server_descriptors() -> &'static [Descriptor] {
    &[
        crate::cluster_authentication_trust::CLUSTER_AUTHENTICATION_TRUST,
        crate::kubernetes_service::KUBERNETES_SERVICE,
        crate::serviceaccount_tokens::LEGACY_TOKEN_TRACKING,
    ]
}

/// Runs the enabled controllers of a table until shutdown. `ready` is called when their caches have synced.
pub async fn run(
    table: &'static [Descriptor],
    context: ControllerContext,
    ready: impl FnOnce(),
) -> Result<(), NotSynced> {
    let enabled = table.iter().filter(|descriptor| descriptor.is_enabled(&context.config.controllers));
    let running: Vec<_> = enabled.map(|descriptor| (descriptor.name, (descriptor.start)(&context))).collect();
    context.informers.start();
    context.informers.wait_for_sync().await?;
    ready();
    let tasks: Vec<_> = running
        .into_iter()
        .map(|(name, controller)| {
            debug!(controller = name, "Started controller");
            metrics().runs(name, true);
            (name, task::spawn(info_span!("controller", component = name), controller))
        })
        .collect();
    info!(controllers = tasks.len(), "Started controllers");
    if tasks.is_empty() {
        context.shutdown.cancelled().await;
    }
    for (name, task) in tasks {
        let ended = task.await;
        metrics().runs(name, false);
        if ended.is_err() {
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
        for table in [descriptors(), server_descriptors()] {
            let names: Vec<_> = table.iter().map(|descriptor| descriptor.name).collect();
            let mut sorted = names.clone();
            sorted.sort_unstable();
            sorted.dedup();
            assert_eq!(names, sorted);
        }
    }
}
