//! Is the machine quiet? Other programs make every figure doubtful; the report says so.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::report::Report;

/// Share of all CPUs that others may use.
const BUSY: f64 = 0.05;
/// Longest wait for the build's or somebody else's end.
const PATIENCE: Duration = Duration::from_secs(15);

/// Waits for a quiet machine, and warns if it doesn't become one. (The load average would still
/// show the build that has just ended.)
pub(super) fn wait(report: &mut Report) -> Result<()> {
    let started = Instant::now();
    let mut busy = busy(Duration::from_secs(1))?;
    while busy > BUSY && started.elapsed() < PATIENCE {
        eprintln!("bench: waiting for a quiet machine ({:.0} % busy)", busy * 100.0);
        busy = self::busy(Duration::from_secs(3))?;
    }
    if busy > BUSY {
        report.warn(&format!(
            "other programs used {:.0} % of the CPUs when this run began; repeat it on a quiet machine",
            busy * 100.0
        ));
    }
    Ok(())
}

/// The share of CPU time that wasn't idle.
fn busy(period: Duration) -> Result<f64> {
    let (idle, all) = ticks()?;
    std::thread::sleep(period);
    let (idle_after, all_after) = ticks()?;
    let all = all_after.saturating_sub(all).max(1);
    Ok(1.0 - idle_after.saturating_sub(idle) as f64 / all as f64)
}

/// Idle ticks and all ticks since boot (proc_stat(5)).
fn ticks() -> Result<(u64, u64)> {
    let text = std::fs::read_to_string("/proc/stat").context("read /proc/stat")?;
    let line = text.lines().next().unwrap_or_default();
    let fields: Vec<u64> = line.split_whitespace().skip(1).flat_map(str::parse).collect();
    let idle = fields.iter().skip(3).take(2).sum();
    // Guest time is part of user time.
    Ok((idle, fields.iter().take(8).sum()))
}
