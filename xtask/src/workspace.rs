//! Where things are: the workspace, its target directory, the user's cache.

use crate::ebpf;
use anyhow::{Context, Result};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The folder that holds the workspace's `Cargo.toml`.
pub fn root() -> &'static Path {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest)
}

/// The cargo that runs us, as if it were called from a shell.
///
/// `cargo run` tells us of our own package in variables that some build scripts (ring's) watch: passed on,
/// they would compile those crates again whenever a build by hand and one by us alternate.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    command.current_dir(root());
    command
}

/// Cargo's target directory of this workspace (`CARGO_TARGET_DIR` is honoured).
pub fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// The folder `name` of ours in the user's cache, created.
///
/// # Errors
/// When no variable names a home, or the folder can't be created.
pub fn cache_dir(name: &str) -> Result<PathBuf> {
    let dir = ebpf::cache().map_err(anyhow::Error::msg)?.join(name);
    std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    Ok(dir)
}

/// Waits until no other process of ours holds `file`, and holds it until the result is dropped.
///
/// # Errors
/// When the file can't be created.
pub fn lock(file: &Path) -> Result<File> {
    let lock = File::create(file).with_context(|| format!("create {}", file.display()))?;
    lock.lock().with_context(|| format!("lock {}", file.display()))?;
    Ok(lock)
}
