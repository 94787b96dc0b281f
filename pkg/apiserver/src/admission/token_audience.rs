//! The audiences a node may request tokens for: those a volume of the pod asks for, directly or by its CSI
//! driver, and those it is authorized for by name.
//!
//! Behaves as `validateNodeServiceAccountAudience` of `plugin/pkg/admission/noderestriction/admission.go` and
//! `k8s.io/csi-translation-lib`, v1.36.

use rkube_api::k8s::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod, Volume};
use rkube_api::k8s::storage::v1::CSIDriver;
use rkube_apimachinery::quote::quote;
use rkube_registry::Attributes;

use super::{Objects, aggregate};
use crate::auth::{Attributes as Question, Authorizer};
use crate::references;

/// One token request of a node.
pub(super) struct Asked<'a> {
    pub(super) pod: &'a Pod,
    pub(super) audiences: &'a [&'a str],
    pub(super) attributes: &'a Attributes,
}

/// # Errors
/// Why the node may not have a token for the audience.
pub(super) async fn check(objects: &Objects, authorizer: &dyn Authorizer, asked: &Asked<'_>) -> Result<(), String> {
    let audience = match asked.audiences {
        [] => "",
        [one] => one,
        _ => return Err("node may only request 0 or 1 audiences".to_owned()),
    };
    let is_used = is_used_by(objects, asked.pod, audience).await;
    if is_used.map_err(|text| format!("error validating audience {}: {text}", quote(audience)))? {
        return Ok(());
    }
    let attributes = asked.attributes;
    let user = &attributes.context.user;
    let question = Question {
        user: user.clone(),
        verb: "request-serviceaccounts-token-audience".to_owned(),
        is_resource: true,
        version: "v1".to_owned(),
        namespace: attributes.namespace.to_string(),
        resource: audience.to_owned(),
        name: attributes.name.to_string(),
        ..Question::default()
    };
    if authorizer.authorize(&question).await.is_allowed() {
        return Ok(());
    }
    Err(format!(
        "audience {} not found in pod spec volume, {} is not authorized to request tokens for this audience",
        quote(audience),
        user.name
    ))
}

/// Failed lookups count only if no volume has the audience.
async fn is_used_by(objects: &Objects, pod: &Pod, audience: &str) -> Result<bool, String> {
    let mut errors = Vec::new();
    for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
        let mut projected = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
        let is_projected = projected.any(|source| {
            let token = source.service_account_token.as_ref();
            token.is_some_and(|token| token.audience.as_deref().unwrap_or_default() == audience)
        });
        if is_projected {
            return Ok(true);
        }
        match is_used_by_driver(objects, pod, volume, audience).await {
            Ok(true) => return Ok(true),
            Ok(false) => {}
            Err(text) => errors.push(text),
        }
    }
    if errors.is_empty() { Ok(false) } else { Err(aggregate(&errors)) }
}

async fn is_used_by_driver(objects: &Objects, pod: &Pod, volume: &Volume, audience: &str) -> Result<bool, String> {
    let not_found = |plural: &str, name: &str| format!("{plural} {} not found", quote(name));
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let driver = match references::claim(pod, volume) {
        Some(name) => {
            let claim = objects.cached::<PersistentVolumeClaim>(namespace, &name).await;
            let claim = claim.map_err(|status| status.message().to_owned())?;
            let claim = claim.ok_or_else(|| not_found("persistentvolumeclaim", &name))?;
            let bound = claim.spec.as_ref().and_then(|spec| spec.volume_name.clone()).unwrap_or_default();
            let found = objects.cached::<PersistentVolume>("", &bound).await;
            let found = found.map_err(|status| status.message().to_owned())?;
            driver_of_volume(found.ok_or_else(|| not_found("persistentvolume", &bound))?.as_ref())
        }
        None => driver_of_inline(volume),
    };
    let Some(name) = driver else { return Ok(false) };
    let driver = objects.cached::<CSIDriver>("", &name).await.map_err(|status| status.message().to_owned())?;
    let driver = driver.ok_or_else(|| not_found("csidriver.storage.k8s.io", &name))?;
    Ok(driver.spec.token_requests.iter().flatten().any(|request| request.audience == audience))
}

/// The CSI driver of a volume in a pod; volumes of the old built-in types have drivers too.
fn driver_of_inline(volume: &Volume) -> Option<String> {
    if let Some(csi) = &volume.csi {
        return Some(csi.driver.clone());
    }
    let migrated = [
        (volume.aws_elastic_block_store.is_some(), EBS),
        (volume.gce_persistent_disk.is_some(), GCE),
        (volume.cinder.is_some(), CINDER),
        (volume.azure_disk.is_some(), AZURE_DISK),
        (volume.azure_file.is_some(), AZURE_FILE),
        (volume.vsphere_volume.is_some(), VSPHERE),
        (volume.portworx_volume.is_some(), PORTWORX),
    ];
    migrated.into_iter().find(|(is, _)| *is).map(|(_, driver)| driver.to_owned())
}

fn driver_of_volume(volume: &PersistentVolume) -> Option<String> {
    let spec = volume.spec.as_ref()?;
    if let Some(csi) = &spec.csi {
        return Some(csi.driver.clone());
    }
    let migrated = [
        (spec.aws_elastic_block_store.is_some(), EBS),
        (spec.gce_persistent_disk.is_some(), GCE),
        (spec.cinder.is_some(), CINDER),
        (spec.azure_disk.is_some(), AZURE_DISK),
        (spec.azure_file.is_some(), AZURE_FILE),
        (spec.vsphere_volume.is_some(), VSPHERE),
        (spec.portworx_volume.is_some(), PORTWORX),
    ];
    migrated.into_iter().find(|(is, _)| *is).map(|(_, driver)| driver.to_owned())
}

const EBS: &str = "ebs.csi.aws.com";
const GCE: &str = "pd.csi.storage.gke.io";
const CINDER: &str = "cinder.csi.openstack.org";
const AZURE_DISK: &str = "disk.csi.azure.com";
const AZURE_FILE: &str = "file.csi.azure.com";
const VSPHERE: &str = "csi.vsphere.vmware.com";
const PORTWORX: &str = "pxd.portworx.com";
