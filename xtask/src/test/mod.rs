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
use std::sync::mpsc;
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
    /// Only this suite, such as lb-agent, packet, netns, cluster, e2e, vm, demo (may be given several times)
    #[arg(long = "suite")]
    suites: Vec<String>,
    /// Only the tests whose name contains this
    #[arg(long)]
    filter: Option<String>,
    /// So many random cases of the contract instead of the usual number: a long search, with
    /// --suite model (or packet, socket)
    #[arg(long, requires = "suites")]
    cases: Option<u32>,
}

/// How a suite ended.
struct Report {
    suite: String,
    outcome: Outcome,
    /// Why it failed, though perhaps no test did.
    trouble: Option<String>,
    /// Why it did not run, which is no failure.
    left_out: Option<String>,
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
    // Docker is installed for those alone who ask for what needs it.
    let containers = args.suites.iter().any(|suite| suite == "e2e");
    setup::ensure(if containers { Purpose::E2e } else { Purpose::Test })?;
    let artifacts = artifacts::build()?;
    let environment = suite::environment(&artifacts, args.cases)?;
    let mut suites = choose(suite::all(&artifacts, args.filter.as_deref())?, args)?;
    for suite in &mut suites {
        suite.limit = suite::with_cases(suite.limit, args.cases);
    }
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
    let mut suites = suites;
    if !args.suites.is_empty() {
        suites.retain(|suite| args.suites.contains(&suite.name));
        for suite in &mut suites {
            suite.left_out = None;
        }
    }
    Ok(suites)
}

/// The suite that counts lost requests while it restarts agents.
const MEASURES: &str = "netns";
/// The suite that emulates processors.
const EMULATES: &str = "vm";

/// What all suites share.
struct Runner {
    environment: Vec<(String, OsString)>,
    logs: PathBuf,
    progress: Progress,
    /// With a filter, a suite may find none of its tests wanted.
    filtered: bool,
}

impl Runner {
    /// Runs each lane in a thread. The emulated machines wait until the suite has ended that counts what is
    /// lost under load: beside them there are no processors left for what it measures.
    fn run_lanes(&self, suites: Vec<Suite>) -> Vec<Report> {
        let (pure, network): (Vec<_>, Vec<_>) =
            suites.into_iter().partition(|suite| suite.lane == Lane::Pure);
        let (measures, measured) = mpsc::channel::<()>();
        std::thread::scope(move |scope| {
            let mut measures =
                network.iter().any(|suite| suite.name == MEASURES).then_some(measures);
            let pure = scope.spawn(move || -> Vec<Report> {
                let run = |suite: &Suite| {
                    if suite.name == EMULATES {
                        // Ends with the sender: nothing is sent.
                        let _ended = measured.recv();
                    }
                    self.run_suite(suite)
                };
                pure.iter().map(run).collect()
            });
            let run = |suite: &Suite| {
                let report = self.run_suite(suite);
                if suite.name == MEASURES {
                    measures = None;
                }
                report
            };
            let mut reports: Vec<Report> = network.iter().map(run).collect();
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
        let trouble = match &suite.left_out {
            Some(_) => None,
            None => self.run_all(suite, &log, &mut outcome).err(),
        };
        let trouble = trouble.map(|error| format!("{error:#}"));
        let left_out = suite.left_out.clone();
        let report = Report { suite: suite.name.clone(), outcome, trouble, left_out, log };
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
    for Report { suite, outcome, trouble, left_out, .. } in reports {
        if let Some(reason) = left_out {
            println!("{suite:14} left out: {reason}");
            continue;
        }
        let Outcome { passed, failed, ignored, failures, causes, .. } = outcome;
        println!("{suite:14} {passed:>7} {failed:>7} {ignored:>8}");
        for failure in failures {
            println!("    FAILED {failure}");
            // Here, because of a long output often only the end is kept.
            for line in causes.get(failure).into_iter().flatten() {
                println!("        {line}");
            }
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
