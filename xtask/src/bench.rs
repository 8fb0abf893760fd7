//! `cargo xtask bench`: builds with optimisation, measures as root, keeps the report.
//!
//! What is measured, and how, is decided in `tests/src/bench`.

use crate::artifacts;
use crate::privilege;
use crate::process;
use crate::setup::{self, Purpose};
use crate::workspace;
use anyhow::{Context, Result};
use std::fs;
use std::process::Command;
use std::time::Duration;

/// The measurements take about a minute.
const LIMIT: Duration = Duration::from_secs(180);

/// Measure, print ratios, and write docs/benchmarks.md
///
/// Everything is measured in one run on a network of namespaces, against what it competes with. Let
/// nothing else run meanwhile.
#[derive(clap::Args)]
pub struct Args {
    /// Measure this part alone and print it; docs/benchmarks.md, whose figures are of one run, stays
    #[arg(long, value_name = "PART", value_parser = ["connections", "scale", "process", "counters"])]
    only: Option<String>,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    setup::ensure(Purpose::Demo)?;
    let built = artifacts::build_optimised(
        &["lb-agent", "lb-lab", "lb-tests"],
        &["lb-agent", "lab-peer", "lb-bench"],
    )?;
    let draft = workspace::target_dir().join("benchmarks.md");
    // Made by us, so that it stays ours when root writes it.
    fs::write(&draft, "").with_context(|| format!("create {}", draft.display()))?;
    let mut bench = privilege::as_root("measuring on a network", built.program("lb-bench")?, &[])?;
    bench.arg("run");
    bench.arg("--agent").arg(built.program("lb-agent")?);
    bench.arg("--peer").arg(built.program("lab-peer")?);
    bench.arg("--report").arg(&draft);
    bench.args(["--commit", &commit()?]);
    bench.args(["--rustc", process::output(Command::new("rustc").arg("--version"))?.trim()]);
    if let Some(part) = &args.only {
        bench.args(["--only", part]);
        return process::run_shown(&mut bench, LIMIT);
    }
    process::run_shown(&mut bench, LIMIT)?;
    let report = workspace::root().join("docs/benchmarks.md");
    fs::copy(&draft, &report).with_context(|| format!("write {}", report.display()))?;
    eprintln!("bench: the report is in {}", report.display());
    Ok(())
}

/// The commit that was measured; says so when the working tree differs from it.
fn commit() -> Result<String> {
    let mut git = Command::new("git");
    git.args(["describe", "--always", "--dirty", "--abbrev=12"]).current_dir(workspace::root());
    Ok(process::output(&mut git)?.trim().to_owned())
}
