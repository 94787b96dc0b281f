//! Gets images onto the node: pull policies, credentials, back-off, and pulls in parallel.
//!
//! Behaves as pkg/kubelet/images/image_manager.go, v1.36.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use base64::Engine as _;
use parking_lot::Mutex;
use rkube_api::image_name::{ImageName, default_pull_policy};
use rkube_api::k8s::core::v1::{Container, Pod, Secret};
use rkube_apimachinery::chain::chain;
use rkube_apimachinery::clock::SharedClock;
use rkube_cri::v1::{
    AuthConfig, Image, ImageFsInfoRequest, ImageSpec, ImageStatusRequest, PodSandboxConfig, PullImageRequest,
};
use rkube_cri::{Code, ImageService, RuntimeError, containerd};
use serde_json::Value;
use tokio::sync::Semaphore;

use crate::backoff::Backoff;
use crate::events::{Events, Type};
use crate::node::capacity::{FileSystem, file_system};
use crate::pod::PodExt;
use crate::registries::Registries;
use crate::registries::attempts::{Attempt, registry_of};

/// Pulls at a time, so that a node that starts does not starve its first pods of bandwidth.
const PARALLEL_PULLS_MAX: usize = 8;

/// Why an image is not there. The reason is what the container's waiting state shows.
#[derive(Debug)]
pub struct ImageFailure {
    pub reason: &'static str,
    pub message: String,
}

pub struct ImageManager {
    service: Arc<dyn ImageService>,
    clock: SharedClock,
    events: Events,
    backoff: Mutex<Backoff>,
    previous: Mutex<HashMap<String, String>>,
    pulls: Semaphore,
    registries: Registries,
    /// For images that have another name at a mirror, where the runtime is containerd.
    importer: Option<containerd::Client>,
}

impl ImageManager {
    pub fn new(
        service: Arc<dyn ImageService>,
        clock: SharedClock,
        events: Events,
        registries: Registries,
        importer: Option<containerd::Client>,
    ) -> Self {
        Self {
            service,
            clock,
            events,
            backoff: Mutex::new(Backoff::crash_loop()),
            previous: Mutex::default(),
            pulls: Semaphore::new(PARALLEL_PULLS_MAX),
            registries,
            importer,
        }
    }

    pub fn service(&self) -> &Arc<dyn ImageService> {
        &self.service
    }

    /// The image of a container, pulled if its policy says so.
    pub async fn ensure(
        &self,
        pod: &Pod,
        container: &Container,
        secrets: &[Arc<Secret>],
        sandbox: &PodSandboxConfig,
        runtime_handler: &str,
    ) -> Result<Image, ImageFailure> {
        let requested = container.image.as_deref().unwrap_or_default();
        let Some(name) = with_default_tag(requested) else {
            let message = format!(
                "Failed to apply default image tag {requested:?}: couldn't parse image name {requested:?}: invalid reference format"
            );
            self.events.container(pod, container, Type::Warning, "InspectFailed", &message);
            return Err(ImageFailure { reason: "InvalidImageName", message });
        };
        let spec = ImageSpec {
            image: name.clone(),
            runtime_handler: runtime_handler.to_owned(),
            annotations: sandbox.annotations.clone(),
            ..ImageSpec::default()
        };
        let policy = container.image_pull_policy.as_deref().unwrap_or_else(|| default_pull_policy(requested));
        let present = self.inspect(&spec).await.map_err(|error| {
            let message = format!("Failed to inspect image {name:?}: {error}");
            self.events.container(pod, container, Type::Warning, "InspectFailed", &message);
            ImageFailure { reason: "ImageInspectError", message }
        })?;
        match (policy, present) {
            ("Never", None) => {
                let message = format!("Container image {requested:?} is not present with pull policy of Never");
                self.events.container(pod, container, Type::Warning, "ErrImageNeverPull", &message);
                Err(ImageFailure { reason: "ErrImageNeverPull", message })
            }
            ("IfNotPresent" | "Never", Some(image)) => {
                let message =
                    format!("Container image {requested:?} already present on machine and can be accessed by the pod");
                self.events.container(pod, container, Type::Normal, "Pulled", message);
                Ok(image)
            }
            _ => self.pull(pod, container, spec, secrets, sandbox).await,
        }
    }

    /// The file system that holds images, as the runtime names it.
    pub async fn file_system(&self) -> Option<FileSystem> {
        let answer = self.service.image_fs_info(ImageFsInfoRequest::default()).await.ok()?;
        let path = answer.image_filesystems.into_iter().next()?.fs_id?.mountpoint;
        file_system(std::path::Path::new(&path))
    }

    async fn inspect(&self, spec: &ImageSpec) -> Result<Option<Image>, RuntimeError> {
        let request = ImageStatusRequest { image: Some(spec.clone()), verbose: false };
        Ok(self.service.image_status(request).await?.image)
    }

