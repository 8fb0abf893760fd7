//! `cargo xtask setup`.

use anyhow::{Result, bail};

/// Install what building, demonstrating and testing need, and only what is missing
#[derive(clap::Args)]
pub struct Args {}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    let _ = args;
    bail!("setup has not landed yet")
}
