//! Claims and volumes finding each other, and volumes whose claim is gone.

use std::time::Duration;

use expect_test::{Expect, expect};
use rkube_api::Kind;
use rkube_api::k8s::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use rkube_api::k8s::storage::v1::StorageClass;
use serde_json::{Value, json};

use super::PERSISTENTVOLUME_BINDER;
use crate::testing::{World, events, survives_any_crash};

fn volume(name: &str, size: &str, extra: Value) -> PersistentVolume {
    let mut spec = json!({
        "capacity": {"storage": size}, "accessModes": ["ReadWriteOnce"], "persistentVolumeReclaimPolicy": "Retain",
        "hostPath": {"path": "/data"},
    });
    let extra = extra.as_object().cloned().unwrap_or_default();
    spec.as_object_mut().expect("an object").extend(extra);
    PersistentVolume::from_value(json!({"metadata": {"name": name}, "spec": spec})).expect("a volume")
}

fn claim(name: &str, size: &str, extra: Value) -> PersistentVolumeClaim {
    let mut spec = json!({
        "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}, "storageClassName": "",
    });
    let extra = extra.as_object().cloned().unwrap_or_default();
    spec.as_object_mut().expect("an object").extend(extra);
    let value = json!({"metadata": {"namespace": "ns", "name": name}, "spec": spec, "status": {"phase": "Pending"}});
    PersistentVolumeClaim::from_value(value).expect("a claim")
}

fn class(name: &str, provisioner: &str, mode: &str) -> StorageClass {
    let value = json!({"metadata": {"name": name}, "provisioner": provisioner, "volumeBindingMode": mode});
    StorageClass::from_value(value).expect("a class")
}

fn pod(name: &str, claim: &str, node: Option<&str>) -> Pod {
    let volumes = json!([{"name": "data", "persistentVolumeClaim": {"claimName": claim}}]);
    let spec = json!({"containers": [], "volumes": volumes, "nodeName": node});
    Pod::from_value(json!({"metadata": {"namespace": "ns", "name": name}, "spec": spec})).expect("a pod")
}

fn world() -> World {
    World::new(&[PERSISTENTVOLUME_BINDER])
}

fn outcome(world: &World) -> String {
    let mut lines = Vec::new();
    let short = |annotations: &Option<std::collections::BTreeMap<String, String>>| {
        let names = annotations.iter().flatten().map(|(name, value)| match name.split_once('/') {
            Some(("pv.kubernetes.io", name)) => name.to_owned(),
            _ => format!("{name}={value}"),
        });
        names.collect::<Vec<_>>().join(" ")
    };
    for volume in world.api.list::<PersistentVolume>("") {
        let spec = volume.spec.clone().unwrap_or_default();
        let claim = spec.claim_ref.map_or("-".to_owned(), |claim| {
            let mark = if claim.uid.is_some() { "" } else { "?" };
            format!("{}{mark}", claim.name.unwrap_or_default())
        });
        let phase = volume.status.clone().and_then(|status| status.phase).unwrap_or_default();
        let name = volume.metadata.name.clone().unwrap_or_default();
        lines.push(format!("volume {name} {phase} for {claim} [{}]", short(&volume.metadata.annotations)));
    }
    for claim in world.api.list::<PersistentVolumeClaim>("ns") {
        let spec = claim.spec.clone().unwrap_or_default();
        let status = claim.status.clone().unwrap_or_default();
        let capacity = status.capacity.and_then(|mut all| all.remove("storage")).map_or("-".to_owned(), |size| size.0);
        lines.push(format!(
            "claim {} {} of {} {capacity} class {:?} [{}]",
            claim.metadata.name.clone().unwrap_or_default(),
            status.phase.unwrap_or_default(),
            spec.volume_name.unwrap_or("-".to_owned()),
            spec.storage_class_name.unwrap_or("-".to_owned()),
            short(&claim.metadata.annotations),
        ));
    }
    lines.join("\n")
}

async fn check(world: &mut World, expected: Expect) {
    world.settle().await;
    expected.assert_eq(&outcome(world));
}

