//! Where our objects are pinned: `<bpffs>/lb/v<VERSION>/{maps,links}`.
//!
//! Pins outlive the agent: they are what makes a restart unnoticed. This module knows paths and the
//! file system, not what is pinned.

use std::fs::{File, TryLockError};
use std::io;
use std::os::fd::AsRawFd as _;
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

    /// Says that an agent works with the pins, as long as the result lives.
    pub fn mark_used(&self) -> Result<File, BpfError> {
        let marked = File::open(&self.root).and_then(|root| root.lock_shared().map(|()| root));
        marked.map_err(BpfError::pin("lock", &self.root))
    }

    /// Makes sure that no agent works with the pins, nor begins to as long as the result lives.
    pub fn keep_unused(&self) -> Result<File, BpfError> {
        let root = File::open(&self.root).map_err(BpfError::pin("open", &self.root))?;
        match root.try_lock() {
            Ok(()) => Ok(root),
            Err(TryLockError::WouldBlock) => Err(BpfError::InUse(self.root.clone())),
            Err(TryLockError::Error(error)) => Err(BpfError::pin("lock", &self.root)(error)),
        }
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

/// What is at a mount point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mount {
    /// A BPF file system.
    Mounted,
    /// None; an agent that may mounts one.
    Missing,
    /// None; what an agent in this container mounted would end with it.
    MissingForContainer,
    /// No directory that can be looked at, and why.
    NoDirectory(String),
}

/// Looks at a mount point.
pub fn mount_at(bpffs: &Path) -> Mount {
    match is_bpffs(bpffs) {
        Ok(true) => Mount::Mounted,
        Ok(false) if is_seen_here_only(bpffs).unwrap_or(false) => Mount::MissingForContainer,
        Ok(false) => Mount::Missing,
        Err(error) => Mount::NoDirectory(error.to_string()),
    }
}

/// Mounts a BPF file system on a directory unless one is there; whether it had to.
fn mount_bpffs(directory: &Path) -> Result<bool, BpfError> {
    if is_bpffs(directory)? {
        return Ok(false);
    }
    let failed = |source| BpfError::Mount { path: directory.to_owned(), source };
    if is_seen_here_only(directory).map_err(failed)? {
        return Err(BpfError::MountOfContainer(directory.to_owned()));
    }
    mount(Some("bpf"), directory, Some("bpf"), MsFlags::empty(), Some("mode=0700"))
        .map_err(|errno| failed(errno.into()))?;
    Ok(true)
}

/// Whether what would be mounted on a directory stays in this mount namespace, although the directory
/// is another namespace's: a container's volume. Its mounts end with it, and with them the pins.
fn is_seen_here_only(directory: &Path) -> io::Result<bool> {
    let opened = File::open(directory)?;
    let details =
        std::fs::read_to_string(format!("/proc/thread-self/fdinfo/{}", opened.as_raw_fd()))?;
    let id = details.lines().find_map(|line| line.strip_prefix("mnt_id:")).map(str::trim);
    let table = std::fs::read_to_string("/proc/thread-self/mountinfo")?;
    Ok(id.is_some_and(|id| only_receives(&table, id)))
}

/// Whether the mount `id` gets the mounts of another namespace and gives none: proc_pid_mountinfo(5).
fn only_receives(table: &str, id: &str) -> bool {
    let mut lines = table.lines().map(|line| line.split(' '));
    let Some(line) = lines.find(|fields| fields.clone().next() == Some(id)) else {
        return false;
    };
    // Between the options and a lone hyphen.
    let optional: Vec<_> = line.skip(6).take_while(|field| *field != "-").collect();
    let has = |name: &str| optional.iter().any(|field| field.starts_with(name));
    has("master:") && !has("shared:")
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

#[cfg(test)]
mod tests {
    use super::only_receives;

    #[test]
    fn a_mount_of_a_containers_volume_is_told_from_one_that_others_see() {
        let table = "\
            21 1 0:19 / /sys rw,relatime - sysfs sysfs rw\n\
            22 1 0:19 / /sys rw,relatime shared:7 - sysfs sysfs rw\n\
            23 1 0:19 /fs/bpf /sys/fs/bpf rw,relatime master:7 - sysfs sysfs rw\n\
            24 1 0:19 /fs/bpf /sys/fs/bpf rw,relatime shared:9 master:7 - sysfs sysfs rw\n";
        for (id, expected) in
            [("21", false), ("22", false), ("23", true), ("24", false), ("2", false)]
        {
            assert_eq!(only_receives(table, id), expected, "{id}");
        }
    }
}
