//! Whether this machine can run what is asked for. Said before anything is made, so that nothing is half there.

use std::path::Path;

use rkube_cri::Remote;

use crate::admin::check;
use crate::config::NodeConfig;

/// Why nothing can run here, and what to do.
#[derive(Debug, thiserror::Error)]
#[error("{detail}: {remedy}")]
pub(crate) struct Unfit {
    detail: String,
    remedy: String,
}

/// A control plane needs little; a node needs root, a kernel that is new enough, cgroups and a container runtime.
pub(crate) fn require(node: Option<&NodeConfig>) -> Result<(), Unfit> {
    if let Some(finding) = check::obstacle(node.is_some(), Path::new("/")) {
        return Err(Unfit { detail: finding.detail, remedy: finding.remedy });
    }
    match node {
        Some(node) if node.container_runtime_endpoint.is_none() && Remote::discover().is_none() => Err(Unfit {
            detail: "no container runtime was found".to_owned(),
            remedy: "install containerd, or name its socket with --container-runtime-endpoint".to_owned(),
        }),
        _ => Ok(()),
    }
}
