//! Where promtool is, which judges rules and metrics. Shared with `cargo xtask`, so it may use nothing
//! but std.

use std::path::PathBuf;

/// The folder in our cache that `cargo xtask setup` unpacks it into.
pub const FOLDER: &str = "promtool";
/// In that folder: names the unpacked version.
pub const CURRENT: &str = "current";

/// promtool on PATH, else the one that `cargo xtask setup` unpacked into the user's cache.
#[must_use]
pub fn find() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut candidates: Vec<_> =
        std::env::split_paths(&path).map(|folder| folder.join("promtool")).collect();
    candidates.extend(cache().and_then(|cache| {
        let folder = cache.join(FOLDER);
        let version = std::fs::read_to_string(folder.join(CURRENT)).ok()?;
        Some(folder.join(version).join("promtool"))
    }));
    candidates.into_iter().find(|candidate| candidate.is_file())
}

/// As lb-agent/build/ebpf.rs finds it.
fn cache() -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let user = variable("XDG_CACHE_HOME").map(PathBuf::from);
    let user = user.or_else(|| Some(PathBuf::from(variable("HOME")?).join(".cache")));
    Some(user?.join("lb"))
}
