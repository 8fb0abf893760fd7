//! Samples and what is said of them. Nanoseconds everywhere.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Durations of one operation, many times.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Samples(pub Vec<u64>);

impl Samples {
    /// The value below which `percent` of the samples are; 0 without samples.
    pub fn percentile(&self, percent: usize) -> u64 {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let index = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
        sorted.get(index).copied().unwrap_or_default()
    }

    /// The middle one.
    pub fn median(&self) -> u64 {
        self.percentile(50)
    }
}

/// A duration in nanoseconds.
pub(super) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Shows a duration with three digits.
pub(super) fn time(nanos: u64) -> String {
    let nanos = nanos as f64;
    match nanos {
        n if n < 1e3 => format!("{n:.0} ns"),
        n if n < 1e4 => format!("{:.2} µs", n / 1e3),
        n if n < 1e5 => format!("{:.1} µs", n / 1e3),
        n if n < 1e6 => format!("{:.0} µs", n / 1e3),
        n if n < 1e7 => format!("{:.2} ms", n / 1e6),
        n if n < 1e8 => format!("{:.1} ms", n / 1e6),
        n => format!("{:.0} ms", n / 1e6),
    }
}

/// How much greater than `base` a value is, in percent.
pub(super) fn excess(value: u64, base: u64) -> f64 {
    (value as f64 / base.max(1) as f64 - 1.0) * 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_a_hundred_samples_are_those_samples() {
        let samples = Samples((0..100).rev().collect());
        for (percent, value) in [(0, 0), (50, 50), (99, 99), (100, 99)] {
            assert_eq!(samples.percentile(percent), value);
        }
        assert_eq!(Samples::default().median(), 0);
    }

    #[test]
    fn times_have_three_digits() {
        for (nanos, text) in
            [(0, "0 ns"), (999, "999 ns"), (1_234, "1.23 µs"), (99_900_000, "99.9 ms")]
        {
            assert_eq!(time(nanos), text);
        }
    }
}
