//! Settings by the names of kube-controller-manager's flags, as `--kube-controller-manager-arg name=value` gives them.

use rkube_apimachinery::arguments::{ArgumentError, Arguments, amount, duration, number, period, put};

use crate::config::ControllerConfig;

const ARGUMENTS: Arguments<ControllerConfig> = Arguments {
    component: "kube-controller-manager",
    table: &[
        ("controllers", |config, value| {
            for name in value.split(',').map(str::trim).filter(|name| !name.is_empty()) {
                config.controllers.insert(known_controller(name)?);
            }
            Ok(())
        }),
        ("node-monitor-period", |config, value| put(&mut config.node_monitor_period, period(value)?)),
        ("node-monitor-grace-period", |config, value| put(&mut config.node_monitor_grace_period, period(value)?)),
        ("node-startup-grace-period", |config, value| put(&mut config.node_startup_grace_period, period(value)?)),
        ("node-eviction-rate", |config, value| put(&mut config.node_eviction_rate, amount(value)?)),
        ("secondary-node-eviction-rate", |config, value| put(&mut config.secondary_node_eviction_rate, amount(value)?)),
        ("large-cluster-size-threshold", |config, value| put(&mut config.large_cluster_size_threshold, number(value)?)),
        ("unhealthy-zone-threshold", |config, value| put(&mut config.unhealthy_zone_threshold, amount(value)?)),
        ("node-cidr-mask-size", |config, value| put(&mut config.node_cidr_mask_size_ipv4, mask(value, 32)?)),
        ("node-cidr-mask-size-ipv4", |config, value| put(&mut config.node_cidr_mask_size_ipv4, mask(value, 32)?)),
        ("node-cidr-mask-size-ipv6", |config, value| put(&mut config.node_cidr_mask_size_ipv6, mask(value, 128)?)),
        ("terminated-pod-gc-threshold", |config, value| put(&mut config.terminated_pod_gc_threshold, number(value)?)),
        ("horizontal-pod-autoscaler-sync-period", |config, value| {
            put(&mut config.horizontal_pod_autoscaler_sync_period, period(value)?)
        }),
        ("horizontal-pod-autoscaler-downscale-stabilization", |config, value| {
            put(&mut config.horizontal_pod_autoscaler_downscale_stabilization, duration(value)?)
        }),
        ("horizontal-pod-autoscaler-tolerance", |config, value| {
            put(&mut config.horizontal_pod_autoscaler_tolerance, amount(value)?)
        }),
        ("horizontal-pod-autoscaler-cpu-initialization-period", |config, value| {
            put(&mut config.horizontal_pod_autoscaler_cpu_initialization_period, duration(value)?)
        }),
        ("horizontal-pod-autoscaler-initial-readiness-delay", |config, value| {
            put(&mut config.horizontal_pod_autoscaler_initial_readiness_delay, duration(value)?)
        }),
        ("cluster-signing-duration", |config, value| put(&mut config.cluster_signing_duration, period(value)?)),
        ("legacy-service-account-token-clean-up-period", |config, value| {
            put(&mut config.legacy_service_account_token_clean_up_period, period(value)?)
        }),
        ("max-endpoints-per-slice", |config, value| match number(value)? {
            count @ 1..=1000 => put(&mut config.endpoints_per_slice_max, count),
            _ => Err("it is not in the range 1 to 1000".to_owned()),
        }),
    ],
};

impl ControllerConfig {
    /// Applies `name=value` arguments, whatever their order. Those of `controllers` together stand for the default.
    pub fn apply(&mut self, arguments: &[String]) -> Result<(), ArgumentError> {
        let by_default = std::mem::take(&mut self.controllers);
        ARGUMENTS.apply(self, arguments)?;
        if self.controllers.is_empty() {
            self.controllers = by_default;
        }
        if self.node_monitor_grace_period <= self.node_monitor_period {
            let grace = format!("{}s", self.node_monitor_grace_period.as_secs());
            let reason = "it is not longer than node-monitor-period, so nodes would be judged between two looks";
            return Err(ARGUMENTS.wrong("node-monitor-grace-period", &grace, reason.to_owned()));
        }
        Ok(())
    }
}

