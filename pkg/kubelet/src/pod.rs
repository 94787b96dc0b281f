//! Reading pods: the questions every part of the kubelet asks of a Pod object.
//!
//! Behaves as pkg/api/v1/pod/util.go, pkg/kubelet/types/pod_update.go and
//! staging/src/k8s.io/component-helpers/resource, v1.36.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use rkube_api::k8s::core::v1::{Container, EphemeralContainer, Pod, PodSpec, ResourceRequirements};
use rkube_api::meta::pkg::api::resource::Quantity as ApiQuantity;
use rkube_apimachinery::key::ObjectKey;
use rkube_apimachinery::quantity::{Format, Quantity};

/// Where a pod came from: `api`, `file`.
pub const SOURCE_ANNOTATION: &str = "kubernetes.io/config.source";
/// The hash of a static pod's content; on the mirror pod it says which static pod it mirrors.
pub const HASH_ANNOTATION: &str = "kubernetes.io/config.hash";
pub const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";
pub const SEEN_ANNOTATION: &str = "kubernetes.io/config.seen";
/// `scheduling.SystemCriticalPriority`.
const SYSTEM_CRITICAL_PRIORITY: i32 = 2_000_000_000;

/// A pod's UID. Two pods of one name at different times have different UIDs, and only those tell apart
/// what belongs to which.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodUid(pub Arc<str>);

impl PodUid {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for PodUid {
    fn from(uid: &str) -> Self {
        Self(uid.into())
    }
}

impl fmt::Display for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Quality of service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum QosClass {
    BestEffort,
    Burstable,
    Guaranteed,
}

impl QosClass {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BestEffort => "BestEffort",
            Self::Burstable => "Burstable",
            Self::Guaranteed => "Guaranteed",
        }
    }
}

/// Which of a pod's three lists a container is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContainerKind {
    Init,
    Regular,
    Ephemeral,
}

/// The questions.
pub trait PodExt {
    fn uid(&self) -> PodUid;
    fn key(&self) -> ObjectKey;
    fn name(&self) -> &str;
    fn namespace(&self) -> &str;
    fn annotation(&self, key: &str) -> Option<&str>;
    /// `name_namespace(uid)`, as kubelet events and errors name pods.
    fn full_text(&self) -> String;
    fn pod_spec(&self) -> &PodSpec;
    fn is_static(&self) -> bool;
    fn is_mirror(&self) -> bool;
    fn is_critical(&self) -> bool;
    fn is_host_network(&self) -> bool;
    fn is_terminating(&self) -> bool;
    /// The phase the API last saw.
    fn phase(&self) -> &str;
    fn restart_policy(&self) -> &str;
    fn qos(&self) -> QosClass;
    fn grace_period_seconds(&self) -> i64;
    fn container(&self, name: &str) -> Option<(ContainerKind, Container)>;
    /// The UID the API server knows a pod under: a static pod's mirror has one of its own.
    fn generation(&self) -> Option<i64>;
}

impl PodExt for Pod {
    fn uid(&self) -> PodUid {
        PodUid::from(self.metadata.uid.as_deref().unwrap_or_default())
    }

    fn key(&self) -> ObjectKey {
        ObjectKey::new(self.namespace(), self.name())
    }

    fn name(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or_default()
    }

    fn namespace(&self) -> &str {
        self.metadata.namespace.as_deref().unwrap_or_default()
    }

    fn annotation(&self, key: &str) -> Option<&str> {
        self.metadata.annotations.as_ref()?.get(key).map(String::as_str)
    }

    fn full_text(&self) -> String {
        format!("{}_{}({})", self.name(), self.namespace(), self.uid())
    }

    fn pod_spec(&self) -> &PodSpec {
        static EMPTY: std::sync::LazyLock<PodSpec> = std::sync::LazyLock::new(PodSpec::default);
        self.spec.as_ref().unwrap_or(&EMPTY)
    }

    fn is_static(&self) -> bool {
        self.annotation(SOURCE_ANNOTATION).is_some_and(|source| source != "api")
    }

    fn is_mirror(&self) -> bool {
        self.annotation(MIRROR_ANNOTATION).is_some()
    }

    fn is_critical(&self) -> bool {
        self.is_static()
            || self.is_mirror()
            || self.pod_spec().priority.is_some_and(|priority| priority >= SYSTEM_CRITICAL_PRIORITY)
    }

    fn is_host_network(&self) -> bool {
        self.pod_spec().host_network.unwrap_or(false)
    }

    fn is_terminating(&self) -> bool {
        self.metadata.deletion_timestamp.is_some()
    }

    fn phase(&self) -> &str {
        self.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
    }

