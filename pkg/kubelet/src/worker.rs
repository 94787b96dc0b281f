//! The life of one pod on this node, as a state machine. Pure: [`Lifecycle::apply`] takes what happened,
//! [`Lifecycle::next`] says what to do.
//!
//! ```text
//! Syncing ──(deleted, evicted, orphaned, all containers ended)──► Terminating
//! Terminating ──(no container runs)──► Terminated ──(volumes, cgroups gone)──► Finished
//! Syncing ──(refused, ended before this start)──► Terminated
//! ```
//! A pod never goes back. One that is to run again (a static pod whose file came back) gets a new life
//! after the old one finished.
//! Behaves as podSyncStatus in pkg/kubelet/pod_workers.go, v1.36.

use crate::status::Verdict;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Syncing,
    Terminating,
    Terminated,
    Finished,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// The API object has a deletion timestamp.
    Deleted { grace_seconds: i64 },
    /// The object is gone, or the pod is not this node's any more.
    Removed { grace_seconds: Option<i64> },
    /// The kubelet itself ends the pod.
    Evicted { verdict: Verdict, grace_seconds: Option<i64> },
    /// The pod may not run here. Nothing of it was started.
    Refused { verdict: Verdict },
    /// The API knows the pod as ended, and nothing of it runs.
    EndedBefore,
    /// A sync found that no container will run any more.
    ContainersEnded,
    /// All containers are stopped.
    Stopped,
    /// Nothing is left on the node.
    CleanedUp,
}

/// What the worker does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Sync,
    /// `None`: each container's own grace period.
    Stop {
        grace_seconds: Option<i64>,
    },
    CleanUp,
    Nothing,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lifecycle {
    phase: Phase,
    grace_seconds: Option<i64>,
    verdict: Option<Verdict>,
    removed: bool,
}

impl Default for Lifecycle {
    fn default() -> Self {
        Self { phase: Phase::Syncing, grace_seconds: None, verdict: None, removed: false }
    }
}

impl Lifecycle {
    pub fn phase(&self) -> Phase {
        self.phase
    }

    pub fn verdict(&self) -> Option<&Verdict> {
        self.verdict.as_ref()
    }

    /// The pod's object is gone: there is nobody to report to.
    pub fn is_removed(&self) -> bool {
        self.removed
    }

    /// Says whether work under way is to be interrupted: it was done for a pod that goes on.
    pub fn apply(&mut self, input: Input) -> bool {
        match input {
            Input::Deleted { grace_seconds } => self.terminate(Some(grace_seconds.max(1))),
            Input::Removed { grace_seconds } => {
                self.removed = true;
                self.terminate(grace_seconds)
            }
            Input::Evicted { verdict, grace_seconds } => {
                // The first reason is the one that is true.
                if self.phase == Phase::Syncing {
                    self.verdict.get_or_insert(verdict);
                }
                self.terminate(grace_seconds)
            }
            Input::Refused { verdict } => {
                if self.phase == Phase::Syncing {
                    self.verdict.get_or_insert(verdict);
                    self.phase = Phase::Terminated;
                }
                false
            }
            Input::EndedBefore => {
                if self.phase == Phase::Syncing {
                    self.phase = Phase::Terminated;
                }
                false
            }
            Input::ContainersEnded => {
                if self.phase == Phase::Syncing {
                    self.phase = Phase::Terminating;
                }
                false
            }
            Input::Stopped => {
                if self.phase == Phase::Terminating {
                    self.phase = Phase::Terminated;
                }
                false
            }
            Input::CleanedUp => {
                if self.phase == Phase::Terminated {
                    self.phase = Phase::Finished;
                }
                false
            }
        }
    }

    /// A grace period only ever gets shorter; a shorter one interrupts the stopping under way.
    fn terminate(&mut self, grace: Option<i64>) -> bool {
        let shorter = match (self.grace_seconds, grace) {
            (Some(old), Some(new)) => new < old,
            (None, Some(_)) => true,
            _ => false,
        };
        if shorter {
            self.grace_seconds = grace;
        }
        match self.phase {
            Phase::Syncing => {
                self.phase = Phase::Terminating;
                true
            }
            Phase::Terminating => shorter,
            Phase::Terminated | Phase::Finished => false,
        }
    }

    pub fn next(&self) -> Action {
        match self.phase {
            Phase::Syncing => Action::Sync,
            Phase::Terminating => Action::Stop { grace_seconds: self.grace_seconds },
            Phase::Terminated => Action::CleanUp,
            Phase::Finished => Action::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(reason: &str) -> Verdict {
        Verdict::new(reason, String::new())
    }

    fn evicted(reason: &str) -> Input {
        Input::Evicted { verdict: verdict(reason), grace_seconds: Some(0) }
    }

    fn check(inputs: Vec<Input>, expected: &str) {
        let mut life = Lifecycle::default();
        let steps: Vec<String> = inputs
            .into_iter()
            .map(|input| {
                let interrupt = if life.apply(input) { "!" } else { "" };
                let next = match life.next() {
                    Action::Sync => "sync".to_owned(),
                    Action::Stop { grace_seconds: None } => "stop".to_owned(),
                    Action::Stop { grace_seconds: Some(seconds) } => format!("stop({seconds})"),
                    Action::CleanUp => "clean".to_owned(),
                    Action::Nothing => "nothing".to_owned(),
                };
                format!("{next}{interrupt}")
            })
            .collect();
        let verdict = life.verdict().map(|verdict| format!(" {}", verdict.reason)).unwrap_or_default();
        assert_eq!(format!("{}{verdict}", steps.join(" ")), expected);
    }

    #[test]
    fn lives() {
        use Input::*;
        check(vec![ContainersEnded, Stopped, CleanedUp], "stop clean nothing");
        check(vec![Deleted { grace_seconds: 30 }, Stopped, CleanedUp], "stop(30)! clean nothing");
        // kubectl delete, then again with --force.
        check(vec![Deleted { grace_seconds: 30 }, Deleted { grace_seconds: 0 }], "stop(30)! stop(1)!");
        check(vec![Deleted { grace_seconds: 5 }, Deleted { grace_seconds: 30 }], "stop(5)! stop(5)");
        check(vec![evicted("Evicted"), evicted("DeadlineExceeded"), Stopped], "stop(0)! stop(0) clean Evicted");
        // The file of a static pod went.
        let removed = || Removed { grace_seconds: None };
        check(vec![removed(), Stopped, removed(), CleanedUp, removed()], "stop! clean clean nothing nothing");
        // kubectl delete, then the object is forced out of the API.
        check(vec![Deleted { grace_seconds: 30 }, Removed { grace_seconds: Some(1) }], "stop(30)! stop(1)!");
        // A deletion that arrives when all is over changes nothing.
        check(vec![ContainersEnded, Stopped, CleanedUp, Deleted { grace_seconds: 30 }], "stop clean nothing nothing");
        check(vec![Stopped, CleanedUp], "sync sync");
        // What never started needs no stopping.
        let refused = || Refused { verdict: verdict("OutOfcpu") };
        check(vec![refused(), Deleted { grace_seconds: 30 }, CleanedUp], "clean clean nothing OutOfcpu");
        check(vec![EndedBefore, CleanedUp], "clean nothing");
    }
}
