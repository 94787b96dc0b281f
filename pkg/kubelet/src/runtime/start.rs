//! Starts one container: image, configuration, create, start, postStart.
//!
//! Behaves as startContainer in pkg/kubelet/kuberuntime/kuberuntime_container.go, v1.36.

use std::os::unix::fs::symlink;
use std::path::Path;

use rkube_api::k8s::core::v1::{Container, Pod};
use rkube_cri::v1::{ContainerConfig, CreateContainerRequest, StartContainerRequest};

use crate::events::Type;
use crate::pod::{PodExt, stable_hash};
use crate::runtime::Runtime;
use crate::runtime::actions::KillReason;
use crate::runtime::container::{self, ContainerInputs};
use crate::runtime::env::{self, EnvSources};
use crate::runtime::images::ImageFailure;
use crate::runtime::resources::{self, ContainerResources};
use crate::runtime::security::Profiles;
use crate::runtime::state::RuntimePod;
use crate::runtime::sync::{ReadySandbox, SyncInputs};
use crate::runtime::{hooks, sandbox};
use crate::volumes::mounts;

/// Why a container was not started; as [`ImageFailure`], the reason is what users see.
pub(crate) type StartFailure = ImageFailure;

fn failure(reason: &'static str, message: impl Into<String>) -> StartFailure {
    ImageFailure { reason, message: message.into() }
}

impl Runtime {
    pub(crate) async fn start_container(
        &self,
        pod: &Pod,
        container: &Container,
        target: Option<&str>,
        current: &RuntimePod,
        sandbox: &ReadySandbox,
        inputs: &SyncInputs<'_>,
    ) -> Result<(), StartFailure> {
        let failed = |failure: StartFailure| {
            let text = format!("Error: {}", if failure.message.is_empty() { failure.reason } else { &failure.message });
            self.events.container(pod, container, Type::Warning, "Failed", text);
            failure
        };
        let ensure = self.images.ensure(pod, container, inputs.pull_secrets, &sandbox.config, &inputs.runtime_handler);
        let ensured = tokio::select! {
            ensured = ensure => ensured,
            () = inputs.cancel.cancelled() => Err(failure("ErrImagePull", "the pod is being terminated")),
        };
        let image = ensured
            // The event says the short reason, the status the whole.
            .inspect_err(|failure| {
                self.events.container(pod, container, Type::Warning, "Failed", format!("Error: {}", failure.reason));
            })?;

        let restart_count = match current.container(&container.name) {
            Some(status) => status.restart_count.saturating_add(1),
            None => {
                let uid = pod.uid();
                let logs = sandbox::log_directory(&self.settings.logs_root, pod.namespace(), pod.name(), uid.as_str());
                container::restart_count_by_logs(&logs.join(&container.name))
            }
        };
        let target = match target {
            None => None,
            Some(name) => {
                let found = current.container(name).map(|status| status.id.clone());
                Some(found.ok_or_else(|| {
                    let message = format!("unable to find target container {name:?}");
                    failed(failure("CreateContainerConfigError", message))
                })?)
            }
        };
        let config = self
            .container_config(pod, container, restart_count, &image, target.as_deref(), sandbox, inputs)
            .await
            .map_err(|message| failed(failure("CreateContainerConfigError", message)))?;

        let request = CreateContainerRequest {
            pod_sandbox_id: sandbox.id.clone(),
            config: Some(config.clone()),
            sandbox_config: Some(sandbox.config.clone()),
        };
        let created = self.service.create_container(request).await;
        let id = created.map_err(|error| failed(failure("CreateContainerError", error.message())))?.container_id;
        self.allocations.actuate(&pod.uid(), &id, ContainerResources::of(pod, container));
        self.events.container(pod, container, Type::Normal, "Created", "Container created");

        let started = self.service.start_container(StartContainerRequest { container_id: id.clone() }).await;
        started.map_err(|error| failed(failure("RunContainerError", error.message())))?;
        self.events.container(pod, container, Type::Normal, "Started", "Container started");
        self.link_log(pod, container, &id, &config, &sandbox.config.log_directory);
        tokio::select! {
            done = self.post_start(pod, container, &id, &sandbox.ips) => done,
            // The container is stopped with its pod.
            () = inputs.cancel.cancelled() => Ok(()),
        }
    }

