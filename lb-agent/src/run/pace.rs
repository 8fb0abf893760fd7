//! When to write: the first change at once, a burst in batches.

use std::time::{Duration, Instant};

/// Longest pause between two writes of a burst: what a change waits at worst.
const LONGEST: Duration = Duration::from_millis(50);
/// Shorter pauses are not worth a timer, whose granularity is a millisecond; what arrives during
/// such a short write is batched by the channel anyway.
const SHORTEST: Duration = Duration::from_millis(1);
/// A write is followed by a pause this many times as long: a burst takes a fifth of one core.
const FACTOR: u32 = 4;

/// Decides how long a write must wait after the one before.
#[derive(Debug, Default)]
pub struct Pace {
    not_before: Option<Instant>,
}

impl Pace {
    /// A write ended at `now` and took `took`.
    pub fn wrote(&mut self, now: Instant, took: Duration) {
        let pause = took.saturating_mul(FACTOR).min(LONGEST);
        self.not_before = (pause >= SHORTEST).then(|| now + pause);
    }

    /// A write failed; the next try is due after `pause`.
    pub fn failed(&mut self, now: Instant, pause: Duration) {
        self.not_before = Some(now + pause);
    }

    /// When the next write may begin, if that is later than `now`.
    pub fn wait_until(&self, now: Instant) -> Option<Instant> {
        self.not_before.filter(|instant| *instant > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_waits_for_four_times_what_the_last_one_took_but_never_long() {
        let now = Instant::now();
        for (took_us, expected_us) in [
            (0, None),
            (200, None),
            (250, Some(1_000)),
            (3_000, Some(12_000)),
            (900_000, Some(50_000)),
        ] {
            let mut pace = Pace::default();
            pace.wrote(now, Duration::from_micros(took_us));
            let expected = expected_us.map(|us| now + Duration::from_micros(us));
            assert_eq!(pace.wait_until(now), expected, "{took_us} µs");
            assert_eq!(pace.wait_until(now + LONGEST), None);
        }
    }

    #[test]
    fn the_first_write_waits_for_nothing() {
        assert_eq!(Pace::default().wait_until(Instant::now()), None);
    }
}
