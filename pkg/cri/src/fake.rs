//! A runtime in memory: containers that start when told and end when a test says so.
//!
//! Every call is recorded as one line. A test scripts failures per call with [`FakeRuntime::fail`], ends
//! containers with [`FakeRuntime::exit`] and answers commands with [`FakeRuntime::on_exec`].

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};
use parking_lot::Mutex;
use tokio::sync::{Notify, broadcast};
use tokio_stream::wrappers::BroadcastStream;

use crate::calls::{image_calls, runtime_calls};
use crate::error::{Code, RuntimeError};
use crate::service::{Event, EventStream, ImageService, RuntimeService};
use crate::v1::*;

const EVENTS_MAX: usize = 1024;

/// Clones share one runtime.
#[derive(Clone)]
pub struct FakeRuntime {
    state: Arc<Mutex<State>>,
    events: broadcast::Sender<Event>,
}

type Exec = Box<dyn FnMut(&ExecSyncRequest) -> ExecSyncResponse + Send>;

#[derive(Default)]
struct State {
    /// Nanoseconds, one more for every state change.
    time: i64,
    next_id: u32,
    sandboxes: BTreeMap<String, PodSandboxStatus>,
    sandbox_configs: BTreeMap<String, PodSandboxConfig>,
    containers: BTreeMap<String, FakeContainer>,
    images: BTreeMap<String, Image>,
    calls: Vec<String>,
    failures: BTreeMap<&'static str, VecDeque<RuntimeError>>,
    crash: Option<Crash>,
    exec: Option<Exec>,
    changed: Vec<String>,
}

/// When the caller dies.
struct Crash {
    calls_left: usize,
    /// Whether the call it dies in still takes effect.
    acts: bool,
    reached: Arc<Notify>,
}

struct FakeContainer {
    sandbox: String,
    config: ContainerConfig,
    status: ContainerStatus,
}

impl Default for FakeRuntime {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeRuntime {
    pub fn new() -> Self {
        let state = State { time: 1_700_000_000_000_000_000, ..State::default() };
        Self { state: Arc::new(Mutex::new(state)), events: broadcast::channel(EVENTS_MAX).0 }
    }

    /// What happens from now on happens after `nanoseconds` since 1970. Back-off compares with wall time.
    pub fn at(self, nanoseconds: i64) -> Self {
        self.state.lock().time = nanoseconds;
        self
    }

    /// Makes an image present.
    pub fn with_image(self, name: &str) -> Self {
        self.state.lock().add_image(name);
        self
    }

    /// The next call of this name fails.
    pub fn fail(&self, call: &'static str, code: Code, message: &str) {
        let error = RuntimeError::new(call, code, message);
        self.state.lock().failures.entry(call).or_default().push_back(error);
    }

    /// Ends a running container by its name.
    pub fn exit(&self, container: &str, code: i32) {
        self.exit_with(container, code, if code == 0 { "Completed" } else { "Error" });
    }

    pub fn exit_with(&self, container: &str, code: i32, reason: &str) {
        self.change(|state| {
            let running = ContainerState::ContainerRunning as i32;
            let found = state.containers.iter().find(|(_, held)| {
                held.status.state == running
                    && held.status.metadata.as_ref().is_some_and(|metadata| metadata.name == container)
            });
            if let Some(id) = found.map(|(id, _)| id.clone()) {
                state.end(&id, code, reason);
            }
        });
    }

    /// Lets so many calls that change something be answered, and the one after never, whether or not it takes
    /// effect: as for a caller that dies in it. Gives what tells when that is reached. Later calls are not
    /// answered either, until [`FakeRuntime::answer_again`].
    pub fn crash_after(&self, calls: usize, acts: bool) -> Arc<Notify> {
        let reached = Arc::<Notify>::default();
        self.state.lock().crash = Some(Crash { calls_left: calls, acts, reached: reached.clone() });
        reached
    }

    pub fn answer_again(&self) {
        self.state.lock().crash = None;
    }

    /// Waits until the inventory is as wanted.
    pub async fn wait_until(&self, holds: impl Fn(&[String]) -> bool) {
        let mut events = self.events.subscribe();
        while !holds(&self.inventory()) {
            // Events that were missed say no more than that something happened.
            let _ = events.recv().await;
        }
    }