#[tokio::test]
async fn a_claim_gets_the_smallest_volume_that_fits() {
    let mut world = world();
    for (name, size) in [("large", "10Gi"), ("small", "1Gi"), ("fits", "5Gi"), ("fits-too", "6Gi")] {
        world.api.put(&volume(name, size, json!({})));
    }
    world.api.put(&volume("other-class", "5Gi", json!({"storageClassName": "gold"})));
    world.api.put(&volume("block", "5Gi", json!({"volumeMode": "Block"})));
    world.api.put(&volume("shared", "5Gi", json!({"accessModes": ["ReadWriteOnce", "ReadWriteMany"]})));
    world.start();
    world.settle().await;
    world.api.put(&claim("a", "4Gi", json!({})));
    world.api.put(&claim("b", "4Gi", json!({})));
    world.api.put(&claim("c", "4Gi", json!({"accessModes": ["ReadWriteMany"]})));
    check(
        &mut world,
        expect![[r#"
            volume block Available for - []
            volume fits Bound for a [bound-by-controller]
            volume fits-too Bound for b [bound-by-controller]
            volume large Available for - []
            volume other-class Available for - []
            volume shared Bound for c [bound-by-controller]
            volume small Available for - []
            claim a Bound of fits 5Gi class "" [bind-completed bound-by-controller]
            claim b Bound of fits-too 6Gi class "" [bind-completed bound-by-controller]
            claim c Bound of shared 5Gi class "" [bind-completed bound-by-controller]"#]],
    )
    .await;
    world.api.take_actions();
    world.run_for(Duration::from_secs(3600)).await;
    assert!(world.api.take_actions().is_empty(), "nothing is done while nothing changes");
}

#[tokio::test]
async fn a_claim_waits_for_a_volume_and_takes_it_when_it_comes() {
    let mut world = world();
    world.api.put(&claim("a", "1Gi", json!({"selector": {"matchLabels": {"tier": "fast"}}})));
    world.api.put(&volume("slow", "1Gi", json!({})));
    world.start();
    check(
        &mut world,
        expect![[r#"
            volume slow Available for - []
            claim a Pending of - - class "" []"#]],
    )
    .await;
    expect!["Normal FailedBinding: no persistent volumes available for this claim and no storage class is set"]
        .assert_eq(events(&world, "ns").lines().next().unwrap_or_default());
    world.api.edit::<PersistentVolume>("", "slow", |volume| {
        volume.metadata.labels = Some(crate::testing::labels(&[("tier", "fast")]));
    });
    check(
        &mut world,
        expect![[r#"
            volume slow Bound for a [bound-by-controller]
            claim a Bound of slow 1Gi class "" [bind-completed bound-by-controller]"#]],
    )
    .await;
}

#[tokio::test]
async fn volumes_and_claims_can_be_meant_for_each_other() {
    let mut world = world();
    let reserved = json!({"claimRef": {"namespace": "ns", "name": "a"}});
    world.api.put(&volume("for-a", "9Gi", reserved));
    world.api.put(&volume("free", "1Gi", json!({})));
    world.api.put(&volume("named", "1Gi", json!({})));
    world.start();
    world.settle().await;
    world.api.put(&claim("a", "1Gi", json!({})));
    world.api.put(&claim("b", "1Gi", json!({"volumeName": "named"})));
    world.api.put(&claim("c", "1Gi", json!({"volumeName": "for-a"})));
    world.api.put(&claim("d", "5Gi", json!({"volumeName": "free"})));
    world.api.put(&claim("e", "5Gi", json!({"volumeName": "missing"})));
    check(
        &mut world,
        expect![[r#"
            volume for-a Bound for a []
            volume free Available for - []
            volume named Bound for b [bound-by-controller]
            claim a Bound of for-a 9Gi class "" [bind-completed bound-by-controller]
            claim b Bound of named 1Gi class "" [bind-completed]
            claim c Pending of for-a - class "" []
            claim d Pending of free - class "" []
            claim e Pending of missing - class "" []"#]],
    )
    .await;
    let text = events(&world, "ns");
    assert!(text.contains(r#"Warning FailedBinding: volume "for-a" already bound to a different claim."#), "{text}");
    assert!(
        text.contains(r#"Warning VolumeMismatch: Cannot bind to requested volume "free": requested PV is too small"#),
        "{text}"
    );
}

#[tokio::test]
async fn classes_hand_claims_to_provisioners() {
    let mut world = world();
    world.api.put(&class("fast", "example.com/disks", "Immediate"));
    world.api.put(&class("late", "example.com/disks", "WaitForFirstConsumer"));
    world.api.put(&class("manual", "kubernetes.io/no-provisioner", "Immediate"));
    world.api.put(&class("migrated", "kubernetes.io/aws-ebs", "Immediate"));
    for class in ["fast", "late", "manual", "migrated", "unknown"] {
        world.api.put(&claim(class, "1Gi", json!({"storageClassName": class})));
    }
    world.start();
    check(
        &mut world,
        expect![[r#"
            claim fast Pending of - - class "fast" [volume.beta.kubernetes.io/storage-provisioner=example.com/disks volume.kubernetes.io/storage-provisioner=example.com/disks]
            claim late Pending of - - class "late" []
            claim manual Pending of - - class "manual" []
            claim migrated Pending of - - class "migrated" [volume.beta.kubernetes.io/storage-provisioner=ebs.csi.aws.com volume.kubernetes.io/storage-provisioner=ebs.csi.aws.com]
            claim unknown Pending of - - class "unknown" []"#]],
    )
    .await;
    let text = events(&world, "ns");
    for wanted in [
        "Normal ExternalProvisioning: Waiting for a volume to be created either by the external provisioner \
         'example.com/disks' or manually by the system administrator. If volume creation is delayed, please verify \
         that the provisioner is running and correctly registered.",
        "Normal WaitForFirstConsumer: waiting for first consumer to be created before binding",
        "Warning ProvisioningFailed: no volume plugin matched name: kubernetes.io/no-provisioner",
        r#"Warning ProvisioningFailed: storageclass.storage.k8s.io "unknown" not found"#,
    ] {
        assert!(text.contains(wanted), "{wanted} is missing in:\n{text}");
    }

    // A consumer comes, the scheduler chooses its node, the provisioner makes the volume.
    world.api.put(&pod("consumer", "late", None));
    world.settle().await;
    assert!(events(&world, "ns").contains("Normal WaitForPodScheduled: waiting for pod consumer to be scheduled"));
    world.api.edit::<PersistentVolumeClaim>("ns", "late", |claim| {
        let annotations = claim.metadata.annotations.get_or_insert_default();
        annotations.insert("volume.kubernetes.io/selected-node".to_owned(), "node-1".to_owned());
    });
    world.settle().await;
    let uid = world.api.get::<PersistentVolumeClaim>("ns", "late").and_then(|claim| claim.metadata.uid.clone());
    let mut made =
        volume("pvc-1", "1Gi", json!({"storageClassName": "late", "persistentVolumeReclaimPolicy": "Delete"}));
    made.metadata.annotations =
        Some(crate::testing::labels(&[("pv.kubernetes.io/provisioned-by", "example.com/disks")]));
    made.spec.get_or_insert_default().claim_ref = Some(rkube_api::k8s::core::v1::ObjectReference {
        namespace: Some("ns".to_owned()),
        name: Some("late".to_owned()),
        uid,
        ..Default::default()
    });
    world.api.put(&made);
    world.settle().await;
    let claim = world.api.get::<PersistentVolumeClaim>("ns", "late").expect("it was put");
    assert_eq!(claim.status.as_ref().and_then(|status| status.phase.as_deref()), Some("Bound"));
    // The driver deletes it, and the object with it.
    world.api.remove::<PersistentVolumeClaim>("ns", "late");
    world.settle().await;
    let text = outcome(&world);
    assert!(text.starts_with("volume pvc-1 Released for late [provisioned-by]"), "{text}");
}

#[tokio::test]
async fn a_claim_without_class_gets_the_default_when_there_is_one() {
    let mut world = world();
    world.api.put(&claim("open", "1Gi", json!({"storageClassName": null})));
    world.api.put(&claim("none", "1Gi", json!({})));
    world.start();
    world.settle().await;
    let mut default = class("standard", "example.com/disks", "WaitForFirstConsumer");
    let is_default = [("storageclass.kubernetes.io/is-default-class", "true")];
    default.metadata.annotations = Some(crate::testing::labels(&is_default));
    world.api.put(&default);
    check(
        &mut world,
        expect![[r#"
            claim none Pending of - - class "" []
            claim open Pending of - - class "standard" []"#]],
    )
    .await;
}

#[tokio::test]
async fn retained_volumes_are_released_and_others_fail_or_go() {
    let mut world = world();
    let path = format!("/tmp/rkube-binder-test-{}", std::process::id());
    std::fs::create_dir_all(&path).expect("a temporary directory");
    let host_path = |path: &str| json!({"persistentVolumeReclaimPolicy": "Delete", "hostPath": {"path": path}});
    world.api.put(&volume("retained", "1Gi", json!({})));
    world.api.put(&volume("deleted", "2Gi", host_path(&path)));
    world.api.put(&volume("guarded", "3Gi", host_path("/etc")));
    let local = json!({"persistentVolumeReclaimPolicy": "Delete", "hostPath": null, "local": {"path": "/data"}});
    world.api.put(&volume("local", "4Gi", local));
    world.start();
    world.settle().await;
    for (name, size) in [("a", "1Gi"), ("b", "2Gi"), ("c", "3Gi"), ("d", "4Gi")] {
        world.api.put(&claim(name, size, json!({})));
        world.settle().await;
    }
    for name in ["a", "b", "c", "d"] {
        world.api.remove::<PersistentVolumeClaim>("ns", name);
    }
    check(
        &mut world,
        expect![[r#"
            volume guarded Failed for c [bound-by-controller]
            volume local Failed for d [bound-by-controller]
            volume retained Released for a [bound-by-controller]"#]],
    )
    .await;
    assert!(!std::path::Path::new(&path).exists());
    let text = events(&world, "default");
    for wanted in [
        "Warning VolumeFailedDelete: host_path deleter only supports /tmp/.+ but received provided /etc",
        "Warning VolumeFailedDelete: error getting deleter volume plugin for volume \"local\": no deletable volume \
         plugin matched",
    ] {
        assert!(text.contains(wanted), "{wanted} is missing in:\n{text}");
    }
}

#[tokio::test]
async fn a_released_volume_is_not_given_to_a_new_claim_of_the_same_name() {
    let mut world = world();
    world.api.put(&volume("v", "1Gi", json!({})));
    world.api.put(&claim("a", "1Gi", json!({})));
    world.start();
    world.settle().await;
    world.api.remove::<PersistentVolumeClaim>("ns", "a");
    world.api.put(&claim("a", "1Gi", json!({})));
    check(
        &mut world,
        expect![[r#"
            volume v Released for a [bound-by-controller]
            claim a Pending of - - class "" []"#]],
    )
    .await;
}

#[tokio::test]
async fn recycled_volumes_are_scrubbed_and_offered_again() {
    let mut world = world();
    world.api.put(&volume("v", "1Gi", json!({"persistentVolumeReclaimPolicy": "Recycle"})));
    world.api.put(&claim("a", "1Gi", json!({})));
    world.start();
    world.settle().await;
    world.api.remove::<PersistentVolumeClaim>("ns", "a");
    world.settle().await;
    world.api.edit::<Pod>("default", "recycler-for-v", |pod| {
        pod.status.get_or_insert_default().phase = Some("Running".to_owned());
    });
    check(&mut world, expect!["volume v Released for a [bound-by-controller]"]).await;
    world.api.edit::<Pod>("default", "recycler-for-v", |pod| {
        pod.status.get_or_insert_default().phase = Some("Succeeded".to_owned());
    });
    check(&mut world, expect!["volume v Available for - []"]).await;
    assert!(world.api.list::<Pod>("default").is_empty());
}

#[tokio::test]
async fn a_claim_whose_volume_is_gone_is_lost_and_found() {
    let mut world = world();
    world.api.put(&volume("v", "1Gi", json!({})));
    world.api.put(&claim("a", "1Gi", json!({})));
    world.start();
    world.settle().await;
    let stored = world.api.get::<PersistentVolume>("", "v").expect("it was put");
    world.api.remove::<PersistentVolume>("", "v");
    check(&mut world, expect![[r#"claim a Lost of v - class "" [bind-completed bound-by-controller]"#]]).await;
    assert!(
        events(&world, "ns")
            .contains("Warning ClaimLost: Bound claim has lost its PersistentVolume. Data on the volume is lost!")
    );
    world.api.put(&*stored);
    check(
        &mut world,
        expect![[r#"
            volume v Bound for a [bound-by-controller]
            claim a Bound of v 1Gi class "" [bind-completed bound-by-controller]"#]],
    )
    .await;
}

#[tokio::test]
async fn converges_after_a_crash_at_any_write() {
    let fresh = || {
        let world = world();
        world.api.put(&class("fast", "example.com/disks", "Immediate"));
        world.api.put(&volume("v1", "1Gi", json!({"persistentVolumeReclaimPolicy": "Recycle"})));
        world.api.put(&volume("v2", "2Gi", json!({})));
        world.api.put(&volume("reserved", "1Gi", json!({"claimRef": {"namespace": "ns", "name": "c"}})));
        world.api.put(&claim("a", "1Gi", json!({})));
        world.api.put(&claim("b", "2Gi", json!({})));
        world.api.put(&claim("c", "1Gi", json!({})));
        world.api.put(&claim("d", "1Gi", json!({"storageClassName": "fast"})));
        world
    };
    let drive = async |world: &mut World| {
        world.run_for(Duration::from_secs(30)).await;
        world.api.remove::<PersistentVolumeClaim>("ns", "a");
        world.api.remove::<PersistentVolumeClaim>("ns", "b");
        // The recycler is started anew if the crash came between its end and the end of the recycling.
        for _ in 0..3 {
            world.run_for(Duration::from_secs(30)).await;
            if world.api.get::<Pod>("default", "recycler-for-v1").is_some() {
                world.api.edit::<Pod>("default", "recycler-for-v1", |pod| {
                    pod.status.get_or_insert_default().phase = Some("Succeeded".to_owned());
                });
            }
        }
        world.run_for(Duration::from_secs(60)).await;
    };
    survives_any_crash(fresh, drive, outcome).await;
}