    fn restart_policy(&self) -> &str {
        self.pod_spec().restart_policy.as_deref().unwrap_or("Always")
    }

    fn qos(&self) -> QosClass {
        // Once set it never changes, not even by a resize.
        let stored = self.status.as_ref().and_then(|status| status.qos_class.as_deref());
        match stored {
            Some("Guaranteed") => QosClass::Guaranteed,
            Some("Burstable") => QosClass::Burstable,
            Some("BestEffort") => QosClass::BestEffort,
            _ => compute_qos(self.pod_spec()),
        }
    }

    fn grace_period_seconds(&self) -> i64 {
        self.metadata.deletion_grace_period_seconds.or(self.pod_spec().termination_grace_period_seconds).unwrap_or(30)
    }

    fn container(&self, name: &str) -> Option<(ContainerKind, Container)> {
        all_containers(self.pod_spec())
            .find(|(_, container)| container.name == name)
            .map(|(kind, container)| (kind, container.into_owned()))
    }

    fn generation(&self) -> Option<i64> {
        self.metadata.generation
    }
}

/// All containers with their kind: init, regular, ephemeral.
pub fn all_containers(spec: &PodSpec) -> impl Iterator<Item = (ContainerKind, std::borrow::Cow<'_, Container>)> {
    use std::borrow::Cow;
    let init = init_containers(spec).iter().map(|container| (ContainerKind::Init, Cow::Borrowed(container)));
    let regular = spec.containers.iter().map(|container| (ContainerKind::Regular, Cow::Borrowed(container)));
    let ephemeral = ephemeral_containers(spec)
        .iter()
        .map(|container| (ContainerKind::Ephemeral, Cow::Owned(as_container(container))));
    init.chain(regular).chain(ephemeral)
}

pub fn init_containers(spec: &PodSpec) -> &[Container] {
    spec.init_containers.as_deref().unwrap_or_default()
}

pub fn ephemeral_containers(spec: &PodSpec) -> &[EphemeralContainer] {
    spec.ephemeral_containers.as_deref().unwrap_or_default()
}

/// A sidecar: an init container that keeps running beside the regular ones.
pub fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// An ephemeral container seen as a container.
pub fn as_container(ephemeral: &EphemeralContainer) -> Container {
    let e = ephemeral.clone();
    Container {
        args: e.args,
        command: e.command,
        env: e.env,
        env_from: e.env_from,
        image: e.image,
        image_pull_policy: e.image_pull_policy,
        lifecycle: e.lifecycle,
        liveness_probe: e.liveness_probe,
        name: e.name,
        ports: e.ports,
        readiness_probe: e.readiness_probe,
        resize_policy: e.resize_policy,
        resources: e.resources,
        restart_policy: e.restart_policy,
        restart_policy_rules: e.restart_policy_rules,
        security_context: e.security_context,
        startup_probe: e.startup_probe,
        stdin: e.stdin,
        stdin_once: e.stdin_once,
        termination_message_path: e.termination_message_path,
        termination_message_policy: e.termination_message_policy,
        tty: e.tty,
        volume_devices: e.volume_devices,
        volume_mounts: e.volume_mounts,
        working_dir: e.working_dir,
    }
}

/// Whether a container that ended with `exit_code` is started again: its own rules first, then its own
/// policy, then the pod's.
pub fn restarts_after(container: &Container, pod_policy: &str, exit_code: i32) -> bool {
    for rule in container.restart_policy_rules.as_deref().unwrap_or_default() {
        let Some(codes) = &rule.exit_codes else { continue };
        let listed = codes.values.as_deref().unwrap_or_default().contains(&exit_code);
        let applies = match codes.operator.as_str() {
            "In" => listed,
            "NotIn" => !listed,
            _ => false,
        };
        if applies && matches!(rule.action.as_str(), "Restart" | "RestartAllContainers") {
            return true;
        }
    }
    match container.restart_policy.as_deref().unwrap_or(pod_policy) {
        "Never" => false,
        "OnFailure" => exit_code != 0,
        _ => true,
    }
}

/// A quantity of the API, zero where it is absent or no quantity: the API server has validated it.
pub fn quantity(text: Option<&ApiQuantity>) -> Quantity {
    text.and_then(|text| Quantity::parse(&text.0).ok()).unwrap_or_else(Quantity::zero)
}

type Resources = BTreeMap<String, ApiQuantity>;

fn limits(resources: Option<&ResourceRequirements>) -> Option<&Resources> {
    resources.and_then(|resources| resources.limits.as_ref())
}

fn requests(resources: Option<&ResourceRequirements>) -> Option<&Resources> {
    resources.and_then(|resources| resources.requests.as_ref())
}

