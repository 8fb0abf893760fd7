//! `cargo xtask build-ebpf`: the kernel object alone.
//!
//! lb-agent's build script builds the same object by the same code; this command is for whoever works on
//! the programs and wants the compiler's messages, the object's path or its lints.

use crate::{ebpf, workspace};
use anyhow::{Context, Result};
use std::path::PathBuf;

/// Build the kernel object alone (lb-agent's build embeds the same one by itself)
///
/// Prints the object's path. Hand it to a build on another machine as LB_EBPF_OBJECT.
#[derive(clap::Args)]
pub struct Args {
    /// Lint instead of building: clippy for the BPF target, warnings are errors
    #[arg(long)]
    clippy: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    let action = if args.clippy { ebpf::Action::Clippy } else { ebpf::Action::Build };
    let object = perform(action)?;
    if action == ebpf::Action::Build {
        let size = std::fs::metadata(&object).with_context(|| object.display().to_string())?.len();
        println!("{} ({size} bytes)", object.display());
    }
    Ok(())
}

fn perform(action: ebpf::Action) -> Result<PathBuf> {
    let target_dir = workspace::target_dir().join("ebpf");
    ebpf::run(action, workspace::root(), &target_dir, std::env::consts::ARCH)
        .map_err(anyhow::Error::msg)
}
