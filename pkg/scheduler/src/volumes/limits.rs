//! How many volumes a node can have attached, and which cannot be attached twice.

use std::collections::{BTreeMap, BTreeSet};

use rkube_api::k8s::core::v1::Volume;
use rkube_api::volumes::{claim_class, volume_name};

use crate::cluster::NodeState;
use crate::model::pod::{PodInfo, claim_names};
use crate::volumes::{Plan, Storage};

fn is_exclusive(volume: &Volume) -> bool {
    volume.gce_persistent_disk.is_some()
        || volume.aws_elastic_block_store.is_some()
        || volume.iscsi.is_some()
        || volume.rbd.is_some()
}

/// Whether the pod has a volume that only one pod of a node can have.
pub(super) fn is_restricted(pod: &PodInfo) -> bool {
    pod.spec().volumes.iter().flatten().any(is_exclusive)
}

/// Whether a pod on the node has the same disk, and one of them writes to it.
pub(super) fn has_conflict(pod: &PodInfo, node: &NodeState) -> bool {
    let own = || pod.spec().volumes.iter().flatten().filter(|volume| is_exclusive(volume));
    let others = node.pods.iter().flat_map(|other| other.spec().volumes.iter().flatten());
    others.into_iter().any(|held| own().any(|volume| conflict(volume, held)))
}

fn conflict(a: &Volume, b: &Volume) -> bool {
    let reads = |read_only: Option<bool>| read_only.unwrap_or(false);
    if let (Some(a), Some(b)) = (&a.gce_persistent_disk, &b.gce_persistent_disk)
        && a.pd_name == b.pd_name
        && !(reads(a.read_only) && reads(b.read_only))
    {
        return true;
    }
    if let (Some(a), Some(b)) = (&a.aws_elastic_block_store, &b.aws_elastic_block_store)
        && a.volume_id == b.volume_id
    {
        return true;
    }
    if let (Some(a), Some(b)) = (&a.iscsi, &b.iscsi)
        && a.iqn == b.iqn
        && !(reads(a.read_only) && reads(b.read_only))
    {
        return true;
    }
    if let (Some(a), Some(b)) = (&a.rbd, &b.rbd)
        && a.monitors.iter().any(|monitor| b.monitors.contains(monitor))
        && a.pool == b.pool
        && a.image == b.image
        && !(reads(a.read_only) && reads(b.read_only))
    {
        return true;
    }
    false
}

impl Storage {
    /// The CSI volumes of the pod that count against limits.
    pub(super) fn plan_csi(&self, pod: &PodInfo, plan: &mut Plan) {
        plan.csi = self.csi_volumes(pod);
    }

    /// Unique names with their drivers.
    fn csi_volumes(&self, pod: &PodInfo) -> Vec<(String, String)> {
        claim_names(&pod.pod)
            .filter_map(|name| {
                let claim = self.claims.get_named(pod.namespace(), &name)?;
                let volume = match volume_name(&claim) {
                    "" => None,
                    volume => self.volumes.get_named("", volume),
                };
                match volume.as_ref().and_then(|volume| volume.spec.as_ref()?.csi.as_ref()) {
                    Some(csi) => Some((format!("{}/{}", csi.driver, csi.volume_handle), csi.driver.clone())),
                    None if volume.is_some() => None,
                    // Not provisioned yet: it will be one more volume of the class's driver.
                    None => {
                        let class = self.classes.get_named("", claim_class(&claim))?;
                        Some((format!("{}/{}/{name}", class.provisioner, pod.namespace()), class.provisioner.clone()))
                    }
                }
            })
            .collect()
    }

    /// Whether the pod's volumes are more than the node's drivers can attach beside those of its pods.
    pub(super) fn exceeds_limits(&self, plan: &Plan, node: &NodeState) -> bool {
        let Some(csi_node) = self.csi_nodes.get_named("", &node.name) else { return false };
        let limits: BTreeMap<&str, i32> = csi_node
            .spec
            .drivers
            .iter()
            .filter_map(|driver| Some((driver.name.as_str(), driver.allocatable.as_ref()?.count?)))
            .collect();
        if !plan.csi.iter().any(|(_, driver)| limits.contains_key(driver.as_str())) {
            return false;
        }
        let mut volumes: BTreeSet<(String, String)> =
            node.pods.iter().flat_map(|pod| self.csi_volumes(pod)).map(|(name, driver)| (driver, name)).collect();
        let before = volumes.len();
        volumes.extend(plan.csi.iter().map(|(name, driver)| (driver.clone(), name.clone())));
        if volumes.len() == before {
            return false;
        }
        plan.csi.iter().any(|(_, driver)| {
            let count = volumes.iter().filter(|(other, _)| other == driver).count();
            limits
                .get(driver.as_str())
                .is_some_and(|limit| i64::try_from(count).unwrap_or(i64::MAX) > i64::from(*limit))
        })
    }
}
