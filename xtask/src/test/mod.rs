//! `cargo xtask test`: everything, with one sum at the end.
//!
//! Decides the order: setup, one build, then the suites in lanes. How a suite's output is read and which
//! suites there are is decided in the files below.

mod outcome;
mod suite;

use crate::Reported;
use crate::artifacts;
use crate::process;
use crate::progress::Progress;
use crate::setup::{self, Purpose};
use crate::workspace;
use anyhow::{Context, Result, bail, ensure};
use outcome::Outcome;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use suite::{Lane, Suite};

/// How many lines of a failed suite's log are shown; the whole log stays in its file.
const SHOWN_LINES: usize = 150;

/// Run every test suite and sum up
///
/// Sets the machine up first. The last line is `N passed, N failed`; each suite's whole output is in
/// target/test-logs.
#[derive(clap::Args)]
pub struct Args {
    /// Only this suite, such as lb-agent, packet, netns, cluster, vm, demo (may be given several times)
    #[arg(long = "suite")]
    suites: Vec<String>,
    /// Only the tests whose name contains this
    #[arg(long)]
    filter: Option<String>,
}

/// How a suite ended.
struct Report {
    suite: String,
    outcome: Outcome,
    /// Why it failed, though perhaps no test did.
    trouble: Option<String>,
    log: PathBuf,
}

impl Report {
    fn is_success(&self) -> bool {
        self.trouble.is_none() && self.outcome.failed == 0
    }
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    let started = Instant::now();
    setup::ensure(Purpose::Test)?;
    let artifacts = artifacts::build()?;
    let environment = suite::environment(&artifacts)?;
    let suites = choose(suite::all(&artifacts, args.filter.as_deref())?, args)?;
    let runner = Runner {
        environment,
        logs: workspace::target_dir().join("test-logs"),
        progress: Progress::new(),
        filtered: args.filter.is_some(),
    };
    std::fs::create_dir_all(&runner.logs)
        .with_context(|| format!("create {}", runner.logs.display()))?;
    let reports = runner.run_lanes(suites);
    summarise(&reports, started.elapsed())
}

/// Leaves the suites that were asked for.
fn choose(suites: Vec<Suite>, args: &Args) -> Result<Vec<Suite>> {
    let names: Vec<_> = suites.iter().map(|suite| suite.name.clone()).collect();
    for wanted in &args.suites {
        ensure!(names.contains(wanted), "no suite {wanted}; there are {}", names.join(", "));
    }
    let wanted = |suite: &Suite| args.suites.is_empty() || args.suites.contains(&suite.name);
    Ok(suites.into_iter().filter(wanted).collect())
}

/// What all suites share.
struct Runner {
    environment: Vec<(String, OsString)>,
    logs: PathBuf,
    progress: Progress,
    /// With a filter, a suite may find none of its tests wanted.
    filtered: bool,
}

impl Runner {
    /// Runs each lane in a thread.
    fn run_lanes(&self, suites: Vec<Suite>) -> Vec<Report> {
        let (pure, network): (Vec<_>, Vec<_>) =
            suites.into_iter().partition(|suite| suite.lane == Lane::Pure);
        let lane = |suites: Vec<Suite>| -> Vec<Report> {
            suites.iter().map(|suite| self.run_suite(suite)).collect()
        };
        std::thread::scope(|scope| {
            let pure = scope.spawn(|| lane(pure));
            let mut reports = lane(network);
            match pure.join() {
                Ok(others) => reports.splice(0..0, others),
                Err(panic) => std::panic::resume_unwind(panic),
            };
            reports
        })
    }

    fn run_suite(&self, suite: &Suite) -> Report {
        let log = self.logs.join(format!("{}.log", suite.name));
        let mut outcome = Outcome::default();
        let trouble =
            self.run_all(suite, &log, &mut outcome).err().map(|error| format!("{error:#}"));
        let report = Report { suite: suite.name.clone(), outcome, trouble, log };
        if !report.is_success() {
            self.progress.line(&failure_text(&report));
        }
        report
    }

    /// Runs the suite's programs one after another, adding to `outcome`.
    ///
    /// # Errors
    /// What makes the suite fail although perhaps no test did.
    fn run_all(&self, suite: &Suite, log: &Path, outcome: &mut Outcome) -> Result<()> {
        let mut step = self.progress.step(&suite.name, "started");
        let started = Instant::now();
        let mut whole = String::new();
        let mut trouble = None;
        for run in &suite.runs {
            let limit = suite.limit.saturating_sub(started.elapsed());
            let ending =
                process::run_logged(&mut run.command(&self.environment)?, log, limit, &mut step)?;
            let bytes = std::fs::read(log).with_context(|| format!("read {}", log.display()))?;
            let text = String::from_utf8_lossy(&bytes);
            let result = Outcome::read(&text);
            if !ending.success() && result.failed == 0 {
                trouble = Some(format!("{run} failed: {ending}"));
            }
            outcome.add(result);
            whole.push_str(&text);
        }
        std::fs::write(log, &whole).with_context(|| format!("write {}", log.display()))?;
        let Outcome { passed, failed, ignored, skipped, .. } = &*outcome;
        step.finish(&format!("{passed} passed, {failed} failed, {ignored} ignored"));
        if let Some(trouble) = trouble {
            bail!(trouble);
        }
        // Everything a test may lack, setup has installed: a skipped test is one that nobody runs.
        ensure!(skipped.is_empty(), "tests were skipped: {}", skipped.join("; "));
        let ran = passed + failed > 0;
        ensure!(ran || !suite.required || self.filtered, "the suite ran no test");
        Ok(())
    }
}

/// What is shown of a suite that failed.
fn failure_text(report: &Report) -> String {
    let log = std::fs::read(&report.log).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    let lines: Vec<_> = log.lines().collect();
    // libtest repeats the output of failed tests from here on; other programs end with what failed.
    let failures = lines.iter().rposition(|line| line.trim() == "failures:");
    let before = failures.map(|last| lines.iter().take(last));
    let first = before.and_then(|mut lines| lines.position(|line| line.trim() == "failures:"));
    let from = first.unwrap_or(lines.len().saturating_sub(SHOWN_LINES));
    let shown = lines.iter().skip(from).take(SHOWN_LINES).copied().collect::<Vec<_>>().join("\n");
    let trouble = report.trouble.as_deref().unwrap_or("tests failed");
    format!("---- {}: {trouble}\n{shown}\n---- whole log: {}", report.suite, report.log.display())
}

fn summarise(reports: &[Report], duration: Duration) -> Result<()> {
    let mut total = Outcome::default();
    let mut broken = 0;
    println!("\n{:14} {:>7} {:>7} {:>8}", "suite", "passed", "failed", "ignored");
    for Report { suite, outcome, trouble, .. } in reports {
        let Outcome { passed, failed, ignored, failures, .. } = outcome;
        println!("{suite:14} {passed:>7} {failed:>7} {ignored:>8}");
        for failure in failures {
            println!("    FAILED {failure}");
        }
        if let Some(trouble) = trouble {
            println!("    {trouble}");
            // The sum at the end must not look like success.
            broken += u32::from(outcome.failed == 0);
        }
        total.add(outcome.clone());
    }
    if total.passed == 0 && broken == 0 {
        println!("no test ran");
        broken = 1;
    }
    println!("{} s; each suite's output is in target/test-logs", duration.as_secs());
    let failed = total.failed + broken;
    println!("{} passed, {failed} failed", total.passed);
    if failed > 0 {
        bail!(Reported);
    }
    Ok(())
}
