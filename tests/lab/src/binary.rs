//! Finds the programs that a lab runs: a dependent crate's build does not build them, so we do.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, ensure};

/// A program of this workspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Program {
    Peer,
    Agent,
}

impl Program {
    /// Package and binary.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Peer => ("lb-lab", "lab-peer"),
            Self::Agent => ("lb-agent", "lb-agent"),
        }
    }

    /// Overrides the search: path of a binary (where there is no cargo, as in a test VM).
    fn variable(self) -> &'static str {
        match self {
            Self::Peer => "LB_LAB_PEER",
            Self::Agent => "LB_AGENT_BIN",
        }
    }
}

/// Path of an `lb-agent` of the same source as this library, or what `LB_AGENT_BIN` names.
pub fn agent_binary() -> Result<PathBuf> {
    path(Program::Agent)
}

/// Path of a `lab-peer` of the same source as this library, or what `LB_LAB_PEER` names.
pub(crate) fn peer_binary() -> Result<PathBuf> {
    path(Program::Peer)
}

/// Says where `lab-peer` is, for a caller that has built it already.
pub fn use_peer_binary(path: impl Into<PathBuf>) {
    FOUND.lock().unwrap_or_else(PoisonError::into_inner).insert(Program::Peer, path.into());
}

static FOUND: Mutex<BTreeMap<Program, PathBuf>> = Mutex::new(BTreeMap::new());

fn path(program: Program) -> Result<PathBuf> {
    let mut found = FOUND.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(path) = found.get(&program) {
        return Ok(path.clone());
    }
    let path = match std::env::var_os(program.variable()) {
        Some(path) => path.into(),
        None => build(program)?,
    };
    found.insert(program, path.clone());
    Ok(path)
}

/// Asks cargo, which is quick when nothing changed and never leaves us with an outdated binary.
fn build(program: Program) -> Result<PathBuf> {
    let (package, binary) = program.names();
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let output = Command::new(cargo)
        .args(["build", "--quiet", "--package", package, "--bin", binary])
        .args(["--message-format", "json", "--manifest-path"])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("run cargo to build {binary} (or set {})", program.variable()))?;
    ensure!(output.status.success(), "cargo could not build {binary} (see above)");
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .find_map(|message| message.get("executable")?.as_str().map(PathBuf::from))
        .with_context(|| format!("cargo did not say where it put {binary}"))
}
