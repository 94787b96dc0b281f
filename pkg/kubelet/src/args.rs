//! Settings by the names of upstream's kubelet flags, as `--kubelet-arg name=value` gives them.

use rkube_apimachinery::arguments::{Arguments, duration, number, percent, put};
use rkube_apimachinery::quantity::Quantity;

pub use rkube_apimachinery::arguments::ArgumentError;

use crate::cm::CgroupDriver;
use crate::config::{KubeletConfig, Reserved};

/// In the order they are applied: a grace period belongs to thresholds that are there already.
const ARGUMENTS: Arguments<KubeletConfig> = Arguments {
    component: "kubelet",
    table: &[
        ("eviction-hard", |config, value| text(config.eviction.set_hard(value))),
        ("eviction-soft", |config, value| text(config.eviction.set_soft(value))),
        ("eviction-soft-grace-period", |config, value| text(config.eviction.set_soft_grace(value))),
        ("eviction-minimum-reclaim", |config, value| text(config.eviction.set_reclaim_min(value))),
        ("eviction-max-pod-grace-period", |config, value| {
            put(&mut config.eviction.pod_grace_seconds_max, number(value)?)
        }),
        ("eviction-pressure-transition-period", |config, value| put(&mut config.eviction.transition, duration(value)?)),
        ("kube-reserved", |config, value| reserve(&mut config.reserved, value)),
        ("system-reserved", |config, value| reserve(&mut config.reserved, value)),
        ("cgroup-driver", |config, value| match value {
            "cgroupfs" => put(&mut config.cgroup_driver, CgroupDriver::Cgroupfs),
            "systemd" => put(&mut config.cgroup_driver, CgroupDriver::Systemd),
            _ => Err("it is neither cgroupfs nor systemd".to_owned()),
        }),
        ("max-pods", |config, value| put(&mut config.pods_max, number(value)?)),
        ("pod-max-pids", |config, value| {
            // -1 is upstream's word for no limit.
            put(&mut config.pod_pids_max, Some(number::<i64>(value)?).filter(|count| *count > 0))
        }),
        ("container-log-max-size", |config, value| {
            put(&mut config.container_log_bytes_max, bytes(value)?.unsigned_abs())
        }),
        ("container-log-max-files", |config, value| {
            let files: usize = number(value)?;
            if files < 2 {
                return Err("at least 2 files are needed to rotate".to_owned());
            }
            put(&mut config.container_log_files_max, files)
        }),
        ("image-gc-high-threshold", |config, value| put(&mut config.image_gc_high_percent, percent(value)?)),
        ("image-gc-low-threshold", |config, value| put(&mut config.image_gc_low_percent, percent(value)?)),
        ("allowed-unsafe-sysctls", |config, value| {
            put(&mut config.allowed_unsafe_sysctls, value.split(',').map(|name| name.trim().to_owned()).collect())
        }),
        ("shutdown-grace-period", |config, value| put(&mut config.shutdown_grace_period, duration(value)?)),
        ("shutdown-grace-period-critical-pods", |config, value| {
            put(&mut config.shutdown_grace_period_critical, duration(value)?)
        }),
    ],
};

impl KubeletConfig {
    /// Applies `name=value` arguments, whatever their order.
    pub fn apply(&mut self, arguments: &[String]) -> Result<(), ArgumentError> {
        ARGUMENTS.apply(self, arguments)?;
        let wrong = |name, value: String, reason: String| Err(ARGUMENTS.wrong(name, &value, reason));
        if let Err(error) = self.eviction.check() {
            return wrong("eviction-soft", String::new(), error.to_string());
        }
        if self.image_gc_low_percent >= self.image_gc_high_percent {
            let low = self.image_gc_low_percent;
            return wrong("image-gc-low-threshold", low.to_string(), "it is not below the high one".to_owned());
        }
        if self.shutdown_grace_period_critical > self.shutdown_grace_period {
            let critical = format!("{}s", self.shutdown_grace_period_critical.as_secs());
            let reason = "it is longer than shutdown-grace-period".to_owned();
            return wrong("shutdown-grace-period-critical-pods", critical, reason);
        }
        Ok(())
    }
}

fn text<E: std::error::Error>(result: Result<(), E>) -> Result<(), String> {
    result.map_err(|error| error.to_string())
}

fn quantity(value: &str) -> Result<Quantity, String> {
    let quantity = Quantity::parse(value).map_err(|error| error.to_string())?;
    if quantity.is_negative() { Err("it is negative".to_owned()) } else { Ok(quantity) }
}

fn bytes(value: &str) -> Result<i64, String> {
    quantity(value).map(|quantity| quantity.value())
}

/// `cpu=100m,memory=1Gi`; what Kubernetes and what the system need adds up.
fn reserve(reserved: &mut Reserved, value: &str) -> Result<(), String> {
    for part in value.split(',').filter(|part| !part.is_empty()) {
        let (name, amount) = part.split_once('=').ok_or_else(|| format!("{part:?} is not resource=quantity"))?;
        let amount = quantity(amount)?;
        match name {
            "cpu" => reserved.cpu_milli = reserved.cpu_milli.saturating_add(amount.milli_value()),
            "memory" => reserved.memory = reserved.memory.saturating_add(amount.value()),
            "ephemeral-storage" => {
                reserved.ephemeral_storage = reserved.ephemeral_storage.saturating_add(amount.value());
            }
            "pid" => reserved.pids = reserved.pids.saturating_add(amount.value()),
            other => return Err(format!("cannot reserve {other:?} resource")),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn applied(arguments: &[&str]) -> Result<KubeletConfig, String> {
        let mut config = KubeletConfig::new("n", vec![], "v");
        let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        config.apply(&arguments).map(|()| config).map_err(|error| error.to_string())
    }

    #[test]
    fn arguments_are_applied_in_any_order() {
        let config = applied(&[
            "eviction-soft-grace-period=memory.available=1m",
            "eviction-soft=memory.available<1Gi",
            "kube-reserved=cpu=100m,memory=1Gi",
            "--system-reserved=cpu=50m",
            "max-pods=200",
            "pod-max-pids=-1",
            "shutdown-grace-period=30s",
            "shutdown-grace-period-critical-pods=10s",
        ]);
        let config = config.unwrap();
        assert_eq!(config.reserved, Reserved { cpu_milli: 150, memory: 1 << 30, ..Reserved::default() });
        assert_eq!((config.pods_max, config.pod_pids_max), (200, None));
        assert!(config.eviction.all.iter().any(|threshold| threshold.grace == Some(Duration::from_secs(60))));
    }

    #[test]
    fn wrong_arguments_say_what_is_wrong() {
        let refusal = |argument: &str| applied(&[argument]).map(drop).unwrap_err();
        assert_eq!(refusal("max-pods"), "\"max-pods\" is not name=value");
        assert!(refusal("max-pod=1").starts_with("kubelet argument max-pod is unknown; known are eviction-hard, "));
        assert_eq!(refusal("max-pods=many"), "kubelet argument max-pods=many: it is not a number in range");
        assert_eq!(
            refusal("kube-reserved=gold=1"),
            "kubelet argument kube-reserved=gold=1: cannot reserve \"gold\" resource"
        );
        assert_eq!(
            refusal("eviction-soft=memory.available<1Gi"),
            "kubelet argument eviction-soft=: grace period must be specified for the soft eviction threshold memory.available"
        );
        assert_eq!(
            refusal("shutdown-grace-period-critical-pods=10s"),
            "kubelet argument shutdown-grace-period-critical-pods=10s: it is longer than shutdown-grace-period"
        );
    }
}
