//! Where things are: the workspace, its target directory, the user's cache.

use crate::ebpf;
use anyhow::{Context, Result};
use std::fs::File;
use std::path::{Path, PathBuf};

/// The folder that holds the workspace's `Cargo.toml`.
pub fn root() -> &'static Path {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest)
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
