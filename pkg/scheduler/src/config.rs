//! Profiles and settings, from `KubeSchedulerConfiguration` or as defaults.
//!
//! In: the configuration as a JSON tree (`kubescheduler.config.k8s.io/v1`). Out: a checked [`SchedulerConfig`].
//! Behaves as pkg/scheduler/apis/config, v1.36.
//!
//! // Differs from upstream: `percentageOfNodesToScore` and `parallelism` are accepted and have no effect: every
//! node is looked at for every pod. The order of plugins is fixed.

use std::sync::Arc;
use std::time::Duration;

use rkube_api::k8s::core::v1::TopologySpreadConstraint;
use serde_json::Value;

use crate::plugins::{Plugin, PluginSet, Point};

pub const DEFAULT_SCHEDULER_NAME: &str = "default-scheduler";

/// The fields of a `KubeSchedulerConfiguration`. Those about serving, leader election and the connection to the
/// API server say nothing to a scheduler inside the server, and are accepted.
const SETTINGS: &[&str] = &[
    "apiVersion",
    "clientConnection",
    "delayCacheUntilActive",
    "enableContentionProfiling",
    "enableProfiling",
    "extenders",
    "kind",
    "leaderElection",
    "parallelism",
    "percentageOfNodesToScore",
    "podInitialBackoffSeconds",
    "podMaxBackoffSeconds",
    "profiles",
];

/// Everything the scheduler can be told. At least one profile; names are unique.
#[derive(Clone, Debug)]
pub struct SchedulerConfig {
    pub profiles: Vec<Arc<Profile>>,
    pub pod_initial_backoff: Duration,
    pub pod_max_backoff: Duration,
    /// How long a pod that no event spoke for waits before it is tried all the same.
    pub pod_max_in_unschedulable: Duration,
    /// Pods whose binding is under way at once. With the victims under way it stays below what the API server takes
    /// from its components at once (200 writes): one more is refused, and comes back only after a second.
    pub bindings_max: usize,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self {
            profiles: vec![Arc::new(Profile::default())],
            pod_initial_backoff: Duration::from_secs(1),
            pod_max_backoff: Duration::from_secs(10),
            pod_max_in_unschedulable: Duration::from_secs(300),
            bindings_max: 64,
        }
    }
}

/// One scheduler by the name pods call it.
#[derive(Clone, Debug)]
pub struct Profile {
    pub scheduler_name: String,
    points: [PluginSet; 12],
    weights: [i64; Plugin::COUNT],
    pub(crate) fit: FitArgs,
    pub(crate) balanced: Vec<ResourceWeight>,
    pub(crate) hard_pod_affinity_weight: i64,
    pub(crate) ignore_preferred_terms_of_existing_pods: bool,
    /// For pods without constraints of their own.
    pub(crate) default_constraints: Vec<TopologySpreadConstraint>,
    /// Whether those are the built-in ones, which do not ask nodes to have all labels.
    pub(crate) system_defaulted: bool,
    pub(crate) added_affinity: Option<Arc<rkube_api::k8s::core::v1::NodeAffinity>>,
    pub(crate) bind_timeout: Duration,
    pub(crate) min_candidate_nodes_percentage: usize,
    pub(crate) min_candidate_nodes_absolute: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ResourceWeight {
    pub(crate) name: String,
    pub(crate) weight: i64,
}

/// How nodes are compared by what is left on them.
#[derive(Clone, Debug)]
pub(crate) struct FitArgs {
    pub(crate) strategy: Strategy,
    pub(crate) resources: Vec<ResourceWeight>,
    pub(crate) ignored_resources: Vec<String>,
    pub(crate) ignored_groups: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Strategy {
    LeastAllocated,
    MostAllocated,
    /// Utilization in percent and score of 100, ascending.
    RequestedToCapacityRatio(Vec<(i64, i64)>),
}

fn cpu_and_memory() -> Vec<ResourceWeight> {
    ["cpu", "memory"].map(|name| ResourceWeight { name: name.to_owned(), weight: 1 }).into()
}

fn system_constraints() -> Vec<TopologySpreadConstraint> {
    let soft = |key: &str, max_skew| TopologySpreadConstraint {
        max_skew,
        topology_key: key.to_owned(),
        when_unsatisfiable: "ScheduleAnyway".to_owned(),
        ..TopologySpreadConstraint::default()
    };
    vec![soft("kubernetes.io/hostname", 3), soft("topology.kubernetes.io/zone", 5)]
}

impl Default for Profile {
    fn default() -> Self {
        Self {
            scheduler_name: DEFAULT_SCHEDULER_NAME.to_owned(),
            points: Point::ALL.map(|(point, _)| Plugin::all().filter(|plugin| plugin.takes_part(point)).collect()),
            weights: std::array::from_fn(|index| Plugin::all().nth(index).map_or(0, Plugin::default_weight)),
            fit: FitArgs {
                strategy: Strategy::LeastAllocated,
                resources: cpu_and_memory(),
                ignored_resources: Vec::new(),
                ignored_groups: Vec::new(),
            },
            balanced: cpu_and_memory(),
            hard_pod_affinity_weight: 1,
            ignore_preferred_terms_of_existing_pods: false,
            default_constraints: system_constraints(),
            system_defaulted: true,
            added_affinity: None,
            bind_timeout: Duration::from_secs(600),
            min_candidate_nodes_percentage: 10,
            min_candidate_nodes_absolute: 100,
        }
    }
}

impl Profile {
    pub fn enabled(&self, point: Point, plugin: Plugin) -> bool {
        self.points[point as usize].contains(plugin)
    }

