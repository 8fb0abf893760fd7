//! Where things are: the workspace, its target directory, the user's cache.

use crate::ebpf;
use anyhow::{Context, Result};
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
