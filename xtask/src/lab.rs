//! `cargo xtask lab`.

use anyhow::{Result, bail};

/// The demo's network for developers: up, down, exec
#[derive(clap::Args)]
pub struct Args {}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    let _ = args;
    bail!("lab has not landed yet")
}
