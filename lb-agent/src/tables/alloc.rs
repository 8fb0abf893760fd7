//! Which elements of the arrays are free: single indices and runs of slots.

use std::collections::{BTreeMap, BTreeSet};

/// Hands out indices of an array; index 0 means "none" everywhere and is never handed out.
#[derive(Debug)]
pub struct Indices {
    /// Freed below `next`.
    free: Vec<u32>,
    /// The first index never handed out so far.
    next: u32,
    /// Elements of the array.
    capacity: u32,
}

impl Indices {
    /// Everything is free but `used`.
    pub fn new(capacity: u32, used: &BTreeSet<u32>) -> Self {
        let next = used.last().map_or(1, |last| last.saturating_add(1)).max(1);
        // Low indices last, so that they are handed out first: tables stay dense.
        let free = (1..next).rev().filter(|index| !used.contains(index)).collect();
        Self { free, next, capacity }
    }

    /// A free index; `None` when the array is full.
    pub fn take(&mut self) -> Option<u32> {
        if let Some(index) = self.free.pop() {
            return Some(index);
        }
        if self.next >= self.capacity {
            return None;
        }
        self.next += 1;
        Some(self.next - 1)
    }

    /// Gives an index back.
    pub fn give(&mut self, index: u32) {
        debug_assert!(index != 0 && index < self.next, "{index} was never handed out");
        self.free.push(index);
    }

    /// How many are handed out (index 0 counts).
    pub fn used(&self) -> u32 {
        self.next - self.free.len() as u32
    }
}

/// A run of slots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Run {
    /// First slot.
    pub offset: u32,
    /// Number of slots.
    pub len: u32,
}

/// Hands out runs of slots, the smallest that fits, and joins what comes back.
#[derive(Debug)]
pub struct Runs {
    by_offset: BTreeMap<u32, u32>,
    by_len: BTreeSet<(u32, u32)>,
    capacity: u32,
    free: u32,
}

impl Runs {
    /// Everything is free but `used`, whose runs don't overlap.
    pub fn new(capacity: u32, used: impl IntoIterator<Item = Run>) -> Self {
        let mut runs =
            Self { by_offset: BTreeMap::new(), by_len: BTreeSet::new(), capacity, free: 0 };
        let used: BTreeSet<Run> = used.into_iter().filter(|run| run.len != 0).collect();
        let mut end = 0;
        for run in used {
            if run.offset > end {
                runs.insert(Run { offset: end, len: run.offset - end });
            }
            end = end.max(run.offset.saturating_add(run.len));
        }
        if capacity > end {
            runs.insert(Run { offset: end, len: capacity - end });
        }
        runs
    }

    /// A free run of `len` slots; `None` when no gap is long enough. A run of none costs nothing.
    pub fn take(&mut self, len: u32) -> Option<Run> {
        if len == 0 {
            return Some(Run::default());
        }
        let &(gap, offset) = self.by_len.range((len, 0)..).next()?;
        self.remove(Run { offset, len: gap });
        if gap > len {
            self.insert(Run { offset: offset + len, len: gap - len });
        }
        Some(Run { offset, len })
    }

    /// Gives a run back.
    pub fn give(&mut self, run: Run) {
        if run.len == 0 {
            return;
        }
        let mut joined = run;
        if let Some((&offset, &len)) = self.by_offset.range(..run.offset).next_back()
            && offset + len == run.offset
        {
            self.remove(Run { offset, len });
            joined = Run { offset, len: len + joined.len };
        }
        if let Some(&len) = self.by_offset.get(&(run.offset + run.len)) {
            self.remove(Run { offset: run.offset + run.len, len });
            joined.len += len;
        }
        self.insert(joined);
    }

    /// How many slots are handed out.
    pub fn used(&self) -> u32 {
        self.capacity - self.free
    }

    fn insert(&mut self, run: Run) {
        self.by_offset.insert(run.offset, run.len);
        self.by_len.insert((run.len, run.offset));
        self.free += run.len;
    }

    fn remove(&mut self, run: Run) {
        self.by_offset.remove(&run.offset);
        self.by_len.remove(&(run.len, run.offset));
        self.free -= run.len;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn indices_start_at_one_fill_gaps_first_and_end_with_the_array() {
        let mut indices = Indices::new(5, &BTreeSet::from([1, 3]));
        assert_eq!(indices.used(), 3);
        assert_eq!([indices.take(), indices.take(), indices.take()], [Some(2), Some(4), None]);
        indices.give(3);
        assert_eq!([indices.take(), indices.take()], [Some(3), None]);
    }

    #[test]
    fn runs_fill_the_gaps_that_adoption_left() {
        let used = [Run { offset: 2, len: 3 }, Run { offset: 8, len: 2 }];
        let mut runs = Runs::new(12, used);
        assert_eq!(runs.used(), 5);
        assert_eq!(runs.take(3), Some(Run { offset: 5, len: 3 }));
        assert_eq!(runs.take(3), None);
        assert_eq!(runs.take(2), Some(Run { offset: 0, len: 2 }));
        assert_eq!(runs.take(0), Some(Run::default()));
    }

    proptest! {
        #[test]
        fn runs_never_overlap_and_all_come_back(
            steps in prop::collection::vec((1u32..40, any::<prop::sample::Index>(), any::<bool>()), 1..200),
        ) {
            let mut runs = Runs::new(500, []);
            let mut held: Vec<Run> = Vec::new();
            for (len, pick, give) in steps {
                if give && !held.is_empty() {
                    runs.give(held.swap_remove(pick.index(held.len())));
                } else if let Some(run) = runs.take(len) {
                    prop_assert!(run.offset + run.len <= 500);
                    for other in &held {
                        prop_assert!(run.offset + run.len <= other.offset || other.offset + other.len <= run.offset);
                    }
                    held.push(run);
                }
                prop_assert_eq!(runs.used(), held.iter().map(|run| run.len).sum::<u32>());
            }
            for run in held.drain(..) {
                runs.give(run);
            }
            prop_assert_eq!(runs.take(500), Some(Run { offset: 0, len: 500 }));
        }
    }
}
