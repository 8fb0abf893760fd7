//! Rows through their samples: what each grew by, in which order they are shown, which is chosen.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::time::Instant;

use super::rate::{Counts, Metric, Track};
use super::sample::Row;
use crate::args::Column;

/// Looks that a row remembers. A kilobyte for each Service port.
const REMEMBERED: usize = 60;

/// The order of rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Order {
    /// By this; numbers downwards, names upwards.
    pub column: Column,
    /// The other way round.
    pub reversed: bool,
}

/// One row with what became of it.
#[derive(Clone, Debug)]
pub struct Entry<R> {
    /// As it is.
    pub row: R,
    /// Its counters.
    pub counts: Counts,
    /// What they grow by.
    pub track: Track,
}

impl<R> Entry<R> {
    /// What it is sorted by; what isn't known comes after nothing. Equal ones by what was counted so far.
    fn weight(&self, column: Column) -> [f64; 3] {
        let rate = |metric| self.track.rates()[metric].unwrap_or(-1.0);
        // Exact below 2⁵³.
        let count = |metric| self.counts[metric].map_or(-1.0, |count| count as f64);
        let first = match column {
            Column::Name => return [0.0; 3],
            Column::Connections => rate(Metric::Connections),
            Column::Packets => rate(Metric::Packets),
            Column::Bytes => rate(Metric::Bytes),
            Column::Drops => rate(Metric::Drops),
            Column::AllConnections => count(Metric::Connections),
            Column::AllBytes => count(Metric::Bytes),
            Column::AllDrops => count(Metric::Drops),
        };
        [first, count(Metric::Connections), count(Metric::Drops)]
    }
}

/// Rows of one kind.
#[derive(Clone, Debug)]
pub struct List<R: Row> {
    /// As they came: sorted by name.
    entries: Vec<Entry<R>>,
    /// Those that are shown, in their order.
    shown: Vec<usize>,
    cursor: usize,
    /// The row that somebody chose: the cursor stays with it, wherever it goes.
    held: Option<R::Key>,
}

impl<R: Row> Default for List<R> {
    fn default() -> Self {
        Self { entries: Vec::new(), shown: Vec::new(), cursor: 0, held: None }
    }
}

impl<R: Row> List<R> {
    /// Another look; [`arrange`](Self::arrange) follows.
    pub fn look(&mut self, rows: Vec<R>, at: Instant) {
        let before = std::mem::take(&mut self.entries).into_iter();
        let mut tracks: HashMap<R::Key, Track> =
            before.map(|entry| (entry.row.key(), entry.track)).collect();
        let entry = |row: R| {
            let counts = row.counts();
            let track = match tracks.remove(&row.key()) {
                Some(mut track) => {
                    track.look(counts, at);
                    track
                }
                None => Track::new(counts, at, REMEMBERED),
            };
            Entry { row, counts, track }
        };
        self.entries = rows.into_iter().map(entry).collect();
    }

    /// Chooses and sorts what is shown: rows whose name holds `search`.
    pub fn arrange(&mut self, order: Order, search: &str) {
        let entries = &self.entries;
        let is_shown = |index: &usize| {
            search.is_empty() || entries.get(*index).is_some_and(|e| e.row.name().contains(search))
        };
        self.shown = (0..entries.len()).filter(is_shown).collect();
        let weight = |index: &usize| entries.get(*index).map(|e| e.weight(order.column));
        // Stable: equal ones stay sorted by name. No weight is a NaN.
        self.shown.sort_by(|a, b| weight(b).partial_cmp(&weight(a)).unwrap_or(Ordering::Equal));
        if order.reversed {
            self.shown.reverse();
        }
        self.follow();
    }

    fn follow(&mut self) {
        let held = self
            .held
            .as_ref()
            .and_then(|held| self.shown().position(|entry| entry.row.key() == *held));
        if held.is_none() {
            self.held = None;
        }
        self.cursor = held.unwrap_or(self.cursor).min(self.shown.len().saturating_sub(1));
    }

    /// Moves the cursor by rows, up or down, as far as there are any.
    pub fn step(&mut self, rows: isize) {
        let last = self.shown.len().saturating_sub(1);
        self.cursor = self.cursor.saturating_add_signed(rows).min(last);
        self.held = self.chosen().map(|entry| entry.row.key());
    }

