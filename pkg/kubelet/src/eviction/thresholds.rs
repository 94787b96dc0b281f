//! The thresholds below which a node is short of something, and their text form: `memory.available<100Mi`.
//!
//! Behaves as ParseThresholdConfig in pkg/kubelet/eviction/helpers.go, v1.36.

use std::time::Duration;

use rkube_apimachinery::quantity::Quantity;

/// What may run short.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Signal {
    MemoryAvailable,
    NodeFsAvailable,
    NodeFsInodesFree,
    ImageFsAvailable,
    ImageFsInodesFree,
    PidAvailable,
}

/// Signal, its name, the resource in messages, the condition of the node.
const SIGNALS: [(Signal, &str, &str, &str); 6] = [
    (Signal::MemoryAvailable, "memory.available", "memory", "MemoryPressure"),
    (Signal::NodeFsAvailable, "nodefs.available", "ephemeral-storage", "DiskPressure"),
    (Signal::NodeFsInodesFree, "nodefs.inodesFree", "inodes", "DiskPressure"),
    (Signal::ImageFsAvailable, "imagefs.available", "ephemeral-storage", "DiskPressure"),
    (Signal::ImageFsInodesFree, "imagefs.inodesFree", "inodes", "DiskPressure"),
    (Signal::PidAvailable, "pid.available", "pids", "PIDPressure"),
];

impl Signal {
    fn row(self) -> &'static (Signal, &'static str, &'static str, &'static str) {
        SIGNALS.iter().find(|row| row.0 == self).unwrap_or(&SIGNALS[0])
    }

    pub fn parse(name: &str) -> Option<Self> {
        SIGNALS.iter().find(|row| row.1 == name).map(|row| row.0)
    }

    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// The resource in messages.
    pub fn resource(self) -> &'static str {
        self.row().2
    }

    pub fn condition(self) -> &'static str {
        self.row().3
    }
}

/// An amount, or a part of the whole in millionths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount {
    Absolute(i64),
    Part(i64),
}

impl Amount {
    pub fn of(self, whole: i64) -> i64 {
        match self {
            Self::Absolute(amount) => amount,
            Self::Part(millionths) => {
                i64::try_from(i128::from(whole) * i128::from(millionths) / 1_000_000).unwrap_or(i64::MAX)
            }
        }
    }

    fn parse(text: &str) -> Option<Self> {
        if let Some(percent) = text.strip_suffix('%') {
            let percent: f64 = percent.parse().ok()?;
            return (0.0..=100.0).contains(&percent).then_some(Self::Part((percent * 10_000.0).round() as i64));
        }
        let quantity = Quantity::parse(text).ok().filter(|quantity| !quantity.is_negative())?;
        Some(Self::Absolute(quantity.value()))
    }

