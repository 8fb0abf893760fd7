//! `cargo xtask demo`.

use anyhow::{Result, bail};

/// Show the main job on a network of namespaces, step by step
#[derive(clap::Args)]
pub struct Args {
    /// Leave the network up and print how to look around
    #[arg(long)]
    keep: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    let _ = args;
    bail!("demo has not landed yet")
}
