//! Quantiles out of a page of metrics.

use crate::inspect::status::Latency;

const PROGRAMMING: &str = "lb_agent_programming_duration_seconds_bucket{le=\"";

/// From a decoded change to the kernel's tables; `None` before the first change.
pub fn programming(page: &str) -> Option<Latency> {
    let buckets: Vec<(f64, u64)> = page
        .lines()
        .filter_map(|line| line.strip_prefix(PROGRAMMING)?.split_once("\"} "))
        .filter_map(|(bound, count)| Some((bound.parse().ok()?, count.trim().parse().ok()?)))
        .collect();
    let count = buckets.last()?.1;
    (count > 0).then(|| Latency {
        changes: count,
        p50_seconds: quantile(&buckets, 0.5),
        p99_seconds: quantile(&buckets, 0.99),
    })
}

/// As PromQL's `histogram_quantile`: linear within a bucket, and the last finite bound beyond it.
fn quantile(buckets: &[(f64, u64)], quantile: f64) -> f64 {
    // Exact below 2⁵³ changes.
    let rank = buckets.last().map_or(0.0, |(_, count)| *count as f64) * quantile;
    let (mut lower, mut before) = (0.0, 0.0);
    for (bound, count) in buckets {
        let count = *count as f64;
        if count >= rank {
            let share = (rank - before) / (count - before);
            return if bound.is_finite() { lower + (bound - lower) * share } else { lower };
        }
        (lower, before) = (*bound, count);
    }
    lower
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(buckets: &[(&str, u64)]) -> String {
        let line = |(bound, count): &(&str, u64)| format!("{PROGRAMMING}{bound}\"}} {count}\n");
        buckets.iter().map(line).collect()
    }

    #[test]
    fn quantiles_are_prometheus_own() {
        let page = page(&[("0.001", 40), ("0.002", 90), ("0.004", 98), ("+Inf", 100)]);
        let latency = programming(&page).unwrap();
        assert_eq!(latency.changes, 100);
        // histogram_quantile(0.5): 0.001 + 0.001 * (50 - 40) / 50.
        assert!((latency.p50_seconds - 0.0012).abs() < 1e-9, "{latency:?}");
        assert!((latency.p99_seconds - 0.004).abs() < 1e-9, "{latency:?}");
    }

    #[test]
    fn nothing_was_programmed_yet() {
        assert_eq!(programming(&page(&[("0.001", 0), ("+Inf", 0)])), None);
        assert_eq!(programming("# nothing\n"), None);
    }
}
