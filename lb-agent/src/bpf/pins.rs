//! Where our objects are pinned: `<bpffs>/lb/v<VERSION>/{maps,links}`.
//!
//! Pins outlive the agent: they are what makes a restart unnoticed. This module knows paths and the
//! file system, not what is pinned.

use std::io;
use std::path::{Path, PathBuf};

use lb_common::abi;
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::error::BpfError;

/// The pins of one version on one BPF file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pins {
    root: PathBuf,
    version: PathBuf,
}

impl Pins {
    /// This version's pins under a mount point; nothing is looked at.
    pub fn at(bpffs: &Path) -> Self {
        let root = bpffs.join("lb");
        let version = root.join(format!("v{}", abi::VERSION));
        Self { root, version }
    }

    /// The pins of every version that are there.
    pub fn of_all_versions(bpffs: &Path) -> Result<Vec<Self>, BpfError> {
        let Self { root, .. } = Self::at(bpffs);
        let names = names(&root).map_err(BpfError::pin("list", &root))?;
        let pins =
            names.into_iter().map(|name| Self { version: root.join(name), root: root.clone() });
        Ok(pins.collect())
    }

    /// The pins under a mount point that is made usable: a BPF file system is mounted if none is,
    /// and the directories exist.
    pub fn prepare(bpffs: &Path) -> Result<Self, BpfError> {
        if mount_bpffs(bpffs)? {
            tracing::info!(path = %bpffs.display(), "mounted a BPF file system");
        }
        let pins = Self::at(bpffs);
        for directory in [pins.maps(), pins.links()] {
            std::fs::create_dir_all(&directory)
                .map_err(BpfError::pin("create the directory", &directory))?;
        }
        Ok(pins)
    }

    /// `<bpffs>/lb`: everything below is ours.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The version's directory.
    pub fn version(&self) -> &Path {
        &self.version
    }

    /// The directory of maps.
    pub fn maps(&self) -> PathBuf {
        self.version.join("maps")
    }

    /// The pin of a map.
    pub fn map(&self, name: &str) -> PathBuf {
        self.maps().join(name)
    }

    /// The directory of links.
    pub fn links(&self) -> PathBuf {
        self.version.join("links")
    }

    /// The pin of a link.
    pub fn link(&self, name: &str) -> PathBuf {
        self.links().join(name)
    }

    /// Names of the pinned links; none without the directory.
    pub fn link_names(&self) -> Result<Vec<String>, BpfError> {
        let links = self.links();
        names(&links).map_err(BpfError::pin("list", &links))
    }
}

/// Mounts a BPF file system on a directory unless one is there; whether it had to.
///
/// # Errors
/// Without the directory, or without the right to mount.
pub fn mount_bpffs(directory: &Path) -> Result<bool, BpfError> {
    if is_bpffs(directory)? {
        return Ok(false);
    }
    mount(Some("bpf"), directory, Some("bpf"), MsFlags::empty(), Some("mode=0700"))
        .map_err(|errno| BpfError::Mount { path: directory.to_owned(), source: errno.into() })?;
    Ok(true)
}

/// Whether a BPF file system is mounted there.
fn is_bpffs(path: &Path) -> Result<bool, BpfError> {
    statfs(path)
        .map(|info| info.filesystem_type() == BPF_FS_MAGIC)
        .map_err(|errno| BpfError::NoDirectory { path: path.to_owned(), source: errno.into() })
}

/// Names in a directory, sorted; none when it isn't there.
pub(super) fn names(directory: &Path) -> io::Result<Vec<String>> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut names = entries
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<io::Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}