    /// Sandboxes and containers there are: `s1 ready`, `c2 a exited`.
    pub fn inventory(&self) -> Vec<String> {
        let state = self.state.lock();
        let sandboxes = state.sandboxes.iter().map(|(id, sandbox)| {
            let ready = sandbox.state == PodSandboxState::SandboxReady as i32;
            format!("{id} {}", if ready { "ready" } else { "not ready" })
        });
        let containers = state.containers.iter().map(|(id, held)| {
            let name = held.config.metadata.as_ref().map(|metadata| metadata.name.as_str()).unwrap_or_default();
            format!("{id} {name} {}", held.status.state().as_str_name().trim_start_matches("CONTAINER_").to_lowercase())
        });
        sandboxes.chain(containers).collect()
    }

    /// Answers exec_sync.
    pub fn on_exec(&self, exec: impl FnMut(&ExecSyncRequest) -> ExecSyncResponse + Send + 'static) {
        self.state.lock().exec = Some(Box::new(exec));
    }

    /// The calls so far, one line each: `create_container app`. Emptied by reading.
    pub fn take_calls(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().calls)
    }

    /// What a container was created with, the newest of that name.
    pub fn container_config(&self, name: &str) -> Option<ContainerConfig> {
        let state = self.state.lock();
        let named =
            state.containers.values().filter(|held| held.config.metadata.as_ref().is_some_and(|m| m.name == name));
        named.max_by_key(|held| held.status.created_at).map(|held| held.config.clone())
    }

    /// What the newest sandbox was created with.
    pub fn sandbox_config(&self) -> Option<PodSandboxConfig> {
        self.state.lock().sandbox_configs.values().last().cloned()
    }

    fn change<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let (result, changed) = {
            let mut state = self.state.lock();
            let result = change(&mut state);
            (result, std::mem::take(&mut state.changed))
        };
        for id in changed {
            // Nobody has to listen.
            let _ = self.events.send(Event { id });
        }
        result
    }
}

macro_rules! fake_runtime {
    ($($(#[$doc:meta])* $name:ident($request:ident) -> $response:ident within $limit:ident;)*) => {
        impl RuntimeService for FakeRuntime {
            $(fn $name(&self, request: $request) -> BoxFuture<'_, Result<$response, RuntimeError>> {
                let (acts, answers) = self.state.lock().gate(stringify!($name));
                if !acts {
                    return std::future::pending().boxed();
                }
                let answer = self.change(|state| state.fails(stringify!($name)).and_then(|()| state.$name(request)));
                if answers { std::future::ready(answer).boxed() } else { std::future::pending().boxed() }
            })*

            fn events(&self) -> BoxFuture<'_, Result<EventStream, RuntimeError>> {
                let failed = self.state.lock().fails("events");
                let stream = BroadcastStream::new(self.events.subscribe());
                // A reader that fell behind missed events; it finds out by its next relist.
                let stream = stream.filter_map(|event| async move { event.ok().map(Ok) }).boxed();
                std::future::ready(failed.map(|()| stream)).boxed()
            }
        }
    };
}

