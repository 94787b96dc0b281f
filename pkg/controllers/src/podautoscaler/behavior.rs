//! How fast a target may follow what its metrics ask for.
//!
//! Behaves as the normalization in pkg/controller/podautoscaler/horizontal.go, v1.36.

use std::time::Duration;

use rkube_api::k8s::autoscaling::v2::{HPAScalingPolicy, HPAScalingRules, HorizontalPodAutoscalerBehavior};

/// Without rules a target is at most doubled at once, or scaled to this if that is more.
const SCALE_UP_FACTOR: i32 = 2;
const SCALE_UP_MINIMUM: i32 = 4;

/// What was recommended for a target and done to it. Times are of the monotonic clock.
#[derive(Debug, Default)]
pub(super) struct History {
    recommendations: Vec<(i32, Duration)>,
    /// Replicas added and removed.
    ups: Vec<(i32, Duration)>,
    downs: Vec<(i32, Duration)>,
}

/// The range a target has to stay in, and where it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Range {
    pub(super) current: i32,
    pub(super) min: i32,
    pub(super) max: i32,
}

/// Whether something held a recommendation back, and why, for a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) replicas: i32,
    pub(super) held: bool,
    pub(super) reason: &'static str,
    pub(super) message: &'static str,
}

fn seconds(count: Option<i32>) -> Duration {
    Duration::from_secs(u64::try_from(count.unwrap_or(0)).unwrap_or(0))
}

/// Puts an entry in place of one that no longer counts, so that histories do not grow.
fn put(entries: &mut Vec<(i32, Duration)>, entry: (i32, Duration), is_old: impl Fn(Duration) -> bool) {
    match entries.iter_mut().rev().find(|(_, at)| is_old(*at)) {
        Some(old) => *old = entry,
        None => entries.push(entry),
    }
}

fn changed_within(changes: &[(i32, Duration)], period: Duration, now: Duration) -> i32 {
    let recent = changes.iter().filter(|(_, at)| now.saturating_sub(*at) < period);
    recent.fold(0, |sum, (change, _)| sum.saturating_add(*change))
}

impl History {
    /// What a target has when it is first seen counts as recommended: a restart scales nothing down at once.
    pub(super) fn begin(&mut self, current: i32, now: Duration) {
        if self.recommendations.is_empty() {
            self.recommendations.push((current, now));
        }
    }

    /// The highest recommendation within the window.
    pub(super) fn stabilize(&mut self, wanted: i32, window: Duration, now: Duration) -> Verdict {
        let is_old = |at: Duration| now.saturating_sub(at) > window;
        let recent = self.recommendations.iter().filter(|(_, at)| !is_old(*at)).map(|(count, _)| *count);
        let stable = recent.fold(wanted, i32::max);
        put(&mut self.recommendations, (wanted, now), is_old);
        if stable == wanted {
            return ready(stable);
        }
        stabilized_down(stable)
    }

    /// The same with a window for each direction.
    pub(super) fn stabilize_with(
        &mut self,
        wanted: i32,
        current: i32,
        behavior: &HorizontalPodAutoscalerBehavior,
        default_down: Duration,
        now: Duration,
    ) -> Verdict {
        let window = |rules: Option<&HPAScalingRules>| rules.and_then(|rules| rules.stabilization_window_seconds);
        let up = seconds(window(behavior.scale_up.as_ref()));
        let down = window(behavior.scale_down.as_ref()).map_or(default_down, |down| seconds(Some(down)));
        let (mut lowest, mut highest) = (wanted, wanted);
        for (count, at) in &self.recommendations {
            let age = now.saturating_sub(*at);
            if age < up {
                lowest = lowest.min(*count);
            }
            if age < down {
                highest = highest.max(*count);
            }
        }
        let stable = current.max(lowest).min(highest);
        put(&mut self.recommendations, (wanted, now), |at| now.saturating_sub(at) > up.max(down));
        if stable == wanted {
            return ready(stable);
        }
        if wanted >= current {
            return Verdict {
                replicas: stable,
                held: true,
                reason: "ScaleUpStabilized",
                message: "recent recommendations were lower than current one, applying the lowest recent recommendation",
            };
        }
        stabilized_down(stable)
    }

    /// Remembers a change for the limits of changes per period.
    pub(super) fn changed(
        &mut self,
        from: i32,
        to: i32,
        behavior: Option<&HorizontalPodAutoscalerBehavior>,
        now: Duration,
    ) {
        let Some(behavior) = behavior else { return };
        let (changes, rules) = if to > from {
            (&mut self.ups, behavior.scale_up.as_ref())
        } else {
            (&mut self.downs, behavior.scale_down.as_ref())
        };
        let longest = policies(rules).iter().map(|policy| policy.period_seconds).max();
        let longest = seconds(longest);
        let change = to.saturating_sub(from).saturating_abs();
        put(changes, (change, now), |at| now.saturating_sub(at) > longest);
    }