    async fn pull(
        &self,
        pod: &Pod,
        container: &Container,
        spec: ImageSpec,
        secrets: &[Arc<Secret>],
        sandbox: &PodSandboxConfig,
    ) -> Result<Image, ImageFailure> {
        let name = spec.image.clone();
        let key = format!("{}_{name}", pod.uid());
        if self.backoff.lock().remaining_since_update(&key, self.clock.now()).is_some() {
            let mut message = format!("Back-off pulling image {name:?}");
            self.events.container(pod, container, Type::Normal, "BackOff", &message);
            if let Some(previous) = self.previous.lock().get(&key) {
                message = format!("{message}: {previous}");
            }
            return Err(ImageFailure { reason: "ImagePullBackOff", message });
        }
        self.previous.lock().remove(&key);
        self.events.container(pod, container, Type::Normal, "Pulling", format!("Pulling image {name:?}"));

        let begin = self.clock.monotonic();
        let permit = self.pulls.acquire().await;
        let pulling = self.clock.monotonic();
        let attempts = self.registries.attempts(&name, &credentials(secrets, &name));
        let pulled = self.try_all(&spec, attempts, sandbox).await;
        drop(permit);
        let end = self.clock.monotonic();
        match pulled {
            Ok(image) => {
                let message = format!(
                    "Successfully pulled image {name:?} in {} ({} including waiting). Image size: {} bytes.",
                    go_duration(end.saturating_sub(pulling)),
                    go_duration(end.saturating_sub(begin)),
                    image.size
                );
                self.events.container(pod, container, Type::Normal, "Pulled", message);
                self.backoff.lock().collect(self.clock.now());
                Ok(image)
            }
            Err(error) => {
                let text = format!("Failed to pull image {name:?}: {error}");
                self.events.container(pod, container, Type::Warning, "Failed", text);
                let now = self.clock.now();
                self.backoff.lock().next(&key, now, now);
                let failure = failure_of(&name, &error);
                self.previous.lock().insert(key, format!("{}: {}", failure.reason, failure.message));
                Err(failure)
            }
        }
    }

    /// The last way's failure is the one that is told.
    async fn try_all(
        &self,
        spec: &ImageSpec,
        attempts: Vec<Attempt>,
        sandbox: &PodSandboxConfig,
    ) -> Result<Image, RuntimeError> {
        let mut failed = None;
        for attempt in attempts {
            let reference = attempt.reference.clone();
            match self.attempt(spec, attempt, sandbox).await {
                Ok(image) => return Ok(image),
                Err(error) => {
                    tracing::info!(reference, %error, "Image was not pulled this way");
                    failed = Some(error);
                }
            }
        }
        Err(failed.unwrap_or(RuntimeError::Incomplete { call: "pull_image", missing: "an attempt" }))
    }

    async fn attempt(
        &self,
        spec: &ImageSpec,
        attempt: Attempt,
        sandbox: &PodSandboxConfig,
    ) -> Result<Image, RuntimeError> {
        let Attempt { reference, rename_to, auth } = attempt;
        let importer = match (&rename_to, &self.importer) {
            (Some(_), None) => {
                let text = "images are renamed in containerd only";
                return Err(RuntimeError::new("rename_image", Code::Unimplemented, text));
            }
            (_, importer) => importer.as_ref(),
        };
        let image = Some(ImageSpec { image: reference.clone(), ..spec.clone() });
        let request = PullImageRequest { image, auth, sandbox_config: Some(sandbox.clone()) };
        let image_ref = self.service.pull_image(request).await?.image_ref;
        if let (Some(name), Some(importer)) = (&rename_to, importer) {
            let renamed = importer.rename_for_cri(&*self.service, &reference, name).await;
            renamed.map_err(|error| RuntimeError::new("rename_image", Code::Unknown, chain(&error).to_string()))?;
        }
        let pulled = self.inspect(&ImageSpec { image: image_ref, ..spec.clone() }).await?;
        pulled.ok_or(RuntimeError::Incomplete { call: "pull_image", missing: "the image it pulled" })
    }

    /// Forgets what is known of a pod that is gone.
    pub fn forget(&self, uid: &crate::pod::PodUid) {
        let prefix = format!("{uid}_");
        self.previous.lock().retain(|key, _| !key.starts_with(&prefix));
        self.backoff.lock().collect(self.clock.now());
    }
}

fn failure_of(image: &str, error: &RuntimeError) -> ImageFailure {
    let text = error.message();
    for (prefix, reason, what) in [
        ("RegistryUnavailable", "RegistryUnavailable", "the registry is unavailable"),
        ("SignatureValidationFailed", "SignatureValidationFailed", "the signature validation failed"),
    ] {
        if let Some(rest) = text.strip_prefix(prefix) {
            let detail = if rest.trim_start_matches(": ").is_empty() { String::new() } else { rest.to_owned() };
            return ImageFailure { reason, message: format!("image pull failed for {image} because {what}{detail}") };
        }
    }
    ImageFailure { reason: "ErrImagePull", message: error.to_string() }
}

