//! Which Pod Security Standard a namespace asks for, read from its labels.
//!
//! Behaves as `pod-security-admission/api/helpers.go`, v1.36.

use std::collections::BTreeMap;
use std::fmt;

use rkube_apimachinery::field::{Error, ErrorList, Path};

const ENFORCE: &str = "pod-security.kubernetes.io/enforce";
const AUDIT: &str = "pod-security.kubernetes.io/audit";
const WARN: &str = "pod-security.kubernetes.io/warn";

/// From the loosest to the strictest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Level {
    Privileged,
    Baseline,
    Restricted,
}

/// `v1.x`, or the newest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Version {
    Minor(u32),
    Latest,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct LevelVersion {
    pub(super) level: Level,
    pub(super) version: Version,
}

/// What happens to pods of a namespace in each of the three modes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Policy {
    pub(super) enforce: LevelVersion,
    pub(super) audit: LevelVersion,
    pub(super) warn: LevelVersion,
}

impl Policy {
    /// What a namespace without labels gets.
    pub(super) const DEFAULT: Self = Self { enforce: PRIVILEGED, audit: PRIVILEGED, warn: PRIVILEGED };

    pub(super) fn is_privileged(&self) -> bool {
        [self.enforce, self.audit, self.warn].iter().all(|mode| mode.level == Level::Privileged)
    }

    /// Always a policy: a label that cannot be read enforces the strictest and audits nothing, and is an
    /// error beside it.
    pub(super) fn from_labels(labels: Option<&BTreeMap<String, String>>) -> (Self, ErrorList) {
        let mut policy = Self::DEFAULT;
        let mut errors = ErrorList::new();
        let Some(labels) = labels else { return (policy, errors) };
        let mut bad = |label: &str, value: &str, detail: &str| {
            errors.push(Error::invalid(&Path::new("metadata").child("labels").key(label), value, detail));
        };
        let mut is_enforced = false;
        for (label, mode) in [(ENFORCE, &mut policy.enforce), (AUDIT, &mut policy.audit), (WARN, &mut policy.warn)] {
            if let Some(text) = labels.get(label) {
                match level(text) {
                    Some(level) => {
                        mode.level = level;
                        is_enforced |= label == ENFORCE;
                    }
                    None => {
                        mode.level = if label == ENFORCE { Level::Restricted } else { Level::Privileged };
                        bad(label, text, "must be one of privileged, baseline, restricted");
                    }
                }
            }
            let label = format!("{label}-version");
            if let Some(text) = labels.get(&label) {
                mode.version = version(text).unwrap_or_else(|| {
                    bad(&label, text, "must be \"latest\" or \"v1.x\"");
                    Version::Latest
                });
            }
        }
        // Who is refused wants to have been warned.
        if !labels.contains_key(WARN) && is_enforced && policy.enforce.level > policy.warn.level {
            policy.warn.level = policy.enforce.level;
            if !labels.contains_key(&format!("{WARN}-version")) {
                policy.warn.version = policy.enforce.version;
            }
        }
        (policy, errors)
    }
}

const PRIVILEGED: LevelVersion = LevelVersion { level: Level::Privileged, version: Version::Latest };

fn level(text: &str) -> Option<Level> {
    match text {
        "privileged" => Some(Level::Privileged),
        "baseline" => Some(Level::Baseline),
        "restricted" => Some(Level::Restricted),
        _ => None,
    }
}

fn version(text: &str) -> Option<Version> {
    if text == "latest" {
        return Some(Version::Latest);
    }
    let minor = text.strip_prefix("v1.")?;
    let is_plain = minor == "0" || !minor.starts_with('0');
    let is_digits = !minor.is_empty() && minor.bytes().all(|byte| byte.is_ascii_digit());
    if is_plain && is_digits { minor.parse().ok().map(Version::Minor) } else { None }
}

impl fmt::Display for LevelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.level {
            Level::Privileged => "privileged:",
            Level::Baseline => "baseline:",
            Level::Restricted => "restricted:",
        })?;
        match self.version {
            Version::Latest => f.write_str("latest"),
            Version::Minor(minor) => write!(f, "v1.{minor}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(labels: &[(&str, &str)]) -> String {
        let labels =
            labels.iter().map(|(name, value)| (format!("pod-security.kubernetes.io/{name}"), (*value).to_owned()));
        let (policy, errors) = Policy::from_labels(Some(&labels.collect()));
        let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
        format!("{} {} {} {}", policy.enforce, policy.audit, policy.warn, errors.join("; "))
    }

    #[test]
    fn labels_say_the_policy_and_enforcing_warns() {
        assert_eq!(read(&[]), "privileged:latest privileged:latest privileged:latest ");
        assert_eq!(
            read(&[("enforce", "baseline"), ("enforce-version", "v1.30")]),
            "baseline:v1.30 privileged:latest baseline:v1.30 "
        );
        assert_eq!(
            read(&[("enforce", "restricted"), ("warn", "privileged"), ("audit", "baseline")]),
            "restricted:latest baseline:latest privileged:latest "
        );
    }

    #[test]
    fn labels_that_cannot_be_read_fail_closed_for_enforce_and_open_for_the_rest() {
        assert_eq!(
            read(&[("enforce", "Baseline"), ("warn", "x"), ("audit-version", "v1.01")]),
            "restricted:latest privileged:latest privileged:latest metadata.labels[pod-security.kubernetes.io/enforce]: \
             Invalid value: \"Baseline\": must be one of privileged, baseline, restricted; \
             metadata.labels[pod-security.kubernetes.io/audit-version]: Invalid value: \"v1.01\": must be \"latest\" or \
             \"v1.x\"; metadata.labels[pod-security.kubernetes.io/warn]: Invalid value: \"x\": must be one of privileged, \
             baseline, restricted"
        );
    }
}