    /// Number of rows, shown or not.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Number of rows that are shown.
    pub fn shown_len(&self) -> usize {
        self.shown.len()
    }

    /// All rows, sorted by name.
    pub fn all(&self) -> &[Entry<R>] {
        &self.entries
    }

    /// Those that are shown, in their order.
    pub fn shown(&self) -> impl Iterator<Item = &Entry<R>> {
        self.shown.iter().filter_map(|index| self.entries.get(*index))
    }

    /// Where the cursor is among those that are shown.
    pub fn cursor(&self) -> usize {
        self.cursor
    }

    /// What it is on.
    pub fn chosen(&self) -> Option<&Entry<R>> {
        self.entries.get(*self.shown.get(self.cursor)?)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::top::rate::PerMetric;

    struct Plain(&'static str, u64);

    impl Row for Plain {
        type Key = &'static str;
        fn key(&self) -> Self::Key {
            self.0
        }
        fn name(&self) -> String {
            self.0.to_owned()
        }
        fn counts(&self) -> Counts {
            PerMetric([Some(self.1), None, None, Some(0)])
        }
    }

    fn names(list: &List<Plain>) -> Vec<&'static str> {
        list.shown().map(|entry| entry.row.0).collect()
    }

    /// After two looks: a grows by 1, b by 9, c by nothing; d is new.
    fn list() -> List<Plain> {
        let start = Instant::now();
        let mut list = List::default();
        list.look(vec![Plain("a", 100), Plain("b", 1), Plain("c", 50)], start);
        let rows = vec![Plain("a", 101), Plain("b", 10), Plain("c", 50), Plain("d", 7)];
        list.look(rows, start + Duration::from_secs(1));
        list.arrange(Order::default(), "");
        list
    }

    #[test]
    fn rows_are_sorted_by_any_column_and_equal_ones_by_what_was_counted() {
        let mut list = list();
        assert_eq!(names(&list), ["b", "a", "c", "d"], "a rate that isn't known comes last");
        for (column, expected) in [
            (Column::Name, ["a", "b", "c", "d"]),
            (Column::AllConnections, ["a", "c", "b", "d"]),
            (Column::Packets, ["a", "c", "b", "d"]),
        ] {
            list.arrange(Order { column, reversed: false }, "");
            assert_eq!(names(&list), expected, "{column:?}");
            list.arrange(Order { column, reversed: true }, "");
            assert_eq!(names(&list), expected.into_iter().rev().collect::<Vec<_>>(), "{column:?}");
        }
    }

    #[test]
    fn the_cursor_stays_at_the_top_until_somebody_chooses_and_then_with_the_row() {
        let mut list = list();
        let chosen = |list: &List<Plain>| list.chosen().map(|entry| entry.row.0);
        assert_eq!(chosen(&list), Some("b"));
        list.arrange(Order { column: Column::Name, reversed: false }, "");
        assert_eq!(chosen(&list), Some("a"));
        list.step(2);
        assert_eq!(chosen(&list), Some("c"));
        list.arrange(Order { column: Column::Name, reversed: true }, "");
        assert_eq!((chosen(&list), list.cursor()), (Some("c"), 1));
        list.step(-9);
        assert_eq!(chosen(&list), Some("d"));
        list.step(9);
        assert_eq!(chosen(&list), Some("a"));
        list.look(vec![Plain("c", 1)], Instant::now());
        list.arrange(Order::default(), "");
        assert_eq!((chosen(&list), list.cursor()), (Some("c"), 0), "the chosen one is gone");
        list.look(Vec::new(), Instant::now());
        list.arrange(Order::default(), "");
        assert_eq!(chosen(&list), None);
        list.step(1);
    }

    #[test]
    fn a_search_leaves_what_it_finds_and_forgets_nothing() {
        let mut list = list();
        list.arrange(Order::default(), "a");
        assert_eq!((names(&list), list.shown_len(), list.len()), (vec!["a"], 1, 4));
        list.arrange(Order::default(), "");
        assert_eq!(list.shown_len(), 4);
    }
}