/// Adds `:latest` to a name without tag and digest. `None` for what is no image name.
pub fn with_default_tag(image: &str) -> Option<String> {
    let name = ImageName::parse(image)?;
    Some(if name.moves() && name.tag.is_none() { format!("{image}:latest") } else { image.to_owned() })
}

/// The credentials in pull secrets that fit an image, most specific first.
fn credentials(secrets: &[Arc<Secret>], image: &str) -> Vec<AuthConfig> {
    let mut found: BTreeMap<std::cmp::Reverse<usize>, Vec<AuthConfig>> = BTreeMap::new();
    for secret in secrets {
        let data = secret.data.as_ref();
        let documents = [".dockerconfigjson", ".dockercfg"].map(|key| {
            let value: Value = serde_json::from_slice(&data?.get(key)?.0).ok()?;
            Some(if key == ".dockerconfigjson" { value.get("auths")?.clone() } else { value })
        });
        for (registry, entry) in documents.iter().flatten().filter_map(Value::as_object).flatten() {
            let pattern = registry.trim_start_matches("https://").trim_start_matches("http://");
            let pattern = pattern.trim_end_matches('/').trim_end_matches("/v1").trim_end_matches("/v2");
            let pattern = if pattern == "index.docker.io" { "docker.io" } else { pattern };
            if registry_matches(pattern, image)
                && let Some(auth) = auth_config(entry)
            {
                found.entry(std::cmp::Reverse(pattern.len())).or_default().push(auth);
            }
        }
    }
    found.into_values().flatten().collect()
}

fn registry_matches(pattern: &str, image: &str) -> bool {
    let host = registry_of(image);
    let path = image.strip_prefix(host).map_or(image, |path| path.trim_start_matches('/'));
    let (pattern_host, pattern_path) = pattern.split_once('/').unwrap_or((pattern, ""));
    let host_matches = match pattern_host.strip_prefix("*.") {
        Some(suffix) => host.split_once('.').is_some_and(|(_, rest)| rest == suffix),
        None => host == pattern_host,
    };
    host_matches && path.starts_with(pattern_path)
}

fn auth_config(entry: &Value) -> Option<AuthConfig> {
    let text = |key: &str| entry.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (mut username, mut password) = (text("username"), text("password"));
    if username.is_empty() {
        let decoded = base64::engine::general_purpose::STANDARD.decode(text("auth").trim()).ok()?;
        let decoded = String::from_utf8(decoded).ok()?;
        let (user, secret) = decoded.split_once(':')?;
        (username, password) = (user.to_owned(), secret.trim_end_matches('\0').to_owned());
    }
    Some(AuthConfig { username, password, ..AuthConfig::default() })
}

/// A duration as Go prints it, to milliseconds: `1.25s`, `340ms`, `2m3.5s`.
pub fn go_duration(duration: std::time::Duration) -> String {
    let millis = i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
    rkube_apimachinery::time::format_duration(jiff::SignedDuration::from_millis(millis))
}

#[cfg(test)]
mod tests {
    use rkube_api::k8s::core::v1::Secret;

    use super::*;

    #[test]
    fn names_get_a_tag_or_are_refused() {
        for (given, full) in [
            ("busybox", Some("busybox:latest")),
            ("reg:5000/a/b", Some("reg:5000/a/b:latest")),
            ("a/b:1.0", Some("a/b:1.0")),
            ("UPPER", None),
            ("a//b", None),
            ("", None),
            ("a:", None),
            ("a b", None),
            ("-a", None),
        ] {
            assert_eq!(with_default_tag(given).as_deref(), full, "{given}");
        }
        let digest = format!("a@sha256:{}", "0".repeat(64));
        assert_eq!(with_default_tag(&digest), Some(digest));
        assert_eq!(with_default_tag("a@sha256:xyz"), None);
    }

    #[test]
    fn the_most_specific_credentials_come_first() {
        let json = r#"{"auths":{"reg.io":{"auth":"YTpi"},"reg.io/team":{"username":"t","password":"p"},"*.example.com":{"auth":"dzp4"}}}"#;
        let data = [(".dockerconfigjson".to_owned(), rkube_api::ByteString(json.into()))].into();
        let secret = Secret { data: Some(data), ..Secret::default() };
        let secrets = [Arc::new(secret)];
        let users = |image: &str| -> Vec<String> {
            credentials(&secrets, image).into_iter().map(|auth| auth.username).collect()
        };
        assert_eq!(users("reg.io/team/app:1"), ["t", "a"]);
        assert_eq!(users("reg.io/other"), ["a"]);
        assert_eq!(users("x.example.com/app"), ["w"]);
        assert!(users("busybox").is_empty());
    }
}
