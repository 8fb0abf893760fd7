//! promtool, which judges the metrics, the alert rules and their tests.
//!
//! Debian has it in the package of the Prometheus server. That is unpacked, and promtool alone is kept:
//! installing the package would start a server.

use crate::apt::Suite;
use crate::{promtool, workspace};
use anyhow::{Context, Result};
use std::fs;

/// The oldest release that is still maintained: its programs run with every newer libc.
const SUITE: &str = "bookworm";
const PACKAGE: &str = "prometheus";

/// Gets it if it is missing; whether it was.
pub fn ensure() -> Result<bool> {
    if promtool::find().is_some() {
        return Ok(false);
    }
    eprintln!("setup: unpacking promtool: it checks metrics and alert rules");
    let folder = workspace::cache_dir(promtool::FOLDER)?;
    let apt = Suite::open(SUITE).context("promtool is missing: put it on PATH")?;
    let versions = apt.versions(PACKAGE)?;
    let version = versions.first().with_context(|| format!("{SUITE} has no {PACKAGE}"))?;
    let name = format!("{PACKAGE}_{}", version.replace([':', '~'], "_"));
    let unpacking = folder.join(format!("{name}.unpacking-{}", std::process::id()));
    let _ = fs::remove_dir_all(&unpacking);
    apt.unpack(&format!("{PACKAGE}={version}"), &unpacking)?;
    let kept = folder.join(&name);
    fs::create_dir_all(&kept).with_context(|| format!("create {}", kept.display()))?;
    fs::rename(unpacking.join("usr/bin/promtool"), kept.join("promtool"))
        .with_context(|| format!("{PACKAGE} {version} holds no usr/bin/promtool"))?;
    fs::remove_dir_all(&unpacking).with_context(|| format!("remove {}", unpacking.display()))?;
    let current = folder.join(promtool::CURRENT);
    fs::write(&current, name).with_context(|| format!("write {}", current.display()))?;
    Ok(true)
}
