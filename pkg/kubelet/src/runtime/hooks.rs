//! postStart and preStop.
//!
//! Behaves as pkg/kubelet/lifecycle/handlers.go, v1.36.

use std::sync::Arc;
use std::time::Duration;

use rkube_api::k8s::core::v1::{Container, LifecycleHandler};
use rkube_api::meta::pkg::util::intstr::IntOrString;
use rkube_apimachinery::clock::SharedClock;
use rkube_cri::RuntimeService;
use rkube_cri::v1::ExecSyncRequest;

use crate::prober::http::{HttpProbe, get};

/// How long an HTTP hook may take at most. preStop is bounded by the grace period on top.
const HTTP_TIMEOUT: Duration = Duration::from_secs(60);

/// Runs one hook; the error is the event's text.
pub async fn run(
    runtime: &Arc<dyn RuntimeService>,
    clock: &SharedClock,
    container_id: &str,
    container: &Container,
    handler: &LifecycleHandler,
    pod_ip: Option<&str>,
) -> Result<(), String> {
    if let Some(exec) = &handler.exec {
        let cmd = exec.command.clone().unwrap_or_default();
        let text = cmd.join(" ");
        let request = ExecSyncRequest { container_id: container_id.to_owned(), cmd, timeout: 0 };
        let answer = runtime.exec_sync(request).await.map_err(|error| {
            format!("Exec lifecycle hook ([{text}]) for Container {:?} failed - error: {error}", container.name)
        })?;
        if answer.exit_code != 0 {
            let output = [answer.stdout, answer.stderr].concat();
            return Err(format!(
                "Exec lifecycle hook ([{text}]) for Container {:?} failed - error: command '{text}' exited with {}: {}, message: {:?}",
                container.name,
                answer.exit_code,
                String::from_utf8_lossy(&output),
                String::from_utf8_lossy(&output),
            ));
        }
        return Ok(());
    }
    if let Some(action) = &handler.http_get {
        let host = action.host.as_deref().filter(|host| !host.is_empty()).or(pod_ip).unwrap_or_default();
        let port = resolve_port(&action.port, container)
            .ok_or_else(|| format!("invalid port: {}", port_text(&action.port)))?;
        let probe = HttpProbe::new(action, host, port, "kube-lifecycle/1.36");
        return match tokio::time::timeout(HTTP_TIMEOUT, get(&probe, false)).await {
            Ok(Ok(answer)) if answer.status < 400 => Ok(()),
            Ok(Ok(answer)) => Err(format!(
                "HTTP lifecycle hook ({}) for Container {:?} failed - HTTP status {}",
                probe.path, container.name, answer.status
            )),
            Ok(Err(error)) => Err(format!(
                "HTTP lifecycle hook ({}) for Container {:?} failed - error: {error}",
                probe.path, container.name
            )),
            Err(_) => Err(format!("HTTP lifecycle hook ({}) for Container {:?} timed out", probe.path, container.name)),
        };
    }
    if let Some(sleep) = &handler.sleep {
        clock.sleep(Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0))).await;
        return Ok(());
    }
    Err("invalid handler: none of exec, httpGet and sleep".to_owned())
}

/// A port by number, or by name among the container's ports.
pub fn resolve_port(port: &IntOrString, container: &Container) -> Option<u16> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => match name.parse() {
            Ok(number) => number,
            Err(_) => {
                let ports = container.ports.as_deref().unwrap_or_default();
                ports.iter().find(|port| port.name.as_deref() == Some(name))?.container_port
            }
        },
    };
    u16::try_from(number).ok().filter(|number| *number > 0)
}

pub fn port_text(port: &IntOrString) -> String {
    match port {
        IntOrString::Int(number) => number.to_string(),
        IntOrString::String(name) => name.clone(),
    }
}
