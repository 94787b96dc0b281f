//! `KubeSchedulerConfiguration`: what it changes and what is refused.

use std::fmt::Write as _;

use expect_test::expect;
use serde_json::{Value, json};

use crate::config::SchedulerConfig;
use crate::plugins::{Plugin, Point};
use crate::testing::World;

fn parse(change: Value) -> Result<SchedulerConfig, String> {
    let mut value = json!({"apiVersion": "kubescheduler.config.k8s.io/v1", "kind": "KubeSchedulerConfiguration"});
    let object = value.as_object_mut().expect("an object");
    object.extend(change.as_object().cloned().unwrap_or_default());
    SchedulerConfig::from_value(&value).map_err(|error| error.to_string())
}

#[test]
fn what_is_wrong_is_said() {
    let cases = [
        json!({"kind": "Other"}),
        json!({"profile": []}),
        json!({"extenders": [{"urlPrefix": "http://127.0.0.1"}]}),
        json!({"profiles": [{"plugins": {"scores": {}}}]}),
        json!({"profiles": [{"plugins": {"score": {"enabled": [{"name": "NodeAffinity", "wieght": 2}]}}}]}),
        json!({"profiles": [{"pluginConfig": [{"name": "NodeName", "args": {"some": 1}}]}]}),
        json!({"podInitialBackoffSeconds": 0}),
        json!({"podInitialBackoffSeconds": 20}),
        json!({"percentageOfNodesToScore": 101}),
        json!({"profiles": [{"schedulerName": "a"}, {"schedulerName": "a"}]}),
        json!({"profiles": [{"plugins": {"score": {"enabled": [{"name": "Nothing"}]}}}]}),
        json!({"profiles": [{"plugins": {"score": {"enabled": [{"name": "NodeName"}]}}}]}),
        json!({"profiles": [{"plugins": {"bind": {"disabled": [{"name": "*"}]}}}]}),
        json!({"profiles": [{"pluginConfig": [{"name": "InterPodAffinity", "args": {"hardPodAffinityWeight": 101}}]}]}),
        json!({"profiles": [{"pluginConfig": [{"name": "NodeResourcesFit", "args": {"scoringStrategy": {"type": "Best"}}}]}]}),
    ];
    let mut said = String::new();
    for case in cases {
        let _ = writeln!(said, "{}", parse(case).expect_err("refused"));
    }
    expect![[r#"
        no kind "Other" is registered for version "kubescheduler.config.k8s.io/v1"
        profile: unknown field
        extenders: scheduler extenders are not supported
        profiles[0].plugins.scores: unknown field
        profiles[0].plugins.score.enabled[0].wieght: unknown field
        profiles[0].pluginConfig[0].args.some: unknown field
        podInitialBackoffSeconds: must be greater than 0
        podMaxBackoffSeconds: must be greater than or equal to PodInitialBackoffSeconds
        percentageOfNodesToScore: not in valid range [0-100]
        profiles[1].schedulerName: Duplicate value
        profiles[0].plugins.score.enabled[0].name: "Nothing": unknown plugin
        profiles[0].plugins.score.enabled[0].name: "NodeName" does not extend this point
        profiles[0].plugins.bind: at least one bind plugin is needed
        profiles[0].pluginConfig[0].args.hardPodAffinityWeight: not in valid range [0-100]
        profiles[0].pluginConfig[0].args.scoringStrategy.type: Unsupported value: "Best"
    "#]]
    .assert_eq(&said);
}

#[tokio::test]
async fn a_profile_of_another_name_packs_and_ignores_taints() {
    let mut world = World::new();
    world.config = parse(json!({"profiles": [{"schedulerName": "default-scheduler"}, {
        "schedulerName": "packer",
        "plugins": {
            "multiPoint": {"disabled": [{"name": "TaintToleration"}, {"name": "NodeResourcesBalancedAllocation"}]},
            "score": {"enabled": [{"name": "NodeResourcesFit", "weight": 10}]},
        },
        "pluginConfig": [{"name": "NodeResourcesFit", "args": {"scoringStrategy": {"type": "MostAllocated"}}}],
    }]}))
    .expect("a configuration");
    let packer = &world.config.profiles[1];
    assert_eq!(packer.weight(Plugin::NodeResourcesFit), 10);
    assert!(!packer.enabled(Point::Filter, Plugin::TaintToleration));
    world.node("a", "4", |node| node["spec"]["taints"] = json!([{"key": "k", "effect": "NoSchedule"}]));
    world.node("b", "8", |_| {});
    world.start();
    for index in 0..3 {
        world.pod(&format!("pod-{index}"), "1", |pod| pod["spec"]["schedulerName"] = "packer".into());
    }
    world.settle().await;
    let nodes: Vec<_> = (0..3).filter_map(|index| world.node_of(&format!("pod-{index}"))).collect();
    assert_eq!(nodes, ["a", "a", "a"]);
}
