//! What the guests said, and the tables made of it.
//!
//! A guest's console holds the lines of its tests, `vm: program NAME INSTRUCTIONS` for every program that the
//! verifier let pass, and at the end `vm: N passed, N failed`.

use super::qemu::Console;
use std::collections::BTreeMap;
use std::fmt::Write;

/// What one kernel's guest reported.
#[derive(Debug)]
pub struct Report {
    pub suite: String,
    /// As `uname -r` printed it; empty when it did not come so far.
    pub release: String,
    pub passed: u32,
    pub failed: u32,
    pub seconds: f32,
    /// Verified instructions by program.
    programs: BTreeMap<String, u32>,
}

impl Report {
    /// Reads a console; `None` when the guest ended without its last word.
    pub fn read(suite: &str, release: &str, console: &Console) -> Option<Self> {
        let lines = || console.text.lines().filter_map(|line| line.strip_prefix("vm: "));
        let (passed, failed) = lines().rev().find_map(|line| {
            let (passed, failed) = line.split_once(" passed, ")?;
            Some((passed.parse().ok()?, failed.strip_suffix(" failed")?.parse().ok()?))
        })?;
        let programs = lines().filter_map(|line| {
            let (name, instructions) = line.strip_prefix("program ")?.split_once(' ')?;
            Some((name.to_owned(), instructions.parse().ok()?))
        });
        Some(Self {
            suite: suite.to_owned(),
            release: release.to_owned(),
            passed,
            failed,
            seconds: console.seconds,
            programs: programs.collect(),
        })
    }

    /// A kernel on which nothing could be tested: one failure.
    pub fn broken(suite: &str) -> Self {
        Self {
            suite: suite.to_owned(),
            release: String::new(),
            passed: 0,
            failed: 1,
            seconds: 0.0,
            programs: BTreeMap::new(),
        }
    }
}

/// Verified instructions per program and kernel, then the results per kernel.
pub fn tables(reports: &[Report]) -> String {
    let mut text = String::new();
    // Writing to a string can't fail.
    let _ = write_programs(&mut text, reports);
    let _ = write_results(&mut text, reports);
    text
}

fn write_programs(text: &mut String, reports: &[Report]) -> std::fmt::Result {
    let mut names: Vec<&String> =
        reports.iter().flat_map(|report| report.programs.keys()).collect();
    names.sort();
    names.dedup();
    if names.is_empty() {
        return Ok(());
    }
    write!(text, "{:24}", "verified instructions")?;
    for report in reports {
        write!(text, " {:>18}", report.suite)?;
    }
    writeln!(text)?;
    for name in names {
        write!(text, "{name:24}")?;
        for report in reports {
            let cell = report.programs.get(name).map_or("-".to_owned(), u32::to_string);
            write!(text, " {cell:>18}")?;
        }
        writeln!(text)?;
    }
    writeln!(text)
}

fn write_results(text: &mut String, reports: &[Report]) -> std::fmt::Result {
    let heads = ("suite", "kernel", "passed", "failed", "seconds");
    writeln!(text, "{:18} {:32} {:>6} {:>6} {:>7}", heads.0, heads.1, heads.2, heads.3, heads.4)?;
    for Report { suite, release, passed, failed, seconds, .. } in reports {
        writeln!(text, "{suite:18} {release:32} {passed:>6} {failed:>6} {seconds:>7.1}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Ending;
    use std::time::Duration;

    fn console(text: &str) -> Console {
        let ending = Ending::TimedOut(Duration::ZERO);
        Console { text: text.to_owned(), ending, seconds: 1.5 }
    }

    #[test]
    fn a_guest_without_its_last_word_has_no_report() {
        assert!(Report::read("bookworm", "6.1", &console("test a ... ok\n")).is_none());
    }

    #[test]
    fn results_and_instructions_are_read_and_set_side_by_side() {
        let old = console("vm: program lb_xdp 12\nkernel noise\nvm: 3 passed, 1 failed\n");
        let new = console("vm: program lb_xdp 15\nvm: program lb_tc 7\nvm: 4 passed, 0 failed\n");
        let reports = [
            Report::read("bookworm", "6.1", &old).expect("a report"),
            Report::read("trixie", "6.12", &new).expect("a report"),
        ];
        assert_eq!((reports[0].passed, reports[0].failed), (3, 1));
        let words: Vec<Vec<_>> = tables(&reports)
            .lines()
            .map(|line| line.split_whitespace().map(str::to_owned).collect())
            .collect();
        assert_eq!(words[1], ["lb_tc", "-", "7"]);
        assert_eq!(words[2], ["lb_xdp", "12", "15"]);
        assert_eq!(words[5], ["bookworm", "6.1", "3", "1", "1.5"]);
    }
}
