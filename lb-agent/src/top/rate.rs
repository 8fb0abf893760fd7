//! What counters grow by in a second, between two looks and over the last of them.

use std::collections::VecDeque;
use std::ops::Index;
use std::time::Instant;

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// Times that an endpoint was chosen.
    Connections,
    /// Packets in both directions.
    Packets,
    /// Bytes in both directions.
    Bytes,
    /// Packets and connections that were not served.
    Drops,
}

impl Metric {
    /// In the order of [`PerMetric`].
    pub const ALL: [Self; 4] = [Self::Connections, Self::Packets, Self::Bytes, Self::Drops];
}

/// A value for each [`Metric`].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PerMetric<T>(pub [T; 4]);

impl<T> Index<Metric> for PerMetric<T> {
    type Output = T;

    fn index(&self, metric: Metric) -> &T {
        &self.0[metric as usize]
    }
}

/// Counters as they are; `None` when there was nothing to count, such as packets behind sockets.
pub type Counts = PerMetric<Option<u64>>;
/// What they grow by in a second; `None` when that isn't known.
pub type Rates = PerMetric<Option<f64>>;

/// One counter at its last look.
#[derive(Clone, Copy, Debug)]
struct Counter {
    value: u64,
    at: Instant,
    fell: bool,
}

impl Counter {
    fn new(value: u64, at: Instant) -> Self {
        Self { value, at, fell: false }
    }

    /// A counter falls when it is made anew, or for a moment, while the agent moves what endpoints had
    /// that left. So it is believed when it is still lower at the second look. Never a negative rate.
    fn look(&mut self, value: u64, at: Instant) -> Option<f64> {
        let Some(growth) = value.checked_sub(self.value) else {
            let is_new = self.fell;
            *self = if is_new { Self::new(value, at) } else { Self { fell: true, ..*self } };
            return None;
        };
        let seconds = at.saturating_duration_since(self.at).as_secs_f64();
        *self = Self::new(value, at);
        // Exact below 2⁵³.
        (seconds > 0.0).then(|| growth as f64 / seconds)
    }
}

/// The last rates, the newest at the end. Four bytes for each value: thousands of rows have one.
#[derive(Clone, Debug)]
pub struct History {
    values: VecDeque<PerMetric<f32>>,
    room: usize,
}

impl History {
    /// An empty one for `room` looks.
    pub fn new(room: usize) -> Self {
        Self { values: VecDeque::new(), room }
    }

    /// Adds the rates of a look; what isn't known is a gap.
    pub fn push(&mut self, rates: Rates) {
        if self.values.len() == self.room {
            self.values.pop_front();
        }
        self.values
            .push_back(PerMetric(rates.0.map(|rate| rate.map_or(f32::NAN, |rate| rate as f32))));
    }

    /// The last `width` values of `metric`; `None` for gaps, and in front of the first look.
    pub fn last(&self, metric: Metric, width: usize) -> Vec<Option<f32>> {
        let skipped = self.values.len().saturating_sub(width);
        let known = self.values.iter().skip(skipped).map(|values| values[metric]);
        let missing = width.saturating_sub(self.values.len());
        let known = known.map(|value| Some(value).filter(|value| !value.is_nan()));
        std::iter::repeat_n(None, missing).chain(known).collect()
    }
}

/// All counters of a row through its looks.
#[derive(Clone, Debug)]
pub struct Track {
    counters: [Counter; 4],
    rates: Rates,
    history: History,
}

impl Track {
    /// The first look: no rates yet.
    pub fn new(counts: Counts, at: Instant, room: usize) -> Self {
        let counters = counts.0.map(|count| Counter::new(count.unwrap_or_default(), at));
        Self { counters, rates: Rates::default(), history: History::new(room) }
    }

    /// Another look.
    pub fn look(&mut self, counts: Counts, at: Instant) {
        for (index, counter) in self.counters.iter_mut().enumerate() {
            // Nothing to count so far is a count of nothing, once there is.
            self.rates.0[index] = counts.0[index].and_then(|count| counter.look(count, at));
        }
        self.history.push(self.rates);
    }

    /// Of the last look.
    pub fn rates(&self) -> &Rates {
        &self.rates
    }

    /// Of all looks that are kept.
    pub fn history(&self) -> &History {
        &self.history
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn counts(connections: u64, packets: Option<u64>) -> Counts {
        PerMetric([Some(connections), packets, None, Some(0)])
    }

    #[test]
    fn rates_are_by_the_time_that_went_by() {
        let start = Instant::now();
        let mut track = Track::new(counts(10, Some(5)), start, 3);
        assert_eq!(*track.rates(), Rates::default(), "nothing before the first look");
        track.look(counts(30, Some(5)), start + Duration::from_secs(2));
        assert_eq!(track.rates().0, [Some(10.0), Some(0.0), None, Some(0.0)]);
        track.look(counts(31, Some(9)), start + Duration::from_millis(2_500));
        assert_eq!(track.rates().0, [Some(2.0), Some(8.0), None, Some(0.0)]);
    }

    #[test]
    fn what_begins_to_be_counted_was_nothing_before() {
        let start = Instant::now();
        let mut track = Track::new(counts(1, None), start, 3);
        track.look(counts(1, Some(7)), start + Duration::from_secs(1));
        assert_eq!(track.rates()[Metric::Packets], Some(7.0));
    }

    #[test]
    fn a_counter_that_fell_for_a_moment_goes_on_and_one_made_anew_begins_anew() {
        let start = Instant::now();
        let second = |n| start + Duration::from_secs(n);
        let mut counter = Counter::new(100, start);
        assert_eq!(counter.look(40, second(1)), None);
        assert_eq!(counter.look(120, second(2)), Some(10.0), "20 in two seconds, not 80 in one");
        assert_eq!(counter.look(3, second(3)), None);
        assert_eq!(counter.look(4, second(4)), None);
        assert_eq!(counter.look(9, second(5)), Some(5.0));
        assert_eq!(counter.look(9, second(5)), None, "no time went by");
    }

    #[test]
    fn a_history_keeps_the_last_and_fills_its_front() {
        let mut history = History::new(3);
        for connections in [Some(1.0), None, Some(3.0), Some(4.0)] {
            history.push(PerMetric([connections, None, None, None]));
        }
        let last = |width| history.last(Metric::Connections, width);
        assert_eq!(last(2), [Some(3.0), Some(4.0)]);
        assert_eq!(last(5), [None, None, None, Some(3.0), Some(4.0)], "the first was pushed out");
        assert_eq!(history.last(Metric::Bytes, 1), [None]);
    }
}
