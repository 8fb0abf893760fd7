//! Becoming root where something needs it.

use crate::process;
use anyhow::{Context, Result, bail};
use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

/// The variables that name toolchains and caches: root must find the caller's, not its own.
const KEPT: [&str; 7] =
    ["PATH", "HOME", "CARGO_HOME", "RUSTUP_HOME", "RUSTUP_TOOLCHAIN", "XDG_CACHE_HOME", "CARGO"];

/// Whether we are root.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// This same program as root with `arguments`.
///
/// Build first: what cargo builds as root, the user can't overwrite later.
///
/// # Errors
/// As of [`as_root`].
pub fn sudo_self<I: IntoIterator<Item = OsString>>(why: &str, arguments: I) -> Result<Command> {
    let this = std::env::current_exe().context("find the path of this program")?;
    let mut command = as_root(why, &this, &[])?;
    command.args(arguments);
    Ok(command)
}

/// A command that runs `program` as root with `environment`: under sudo when we are not root.
///
/// # Errors
/// When we are not root and there is no sudo: says for what root is needed.
pub fn as_root(why: &str, program: &Path, environment: &[(String, OsString)]) -> Result<Command> {
    if is_root() {
        let mut command = Command::new(program);
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        return Ok(command);
    }
    let Some(sudo) = process::find("sudo") else {
        bail!("{why} needs root, and there is no sudo: run the same command as root");
    };
    let mut command = Command::new(sudo);
    // env(1) sets PATH where sudo's secure_path would replace it.
    command.args(["--", "env"]);
    let kept = KEPT.iter().filter_map(|name| Some(((*name).to_owned(), std::env::var_os(name)?)));
    for (name, value) in kept.chain(environment.iter().cloned()) {
        let mut assignment = OsString::from(format!("{name}="));
        assignment.push(value);
        command.arg(assignment);
    }
    command.arg(program);
    Ok(command)
}