    pub(crate) fn filters(&self, plugin: Plugin) -> bool {
        self.enabled(Point::Filter, plugin)
    }

    /// The weight of a plugin's score; 0 if it does not score.
    pub fn weight(&self, plugin: Plugin) -> i64 {
        if self.enabled(Point::Score, plugin) { self.weights[plugin as usize] } else { 0 }
    }
}

/// Why a configuration is not one.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("no kind {kind:?} is registered for version {version:?}")]
    Kind { kind: String, version: String },
    #[error("{path}: {detail}")]
    Field { path: String, detail: String },
}

/// Refuses what is neither absent nor an object with these fields alone.
fn known_fields(value: &Value, path: &str, known: &[&str]) -> Result<(), ConfigError> {
    match value {
        Value::Null => Ok(()),
        Value::Object(fields) => match fields.keys().find(|name| !known.contains(&name.as_str())) {
            None => Ok(()),
            Some(name) if path.is_empty() => Err(field(name.as_str(), "unknown field")),
            Some(name) => Err(field(format!("{path}.{name}"), "unknown field")),
        },
        _ => Err(field(path, "must be an object")),
    }
}

fn field(path: impl Into<String>, detail: impl Into<String>) -> ConfigError {
    ConfigError::Field { path: path.into(), detail: detail.into() }
}

impl SchedulerConfig {
    /// From a `KubeSchedulerConfiguration`. What it does not say keeps its default.
    pub fn from_value(value: &Value) -> Result<Self, ConfigError> {
        let text = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (kind, version) = (text("kind"), text("apiVersion"));
        if kind != "KubeSchedulerConfiguration" || version != "kubescheduler.config.k8s.io/v1" {
            return Err(ConfigError::Kind { kind, version });
        }
        known_fields(value, "", SETTINGS)?;
        if value.get("extenders").and_then(Value::as_array).is_some_and(|all| !all.is_empty()) {
            return Err(field("extenders", "scheduler extenders are not supported"));
        }
        let mut config = Self::default();
        let seconds = |name: &str, default: Duration| match value.get(name) {
            None | Some(Value::Null) => Ok(default),
            Some(value) => match value.as_u64() {
                Some(seconds) if seconds > 0 => Ok(Duration::from_secs(seconds)),
                _ => Err(field(name, "must be greater than 0")),
            },
        };
        config.pod_initial_backoff = seconds("podInitialBackoffSeconds", config.pod_initial_backoff)?;
        config.pod_max_backoff = seconds("podMaxBackoffSeconds", config.pod_max_backoff)?;
        if config.pod_max_backoff < config.pod_initial_backoff {
            return Err(field("podMaxBackoffSeconds", "must be greater than or equal to PodInitialBackoffSeconds"));
        }
        if let Some(percentage) = value.get("percentageOfNodesToScore").filter(|value| !value.is_null())
            && percentage.as_u64().is_none_or(|percentage| percentage > 100)
        {
            return Err(field("percentageOfNodesToScore", "not in valid range [0-100]"));
        }
        if let Some(profiles) = value.get("profiles").and_then(Value::as_array).filter(|profiles| !profiles.is_empty())
        {
            config.profiles.clear();
            for (index, profile) in profiles.iter().enumerate() {
                let profile = Profile::from_value(profile, &format!("profiles[{index}]"))?;
                if config.profiles.iter().any(|known| known.scheduler_name == profile.scheduler_name) {
                    return Err(field(format!("profiles[{index}].schedulerName"), "Duplicate value"));
                }
                config.profiles.push(Arc::new(profile));
            }
        }
        Ok(config)
    }

