//! `cargo xtask bench`.

use anyhow::{Result, bail};

/// Measure, print ratios, and write docs/benchmarks.md
#[derive(clap::Args)]
pub struct Args {}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    let _ = args;
    bail!("bench has not landed yet")
}
