//! Becoming root where something needs it.

use crate::process;
use anyhow::{Context, Result, bail};
use std::process::Command;

/// The variables that name toolchains and caches: root must find the caller's, not its own.
const KEPT: [&str; 7] =
    ["PATH", "HOME", "CARGO_HOME", "RUSTUP_HOME", "RUSTUP_TOOLCHAIN", "XDG_CACHE_HOME", "CARGO"];

/// Whether we are root.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// `sudo` in front of this same program with `args`, keeping the caller's toolchain.
///
/// # Errors
/// When there is no sudo: says for what root is needed.
pub fn sudo_self<I: IntoIterator<Item = std::ffi::OsString>>(
    why: &str,
    args: I,
) -> Result<Command> {
    let Some(sudo) = process::find("sudo") else {
        bail!("{why} needs root, and there is no sudo: run the same command as root");
    };
    let this = std::env::current_exe().context("find the path of this program")?;
    let mut command = Command::new(sudo);
    // env(1) sets PATH where sudo's secure_path would replace it.
    command.args(["--", "env"]);
    for name in KEPT {
        if let Some(value) = std::env::var_os(name) {
            let mut assignment = std::ffi::OsString::from(format!("{name}="));
            assignment.push(value);
            command.arg(assignment);
        }
    }
    command.arg(this).args(args);
    Ok(command)
}
