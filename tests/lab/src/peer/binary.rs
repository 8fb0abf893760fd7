//! Finds the program `lab-peer`: a dependent crate's build does not build it, so we do.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::PoisonError;

use anyhow::{Context, Result, ensure};

/// Overrides the search: path of a `lab-peer` binary (where there is no cargo, as in a test VM).
const VARIABLE: &str = "LB_LAB_PEER";

/// Path of a `lab-peer` of the same source as this library.
pub(super) fn path() -> Result<PathBuf> {
    static FOUND: Mutex<Option<PathBuf>> = Mutex::new(None);
    let mut found = FOUND.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(path) = found.as_ref() {
        return Ok(path.clone());
    }
    let path = match std::env::var_os(VARIABLE) {
        Some(path) => path.into(),
        None => build()?,
    };
    Ok(found.insert(path).clone())
}

/// Asks cargo, which is quick when nothing changed and never leaves us with an outdated binary.
fn build() -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let output = Command::new(cargo)
        .args(["build", "--quiet", "--package", "lb-lab", "--bin", "lab-peer"])
        .args(["--message-format", "json", "--manifest-path"])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("run cargo to build lab-peer (or set {VARIABLE})"))?;
    ensure!(output.status.success(), "cargo could not build lab-peer (see above)");
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .find_map(|message| message.get("executable")?.as_str().map(PathBuf::from))
        .context("cargo did not say where it put lab-peer")
}
