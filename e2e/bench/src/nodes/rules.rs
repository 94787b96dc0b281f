//! What becomes of a pod: by its annotation, by rules over its labels, by its restart policy. Pure.

use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rkube_apimachinery::labels::Selector;

/// A pod's own wish, as `Outcome` reads.
pub(crate) const ANNOTATION: &str = "bench.rkube.dev/outcome";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Running,
    Succeeded,
    Failed,
}

/// The last phase of a pod, and how long it runs before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) phase: Phase,
    pub(crate) after: Duration,
}

impl FromStr for Outcome {
    type Err = anyhow::Error;

    /// `Running`, `Succeeded`, `Failed@2.5`.
    fn from_str(text: &str) -> Result<Self> {
        let (phase, after) = text.split_once('@').unwrap_or((text, "0"));
        let phase = match phase {
            "Running" => Phase::Running,
            "Succeeded" => Phase::Succeeded,
            "Failed" => Phase::Failed,
            other => bail!("{other:?} is none of Running, Succeeded, Failed"),
        };
        let seconds: f64 = after.parse().with_context(|| format!("{after:?} is no number of seconds"))?;
        let after =
            Duration::try_from_secs_f64(seconds).with_context(|| format!("{after:?} is no number of seconds"))?;
        Ok(Self { phase, after })
    }
}

/// An outcome for the pods that a label selector matches.
#[derive(Clone, Debug)]
pub(crate) struct Rule {
    selector: Selector,
    outcome: Outcome,
}

impl FromStr for Rule {
    type Err = anyhow::Error;

    /// `app=web,tier in (a,b)=>Failed@3`; an empty selector matches every pod.
    fn from_str(text: &str) -> Result<Self> {
        let (selector, outcome) = text.rsplit_once("=>").context("expected SELECTOR=>OUTCOME")?;
        let selector = Selector::parse(selector).with_context(|| format!("reading the selector {selector:?}"))?;
        Ok(Self { selector, outcome: outcome.parse()? })
    }
}

/// What a rule looks at.
pub(crate) struct Facts<'a> {
    pub(crate) annotation: Option<&'a str>,
    /// Sorted by name.
    pub(crate) labels: &'a [(String, String)],
    pub(crate) restarts_always: bool,
}

/// All rules, in order, and what holds when none matches.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    rules: Vec<Rule>,
    complete_after: Duration,
}

impl Rules {
    pub(crate) fn new(rules: Vec<Rule>, complete_after: Duration) -> Self {
        Self { rules, complete_after }
    }

    /// An annotation that cannot be read is no wish.
    pub(crate) fn outcome(&self, facts: &Facts<'_>) -> Outcome {
        if let Some(outcome) = facts.annotation.and_then(|text| text.parse().ok()) {
            return outcome;
        }
        if let Some(rule) = self.rules.iter().find(|rule| rule.selector.matches(facts.labels)) {
            return rule.outcome;
        }
        if facts.restarts_always {
            return Outcome { phase: Phase::Running, after: Duration::ZERO };
        }
        Outcome { phase: Phase::Succeeded, after: self.complete_after }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(rules: &[&str], annotation: Option<&str>, labels: &[(&str, &str)], restarts_always: bool) -> String {
        let rules = rules.iter().map(|rule| rule.parse().unwrap()).collect();
        let labels: Vec<_> = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let facts = Facts { annotation, labels: &labels, restarts_always };
        let outcome = Rules::new(rules, Duration::from_secs(1)).outcome(&facts);
        format!("{:?}@{}", outcome.phase, outcome.after.as_secs_f64())
    }

    #[test]
    fn the_pods_wish_comes_first_then_the_first_rule_then_the_restart_policy() {
        let rules = ["app=bad=>Failed@2.5", "app in (bad,slow)=>Running"];
        assert_eq!(outcome(&rules, Some("Succeeded@3"), &[("app", "bad")], true), "Succeeded@3");
        assert_eq!(outcome(&rules, Some("nonsense"), &[("app", "bad")], true), "Failed@2.5");
        assert_eq!(outcome(&rules, None, &[("app", "slow")], false), "Running@0");
        assert_eq!(outcome(&rules, None, &[], true), "Running@0");
        assert_eq!(outcome(&rules, None, &[], false), "Succeeded@1");
        assert_eq!(outcome(&["=>Failed"], None, &[], false), "Failed@0");
    }

    #[test]
    fn wrong_rules_are_named() {
        let message = |text: &str| format!("{:#}", text.parse::<Rule>().unwrap_err());
        assert_eq!(message("Running"), "expected SELECTOR=>OUTCOME");
        assert_eq!(message("a=b=>Waiting"), "\"Waiting\" is none of Running, Succeeded, Failed");
        assert_eq!(message("a=b=>Failed@x"), "\"x\" is no number of seconds: invalid float literal");
        assert!(message("Failed@-1").starts_with("expected"));
        assert!(message("=>Failed@-1").starts_with("\"-1\" is no number of seconds"));
        assert!(message("a==b==c=>Failed").starts_with("reading the selector \"a==b==c\""));
    }
}
