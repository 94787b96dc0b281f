//! Against a real containerd.

use std::time::Duration;

use futures_util::StreamExt;
use rkube_cri::v1::*;
use rkube_cri::{ImageService, Remote, RuntimeService, pause};
use rkube_testing::containerd::{Containerd, remove_cgroups};

/// Generous: the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_sandbox_runs_from_the_pause_image_we_make() {
    let folder = tempfile::tempdir().unwrap();
    let containerd = Containerd::start(folder.path());
    let runtime = Remote::new(containerd.socket().to_str().unwrap()).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), pause::archive().unwrap()).unwrap();
    let names = runtime.containerd().import_for_cri(&runtime, file.path()).await.unwrap();
    assert_eq!(names, [pause::IMAGE]);
    assert!(!runtime.list_images(ListImagesRequest::default()).await.unwrap().images.is_empty());

    let mut events = runtime.events().await.unwrap();
    let cgroup = format!("/rkube-cri-{}", std::process::id());
    let metadata =
        PodSandboxMetadata { name: "t".into(), uid: std::process::id().to_string(), namespace: "n".into(), attempt: 0 };
    let namespaces = NamespaceOption { network: NamespaceMode::Node.into(), ..NamespaceOption::default() };
    let context = LinuxSandboxSecurityContext { namespace_options: Some(namespaces), ..Default::default() };
    let linux =
        LinuxPodSandboxConfig { security_context: Some(context), cgroup_parent: cgroup.clone(), ..Default::default() };
    let config = PodSandboxConfig { metadata: Some(metadata), linux: Some(linux), ..Default::default() };
    let request = RunPodSandboxRequest { config: Some(config), runtime_handler: String::new() };
    let pod_sandbox_id = runtime.run_pod_sandbox(request).await.unwrap().pod_sandbox_id;
    let event = tokio::time::timeout(PATIENCE, events.next()).await.expect("an event of the sandbox");
    assert_eq!(event.unwrap().unwrap().id, pod_sandbox_id);
    runtime.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: pod_sandbox_id.clone() }).await.unwrap();
    runtime.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id }).await.unwrap();
    drop(containerd);
    remove_cgroups(&cgroup);
}

#[tokio::test]
async fn a_missing_runtime_is_named() {
    let runtime = Remote::new("/nonexistent/containerd.sock").unwrap();
    let error = runtime.version(VersionRequest::default()).await.unwrap_err();
    assert!(error.to_string().contains("code = Unavailable"), "{error}");
    assert!(error.to_string().contains("No such file"), "{error}");
    assert!(Remote::new("tcp://127.0.0.1:1").is_err());
}
