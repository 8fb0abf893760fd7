//! `cargo xtask manifests`: plain YAML from the Helm chart, for those who don't use Helm, and what the
//! chart has copies of.

use crate::chart;
use anyhow::{Context, Result};
use std::fs;

/// Write deploy/install.yaml and deploy/cleanup.yaml anew from the chart, and the chart's copies of
/// the alert rules and the dashboard
#[derive(clap::Args)]
pub struct Args {}

/// Runs the command.
pub fn run(_: &Args) -> Result<()> {
    for (file, text) in chart::manifests()? {
        let path = chart::folder().join(file);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        println!("{}", path.display());
    }
    Ok(())
}
