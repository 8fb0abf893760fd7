//! `cargo xtask vm`.

use anyhow::{Result, bail};

/// Load and test every program on other kernels, in virtual machines
#[derive(clap::Args)]
pub struct Args {}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    let _ = args;
    bail!("vm has not landed yet")
}