    #[expect(clippy::too_many_arguments, reason = "everything a configuration is made of")]
    async fn container_config(
        &self,
        pod: &Pod,
        container: &Container,
        restart_count: i32,
        image: &rkube_cri::v1::Image,
        target: Option<&str>,
        sandbox: &ReadySandbox,
        inputs: &SyncInputs<'_>,
    ) -> Result<ContainerConfig, String> {
        let sources =
            EnvSources { objects: &self.objects, services: inputs.services, node: inputs.node, pod_ips: &sandbox.ips };
        let env = env::variables(pod, container, &sources).await.map_err(|error| text(&error))?;
        let context = mounts::MountContext {
            pod_dir: self.settings.pod_dir(&pod.uid()),
            volumes: inputs.volumes,
            mounter: &*self.mounter,
            env: &env,
            ips: &sandbox.ips,
            cluster_domain: &inputs.dns.cluster_domain,
        };
        let mut mounts = mounts::container_mounts(pod, container, &context).map_err(|error| text(&error))?;
        let unique = stable_hash([
            pod.uid().as_str(),
            &container.name,
            &restart_count.to_string(),
            &sandbox.id,
            &self.clock.now().as_nanosecond().to_string(),
        ]);
        let log = container::termination_log(&context.pod_dir, container, unique.get(..8).unwrap_or(&unique));
        mounts.extend(
            log.map_err(|error| format!("failed to create termination log file: {error}"))?.map(|(_, mount)| mount),
        );
        let seccomp_root = self.settings.seccomp_root();
        let container_inputs = ContainerInputs {
            restart_count,
            image,
            runtime_handler: &inputs.runtime_handler,
            env: env.clone(),
            mounts,
            resources: resources::linux_resources(
                pod,
                container,
                self.settings.memory_capacity,
                self.settings.cgroup_v2,
                &self.settings.hugepage_sizes,
            ),
            target,
            volume_groups: inputs.volumes.groups(),
            profiles: Profiles { seccomp_root: &seccomp_root, apparmor_enabled: self.settings.apparmor_enabled },
        };
        container::config(pod, container, container_inputs).map_err(|error| error.to_string())
    }

    /// `/var/log/containers/<pod>_<namespace>_<container>-<id>.log`, where log agents look. Only agents
    /// miss it, so a failure is no reason not to run.
    fn link_log(&self, pod: &Pod, container: &Container, id: &str, config: &ContainerConfig, directory: &str) {
        let log = Path::new(directory).join(&config.log_path);
        let root = &self.settings.container_logs_root;
        let name = log_link_name(pod.name(), pod.namespace(), &container.name, id);
        let linked = std::fs::create_dir_all(root).and_then(|()| symlink(&log, root.join(name)));
        if let Err(error) = linked {
            tracing::warn!(pod = %pod.key(), container = container.name, %error, "Container log was not linked");
        }
    }

    async fn post_start(&self, pod: &Pod, container: &Container, id: &str, ips: &[String]) -> Result<(), StartFailure> {
        let Some(handler) = container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.post_start.as_ref()) else {
            return Ok(());
        };
        let ip = ips.first().map(String::as_str);
        let Err(message) = hooks::run(&self.service, &self.clock, id, container, handler, ip).await else {
            return Ok(());
        };
        tracing::warn!(pod = %pod.key(), container = container.name, message, "PostStart hook failed");
        self.events.container(pod, container, Type::Warning, "FailedPostStartHook", "PostStartHook failed");
        let reason = KillReason::Unspecified;
        let killed = self.kill_container(Some(pod), id, &container.name, "FailedPostStartHook", reason, None).await;
        if let Err(error) = killed {
            tracing::warn!(pod = %pod.key(), container = container.name, %error, "Container was not killed after its hook failed");
        }
        Err(failure("PostStartHookError", message))
    }
}

/// The file name of a container's log link. 251 bytes and `.log` are what a file name holds.
pub(crate) fn log_link_name(pod: &str, namespace: &str, container: &str, id: &str) -> String {
    let mut name = format!("{pod}_{namespace}_{container}-{id}");
    name.truncate(251);
    format!("{name}.log")
}

/// An error with its causes, as Go prints wrapped errors.
fn text(error: &(dyn std::error::Error + 'static)) -> String {
    rkube_apimachinery::chain::chain(error).to_string()
}