    /// Nothing, or all of it: upstream takes both for "never".
    fn is_off(self) -> bool {
        matches!(self, Self::Part(0 | 1_000_000))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Threshold {
    pub signal: Signal,
    pub value: Amount,
    /// A soft threshold has to be crossed for so long; a hard one acts at once.
    pub grace: Option<Duration>,
    /// Once crossed, it holds until so much more than `value` is there.
    pub reclaim_min: Option<Amount>,
}

impl Threshold {
    pub fn is_hard(&self) -> bool {
        self.grace.is_none()
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thresholds {
    pub all: Vec<Threshold>,
    /// A condition is kept so long after it was last true, so that it does not flap.
    pub transition: Duration,
    /// The most a pod is given that a soft threshold ends.
    pub pod_grace_seconds_max: i64,
}

/// Upstream's hard thresholds on Linux.
const HARD: &str =
    "memory.available<100Mi,nodefs.available<10%,nodefs.inodesFree<5%,imagefs.available<15%,imagefs.inodesFree<5%";
const TRANSITION: Duration = Duration::from_secs(300);

impl Default for Thresholds {
    fn default() -> Self {
        let mut thresholds = Self::none();
        thresholds.set_hard(HARD).expect("the defaults parse");
        thresholds
    }
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ThresholdError {
    #[error("unsupported eviction signal {0}")]
    Signal(String),
    #[error("{0:?} is not signal{1}value")]
    Form(String, char),
    #[error("eviction threshold {0} has no valid value")]
    Value(String),
    #[error("grace period must be specified for the soft eviction threshold {0}")]
    NoGrace(&'static str),
}

fn statements<'a>(
    text: &'a str,
    operator: char,
) -> impl Iterator<Item = Result<(Signal, &'a str), ThresholdError>> + 'a {
    text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(move |part| {
        let (name, value) = part.split_once(operator).ok_or_else(|| ThresholdError::Form(part.to_owned(), operator))?;
        let signal = Signal::parse(name.trim()).ok_or_else(|| ThresholdError::Signal(name.trim().to_owned()))?;
        Ok((signal, value.trim()))
    })
}

impl Thresholds {
    pub fn none() -> Self {
        Self { all: vec![], transition: TRANSITION, pod_grace_seconds_max: 0 }
    }

    /// `memory.available<100Mi,nodefs.available<10%` takes the place of all hard thresholds.
    pub fn set_hard(&mut self, text: &str) -> Result<(), ThresholdError> {
        let thresholds = parse(text, None)?;
        self.all.retain(|threshold| !threshold.is_hard());
        self.all.extend(thresholds);
        Ok(())
    }

    /// Takes the place of all soft thresholds; each needs a grace period.
    pub fn set_soft(&mut self, text: &str) -> Result<(), ThresholdError> {
        let thresholds = parse(text, Some(Duration::ZERO))?;
        self.all.retain(Threshold::is_hard);
        self.all.extend(thresholds);
        Ok(())
    }

    /// `memory.available=1m30s`
    pub fn set_soft_grace(&mut self, text: &str) -> Result<(), ThresholdError> {
        for statement in statements(text, '=') {
            let (signal, value) = statement?;
            let grace = rkube_apimachinery::time::parse_duration(value)
                .ok()
                .and_then(|grace| Duration::try_from(grace).ok())
                .ok_or_else(|| ThresholdError::Value(signal.name().to_owned()))?;
            for threshold in self.all.iter_mut().filter(|threshold| threshold.signal == signal) {
                if let Some(period) = &mut threshold.grace {
                    *period = grace;
                }
            }
        }
        Ok(())
    }

    /// `nodefs.available=10%`
    pub fn set_reclaim_min(&mut self, text: &str) -> Result<(), ThresholdError> {
        for statement in statements(text, '=') {
            let (signal, value) = statement?;
            let amount = Amount::parse(value).ok_or_else(|| ThresholdError::Value(signal.name().to_owned()))?;
            for threshold in self.all.iter_mut().filter(|threshold| threshold.signal == signal) {
                threshold.reclaim_min = Some(amount);
            }
        }
        Ok(())
    }

    /// A soft threshold without a grace period would be a hard one by accident.
    pub fn check(&self) -> Result<(), ThresholdError> {
        match self.all.iter().find(|threshold| threshold.grace == Some(Duration::ZERO)) {
            Some(threshold) => Err(ThresholdError::NoGrace(threshold.signal.name())),
            None => Ok(()),
        }
    }

    /// What hard thresholds keep free, which nobody can be promised.
    pub fn kept(&self, signal: Signal, whole: i64) -> i64 {
        let of_signal = self.all.iter().filter(|threshold| threshold.signal == signal && threshold.is_hard());
        of_signal.map(|threshold| threshold.value.of(whole)).max().unwrap_or(0)
    }
}

fn parse(text: &str, grace: Option<Duration>) -> Result<Vec<Threshold>, ThresholdError> {
    let mut thresholds = Vec::new();
    for statement in statements(text, '<') {
        let (signal, value) = statement?;
        let value = Amount::parse(value)
            .filter(|value| *value != Amount::Absolute(0))
            .ok_or_else(|| ThresholdError::Value(signal.name().to_owned()))?;
        if !value.is_off() {
            thresholds.push(Threshold { signal, value, grace, reclaim_min: None });
        }
    }
    Ok(thresholds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_become_thresholds() {
        let mut thresholds = Thresholds::none();
        thresholds.set_hard("memory.available<1Gi, nodefs.available<12.5%,pid.available<0%").unwrap();
        assert_eq!(thresholds.all.len(), 2, "0% is never");
        assert_eq!(thresholds.kept(Signal::NodeFsAvailable, 1000), 125);
        thresholds.set_soft("memory.available<2Gi").unwrap();
        assert_eq!(thresholds.check(), Err(ThresholdError::NoGrace("memory.available")));
        thresholds.set_soft_grace("memory.available=1m30s").unwrap();
        thresholds.set_reclaim_min("nodefs.available=10%").unwrap();
        thresholds.check().unwrap();
        let soft: Vec<_> = thresholds.all.iter().filter_map(|threshold| threshold.grace).collect();
        assert_eq!(soft, [Duration::from_secs(90)]);
        assert_eq!(thresholds.kept(Signal::MemoryAvailable, 0), 1 << 30, "what is soft may be used");
    }

    #[test]
    fn what_is_no_threshold_is_refused() {
        let refusal = |text: &str| Thresholds::none().set_hard(text).unwrap_err().to_string();
        assert_eq!(refusal("disk<1"), "unsupported eviction signal disk");
        assert_eq!(refusal("memory.available"), "\"memory.available\" is not signal<value");
        assert_eq!(refusal("memory.available<-1Gi"), "eviction threshold memory.available has no valid value");
        assert_eq!(refusal("memory.available<101%"), "eviction threshold memory.available has no valid value");
        assert_eq!(refusal("memory.available<0"), "eviction threshold memory.available has no valid value");
    }
}
