//! Cluster role aggregation controller: the rules of a ClusterRole with an aggregation rule are those of the roles
//! it selects.
//!
//! Watches  rbac.authorization.k8s.io/v1 ClusterRole (primary)
//! Writes   its rules, by server-side apply
//! Behaves as  pkg/controller/clusterroleaggregation/clusterroleaggregation_controller.go, v1.36

use std::sync::Arc;

use rkube_api::Kind;
use rkube_api::k8s::rbac::v1::{ClusterRole, PolicyRule};
use rkube_apimachinery::key::ObjectKey;
use rkube_apimachinery::labels::SelectorError;
use rkube_client::owner::{object_key, selector_of};
use rkube_client::{Client, Lister, Patch, Reconciler, Requeue, SyncError, WorkQueue};
use serde_json::json;

use crate::context::{ControllerContext, Descriptor, Running};

const NAME: &str = "clusterrole-aggregation-controller";

pub(crate) const CLUSTERROLE_AGGREGATION: Descriptor = Descriptor::new(NAME, "clusterrole-aggregation", start);

struct Aggregation {
    client: Client,
    roles: Lister<ClusterRole>,
}

fn start(context: &ControllerContext) -> Running {
    let roles = context.informers.informer::<ClusterRole>();
    let queue: WorkQueue<ObjectKey> = context.queue("ClusterRoleAggregator");
    let controller = Arc::new(Aggregation { client: context.client_for(NAME), roles: roles.lister() });
    // Roles are few, and any of them may be selected by any other.
    let (lister, keys) = (roles.lister(), queue.clone());
    roles.core().add_handler(move |_| {
        for role in lister.list_all("").iter().filter(|role| role.aggregation_rule.is_some()) {
            keys.add(object_key(&**role));
        }
    });
    context.run(NAME, &queue, &controller, 5)
}

/// The rules of all selected roles, in order of selector and name, each once.
fn aggregate(role: &ClusterRole, roles: &[Arc<ClusterRole>]) -> Result<Vec<PolicyRule>, SelectorError> {
    let mut rules: Vec<PolicyRule> = Vec::new();
    let selectors = role.aggregation_rule.iter().flat_map(|rule| rule.cluster_role_selectors.iter().flatten());
    for selector in selectors {
        let selector = selector_of(Some(selector))?;
        let mut selected: Vec<_> = roles
            .iter()
            .filter(|other| other.metadata.name != role.metadata.name && selector.matches(&other.metadata.labels))
            .collect();
        selected.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
        for rule in selected.into_iter().flat_map(|selected| selected.rules.iter().flatten()) {
            if !rules.contains(rule) {
                rules.push(rule.clone());
            }
        }
    }
    Ok(rules)
}

impl Reconciler for Aggregation {
    async fn sync(&self, key: &ObjectKey) -> Result<Requeue, SyncError> {
        let Some(role) = self.roles.get(key).filter(|role| role.aggregation_rule.is_some()) else {
            return Ok(Requeue::Never);
        };
        let rules = aggregate(&role, &self.roles.list_all(""))
            .map_err(|error| SyncError::other(format!("reading the selectors of ClusterRole {key}: {error}")))?;
        if role.rules.as_deref().unwrap_or_default() == rules {
            return Ok(Requeue::Never);
        }
        let object = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": ClusterRole::KIND,
            "metadata": { "name": &*key.name },
            "rules": rules,
        });
        let patch = Patch::Apply { object, field_manager: NAME.to_owned(), force: true };
        let applied = self.client.all::<ClusterRole>().patch(&key.name, &patch).await;
        applied.map_err(SyncError::during("applying aggregated rules"))?;
        Ok(Requeue::Never)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use expect_test::expect;
    use rkube_api::k8s::rbac::v1::AggregationRule;
    use rkube_api::meta::pkg::apis::meta::v1::LabelSelector;

    use super::*;
    use crate::testing::{World, labels, metadata, survives_any_crash};

    fn role(name: &str, label: &str, resources: &[&str]) -> ClusterRole {
        let mut metadata = metadata("", name);
        metadata.labels = Some(labels(&[(label, "true")]));
        let rule = |resource: &&str| PolicyRule {
            resources: Some(vec![(*resource).to_owned()]),
            verbs: vec!["get".to_owned()],
            ..PolicyRule::default()
        };
        ClusterRole { metadata, rules: Some(resources.iter().map(rule).collect()), ..ClusterRole::default() }
    }

    fn aggregated(name: &str, selects: &[&str], label: &str) -> ClusterRole {
        let selectors = selects.iter().map(|select| LabelSelector {
            match_labels: Some(labels(&[(*select, "true")])),
            ..LabelSelector::default()
        });
        let rule = AggregationRule { cluster_role_selectors: Some(selectors.collect()) };
        ClusterRole { aggregation_rule: Some(rule), ..role(name, label, &[]) }
    }

    fn arrange() -> World {
        let world = World::new(&[CLUSTERROLE_AGGREGATION]);
        world.api.put(&role("b-pods", "to-view", &["pods", "services"]));
        world.api.put(&role("a-nodes", "to-view", &["nodes", "pods"]));
        world.api.put(&role("secrets", "to-edit", &["secrets"]));
        world.api.put(&role("other", "none", &["leases"]));
        // One that selects itself, and one that selects an aggregated one.
        world.api.put(&aggregated("view", &["to-view"], "to-view"));
        world.api.put(&aggregated("edit", &["to-edit", "to-view"], "none"));
        world
    }

    fn outcome(world: &World) -> String {
        let describe = |role: &ClusterRole| {
            let resources = role.rules.iter().flatten().flat_map(|rule| rule.resources.iter().flatten().cloned());
            let name = role.metadata.name.as_deref().unwrap_or_default();
            format!("{name}: {}\n", resources.collect::<Vec<_>>().join(" "))
        };
        let roles = world.api.list::<ClusterRole>("");
        roles.iter().filter(|role| role.aggregation_rule.is_some()).map(|role| describe(role)).collect()
    }

    #[tokio::test]
    async fn rules_are_the_union_and_follow_every_change() {
        let mut world = arrange();
        world.start();
        world.settle().await;
        expect![[r#"
            edit: secrets nodes pods services
            view: nodes pods services
        "#]]
        .assert_eq(&outcome(&world));
        world.api.take_actions();
        world.run_for(Duration::from_secs(3600)).await;
        assert_eq!(world.api.take_writes(), "");

        world.api.remove::<ClusterRole>("", "a-nodes");
        // Rules written by hand do not last.
        world.api.edit::<ClusterRole>("", "view", |view| view.rules = role("", "", &["secrets"]).rules);
        world.settle().await;
        expect![[r#"
            edit: secrets pods services
            view: pods services
        "#]]
        .assert_eq(&outcome(&world));
        for name in ["b-pods", "secrets"] {
            world.api.remove::<ClusterRole>("", name);
        }
        world.settle().await;
        expect![[r#"
            edit: 
            view: 
        "#]]
        .assert_eq(&outcome(&world));
    }

    #[tokio::test]
    async fn converges_after_a_crash_at_any_write() {
        let drive = async |world: &mut World| {
            world.run_for(Duration::from_secs(5)).await;
            world.api.put(&role("c-jobs", "to-view", &["jobs"]));
            world.run_for(Duration::from_secs(5)).await;
        };
        survives_any_crash(arrange, drive, outcome).await;
    }
}
