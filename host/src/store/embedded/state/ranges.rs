//! A set of sequence numbers as ranges. Invariant: ranges are not empty, do not touch, and `len` is their sum. Its memory
//! follows the number of gaps, not of members.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::{Deserialize, Serialize};

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ranges {
    /// Start to end.
    ranges: BTreeMap<u64, u64>,
    len: u64,
}

impl Ranges {
    /// How many numbers are in the set.
    #[cfg(test)]
    fn count(&self) -> u64 {
        self.len
    }

    /// The range around a number, if it is in the set.
    #[must_use]
    pub fn around(&self, number: u64) -> Option<Range<u64>> {
        let (start, end) = self.ranges.range(..=number).next_back()?;
        (number < *end).then_some(*start..*end)
    }

    /// Whether a number is in the set.
    #[must_use]
    pub fn contains(&self, number: u64) -> bool {
        self.around(number).is_some()
    }

    /// Adds a range; returns how many numbers were not in the set before.
    pub fn insert(&mut self, range: Range<u64>) -> u64 {
        if range.is_empty() {
            return 0;
        }
        let (mut start, mut end, before) = (range.start, range.end, self.len);
        if let Some((left, left_end)) = self.ranges.range(..=start).next_back()
            && *left_end >= start
        {
            start = *left;
            end = end.max(*left_end);
        }
        // All that begin inside, or where it ends, become part of it.
        while let Some((&inner, &inner_end)) = self.ranges.range(start..=end).next() {
            self.ranges.remove(&inner);
            self.len -= inner_end - inner;
            end = end.max(inner_end);
        }
        self.ranges.insert(start, end);
        self.len += end - start;
        self.len - before
    }

    /// Forgets all below `floor`; returns how many that were.
    pub fn remove_below(&mut self, floor: u64) -> u64 {
        let before = self.len;
        while let Some((&start, &end)) = self.ranges.first_key_value() {
            if start >= floor {
                break;
            }
            self.ranges.remove(&start);
            self.len -= end - start;
            if end > floor {
                self.ranges.insert(floor, end);
                self.len += end - floor;
                break;
            }
        }
        before - self.len
    }

    /// How many numbers of `range` are in the set.
    #[must_use]
    pub fn count_in(&self, range: Range<u64>) -> u64 {
        self.within(range).map(|part| part.end - part.start).sum()
    }

    /// The parts of `range` that are in the set.
    pub fn within(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        let first = self.around(range.start).map_or(range.start, |around| around.start);
        self.ranges
            .range(first..range.end.max(first))
            .map(move |(start, end)| (*start).max(range.start)..(*end).min(range.end))
            .filter(|part| !part.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn ranges_are_a_set(steps in proptest::collection::vec((0_u64..60, 0_u64..8, any::<bool>()), 0..40)) {
            let (mut ranges, mut set) = (Ranges::default(), BTreeSet::new());
            for (start, len, remove) in steps {
                if remove {
                    let gone = set.iter().filter(|n| **n < start).count() as u64;
                    set.retain(|n| *n >= start);
                    prop_assert_eq!(ranges.remove_below(start), gone);
                } else {
                    let new = (start..start + len).filter(|n| set.insert(*n)).count() as u64;
                    prop_assert_eq!(ranges.insert(start..start + len), new);
                }
                prop_assert_eq!(ranges.count(), set.len() as u64);
                for n in 0..70 {
                    prop_assert_eq!(ranges.contains(n), set.contains(&n));
                }
                prop_assert_eq!(ranges.count_in(10..30), set.range(10..30).count() as u64);
                let gaps = set.iter().filter(|n| !set.contains(&(**n + 1))).count();
                prop_assert_eq!(ranges.ranges.len(), gaps);
            }
        }
    }
}
