//! Sets of completion indexes as the status writes them: `1,3-5,7`.
//!
//! A job may have a hundred thousand indexes; as intervals they cost what their gaps cost.
//! Behaves as pkg/controller/job/indexed_job_utils.go, v1.36.

use std::fmt;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Interval {
    first: i32,
    last: i32,
}

/// Disjoint intervals in order, none adjacent to the next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Indexes(Vec<Interval>);

impl Indexes {
    /// Reads a list, leaving out what is no interval and what is not below `completions`.
    pub(super) fn parse(text: &str, completions: i32) -> Self {
        let interval = |part: &str| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last): (i32, i32) = (first.parse().ok()?, last.parse().ok()?);
            let last = last.min(completions.saturating_sub(1));
            (first >= 0 && first <= last).then_some(Interval { first, last })
        };
        Self::joined(text.split(',').filter_map(interval).collect())
    }

    fn joined(mut intervals: Vec<Interval>) -> Self {
        intervals.sort_by_key(|interval| interval.first);
        let mut found = Self::default();
        intervals.into_iter().for_each(|interval| found.append(interval));
        found
    }

    /// Adds an interval that begins no earlier than the last one does.
    fn append(&mut self, next: Interval) {
        match self.0.last_mut() {
            Some(last) if next.first <= last.last.saturating_add(1) => last.last = last.last.max(next.last),
            _ => self.0.push(next),
        }
    }

    pub(super) fn union(&self, other: &Self) -> Self {
        Self::joined(self.0.iter().chain(&other.0).copied().collect())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn total(&self) -> i32 {
        self.0.iter().map(|interval| interval.last - interval.first + 1).sum()
    }

    pub(super) fn contains(&self, index: i32) -> bool {
        let position = self.0.partition_point(|interval| interval.last < index);
        self.0.get(position).is_some_and(|interval| interval.first <= index)
    }

    /// How many indexes are in both.
    pub(super) fn in_common(&self, other: &Self) -> i32 {
        let (mut ours, mut theirs) = (self.0.iter().peekable(), other.0.iter().peekable());
        let mut common = 0;
        while let (Some(one), Some(two)) = (ours.peek(), theirs.peek()) {
            common += (one.last.min(two.last) - one.first.max(two.first) + 1).max(0);
            if one.last < two.last {
                ours.next();
            } else {
                theirs.next();
            }
        }
        common
    }

    /// The first `count` indexes below `completions` that are not in the set.
    pub(super) fn first_missing(&self, count: usize, completions: i32) -> Vec<i32> {
        let gaps = self.0.iter().scan(0, |next, interval| {
            let gap = *next..interval.first.min(completions);
            *next = interval.last.saturating_add(1);
            Some(gap)
        });
        let after = self.0.last().map_or(0, |interval| interval.last.saturating_add(1));
        gaps.flatten().chain(after..completions).take(count).collect()
    }
}

impl FromIterator<i32> for Indexes {
    fn from_iter<I: IntoIterator<Item = i32>>(indexes: I) -> Self {
        Self::joined(indexes.into_iter().map(|index| Interval { first: index, last: index }).collect())
    }
}

impl fmt::Display for Indexes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, Interval { first, last }) in self.0.iter().enumerate() {
            let comma = if position > 0 { "," } else { "" };
            match last - first {
                0 => write!(f, "{comma}{first}")?,
                1 => write!(f, "{comma}{first},{last}")?,
                _ => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_and_written() {
        let check = |text: &str, completions: i32, expected: &str| {
            let indexes = Indexes::parse(text, completions);
            assert_eq!(indexes.to_string(), expected, "{text}");
        };
        check("", 10, "");
        check("0", 10, "0");
        check("1,3-5,7", 10, "1,3-5,7");
        check("3-4", 10, "3,4");
        // Adjacent intervals become one.
        check("1,2,3-5", 10, "1-5");
        // A job that was made smaller forgets what is beyond its end.
        check("1-9", 5, "1-4");
        check("1,7,8", 5, "1");
        // What someone wrote by hand is taken as far as it makes sense.
        check("x,2,3-y,5,-1,9-8,4-4-4,0", 10, "0,2,5");
    }

    #[test]
    fn sets_are_joined_and_compared() {
        let set = |text: &str| Indexes::parse(text, 100);
        assert_eq!(set("1-3,9").union(&set("4,8,20-22")).to_string(), "1-4,8,9,20-22");
        assert_eq!(set("1-3,9").union(&set("0-50")).to_string(), "0-50");
        assert_eq!(set("1-3,7-9").in_common(&set("2-8")), 4);
        assert_eq!(set("1-3").in_common(&set("4-8")), 0);
        assert_eq!((set("1-3,9").total(), set("").total()), (4, 0));
        assert_eq!(
            [0, 1, 3, 4, 9, 10].map(|index| set("1-3,9").contains(index)),
            [false, true, true, false, true, false]
        );
        assert_eq!(set("1,3-4").first_missing(3, 10), [0, 2, 5]);
        assert_eq!(set("0-8").first_missing(5, 10), [9]);
        assert_eq!(set("0-20").first_missing(5, 10), [] as [i32; 0]);
    }
}
