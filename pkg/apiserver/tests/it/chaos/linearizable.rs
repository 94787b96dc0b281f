//! Whether a history of operations on one object could have happened one after another.
//!
//! In   operations with when they were called and answered; an operation without an answer may have happened at any
//!      time after its call, or never
//! Out  `Err` with the operations, when there is no order that explains all answers
//! The search is Wing and Gong's with Lowe's memory of configurations seen, as Porcupine does it.

use std::collections::HashSet;

/// What a value is known by: unique to each write.
pub(crate) type Tag = u64;

/// What was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Create(Tag),
    /// Replaces what was read; its version goes with the write.
    Replace {
        known: Tag,
        by: Tag,
    },
    Delete {
        known: Tag,
    },
    Read,
}

/// What was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Done,
    /// There is one already, or it is another one than was read.
    Refused,
    Missing,
    Value(Option<Tag>),
    /// None came.
    Unknown,
}

/// One operation, between two moments of one clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operation {
    pub(crate) called: u64,
    pub(crate) answered: u64,
    pub(crate) call: Call,
    pub(crate) answer: Answer,
}

/// The object after an operation, if the answer is one it can have given.
fn step(state: Option<Tag>, operation: &Operation) -> Option<Option<Tag>> {
    let (answer, after) = match (operation.call, state) {
        (Call::Read, state) => (Answer::Value(state), state),
        (Call::Create(tag), None) => (Answer::Done, Some(tag)),
        (Call::Create(_), state) => (Answer::Refused, state),
        (Call::Replace { .. } | Call::Delete { .. }, None) => (Answer::Missing, None),
        (Call::Replace { known, by }, Some(found)) if known == found => (Answer::Done, Some(by)),
        (Call::Delete { known }, Some(found)) if known == found => (Answer::Done, None),
        (Call::Replace { .. } | Call::Delete { .. }, state) => (Answer::Refused, state),
    };
    (operation.answer == answer || operation.answer == Answer::Unknown).then_some(after)
}

/// Begins without the object.
pub(crate) fn check(operations: &[Operation]) -> Result<(), String> {
    let mut operations = operations.to_vec();
    operations.sort_by_key(|operation| operation.called);
    let mut search = Search { taken: vec![0; operations.len().div_ceil(64)], seen: HashSet::new(), operations };
    // Depth is the number of operations; each frame is where to go on trying, and what to take back.
    let mut frames: Vec<(usize, Option<Tag>)> = vec![(0, None)];
    let mut path: Vec<usize> = Vec::new();
    while let Some((from, state)) = frames.last_mut() {
        if search.is_done() {
            return Ok(());
        }
        match search.next(*from, *state) {
            Some((index, after)) => {
                *from = index + 1;
                search.toggle(index);
                path.push(index);
                frames.push((0, after));
            }
            None => {
                frames.pop();
                if let Some(index) = path.pop() {
                    search.toggle(index);
                }
            }
        }
    }
    let lines: Vec<String> = search.operations.iter().map(|operation| format!("{operation:?}")).collect();
    Err(format!("no order explains\n{}", lines.join("\n")))
}

struct Search {
    operations: Vec<Operation>,
    taken: Vec<u64>,
    seen: HashSet<(Vec<u64>, Option<Tag>)>,
}

impl Search {
    fn is_taken(&self, index: usize) -> bool {
        self.taken[index / 64] >> (index % 64) & 1 == 1
    }

    fn toggle(&mut self, index: usize) {
        self.taken[index / 64] ^= 1 << (index % 64);
    }

    /// All operations with an answer have their place.
    fn is_done(&self) -> bool {
        let mut open = (0..self.operations.len()).filter(|index| !self.is_taken(*index));
        open.all(|index| self.operations[index].answer == Answer::Unknown)
    }

    /// The next operation at or after `from` that can come now and leads to something new.
    fn next(&mut self, from: usize, state: Option<Tag>) -> Option<(usize, Option<Tag>)> {
        let open: Vec<usize> = (0..self.operations.len()).filter(|index| !self.is_taken(*index)).collect();
        // What was called after another was answered comes after it.
        let first_answer = open.iter().map(|index| self.operations[*index].answered).min()?;
        for index in open.into_iter().filter(|index| *index >= from) {
            let operation = self.operations[index];
            if operation.called > first_answer {
                return None;
            }
            let Some(after) = step(state, &operation) else { continue };
            self.toggle(index);
            let is_new = self.seen.insert((self.taken.clone(), after));
            self.toggle(index);
            if is_new {
                return Some((index, after));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holds(operations: &[(u64, u64, Call, Answer)]) -> bool {
        let operations: Vec<Operation> = operations
            .iter()
            .map(|&(called, answered, call, answer)| Operation { called, answered, call, answer })
            .collect();
        check(&operations).is_ok()
    }

    #[test]
    fn histories_that_have_an_order_are_told_from_those_that_have_none() {
        use Answer::{Done, Refused, Unknown, Value};
        use Call::{Create, Delete, Read, Replace};
        let (replace, never) = (Replace { known: 1, by: 2 }, u64::MAX);
        assert!(holds(&[(1, 2, Create(1), Done), (3, 4, Read, Value(Some(1)))]));
        // An acknowledged write is lost.
        assert!(!holds(&[(1, 2, Create(1), Done), (3, 4, Read, Value(None))]));
        // While it is under way both is right, but not first the new and then the old.
        assert!(holds(&[(1, 2, Create(1), Done), (3, 9, replace, Done), (4, 5, Read, Value(Some(1)))]));
        assert!(!holds(&[
            (1, 2, Create(1), Done),
            (3, 9, replace, Done),
            (4, 5, Read, Value(Some(2))),
            (6, 7, Read, Value(Some(1))),
        ]));
        // A write without an answer happened, or did not.
        assert!(holds(&[(1, 2, Create(1), Done), (3, never, replace, Unknown), (4, 5, Read, Value(Some(1)))]));
        assert!(holds(&[(1, 2, Create(1), Done), (3, never, replace, Unknown), (4, 5, Read, Value(Some(2)))]));
        // Two writers replaced the same.
        let other = Replace { known: 1, by: 3 };
        assert!(!holds(&[(1, 2, Create(1), Done), (3, 8, replace, Done), (3, 8, other, Done)]));
        assert!(holds(&[(1, 2, Create(1), Done), (3, 8, replace, Done), (3, 8, other, Refused)]));
        assert!(!holds(&[(1, 2, Create(1), Done), (3, 4, Delete { known: 1 }, Done), (5, 6, replace, Refused)]));
    }
}