macro_rules! fake_images {
    ($($(#[$doc:meta])* $name:ident($request:ident) -> $response:ident within $limit:ident;)*) => {
        impl ImageService for FakeRuntime {
            $(fn $name(&self, request: $request) -> BoxFuture<'_, Result<$response, RuntimeError>> {
                let answer = self.change(|state| state.fails(stringify!($name)).and_then(|()| state.$name(request)));
                std::future::ready(answer).boxed()
            })*
        }
    };
}

runtime_calls!(fake_runtime);
image_calls!(fake_images);

fn not_found(call: &'static str, what: &str) -> RuntimeError {
    RuntimeError::new(call, Code::NotFound, format!("{what} not found"))
}

fn matches(
    labels: &std::collections::HashMap<String, String>,
    wanted: &std::collections::HashMap<String, String>,
) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// Calls that only ask.
fn asks(call: &str) -> bool {
    call.starts_with("list_") || call.ends_with("status") || matches!(call, "version" | "status" | "exec_sync")
}

impl State {
    /// Whether a call takes effect, and whether it is answered.
    fn gate(&mut self, call: &str) -> (bool, bool) {
        let Some(crash) = self.crash.as_mut().filter(|_| !asks(call)) else { return (true, true) };
        if crash.calls_left > 0 {
            crash.calls_left -= 1;
            return (true, true);
        }
        crash.reached.notify_one();
        (std::mem::take(&mut crash.acts), false)
    }

    fn fails(&mut self, call: &'static str) -> Result<(), RuntimeError> {
        match self.failures.get_mut(call).and_then(VecDeque::pop_front) {
            Some(error) => {
                self.calls.push(format!("{call} fails"));
                Err(error)
            }
            None => Ok(()),
        }
    }

    fn note(&mut self, call: &str, what: &str) {
        self.calls.push(format!("{call} {what}"));
    }

    fn now(&mut self) -> i64 {
        self.time += 1;
        self.time
    }

    fn id(&mut self, prefix: &str) -> String {
        self.next_id += 1;
        format!("{prefix}{}", self.next_id)
    }

    fn end(&mut self, id: &str, code: i32, reason: &str) {
        let now = self.now();
        if let Some(held) = self.containers.get_mut(id) {
            held.status.state = ContainerState::ContainerExited.into();
            held.status.exit_code = code;
            held.status.reason = reason.to_owned();
            held.status.finished_at = now;
            self.changed.push(id.to_owned());
        }
    }

    fn add_image(&mut self, name: &str) -> String {
        let id = format!("sha256:{name}");
        let image = Image {
            id: id.clone(),
            repo_tags: vec![name.to_owned()],
            repo_digests: vec![format!("{name}@sha256:0")],
            size: 1000,
            ..Image::default()
        };
        self.images.insert(name.to_owned(), image);
        id
    }

    fn name_of(&self, container: &str) -> String {
        let metadata = self.containers.get(container).and_then(|held| held.config.metadata.as_ref());
        metadata.map_or_else(|| container.to_owned(), |metadata| metadata.name.clone())
    }

    fn version(&mut self, _: VersionRequest) -> Result<VersionResponse, RuntimeError> {
        Ok(VersionResponse {
            version: "0.1.0".into(),
            runtime_name: "fake".into(),
            runtime_version: "1.0".into(),
            runtime_api_version: "v1".into(),
        })
    }

    fn run_pod_sandbox(&mut self, request: RunPodSandboxRequest) -> Result<RunPodSandboxResponse, RuntimeError> {
        let config = request.config.unwrap_or_default();
        let metadata = config.metadata.clone().unwrap_or_default();
        self.note("run_pod_sandbox", &format!("{} attempt={}", metadata.name, metadata.attempt));
        let id = self.id("s");
        let status = PodSandboxStatus {
            id: id.clone(),
            metadata: Some(metadata),
            state: PodSandboxState::SandboxReady.into(),
            created_at: self.now(),
            network: Some(PodSandboxNetworkStatus { ip: "10.42.0.9".into(), additional_ips: vec![] }),
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
            runtime_handler: request.runtime_handler,
            ..PodSandboxStatus::default()
        };
        self.sandboxes.insert(id.clone(), status);
        self.sandbox_configs.insert(id.clone(), config);
        self.changed.push(id.clone());
        Ok(RunPodSandboxResponse { pod_sandbox_id: id })
    }

    fn stop_pod_sandbox(&mut self, request: StopPodSandboxRequest) -> Result<StopPodSandboxResponse, RuntimeError> {
        let id = request.pod_sandbox_id;
        self.note("stop_pod_sandbox", &id);
        let running: Vec<String> = self
            .containers
            .iter()
            .filter(|(_, held)| held.sandbox == id && held.status.state == ContainerState::ContainerRunning as i32)
            .map(|(id, _)| id.clone())
            .collect();
        for container in running {
            self.end(&container, 137, "Error");
        }
        if let Some(sandbox) = self.sandboxes.get_mut(&id) {
            sandbox.state = PodSandboxState::SandboxNotready.into();
            self.changed.push(id);
        }
        Ok(StopPodSandboxResponse {})
    }

    fn remove_pod_sandbox(
        &mut self,
        request: RemovePodSandboxRequest,
    ) -> Result<RemovePodSandboxResponse, RuntimeError> {
        self.note("remove_pod_sandbox", &request.pod_sandbox_id);
        self.sandboxes.remove(&request.pod_sandbox_id);
        self.sandbox_configs.remove(&request.pod_sandbox_id);
        self.containers.retain(|_, held| held.sandbox != request.pod_sandbox_id);
        self.changed.push(request.pod_sandbox_id);
        Ok(RemovePodSandboxResponse {})
    }

    fn pod_sandbox_status(
        &mut self,
        request: PodSandboxStatusRequest,
    ) -> Result<PodSandboxStatusResponse, RuntimeError> {
        let id = request.pod_sandbox_id;
        let status = self.sandboxes.get(&id).cloned().ok_or_else(|| not_found("pod_sandbox_status", &id))?;
        Ok(PodSandboxStatusResponse { status: Some(status), ..PodSandboxStatusResponse::default() })
    }

    fn list_pod_sandbox(&mut self, request: ListPodSandboxRequest) -> Result<ListPodSandboxResponse, RuntimeError> {
        let filter = request.filter.unwrap_or_default();
        let items = self.sandboxes.values().filter(|sandbox| {
            (filter.id.is_empty() || filter.id == sandbox.id)
                && filter.state.is_none_or(|state| state.state == sandbox.state)
                && matches(&sandbox.labels, &filter.label_selector)
        });
        let items = items.map(|sandbox| PodSandbox {
            id: sandbox.id.clone(),
            metadata: sandbox.metadata.clone(),
            state: sandbox.state,
            created_at: sandbox.created_at,
            labels: sandbox.labels.clone(),
            annotations: sandbox.annotations.clone(),
            runtime_handler: sandbox.runtime_handler.clone(),
        });
        Ok(ListPodSandboxResponse { items: items.collect() })
    }

    fn create_container(&mut self, request: CreateContainerRequest) -> Result<CreateContainerResponse, RuntimeError> {
        let config = request.config.unwrap_or_default();
        let metadata = config.metadata.clone().unwrap_or_default();
        self.note("create_container", &format!("{} attempt={}", metadata.name, metadata.attempt));
        let id = self.id("c");
        let status = ContainerStatus {
            id: id.clone(),
            metadata: Some(metadata),
            state: ContainerState::ContainerCreated.into(),
            created_at: self.now(),
            image: config.image.clone(),
            image_ref: config.image.as_ref().map(|image| format!("sha256:{}", image.image)).unwrap_or_default(),
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
            mounts: config.mounts.clone(),
            log_path: config.log_path.clone(),
            ..ContainerStatus::default()
        };
        let held = FakeContainer { sandbox: request.pod_sandbox_id, config, status };
        self.containers.insert(id.clone(), held);
        Ok(CreateContainerResponse { container_id: id })
    }

    fn start_container(&mut self, request: StartContainerRequest) -> Result<StartContainerResponse, RuntimeError> {
        let id = request.container_id;
        self.note("start_container", &self.name_of(&id));
        let now = self.now();
        let held = self.containers.get_mut(&id).ok_or_else(|| not_found("start_container", &id))?;
        held.status.state = ContainerState::ContainerRunning.into();
        held.status.started_at = now;
        self.changed.push(id);
        Ok(StartContainerResponse {})
    }

    fn stop_container(&mut self, request: StopContainerRequest) -> Result<StopContainerResponse, RuntimeError> {
        let id = request.container_id;
        self.note("stop_container", &format!("{} timeout={}", self.name_of(&id), request.timeout));
        let running =
            self.containers.get(&id).is_some_and(|held| held.status.state == ContainerState::ContainerRunning as i32);
        if running {
            self.end(&id, 143, "Error");
        }
        Ok(StopContainerResponse {})
    }

    fn remove_container(&mut self, request: RemoveContainerRequest) -> Result<RemoveContainerResponse, RuntimeError> {
        self.note("remove_container", &self.name_of(&request.container_id));
        self.containers.remove(&request.container_id);
        self.changed.push(request.container_id);
        Ok(RemoveContainerResponse {})
    }

    fn list_containers(&mut self, request: ListContainersRequest) -> Result<ListContainersResponse, RuntimeError> {
        let filter = request.filter.unwrap_or_default();
        let containers = self.containers.values().filter(|held| {
            (filter.id.is_empty() || filter.id == held.status.id)
                && (filter.pod_sandbox_id.is_empty() || filter.pod_sandbox_id == held.sandbox)
                && filter.state.is_none_or(|state| state.state == held.status.state)
                && matches(&held.status.labels, &filter.label_selector)
        });
        let containers = containers.map(|held| Container {
            id: held.status.id.clone(),
            pod_sandbox_id: held.sandbox.clone(),
            metadata: held.status.metadata.clone(),
            image: held.status.image.clone(),
            image_ref: held.status.image_ref.clone(),
            state: held.status.state,
            created_at: held.status.created_at,
            labels: held.status.labels.clone(),
            annotations: held.status.annotations.clone(),
            ..Container::default()
        });
        Ok(ListContainersResponse { containers: containers.collect() })
    }

    fn container_status(&mut self, request: ContainerStatusRequest) -> Result<ContainerStatusResponse, RuntimeError> {
        let id = request.container_id;
        let held = self.containers.get(&id).ok_or_else(|| not_found("container_status", &id))?;
        Ok(ContainerStatusResponse { status: Some(held.status.clone()), ..ContainerStatusResponse::default() })
    }

    fn update_container_resources(
        &mut self,
        request: UpdateContainerResourcesRequest,
    ) -> Result<UpdateContainerResourcesResponse, RuntimeError> {
        self.note("update_container_resources", &self.name_of(&request.container_id));
        let id = request.container_id;
        let held = self.containers.get_mut(&id).ok_or_else(|| not_found("update_container_resources", &id))?;
        held.status.resources = Some(ContainerResources { linux: request.linux });
        Ok(UpdateContainerResourcesResponse {})
    }

    fn reopen_container_log(
        &mut self,
        request: ReopenContainerLogRequest,
    ) -> Result<ReopenContainerLogResponse, RuntimeError> {
        self.note("reopen_container_log", &self.name_of(&request.container_id));
        Ok(ReopenContainerLogResponse {})
    }

    fn exec_sync(&mut self, request: ExecSyncRequest) -> Result<ExecSyncResponse, RuntimeError> {
        self.note("exec_sync", &format!("{} {}", self.name_of(&request.container_id), request.cmd.join(" ")));
        Ok(self.exec.as_mut().map(|exec| exec(&request)).unwrap_or_default())
    }

    fn exec(&mut self, request: ExecRequest) -> Result<ExecResponse, RuntimeError> {
        Ok(ExecResponse { url: format!("http://127.0.0.1:1/exec/{}", request.container_id) })
    }

    fn attach(&mut self, request: AttachRequest) -> Result<AttachResponse, RuntimeError> {
        Ok(AttachResponse { url: format!("http://127.0.0.1:1/attach/{}", request.container_id) })
    }

    fn port_forward(&mut self, request: PortForwardRequest) -> Result<PortForwardResponse, RuntimeError> {
        Ok(PortForwardResponse { url: format!("http://127.0.0.1:1/portforward/{}", request.pod_sandbox_id) })
    }

    fn container_stats(&mut self, request: ContainerStatsRequest) -> Result<ContainerStatsResponse, RuntimeError> {
        Err(not_found("container_stats", &request.container_id))
    }

    fn list_container_stats(
        &mut self,
        _: ListContainerStatsRequest,
    ) -> Result<ListContainerStatsResponse, RuntimeError> {
        Ok(ListContainerStatsResponse::default())
    }

    fn pod_sandbox_stats(&mut self, request: PodSandboxStatsRequest) -> Result<PodSandboxStatsResponse, RuntimeError> {
        Err(not_found("pod_sandbox_stats", &request.pod_sandbox_id))
    }

    fn list_pod_sandbox_stats(
        &mut self,
        _: ListPodSandboxStatsRequest,
    ) -> Result<ListPodSandboxStatsResponse, RuntimeError> {
        Ok(ListPodSandboxStatsResponse::default())
    }

    fn update_runtime_config(
        &mut self,
        _: UpdateRuntimeConfigRequest,
    ) -> Result<UpdateRuntimeConfigResponse, RuntimeError> {
        Ok(UpdateRuntimeConfigResponse {})
    }

    fn status(&mut self, _: StatusRequest) -> Result<StatusResponse, RuntimeError> {
        let condition =
            |name: &str| RuntimeCondition { r#type: name.into(), status: true, ..RuntimeCondition::default() };
        let status = RuntimeStatus { conditions: vec![condition("RuntimeReady"), condition("NetworkReady")] };
        Ok(StatusResponse { status: Some(status), ..StatusResponse::default() })
    }

    fn runtime_config(&mut self, _: RuntimeConfigRequest) -> Result<RuntimeConfigResponse, RuntimeError> {
        Err(RuntimeError::new("runtime_config", Code::Unimplemented, "unknown method RuntimeConfig"))
    }

    fn list_images(&mut self, _: ListImagesRequest) -> Result<ListImagesResponse, RuntimeError> {
        Ok(ListImagesResponse { images: self.images.values().cloned().collect() })
    }

    fn image_status(&mut self, request: ImageStatusRequest) -> Result<ImageStatusResponse, RuntimeError> {
        let name = request.image.unwrap_or_default().image;
        let image = self.images.get(&name).or_else(|| self.images.values().find(|image| image.id == name)).cloned();
        Ok(ImageStatusResponse { image, ..ImageStatusResponse::default() })
    }

    fn pull_image(&mut self, request: PullImageRequest) -> Result<PullImageResponse, RuntimeError> {
        let name = request.image.unwrap_or_default().image;
        self.note("pull_image", &name);
        Ok(PullImageResponse { image_ref: self.add_image(&name) })
    }

    fn remove_image(&mut self, request: RemoveImageRequest) -> Result<RemoveImageResponse, RuntimeError> {
        let name = request.image.unwrap_or_default().image;
        self.note("remove_image", &name);
        self.images.retain(|known, image| *known != name && image.id != name);
        Ok(RemoveImageResponse {})
    }

    fn image_fs_info(&mut self, _: ImageFsInfoRequest) -> Result<ImageFsInfoResponse, RuntimeError> {
        Ok(ImageFsInfoResponse::default())
    }
}
