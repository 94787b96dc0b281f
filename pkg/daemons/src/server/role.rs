//! The server's own node says that it carries the control plane.
//!
//! Watches  v1 Node of that name
//! Writes   its label (patch), as a kubelet may not give itself a role
//! Behaves as  kubeadm's mark-control-plane phase, but for the taint: pods run here unless `--node-taint` says not.

use std::sync::Arc;

use rkube_api::Kind;
use rkube_api::k8s::core::v1::Node;
use rkube_apimachinery::key::ObjectKey;
use rkube_client::{Client, InformerFactory, Lister, Patch, Reconciler, Requeue, Runner, SyncError, WorkQueue};
use serde_json::json;

use crate::component::{Component, component};

const NAME: &str = "node-role";
const LABEL: &str = "node-role.kubernetes.io/control-plane";

struct Role {
    client: Client,
    nodes: Lister<Node>,
}

/// Keeps the label on the node `name`, also when it is deleted and registers again.
pub(super) fn keep(client: Client, name: String) -> Box<dyn Component> {
    component(NAME, &["kube-apiserver"], move |ready, shutdown| async move {
        let informers = InformerFactory::new(client.clone(), shutdown.token());
        let nodes = informers.scoped::<Node>("", "", &format!("metadata.name={name}"));
        let queue: WorkQueue<ObjectKey> = WorkQueue::new("node_role", client.clock().clone());
        let keys = queue.clone();
        nodes.core().add_handler(move |delta| keys.add(delta.object().key.clone()));
        let role = Arc::new(Role { client, nodes: nodes.lister() });
        informers.start();
        ready.ready();
        Runner::new(NAME, queue, role).workers(1).run(shutdown.token()).await;
        Ok(())
    })
}

impl Reconciler for Role {
    async fn sync(&self, key: &ObjectKey) -> Result<Requeue, SyncError> {
        let Some(node) = self.nodes.get(key) else { return Ok(Requeue::Never) };
        if node.metadata().labels.as_ref().is_some_and(|labels| labels.contains_key(LABEL)) {
            return Ok(Requeue::Never);
        }
        let patch = Patch::Merge(json!({"metadata": {"labels": {LABEL: ""}}}));
        match self.client.all::<Node>().patch(&key.name, &patch).await {
            Ok(_) => Ok(Requeue::Never),
            Err(error) if error.is_not_found() => Ok(Requeue::Never),
            Err(error) => Err(SyncError::during("labelling the server's node")(error)),
        }
    }
}
