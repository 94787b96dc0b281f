//! Asks the runtime about pods.
//!
//! Behaves as GetPods and GetPodStatus in pkg/kubelet/kuberuntime, v1.36.

use std::collections::{BTreeMap, HashMap};
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use rkube_cri::v1::{
    ContainerFilter, ContainerStatus, ContainerStatusRequest, ListContainersRequest, ListPodSandboxRequest,
    PodSandboxFilter, PodSandboxStatusRequest,
};
use rkube_cri::{Code, RuntimeError};

use crate::pod::PodUid;
use crate::runtime::Runtime;
use crate::runtime::labels::{self, ContainerLabels};
use crate::runtime::state::{RuntimePod, State, container_from_status, sandbox_from_list, sandbox_from_status, uid_of};

/// Longest termination message kept, upstream's `MaxContainerTerminationMessageLength`.
const MESSAGE_BYTES_MAX: u64 = 4096;
/// How much of a failed container's log stands in for a message.
const FALLBACK_LINES: usize = 80;
const FALLBACK_BYTES: u64 = 2048;

/// One line of what runs: enough to see a change, without asking for each status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    pub id: String,
    pub is_sandbox: bool,
    pub state: State,
}

/// Everything the runtime has, by pod.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    pub pods: BTreeMap<PodUid, ListedPod>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListedPod {
    pub namespace: String,
    pub name: String,
    pub parts: Vec<Listed>,
}

impl ListedPod {
    pub fn is_active(&self) -> bool {
        self.parts.iter().any(|part| part.state == State::Running)
    }
}

fn selector(uid: Option<&PodUid>) -> HashMap<String, String> {
    uid.map(|uid| (labels::POD_UID.to_owned(), uid.to_string())).into_iter().collect()
}

impl Runtime {
    /// Lists sandboxes and containers, of one pod or of all.
    pub async fn list(&self, uid: Option<&PodUid>) -> Result<Listing, RuntimeError> {
        let filter = PodSandboxFilter { label_selector: selector(uid), ..PodSandboxFilter::default() };
        let sandboxes = self.service.list_pod_sandbox(ListPodSandboxRequest { filter: Some(filter) });
        let filter = ContainerFilter { label_selector: selector(uid), ..ContainerFilter::default() };
        let containers = self.service.list_containers(ListContainersRequest { filter: Some(filter) });
        let (sandboxes, containers) = futures_util::try_join!(sandboxes, containers)?;
        let mut listing = Listing::default();
        let mut add = |labels: &HashMap<String, String>, part: Listed| {
            // What has no pod's labels was not started by a kubelet.
            let Some(uid) = uid_of(labels) else { return };
            let pod = listing.pods.entry(uid).or_default();
            let text = |key: &str| labels.get(key).cloned().unwrap_or_default();
            pod.namespace = text(labels::POD_NAMESPACE);
            pod.name = text(labels::POD_NAME);
            pod.parts.push(part);
        };
        for sandbox in sandboxes.items {
            let ready = sandbox.state == rkube_cri::v1::PodSandboxState::SandboxReady as i32;
            let state = if ready { State::Running } else { State::Exited };
            add(&sandbox.labels, Listed { id: sandbox.id, is_sandbox: true, state });
        }
        for container in containers.containers {
            let state = State::from_cri(container.state);
            add(&container.labels, Listed { id: container.id, is_sandbox: false, state });
        }
        for pod in listing.pods.values_mut() {
            pod.parts.sort_by(|a, b| a.id.cmp(&b.id));
        }
        Ok(listing)
    }

    /// Everything about one pod.
    pub async fn pod_status(&self, uid: &PodUid, namespace: &str, name: &str) -> Result<RuntimePod, RuntimeError> {
        let filter = PodSandboxFilter { label_selector: selector(Some(uid)), ..PodSandboxFilter::default() };
        let sandboxes = self.service.list_pod_sandbox(ListPodSandboxRequest { filter: Some(filter) });
        let filter = ContainerFilter { label_selector: selector(Some(uid)), ..ContainerFilter::default() };
        let containers = self.service.list_containers(ListContainersRequest { filter: Some(filter) });
        let (sandboxes, containers) = futures_util::try_join!(sandboxes, containers)?;
        let mut pod = RuntimePod::new(uid.clone(), namespace, name);
        for sandbox in sandboxes.items {
            let request = PodSandboxStatusRequest { pod_sandbox_id: sandbox.id.clone(), verbose: false };
            match self.service.pod_sandbox_status(request).await {
                Ok(answer) => pod.sandboxes.extend(answer.status.as_ref().map(sandbox_from_status)),
                // Gone between the two calls.
                Err(error) if error.is_not_found() => {}
                // Its network is broken, which is no reason to be unable to stop it.
                Err(error) if error.code() == Code::Unknown => {
                    tracing::warn!(id = sandbox.id, %error, "Sandbox was not read, only listed");
                    pod.sandboxes.push(sandbox_from_list(&sandbox));
                }
                Err(error) => return Err(error),
            }
        }
        let statuses = containers.containers.iter().map(|container| async move {
            let request = ContainerStatusRequest { container_id: container.id.clone(), verbose: false };
            (container, self.service.container_status(request).await)
        });
        for (container, answer) in futures_util::future::join_all(statuses).await {
            match answer {
                Ok(answer) => {
                    let Some(status) = answer.status else { continue };
                    let mut converted = container_from_status(&status, &container.pod_sandbox_id);
                    converted.actuated = self.allocations.actuated(uid, &converted.id);
                    if converted.state == State::Exited {
                        let message = termination_message(&status);
                        if !message.is_empty() {
                            converted.message = message;
                        }
                    }
                    pod.containers.push(converted);
                }
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        pod.sandboxes.sort_by_key(|sandbox| std::cmp::Reverse(sandbox.created_at));
        pod.containers.sort_by_key(|container| std::cmp::Reverse(container.created_at));
        Ok(pod)
    }
}

/// What an ended container left in its file, or the end of its log where its policy says so.
fn termination_message(status: &ContainerStatus) -> String {
    let labels = ContainerLabels::read(&status.annotations);
    let file = status.mounts.iter().find(|mount| mount.container_path == labels.termination_message_path);
    let message = file.map(|mount| read_end(Path::new(&mount.host_path), MESSAGE_BYTES_MAX)).unwrap_or_default();
    if !message.is_empty() {
        return message;
    }
    let failed = status.exit_code != 0 || status.reason == "OOMKilled";
    if labels.termination_message_policy == "FallbackToLogsOnError" && failed {
        // Each line carries a timestamp and a stream in front, so a little more is read than kept.
        let log = read_end(Path::new(&status.log_path), FALLBACK_BYTES + 8192);
        return last_lines(&crate::logs::plain_text(&log));
    }
    String::new()
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let text = lines[lines.len().saturating_sub(FALLBACK_LINES)..].concat();
    let excess = text.len().saturating_sub(FALLBACK_BYTES as usize);
    let start = (excess..=text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    text[start..].to_owned()
}

/// The end of a file that a container wrote, and so may be of any size, a device or a link out of
/// the volume: only plain files are read.
fn read_end(path: &Path, bytes_max: u64) -> String {
    let read = || {
        use std::os::unix::fs::OpenOptionsExt;
        let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
        let mut file = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Ok(vec![]);
        }
        file.seek(SeekFrom::Start(metadata.len().saturating_sub(bytes_max)))?;
        let mut bytes = Vec::new();
        file.take(bytes_max).read_to_end(&mut bytes)?;
        Ok::<_, std::io::Error>(bytes)
    };
    String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
}
