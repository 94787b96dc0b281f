//! What a pod's failure means to the job, and which successes are enough.
//!
//! Behaves as pkg/controller/job/pod_failure_policy.go and success_policy.go, v1.36.

use rkube_api::k8s::batch::v1::{
    JobSpec, PodFailurePolicyOnExitCodesRequirement, PodFailurePolicyOnPodConditionsPattern, SuccessPolicyRule,
};
use rkube_api::k8s::core::v1::{ContainerStatus, Pod};

use super::indexes::Indexes;

/// The policy's word on one failed pod.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It counts towards the back-off limits, as it does without a policy.
    Count,
    Ignore,
    FailIndex,
    /// The whole job fails, for this reason.
    FailJob(String),
}

impl Verdict {
    /// Whether the failure counts towards the back-off limits.
    pub(super) fn counts(&self) -> bool {
        *self != Self::Ignore
    }
}

/// The verdict of the first rule that matches and whose action is known.
pub(super) fn judge(spec: &JobSpec, pod: &Pod) -> Verdict {
    first_match(spec, pod).unwrap_or(Verdict::Count)
}

/// What the policy does about the failed pod; `None` if no rule matches.
pub(super) fn action(spec: &JobSpec, pod: &Pod) -> Option<&'static str> {
    first_match(spec, pod).map(|verdict| match verdict {
        Verdict::Count => "Count",
        Verdict::Ignore => "Ignore",
        Verdict::FailIndex => "FailIndex",
        Verdict::FailJob(_) => "FailJob",
    })
}

fn first_match(spec: &JobSpec, pod: &Pod) -> Option<Verdict> {
    let rules = spec.pod_failure_policy.iter().flat_map(|policy| &policy.rules);
    for (index, rule) in rules.enumerate() {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let why = if let Some(requirement) = &rule.on_exit_codes {
            matching_exit(pod, requirement).map(|(container, code)| {
                format!("Container {container} for pod {namespace}/{name} failed with exit code {code}")
            })
        } else {
            let patterns = rule.on_pod_conditions.as_deref().unwrap_or_default();
            matching_condition(pod, patterns)
                .map(|condition| format!("Pod {namespace}/{name} has condition {condition}"))
        };
        let Some(why) = why else { continue };
        match rule.action.as_str() {
            "Ignore" => return Some(Verdict::Ignore),
            "FailIndex" => return Some(Verdict::FailIndex),
            "Count" => return Some(Verdict::Count),
            "FailJob" => return Some(Verdict::FailJob(format!("{why} matching FailJob rule at index {index}"))),
            _ => {}
        }
    }
    None
}

/// The first container that ended with an exit code the rule is about.
fn matching_exit<'a>(pod: &'a Pod, rule: &PodFailurePolicyOnExitCodesRequirement) -> Option<(&'a str, i32)> {
    let status = pod.status.as_ref()?;
    let lists = [&status.container_statuses, &status.init_container_statuses];
    lists.into_iter().flat_map(|list| list.iter().flatten()).find_map(|container| {
        let code = exit_code(container)?;
        let named = rule.container_name.as_ref().is_none_or(|name| *name == container.name);
        let matches = match rule.operator.as_str() {
            "In" => rule.values.contains(&code),
            "NotIn" => !rule.values.contains(&code),
            _ => false,
        };
        (named && code != 0 && matches).then_some((container.name.as_str(), code))
    })
}

fn exit_code(container: &ContainerStatus) -> Option<i32> {
    Some(container.state.as_ref()?.terminated.as_ref()?.exit_code)
}

fn matching_condition<'a>(pod: &'a Pod, patterns: &[PodFailurePolicyOnPodConditionsPattern]) -> Option<&'a str> {
    let conditions = pod.status.as_ref()?.conditions.iter().flatten();
    let matches = |pattern: &PodFailurePolicyOnPodConditionsPattern, condition_type: &str, status: &str| {
        pattern.type_ == condition_type && pattern.status.as_deref().unwrap_or("True") == status
    };
    conditions
        .filter(|condition| patterns.iter().any(|pattern| matches(pattern, &condition.type_, &condition.status)))
        .map(|condition| condition.type_.as_str())
        .next()
}

/// Why the job has succeeded already, if a rule of its success policy says so.
pub(super) fn success(spec: &JobSpec, completions: i32, succeeded: &Indexes) -> Option<String> {
    if succeeded.is_empty() {
        return None;
    }
    let rules = &spec.success_policy.as_ref()?.rules;
    let met = rules.iter().position(|rule| is_met(rule, completions, succeeded))?;
    Some(format!("Matched rules at index {met}"))
}

fn is_met(rule: &SuccessPolicyRule, completions: i32, succeeded: &Indexes) -> bool {
    let enough = |count: i32| rule.succeeded_count.is_some_and(|wanted| count >= wanted);
    match &rule.succeeded_indexes {
        None => enough(succeeded.total()),
        Some(text) => {
            let wanted = Indexes::parse(text, completions);
            let count = wanted.in_common(succeeded);
            !wanted.is_empty() && (count == wanted.total() || enough(count))
        }
    }
}
