//! The table of CRI calls. Traits, client and fake are made from these rows, so a call that one of them
//! lacks does not compile.

/// Calls `$make!` with every unary call: `name(Request) -> Response within limit;`. The limit is a
/// method of the client's `Limits`.
macro_rules! runtime_calls {
    ($make:ident) => {
        $make! {
            version(VersionRequest) -> VersionResponse within short;
            /// Sets up network and pause process, which may need an image pull.
            run_pod_sandbox(RunPodSandboxRequest) -> RunPodSandboxResponse within long;
            stop_pod_sandbox(StopPodSandboxRequest) -> StopPodSandboxResponse within short;
            remove_pod_sandbox(RemovePodSandboxRequest) -> RemovePodSandboxResponse within short;
            pod_sandbox_status(PodSandboxStatusRequest) -> PodSandboxStatusResponse within short;
            list_pod_sandbox(ListPodSandboxRequest) -> ListPodSandboxResponse within short;
            create_container(CreateContainerRequest) -> CreateContainerResponse within short;
            start_container(StartContainerRequest) -> StartContainerResponse within short;
            /// Waits for the container's own grace period on top.
            stop_container(StopContainerRequest) -> StopContainerResponse within grace;
            remove_container(RemoveContainerRequest) -> RemoveContainerResponse within short;
            list_containers(ListContainersRequest) -> ListContainersResponse within short;
            container_status(ContainerStatusRequest) -> ContainerStatusResponse within short;
            update_container_resources(UpdateContainerResourcesRequest) -> UpdateContainerResourcesResponse within short;
            reopen_container_log(ReopenContainerLogRequest) -> ReopenContainerLogResponse within short;
            /// A timeout of 0 in the request waits for the command as long as it runs.
            exec_sync(ExecSyncRequest) -> ExecSyncResponse within command;
            exec(ExecRequest) -> ExecResponse within short;
            attach(AttachRequest) -> AttachResponse within short;
            port_forward(PortForwardRequest) -> PortForwardResponse within short;
            container_stats(ContainerStatsRequest) -> ContainerStatsResponse within short;
            list_container_stats(ListContainerStatsRequest) -> ListContainerStatsResponse within short;
            pod_sandbox_stats(PodSandboxStatsRequest) -> PodSandboxStatsResponse within short;
            list_pod_sandbox_stats(ListPodSandboxStatsRequest) -> ListPodSandboxStatsResponse within short;
            update_runtime_config(UpdateRuntimeConfigRequest) -> UpdateRuntimeConfigResponse within short;
            status(StatusRequest) -> StatusResponse within short;
            runtime_config(RuntimeConfigRequest) -> RuntimeConfigResponse within short;
        }
    };
}

macro_rules! image_calls {
    ($make:ident) => {
        $make! {
            list_images(ListImagesRequest) -> ListImagesResponse within short;
            image_status(ImageStatusRequest) -> ImageStatusResponse within short;
            /// As long as the registry takes: the caller decides when to give up.
            pull_image(PullImageRequest) -> PullImageResponse within forever;
            remove_image(RemoveImageRequest) -> RemoveImageResponse within short;
            image_fs_info(ImageFsInfoRequest) -> ImageFsInfoResponse within short;
        }
    };
}

pub(crate) use {image_calls, runtime_calls};