/// A container's limit of `name`, if it has one.
pub fn limit(container: &Container, name: &str) -> Option<Quantity> {
    limits(container.resources.as_ref())?.get(name).map(|value| quantity(Some(value)))
}

/// A container's request of `name`, if it has one.
pub fn request(container: &Container, name: &str) -> Option<Quantity> {
    requests(container.resources.as_ref())?.get(name).map(|value| quantity(Some(value)))
}

fn compute_qos(spec: &PodSpec) -> QosClass {
    const COUNTED: [&str; 2] = ["cpu", "memory"];
    let positive = |map: Option<&Resources>, name: &str| {
        map.and_then(|map| map.get(name)).map(|value| quantity(Some(value))).filter(|value| !value.is_zero())
    };
    // Resources of the whole pod, where given, decide alone.
    if let Some(whole) = &spec.resources {
        let any = |map| COUNTED.iter().any(|name| positive(map, name).is_some());
        if any(whole.limits.as_ref()) || any(whole.requests.as_ref()) {
            let equal = COUNTED.iter().all(|name| {
                let limit = positive(whole.limits.as_ref(), name);
                limit.is_some() && positive(whole.requests.as_ref(), name).is_none_or(|request| Some(request) == limit)
            });
            return if equal { QosClass::Guaranteed } else { QosClass::Burstable };
        }
    }
    let mut guaranteed = true;
    let mut any = false;
    for container in init_containers(spec).iter().chain(&spec.containers) {
        let resources = container.resources.as_ref();
        for name in COUNTED {
            let limit = positive(limits(resources), name);
            let request = positive(requests(resources), name);
            any |= limit.is_some() || request.is_some();
            guaranteed &= limit.is_some() && (request.is_none() || request == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => QosClass::BestEffort,
        (true, true) => QosClass::Guaranteed,
        (true, false) => QosClass::Burstable,
    }
}

/// What a pod asks for in total, of one resource: the greater of what runs at once in the long run and of
/// what any moment of initialization needs, plus overhead.
pub fn pod_request(spec: &PodSpec, name: &str) -> Quantity {
    let own = |container: &Container| request(container, name).or_else(|| limit(container, name));
    total(spec, name, requests(spec.resources.as_ref()), |container| own(container).unwrap_or_else(Quantity::zero))
}

/// The sum of limits; a container without one counts nothing here.
pub fn pod_limit(spec: &PodSpec, name: &str) -> Quantity {
    total(spec, name, limits(spec.resources.as_ref()), |container| {
        limit(container, name).unwrap_or_else(Quantity::zero)
    })
}

/// Whether every container has a limit of `name`, so that the sum bounds the pod.
pub fn all_limited(spec: &PodSpec, name: &str) -> bool {
    if limits(spec.resources.as_ref()).is_some_and(|map| map.contains_key(name)) {
        return true;
    }
    init_containers(spec)
        .iter()
        .chain(&spec.containers)
        .all(|container| limit(container, name).is_some_and(|limit| !limit.is_zero()))
}

fn total(spec: &PodSpec, name: &str, whole: Option<&Resources>, of: impl Fn(&Container) -> Quantity) -> Quantity {
    let mut sum = match whole.and_then(|map| map.get(name)) {
        Some(value) => quantity(Some(value)),
        None => {
            let mut running = Quantity::zero();
            for container in &spec.containers {
                running.add(&of(container));
            }
            let mut sidecars = Quantity::zero();
            let mut peak = Quantity::zero();
            for container in init_containers(spec) {
                let own = of(container);
                let mut moment = sidecars.clone();
                moment.add(&own);
                if is_sidecar(container) {
                    sidecars.add(&own);
                }
                if moment > peak {
                    peak = moment;
                }
            }
            running.add(&sidecars);
            if peak > running { peak } else { running }
        }
    };
    if let Some(overhead) = spec.overhead.as_ref().and_then(|map| map.get(name)) {
        sum.add(&quantity(Some(overhead)));
    }
    sum
}

/// A quantity as the API writes it.
pub fn api_quantity(value: i64, format: Format) -> ApiQuantity {
    ApiQuantity(Quantity::new(value, format).to_string())
}

/// FNV-1a of some text, in hexadecimal. Stable across releases: running containers are compared by it.
pub fn stable_hash<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for part in parts {
        for byte in part.bytes().chain([0]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    format!("{hash:x}")
}

/// The fields whose change restarts a container: as upstream, its name and its image.
pub fn container_hash(container: &Container) -> String {
    stable_hash([container.name.as_str(), container.image.as_deref().unwrap_or_default()])
}