    /// What is allowed by the rules of a target that has some.
    pub(super) fn limit_with(
        &self,
        wanted: i32,
        range: Range,
        behavior: &HorizontalPodAutoscalerBehavior,
        now: Duration,
    ) -> Verdict {
        if wanted > range.current {
            let limit = self.up_limit(range.current, behavior.scale_up.as_ref(), now).max(range.current);
            if range.max > limit {
                if wanted > limit {
                    return too_fast_up(limit);
                }
            } else if wanted > range.max {
                return too_many(range.max);
            }
        } else if wanted < range.current {
            let limit = self.down_limit(range.current, behavior.scale_down.as_ref(), now).min(range.current);
            if range.min < limit {
                if wanted < limit {
                    return Verdict {
                        replicas: limit,
                        held: true,
                        reason: "ScaleDownLimit",
                        message: "the desired replica count is decreasing faster than the maximum scale rate",
                    };
                }
            } else if wanted < range.min {
                return too_few(range.min);
            }
        }
        within(wanted)
    }

    /// Replicas at the start of a policy's period.
    fn before(&self, current: i32, policy: &HPAScalingPolicy, now: Duration) -> i32 {
        let period = seconds(Some(policy.period_seconds));
        let added = changed_within(&self.ups, period, now);
        let removed = changed_within(&self.downs, period, now);
        current.saturating_sub(added).saturating_add(removed)
    }

    fn up_limit(&self, current: i32, rules: Option<&HPAScalingRules>, now: Duration) -> i32 {
        let proposals = policies(rules).iter().map(|policy| {
            let before = self.before(current, policy, now);
            match policy.type_.as_str() {
                "Pods" => before.saturating_add(policy.value),
                _ => (f64::from(before) * (1.0 + f64::from(policy.value) / 100.0)).ceil() as i32,
            }
        });
        match selection(rules) {
            "Disabled" => current,
            "Min" => proposals.min().unwrap_or(i32::MAX),
            _ => proposals.max().unwrap_or(i32::MIN),
        }
    }

    fn down_limit(&self, current: i32, rules: Option<&HPAScalingRules>, now: Duration) -> i32 {
        let proposals = policies(rules).iter().map(|policy| {
            let before = self.before(current, policy, now);
            match policy.type_.as_str() {
                "Pods" => before.saturating_sub(policy.value),
                _ => (f64::from(before) * (1.0 - f64::from(policy.value) / 100.0)) as i32,
            }
        });
        // The policy with the smallest change leaves the most replicas.
        match selection(rules) {
            "Disabled" => current,
            "Min" => proposals.max().unwrap_or(i32::MIN),
            _ => proposals.min().unwrap_or(i32::MAX),
        }
    }
}

fn policies(rules: Option<&HPAScalingRules>) -> &[HPAScalingPolicy] {
    rules.and_then(|rules| rules.policies.as_deref()).unwrap_or_default()
}

fn selection(rules: Option<&HPAScalingRules>) -> &str {
    rules.and_then(|rules| rules.select_policy.as_deref()).unwrap_or("Max")
}

/// What is allowed for a target without rules.
pub(super) fn limit(wanted: i32, range: Range) -> Verdict {
    let fastest = range.current.saturating_mul(SCALE_UP_FACTOR).max(SCALE_UP_MINIMUM);
    if wanted < range.min {
        too_few(range.min)
    } else if range.max > fastest && wanted > fastest {
        too_fast_up(fastest)
    } else if wanted > range.max {
        too_many(range.max)
    } else {
        within(wanted)
    }
}

fn ready(replicas: i32) -> Verdict {
    let message = "recommended size matches current size";
    Verdict { replicas, held: false, reason: "ReadyForNewScale", message }
}

fn stabilized_down(replicas: i32) -> Verdict {
    Verdict {
        replicas,
        held: true,
        reason: "ScaleDownStabilized",
        message: "recent recommendations were higher than current one, applying the highest recent recommendation",
    }
}

fn within(replicas: i32) -> Verdict {
    let message = "the desired count is within the acceptable range";
    Verdict { replicas, held: false, reason: "DesiredWithinRange", message }
}

fn too_few(replicas: i32) -> Verdict {
    let message = "the desired replica count is less than the minimum replica count";
    Verdict { replicas, held: true, reason: "TooFewReplicas", message }
}

fn too_many(replicas: i32) -> Verdict {
    let message = "the desired replica count is more than the maximum replica count";
    Verdict { replicas, held: true, reason: "TooManyReplicas", message }
}

fn too_fast_up(replicas: i32) -> Verdict {
    let message = "the desired replica count is increasing faster than the maximum scale rate";
    Verdict { replicas, held: true, reason: "ScaleUpLimit", message }
}
