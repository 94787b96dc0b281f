//! Manifests of what the scenarios deploy: the frame that every workload has stands here once, and what a scenario is
//! about stays YAML beside it.
//!
//! Invariant: a workload selects its pods by the label `app`, which is its name.
//! Invariant: every manifest begins with `---`, so that they can be joined.

use std::fmt::Write as _;

/// For pods that have nothing to save.
const GRACE_SECONDS: u32 = 1;

/// A pod, alone or as the template of a workload.
pub(crate) struct PodManifest<'a> {
    name: &'a str,
    /// Fields of the pod's spec, not indented.
    spec: String,
    grace_seconds: u32,
}

impl<'a> PodManifest<'a> {
    /// A pod with these fields in its spec.
    pub(crate) fn new(name: &'a str, spec: &str) -> Self {
        Self { name, spec: spec.trim().to_owned(), grace_seconds: GRACE_SECONDS }
    }

    /// A pod of busybox that does nothing.
    pub(crate) fn sleeping(name: &'a str) -> Self {
        let container = format!(r#"containers: [{{name: {name}, image: "busybox:1.35", command: [sleep, "3600"]}}]"#);
        Self::new(name, &container)
    }

    /// The same with more fields in its spec.
    pub(crate) fn with(mut self, spec: &str) -> Self {
        self.spec = format!("{}\n{}", self.spec, spec.trim());
        self
    }

    /// The same with as much time to end.
    pub(crate) fn grace_seconds(self, seconds: u32) -> Self {
        Self { grace_seconds: seconds, ..self }
    }

    fn fields(&self) -> String {
        format!("terminationGracePeriodSeconds: {}\n{}", self.grace_seconds, self.spec)
    }

    /// The pod by itself.
    pub(crate) fn alone(&self) -> String {
        let name = self.name;
        object("v1", "Pod", &format!("{{name: {name}, labels: {{app: {name}}}}}"), &self.fields())
    }

    pub(crate) fn deployment(&self, spec: &str) -> String {
        self.workload("Deployment", spec)
    }

    pub(crate) fn daemon_set(&self) -> String {
        self.workload("DaemonSet", "")
    }

    pub(crate) fn stateful_set(&self, spec: &str) -> String {
        self.workload("StatefulSet", spec)
    }

    /// A workload of such pods, with more fields in its own spec.
    fn workload(&self, kind: &str, spec: &str) -> String {
        let name = self.name;
        let frame = format!(
            "selector: {{matchLabels: {{app: {name}}}}}\ntemplate:\n  metadata: {{labels: {{app: {name}}}}}\n  spec:\n"
        );
        let template = indented(&self.fields(), 4);
        object("apps/v1", kind, &format!("{{name: {name}}}"), &format!("{}\n{frame}{template}", spec.trim()))
    }
}

/// A Service for the pods of one workload.
pub(crate) fn service(name: &str, app: &str, spec: &str) -> String {
    let spec = format!("selector: {{app: {app}}}\n{}", spec.trim());
    object("v1", "Service", &format!("{{name: {name}}}"), &spec)
}

/// An object with a spec whose fields are not indented.
pub(crate) fn object(version: &str, kind: &str, metadata: &str, spec: &str) -> String {
    format!("---\napiVersion: {version}\nkind: {kind}\nmetadata: {metadata}\nspec:\n{}", indented(spec.trim(), 2))
}

fn indented(text: &str, spaces: usize) -> String {
    let mut out = String::new();
    for line in text.lines() {
        let _ = writeln!(out, "{:spaces$}{line}", "");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workload_is_its_frame_around_its_pod() {
        let text = PodManifest::sleeping("app").with("nodeName: node1").deployment("replicas: 2");
        let value: serde_json::Value = serde_saphyr::from_str(text.trim_start_matches("---")).unwrap();
        let wanted = serde_json::json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "app"},
            "spec": {
                "replicas": 2, "selector": {"matchLabels": {"app": "app"}},
                "template": {
                    "metadata": {"labels": {"app": "app"}},
                    "spec": {
                        "terminationGracePeriodSeconds": 1, "nodeName": "node1",
                        "containers": [{"name": "app", "image": "busybox:1.35", "command": ["sleep", "3600"]}]
                    }
                }
            }
        });
        assert_eq!(value, wanted);
    }
}