/// A star, a controller's name or its alias, each also after a minus.
fn known_controller(setting: &str) -> Result<String, String> {
    let name = setting.strip_prefix('-').unwrap_or(setting);
    let mut known = crate::run::descriptors().iter().flat_map(|descriptor| [descriptor.name, descriptor.alias]);
    if name == "*" || known.any(|known| known == name) {
        return Ok(setting.to_owned());
    }
    Err(format!("\"{name}\" is not in the list of known controllers"))
}

fn mask(value: &str, bits: u8) -> Result<u8, String> {
    match number(value)? {
        size if (1..=bits).contains(&size) => Ok(size),
        _ => Err(format!("it is not a prefix length of 1 to {bits}")),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn applied(arguments: &[&str]) -> Result<ControllerConfig, String> {
        let mut config = ControllerConfig::default();
        let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        config.apply(&arguments).map(|()| config).map_err(|error| error.to_string())
    }

    #[test]
    fn flags_of_upstream_are_understood() {
        let config = applied(&[
            "node-monitor-grace-period=20s",
            "--node-monitor-period=2s",
            "controllers=-job-controller,deployment",
            "node-eviction-rate=0.5",
            "node-cidr-mask-size=26",
        ]);
        let config = config.unwrap();
        assert_eq!(config.node_monitor_grace_period, Duration::from_secs(20));
        assert_eq!((config.node_monitor_period, config.node_cidr_mask_size_ipv4), (Duration::from_secs(2), 26));
        assert!(config.controllers.contains("-job-controller") && config.controllers.contains("deployment"));
    }

    #[test]
    fn the_controllers_that_are_named_stand_for_the_default() {
        let enabled = |arguments: &[&str]| {
            let mut config = ControllerConfig {
                controllers: ["*".to_owned(), "token-cleaner-controller".to_owned()].into(),
                ..Default::default()
            };
            let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
            config.apply(&arguments).unwrap();
            let enabled = crate::run::descriptors().iter().filter(|one| one.is_enabled(&config.controllers));
            enabled.map(|one| one.name).collect::<Vec<_>>()
        };
        let (all, none): (_, &[&str]) = (enabled(&[]), &[]);
        assert!(all.contains(&"job-controller") && all.contains(&"token-cleaner-controller"));
        assert_eq!(enabled(&["controllers=-*"]), none);
        assert_eq!(
            enabled(&["controllers=job", "controllers=deployment-controller"]),
            ["deployment-controller", "job-controller"]
        );
        let without = enabled(&["controllers=*,-job"]);
        assert!(!without.contains(&"job-controller") && !without.contains(&"token-cleaner-controller"));
        assert_eq!(without.len(), all.len() - 2);
    }

    #[test]
    fn wrong_arguments_say_what_is_wrong() {
        let refusal = |argument: &str| applied(&[argument]).map(drop).unwrap_err();
        let start = "kube-controller-manager argument";
        assert!(
            refusal("node-monitor=1s")
                .starts_with(&format!("{start} node-monitor is unknown; known are controllers, "))
        );
        assert_eq!(refusal("node-monitor-period=0s"), format!("{start} node-monitor-period=0s: it is zero"));
        assert_eq!(refusal("node-eviction-rate=-1"), format!("{start} node-eviction-rate=-1: it is negative"));
        assert_eq!(
            refusal("node-monitor-grace-period=5s"),
            format!(
                "{start} node-monitor-grace-period=5s: it is not longer than node-monitor-period, so nodes would be judged \
                 between two looks"
            )
        );
        assert_eq!(
            refusal("node-cidr-mask-size=33"),
            format!("{start} node-cidr-mask-size=33: it is not a prefix length of 1 to 32")
        );
        assert_eq!(
            refusal("controllers=*,-jobs"),
            format!("{start} controllers=*,-jobs: \"jobs\" is not in the list of known controllers")
        );
    }
}
