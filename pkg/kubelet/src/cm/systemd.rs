//! Cgroups that systemd makes: each level is a slice, and its limits are the slice's properties. What is written past
//! systemd into a cgroup is its own is lost when it next sets the slice up.
//!
//! Behaves as the systemd driver of github.com/opencontainers/cgroups, which pkg/kubelet/cm uses, v1.36.

use parking_lot::Mutex;
use std::collections::HashMap;

use super::bus::{Argument, BusError, Connection, Properties, Value};
use super::{CgroupVersion, Limits};
use crate::runtime::resources::{QUOTA_PERIOD, quota, weight};

const UNIT_EXISTS: &str = "org.freedesktop.systemd1.UnitExists";
const NO_SUCH_UNIT: &str = "org.freedesktop.systemd1.NoSuchUnit";
/// No limit, in systemd's words.
const INFINITY: u64 = u64::MAX;
/// systemd keeps a quota in hundredths of a processor.
const QUOTA_STEP: i64 = 10_000;

/// The slices made here, by name.
#[derive(Debug, Default)]
pub(super) struct Slices {
    /// So that a pod that is looked at again does not cost a call.
    known: Mutex<HashMap<String, Limits>>,
}

/// `kubepods-burstable.slice` out of `/kubepods.slice/kubepods-burstable.slice`.
pub(super) fn unit_of(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

impl Slices {
    /// Makes a slice, or brings its limits up to date.
    pub(super) fn apply(&self, name: &str, version: CgroupVersion, limits: &Limits) -> Result<(), BusError> {
        let unit = unit_of(name);
        if self.known.lock().get(unit) == Some(limits) {
            return Ok(());
        }
        let mut connection = Connection::open()?;
        let limit_properties = properties(version, limits);
        let mut all = introduction(unit);
        all.extend(limit_properties.clone());
        let text = |text: &str| Argument::Text(text.to_owned());
        let made = connection
            .call("StartTransientUnit", &[text(unit), text("replace"), Argument::Properties(all), Argument::NoUnits]);
        match made {
            Err(error) if error.is(UNIT_EXISTS) => {
                // Until the machine stops, which is as long as the slice lives.
                let arguments = [text(unit), Argument::Flag(true), Argument::Properties(limit_properties)];
                connection.call("SetUnitProperties", &arguments)?;
            }
            result => result?,
        }
        self.known.lock().insert(unit.to_owned(), *limits);
        Ok(())
    }

    /// Stops a slice and what is left in it.
    pub(super) fn remove(&self, name: &str) -> Result<(), BusError> {
        let unit = unit_of(name);
        self.known.lock().remove(unit);
        let text = |text: &str| Argument::Text(text.to_owned());
        match Connection::open()?.call("StopUnit", &[text(unit), text("replace")]) {
            Err(error) if error.is(NO_SUCH_UNIT) => Ok(()),
            result => result,
        }
    }
}

fn introduction(unit: &str) -> Properties {
    let parent = unit.trim_end_matches(".slice").rsplit_once('-').map(|(parent, _)| format!("{parent}.slice"));
    let mut properties = vec![
        ("Description", Value::Text(format!("Pods of Kubernetes: {unit}"))),
        ("DefaultDependencies", Value::Flag(false)),
        ("MemoryAccounting", Value::Flag(true)),
        ("CPUAccounting", Value::Flag(true)),
        ("IOAccounting", Value::Flag(true)),
        ("TasksAccounting", Value::Flag(true)),
    ];
    properties.extend(parent.map(|parent| ("Wants", Value::List(vec![parent]))));
    properties
}

fn properties(version: CgroupVersion, limits: &Limits) -> Properties {
    let positive = |value: i64| u64::try_from(value).unwrap_or(0);
    let bound = |value: Option<i64>| Value::Number(value.map_or(INFINITY, positive));
    let mut properties = Vec::new();
    let memory = match version {
        CgroupVersion::V1 => "MemoryLimit",
        CgroupVersion::V2 => "MemoryMax",
    };
    properties.push((memory, bound(limits.memory)));
    properties.push(("TasksMax", bound(limits.pids)));
    if let Some(shares) = limits.cpu_shares {
        properties.push(match version {
            CgroupVersion::V1 => ("CPUShares", Value::Number(positive(shares))),
            CgroupVersion::V2 => ("CPUWeight", Value::Number(positive(weight(shares)))),
        });
    }
    let per_second = limits.cpu_milli.map(quota).filter(|quota| *quota > 0).map(|quota| {
        let microseconds = quota.saturating_mul(1_000_000) / QUOTA_PERIOD;
        (microseconds + QUOTA_STEP - 1) / QUOTA_STEP * QUOTA_STEP
    });
    properties.push(("CPUQuotaPeriodUSec", Value::Number(positive(QUOTA_PERIOD))));
    properties.push(("CPUQuotaPerSecUSec", bound(per_second)));
    properties
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_become_properties() {
        let limits = Limits { cpu_shares: Some(512), cpu_milli: Some(333), memory: Some(1 << 20), pids: None };
        let numbers = |version| -> Vec<String> {
            let all = properties(version, &limits).into_iter();
            all.map(|(name, value)| match value {
                Value::Number(INFINITY) => format!("{name}=infinity"),
                Value::Number(number) => format!("{name}={number}"),
                other => format!("{name}={other:?}"),
            })
            .collect()
        };
        assert_eq!(
            numbers(CgroupVersion::V2),
            [
                "MemoryMax=1048576",
                "TasksMax=infinity",
                "CPUWeight=59",
                "CPUQuotaPeriodUSec=100000",
                "CPUQuotaPerSecUSec=340000"
            ]
        );
        assert_eq!(numbers(CgroupVersion::V1)[..3], ["MemoryLimit=1048576", "TasksMax=infinity", "CPUShares=512"]);
    }

    #[test]
    fn a_slice_wants_the_one_above_it() {
        let parent =
            |unit: &str| introduction(unit).into_iter().find(|(name, _)| *name == "Wants").map(|(_, value)| value);
        assert_eq!(parent("kubepods.slice"), None);
        let burstable = Value::List(vec!["kubepods-burstable.slice".to_owned()]);
        assert_eq!(parent("kubepods-burstable-poda_b.slice"), Some(burstable));
        assert_eq!(unit_of("/kubepods.slice/kubepods-poda_b.slice"), "kubepods-poda_b.slice");
    }
}
