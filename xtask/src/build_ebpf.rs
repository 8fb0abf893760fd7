//! `cargo xtask build-ebpf`.

use anyhow::{Result, bail};

/// Build the kernel object alone
#[derive(clap::Args)]
pub struct Args {}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    let _ = args;
    bail!("build-ebpf has not landed yet")
}
