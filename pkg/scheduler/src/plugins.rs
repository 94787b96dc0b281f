//! The plugins, where each takes part, and the weight it has by default.
//!
//! Behaves as pkg/scheduler/apis/config/v1/default_plugins.go and framework/plugins/names, v1.36.

use std::fmt;

/// Where in a pod's way through the scheduler a plugin has a say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    PreEnqueue,
    QueueSort,
    PreFilter,
    Filter,
    PostFilter,
    PreScore,
    Score,
    Reserve,
    Permit,
    PreBind,
    Bind,
    PostBind,
}

impl Point {
    /// Each with its key in `KubeSchedulerConfiguration`.
    pub(crate) const ALL: [(Self, &'static str); 12] = [
        (Self::PreEnqueue, "preEnqueue"),
        (Self::QueueSort, "queueSort"),
        (Self::PreFilter, "preFilter"),
        (Self::Filter, "filter"),
        (Self::PostFilter, "postFilter"),
        (Self::PreScore, "preScore"),
        (Self::Score, "score"),
        (Self::Reserve, "reserve"),
        (Self::Permit, "permit"),
        (Self::PreBind, "preBind"),
        (Self::Bind, "bind"),
        (Self::PostBind, "postBind"),
    ];
}

/// A built-in plugin. The order is the one they run in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Plugin {
    SchedulingGates,
    PrioritySort,
    NodeUnschedulable,
    NodeName,
    TaintToleration,
    NodeAffinity,
    NodePorts,
    NodeResourcesFit,
    VolumeRestrictions,
    NodeVolumeLimits,
    VolumeBinding,
    VolumeZone,
    PodTopologySpread,
    InterPodAffinity,
    DefaultPreemption,
    NodeResourcesBalancedAllocation,
    ImageLocality,
    DefaultBinder,
}

/// One row of the table.
struct Row {
    plugin: Plugin,
    name: &'static str,
    points: &'static [Point],
    weight: i64,
}

const fn row(plugin: Plugin, name: &'static str, points: &'static [Point], weight: i64) -> Row {
    Row { plugin, name, points, weight }
}

const TABLE: [Row; Plugin::COUNT] = {
    use Point::*;
    [
        row(Plugin::SchedulingGates, "SchedulingGates", &[PreEnqueue], 0),
        row(Plugin::PrioritySort, "PrioritySort", &[QueueSort], 0),
        row(Plugin::NodeUnschedulable, "NodeUnschedulable", &[Filter], 0),
        row(Plugin::NodeName, "NodeName", &[Filter], 0),
        row(Plugin::TaintToleration, "TaintToleration", &[Filter, PreScore, Score], 3),
        row(Plugin::NodeAffinity, "NodeAffinity", &[PreFilter, Filter, PreScore, Score], 2),
        row(Plugin::NodePorts, "NodePorts", &[PreFilter, Filter], 0),
        row(Plugin::NodeResourcesFit, "NodeResourcesFit", &[PreFilter, Filter, PreScore, Score], 1),
        row(Plugin::VolumeRestrictions, "VolumeRestrictions", &[PreFilter, Filter], 0),
        row(Plugin::NodeVolumeLimits, "NodeVolumeLimits", &[PreFilter, Filter], 0),
        row(Plugin::VolumeBinding, "VolumeBinding", &[PreFilter, Filter, Reserve, PreBind], 0),
        row(Plugin::VolumeZone, "VolumeZone", &[PreFilter, Filter], 0),
        row(Plugin::PodTopologySpread, "PodTopologySpread", &[PreFilter, Filter, PreScore, Score], 2),
        row(Plugin::InterPodAffinity, "InterPodAffinity", &[PreFilter, Filter, PreScore, Score], 2),
        row(Plugin::DefaultPreemption, "DefaultPreemption", &[PreEnqueue, PostFilter], 0),
        row(Plugin::NodeResourcesBalancedAllocation, "NodeResourcesBalancedAllocation", &[PreScore, Score], 1),
        row(Plugin::ImageLocality, "ImageLocality", &[Score], 1),
        row(Plugin::DefaultBinder, "DefaultBinder", &[Bind], 0),
    ]
};

impl Plugin {
    pub const COUNT: usize = 18;

    fn row(self) -> &'static Row {
        &TABLE[self as usize]
    }

    pub fn name(self) -> &'static str {
        self.row().name
    }

    pub fn named(name: &str) -> Option<Self> {
        TABLE.iter().find(|row| row.name == name).map(|row| row.plugin)
    }

    pub fn takes_part(self, point: Point) -> bool {
        self.row().points.contains(&point)
    }

    pub(crate) fn default_weight(self) -> i64 {
        self.row().weight
    }

    pub fn all() -> impl Iterator<Item = Self> {
        TABLE.iter().map(|row| row.plugin)
    }
}

impl fmt::Display for Plugin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Some of the plugins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PluginSet(u32);

impl PluginSet {
    pub fn contains(self, plugin: Plugin) -> bool {
        self.0 & (1 << plugin as u32) != 0
    }

    pub fn insert(&mut self, plugin: Plugin) {
        self.0 |= 1 << plugin as u32;
    }

    pub fn remove(&mut self, plugin: Plugin) {
        self.0 &= !(1 << plugin as u32);
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn iter(self) -> impl Iterator<Item = Plugin> {
        Plugin::all().filter(move |plugin| self.contains(*plugin))
    }
}

impl FromIterator<Plugin> for PluginSet {
    fn from_iter<I: IntoIterator<Item = Plugin>>(plugins: I) -> Self {
        let mut set = Self::default();
        plugins.into_iter().for_each(|plugin| set.insert(plugin));
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_enum() {
        for (index, row) in TABLE.iter().enumerate() {
            assert_eq!(row.plugin as usize, index);
            assert_eq!(format!("{:?}", row.plugin), row.name);
            assert_eq!(Plugin::named(row.name), Some(row.plugin));
        }
    }
}