    pub(crate) fn profile(&self, scheduler_name: &str) -> Option<usize> {
        self.profiles.iter().position(|profile| profile.scheduler_name == scheduler_name)
    }
}

impl Profile {
    fn from_value(value: &Value, path: &str) -> Result<Self, ConfigError> {
        known_fields(value, path, &["schedulerName", "percentageOfNodesToScore", "plugins", "pluginConfig"])?;
        let mut profile = Self::default();
        if let Some(name) = value.get("schedulerName").and_then(Value::as_str) {
            profile.scheduler_name = name.to_owned();
        }
        let plugins = &value["plugins"];
        let points: Vec<_> = Point::ALL.iter().map(|(_, key)| *key).chain(["multiPoint"]).collect();
        known_fields(plugins, &format!("{path}.plugins"), &points)?;
        // What is said of all points first, then what is said of one.
        profile.apply(&plugins["multiPoint"], None, &format!("{path}.plugins.multiPoint"))?;
        for (point, key) in Point::ALL {
            profile.apply(&plugins[key], Some(point), &format!("{path}.plugins.{key}"))?;
        }
        for (index, entry) in value["pluginConfig"].as_array().into_iter().flatten().enumerate() {
            let path = format!("{path}.pluginConfig[{index}]");
            known_fields(entry, &path, &["name", "args"])?;
            let name = entry["name"].as_str().unwrap_or_default();
            let plugin = Plugin::named(name)
                .ok_or_else(|| field(format!("{path}.name"), format!("{name:?}: unknown plugin")))?;
            profile.set_args(plugin, &entry["args"], &format!("{path}.args"))?;
        }
        if profile.points[Point::QueueSort as usize].is_empty() {
            return Err(field(format!("{path}.plugins.queueSort"), "no queue sort plugin is enabled"));
        }
        if profile.points[Point::Bind as usize].is_empty() {
            return Err(field(format!("{path}.plugins.bind"), "at least one bind plugin is needed"));
        }
        Ok(profile)
    }

    fn apply(&mut self, set: &Value, only: Option<Point>, path: &str) -> Result<(), ConfigError> {
        let points = || {
            Point::ALL.into_iter().map(|(point, _)| point).filter(move |point| only.is_none_or(|only| only == *point))
        };
        known_fields(set, path, &["enabled", "disabled"])?;
        for (index, entry) in set["disabled"].as_array().into_iter().flatten().enumerate() {
            let name = entry["name"].as_str().unwrap_or_default();
            for point in points() {
                if name == "*" {
                    self.points[point as usize] = PluginSet::default();
                } else if let Some(plugin) = Plugin::named(name) {
                    self.points[point as usize].remove(plugin);
                } else {
                    return Err(field(format!("{path}.disabled[{index}].name"), format!("{name:?}: unknown plugin")));
                }
            }
        }
        for (index, entry) in set["enabled"].as_array().into_iter().flatten().enumerate() {
            let path = format!("{path}.enabled[{index}]");
            known_fields(entry, &path, &["name", "weight"])?;
            let name = entry["name"].as_str().unwrap_or_default();
            let plugin = Plugin::named(name)
                .ok_or_else(|| field(format!("{path}.name"), format!("{name:?}: unknown plugin")))?;
            let mut any = false;
            for point in points().filter(|point| plugin.takes_part(*point)) {
                self.points[point as usize].insert(plugin);
                any = true;
            }
            if !any {
                return Err(field(format!("{path}.name"), format!("{name:?} does not extend this point")));
            }
            if let Some(weight) = entry["weight"].as_i64().filter(|weight| *weight != 0) {
                if !(0..=i64::from(i32::MAX)).contains(&weight) {
                    return Err(field(format!("{path}.weight"), "out of range"));
                }
                self.weights[plugin as usize] = weight;
            }
        }
        Ok(())
    }

