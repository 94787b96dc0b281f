//! What there is of volumes and claims, counted when somebody scrapes.
//!
//! In: the listers of the binder, from when it starts. Out: `pv_collector_*`.
//! Behaves as pkg/controller/volume/persistentvolume/metrics/metrics.go, v1.36.

use std::borrow::Cow;
use std::collections::BTreeMap;

use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::registry::Registry;
use rkube_api::k8s::core::v1::{PersistentVolume, PersistentVolumeClaim};
use rkube_api::volumes::{claim_class, volume_class};
use rkube_client::Lister;
use rkube_client::metrics::{Labels, encode_gauges};

use super::labels;

/// Where the binder's caches are, once it has started.
#[derive(Default)]
pub(crate) struct Volumes(Mutex<Option<Listers>>);

#[derive(Clone)]
struct Listers {
    volumes: Lister<PersistentVolume>,
    claims: Lister<PersistentVolumeClaim>,
}

impl Volumes {
    /// Counts these from now on.
    pub(crate) fn watch(&self, volumes: Lister<PersistentVolume>, claims: Lister<PersistentVolumeClaim>) {
        *self.0.lock() = Some(Listers { volumes, claims });
    }
}

pub(super) fn register(registry: &mut Registry) {
    registry.register_collector(Box::new(VolumeCollector));
}

#[derive(Debug)]
struct VolumeCollector;

type Counts<const N: usize> = BTreeMap<Labels<N>, f64>;

fn add<const N: usize>(counts: &mut Counts<N>, labels: Labels<N>) {
    *counts.entry(labels).or_default() += 1.0;
}

/// The plugin that upstream's controllers know the volume by.
fn plugin_name(volume: &PersistentVolume) -> Cow<'static, str> {
    let Some(spec) = &volume.spec else { return Cow::Borrowed("N/A") };
    if let Some(csi) = &spec.csi {
        return Cow::Owned(format!("kubernetes.io/csi:{}", csi.driver));
    }
    Cow::Borrowed(if spec.host_path.is_some() {
        "kubernetes.io/host-path"
    } else if spec.nfs.is_some() {
        "kubernetes.io/nfs"
    } else if spec.fc.is_some() {
        "kubernetes.io/fc"
    } else if spec.iscsi.is_some() {
        "kubernetes.io/iscsi"
    } else {
        "N/A"
    })
}

impl Collector for VolumeCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Some(Listers { volumes, claims }) = super::metrics().volumes.0.lock().clone() else { return Ok(()) };
        let (mut total, mut bound, mut unbound) = (Counts::<2>::new(), Counts::<1>::new(), Counts::<1>::new());
        for volume in volumes.list_all("") {
            let mode = volume.spec.as_ref().and_then(|spec| spec.volume_mode.as_deref()).unwrap_or("Filesystem");
            add(&mut total, labels(["plugin_name", "volume_mode"], [&plugin_name(&volume), mode]));
            let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref());
            let counts = if phase == Some("Bound") { &mut bound } else { &mut unbound };
            add(counts, labels(["storage_class"], [volume_class(&volume)]));
        }
        let (mut bound_claims, mut unbound_claims) = (Counts::<3>::new(), Counts::<3>::new());
        for claim in claims.list_all("") {
            let phase = claim.status.as_ref().and_then(|status| status.phase.as_deref());
            let counts = if phase == Some("Bound") { &mut bound_claims } else { &mut unbound_claims };
            let namespace = claim.metadata.namespace.as_deref().unwrap_or_default();
            let attributes = claim.spec.as_ref().and_then(|spec| spec.volume_attributes_class_name.as_deref());
            let names = ["namespace", "storage_class", "volume_attributes_class"];
            add(counts, labels(names, [namespace, claim_class(&claim), attributes.unwrap_or_default()]));
        }
        encode_gauges(
            &mut encoder,
            ("pv_collector_total_pv_count", "[ALPHA] Gauge measuring total number of persistent volumes."),
            total,
        )?;
        encode_gauges(
            &mut encoder,
            ("pv_collector_bound_pv_count", "[ALPHA] Gauge measuring number of persistent volume currently bound."),
            bound,
        )?;
        encode_gauges(
            &mut encoder,
            ("pv_collector_unbound_pv_count", "[ALPHA] Gauge measuring number of persistent volume currently unbound."),
            unbound,
        )?;
        encode_gauges(
            &mut encoder,
            (
                "pv_collector_bound_pvc_count",
                "[ALPHA] Gauge measuring number of persistent volume claim currently bound.",
            ),
            bound_claims,
        )?;
        encode_gauges(
            &mut encoder,
            (
                "pv_collector_unbound_pvc_count",
                "[ALPHA] Gauge measuring number of persistent volume claim currently unbound.",
            ),
            unbound_claims,
        )
    }
}
