//! Programs of this machine that tests in the guest run: what kube-proxy runs, so that what it leaves is made
//! as it makes it, and what network plugins join nodes with.

use crate::artifacts::libraries;
use crate::process;
use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Their names; in the guest they are in `/bin`.
const PROGRAMS: [&str; 12] = [
    "ip",
    "ipset",
    "ipvsadm",
    "iptables-legacy",
    "iptables-legacy-save",
    "ip6tables-legacy",
    "ip6tables-legacy-save",
    "iptables-nft",
    "iptables-nft-save",
    "ip6tables-nft",
    "ip6tables-nft-save",
    "wg",
];
/// Where iptables has its matches and targets, below a folder of `/usr/lib`.
const EXTENSIONS: &str = "xtables";

/// The guest's files, each with this machine's.
///
/// # Errors
/// A program is missing.
pub fn files() -> Result<Vec<(PathBuf, PathBuf)>> {
    let mut files = Vec::new();
    let mut shared = BTreeSet::new();
    for name in PROGRAMS {
        let program = process::find(name)
            .with_context(|| format!("{name} is missing: run `cargo xtask setup`"))?;
        shared.extend(libraries(&program)?);
        files.push((Path::new("bin").join(name), program));
    }
    for folder in fs::read_dir("/usr/lib").context("list /usr/lib")?.flatten() {
        let extensions = fs::read_dir(folder.path().join(EXTENSIONS)).into_iter().flatten();
        shared.extend(extensions.flatten().map(|extension| extension.path()));
    }
    let below = |path: PathBuf| (path.strip_prefix("/").unwrap_or(&path).to_owned(), path);
    files.extend(shared.into_iter().map(below));
    Ok(files)
}