    fn set_args(&mut self, plugin: Plugin, args: &Value, path: &str) -> Result<(), ConfigError> {
        let own: &[&str] = match plugin {
            Plugin::NodeResourcesFit => &["ignoredResources", "ignoredResourceGroups", "scoringStrategy"],
            Plugin::NodeResourcesBalancedAllocation => &["resources"],
            Plugin::InterPodAffinity => &["hardPodAffinityWeight", "ignorePreferredTermsOfExistingPods"],
            Plugin::PodTopologySpread => &["defaultConstraints", "defaultingType"],
            Plugin::NodeAffinity => &["addedAffinity"],
            Plugin::VolumeBinding => &["bindTimeoutSeconds", "shape"],
            Plugin::DefaultPreemption => &["minCandidateNodesPercentage", "minCandidateNodesAbsolute"],
            _ => &[],
        };
        known_fields(args, path, &[&["apiVersion", "kind"], own].concat())?;
        match plugin {
            Plugin::NodeResourcesFit => self.set_fit(args, path)?,
            Plugin::NodeResourcesBalancedAllocation => {
                if let Some(resources) = resource_weights(&args["resources"], &format!("{path}.resources"))? {
                    self.balanced = resources;
                }
            }
            Plugin::InterPodAffinity => {
                if let Some(weight) = args["hardPodAffinityWeight"].as_i64() {
                    if !(0..=100).contains(&weight) {
                        return Err(field(format!("{path}.hardPodAffinityWeight"), "not in valid range [0-100]"));
                    }
                    self.hard_pod_affinity_weight = weight;
                }
                let ignore = args["ignorePreferredTermsOfExistingPods"].as_bool();
                self.ignore_preferred_terms_of_existing_pods = ignore.unwrap_or(false);
            }
            Plugin::PodTopologySpread => self.set_spread(args, path)?,
            Plugin::NodeAffinity => {
                if let Some(added) = args.get("addedAffinity").filter(|added| !added.is_null()) {
                    self.added_affinity = Some(Arc::new(added_affinity(added, path)?));
                }
            }
            Plugin::VolumeBinding => {
                if let Some(seconds) = args["bindTimeoutSeconds"].as_i64() {
                    let seconds = u64::try_from(seconds).map_err(|_| {
                        field(
                            format!("{path}.bindTimeoutSeconds"),
                            "invalid BindTimeoutSeconds, should not be a negative value",
                        )
                    })?;
                    self.bind_timeout = Duration::from_secs(seconds);
                }
            }
            Plugin::DefaultPreemption => {
                let number = |name: &str, default: usize| match args[name].as_u64() {
                    Some(number) => {
                        usize::try_from(number).map_err(|_| field(format!("{path}.{name}"), "out of range"))
                    }
                    None => Ok(default),
                };
                self.min_candidate_nodes_percentage = number("minCandidateNodesPercentage", 10)?;
                self.min_candidate_nodes_absolute = number("minCandidateNodesAbsolute", 100)?;
                if self.min_candidate_nodes_percentage > 100 {
                    return Err(field(format!("{path}.minCandidateNodesPercentage"), "not in valid range [0, 100]"));
                }
                if self.min_candidate_nodes_percentage == 0 && self.min_candidate_nodes_absolute == 0 {
                    return Err(field(path, "cannot both be zero"));
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn set_fit(&mut self, args: &Value, path: &str) -> Result<(), ConfigError> {
        let list = |name: &str| -> Vec<String> {
            args[name].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
        };
        self.fit.ignored_resources = list("ignoredResources");
        self.fit.ignored_groups = list("ignoredResourceGroups");
        let strategy = &args["scoringStrategy"];
        let path = format!("{path}.scoringStrategy");
        if let Some(resources) = resource_weights(&strategy["resources"], &format!("{path}.resources"))? {
            self.fit.resources = resources;
        }
        self.fit.strategy = match strategy["type"].as_str().unwrap_or("LeastAllocated") {
            "LeastAllocated" => Strategy::LeastAllocated,
            "MostAllocated" => Strategy::MostAllocated,
            "RequestedToCapacityRatio" => {
                let path = format!("{path}.requestedToCapacityRatio.shape");
                let points = strategy["requestedToCapacityRatio"]["shape"].as_array().into_iter().flatten();
                // Scores are given out of 10.
                let shape: Vec<(i64, i64)> = points
                    .map(|point| {
                        (point["utilization"].as_i64().unwrap_or(0), point["score"].as_i64().unwrap_or(0) * 10)
                    })
                    .collect();
                let ascending = shape.windows(2).all(|pair| pair[0].0 < pair[1].0);
                let in_range = shape.iter().all(|(x, y)| (0..=100).contains(x) && (0..=100).contains(y));
                if shape.is_empty() || !ascending || !in_range {
                    return Err(field(
                        path,
                        "at least one point must be specified, utilization ascending in [0-100], score in [0-10]",
                    ));
                }
                Strategy::RequestedToCapacityRatio(shape)
            }
            other => return Err(field(format!("{path}.type"), format!("Unsupported value: {other:?}"))),
        };
        Ok(())
    }

    fn set_spread(&mut self, args: &Value, path: &str) -> Result<(), ConfigError> {
        let constraints = args["defaultConstraints"].as_array().cloned().unwrap_or_default();
        match args["defaultingType"].as_str().unwrap_or("System") {
            "System" if constraints.is_empty() => return Ok(()),
            "List" => {}
            _ => {
                return Err(field(
                    format!("{path}.defaultingType"),
                    "when .defaultingType is \"System\", .defaultConstraints must be empty",
                ));
            }
        }
        self.system_defaulted = false;
        self.default_constraints.clear();
        for (index, value) in constraints.iter().enumerate() {
            let path = format!("{path}.defaultConstraints[{index}]");
            if value.get("labelSelector").is_some_and(|selector| !selector.is_null()) {
                return Err(field(
                    format!("{path}.labelSelector"),
                    "constraint must not define a selector, as they deduced for each pod",
                ));
            }
            let max_skew = value["maxSkew"].as_i64().and_then(|skew| i32::try_from(skew).ok()).filter(|skew| *skew > 0);
            self.default_constraints.push(TopologySpreadConstraint {
                max_skew: max_skew.ok_or_else(|| field(format!("{path}.maxSkew"), "not in valid range (0, inf)"))?,
                topology_key: value["topologyKey"].as_str().unwrap_or_default().to_owned(),
                when_unsatisfiable: value["whenUnsatisfiable"].as_str().unwrap_or_default().to_owned(),
                ..TopologySpreadConstraint::default()
            });
        }
        Ok(())
    }
}

/// A node affinity, by way of a pod that has it: the API crate decodes whole kinds.
fn added_affinity(value: &Value, path: &str) -> Result<rkube_api::k8s::core::v1::NodeAffinity, ConfigError> {
    use rkube_api::Kind;
    let pod = serde_json::json!({"metadata": {}, "spec": {"containers": [], "affinity": {"nodeAffinity": value}}});
    let pod = rkube_api::k8s::core::v1::Pod::from_value(pod);
    let affinity = pod.ok().and_then(|pod| pod.spec?.affinity?.node_affinity);
    affinity.ok_or_else(|| field(format!("{path}.addedAffinity"), "not a node affinity"))
}

fn resource_weights(value: &Value, path: &str) -> Result<Option<Vec<ResourceWeight>>, ConfigError> {
    let Some(entries) = value.as_array().filter(|entries| !entries.is_empty()) else { return Ok(None) };
    let mut resources = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        let weight = entry["weight"].as_i64().filter(|weight| *weight != 0).unwrap_or(1);
        if !(1..=100).contains(&weight) {
            return Err(field(format!("{path}[{index}].weight"), "resource weight not in valid range [1-100]"));
        }
        resources.push(ResourceWeight { name: entry["name"].as_str().unwrap_or_default().to_owned(), weight });
    }
    Ok(Some(resources))
}
