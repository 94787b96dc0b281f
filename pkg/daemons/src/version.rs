//! What this build is.

/// The Kubernetes version served, as in `/version`'s `gitVersion`.
pub const KUBERNETES: &str = "v1.36.2+rkube.1";
/// The version of rkube itself.
pub const RKUBE: &str = env!("CARGO_PKG_VERSION");
/// The version of rkube and the Kubernetes API it serves.
pub const BUILD: &str = concat!(env!("CARGO_PKG_VERSION"), " (Kubernetes v1.36.2)");

/// What a component calls itself in requests, in the form of upstream's programs.
pub(crate) fn user_agent(component: &str) -> String {
    format!("{component}/{KUBERNETES} (linux/{}) kubernetes/rkube", rkube_cri::pause::ARCHITECTURE)
}
