//! Which files lead to network namespaces.

use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use tracing::debug;

/// The directory whose entries are processes.
const PROC: &str = "/proc";

/// The namespace of the agent itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Own {
    /// The file system of all namespaces (nsfs has one instance).
    device: u64,
    inode: u64,
}

impl Own {
    /// Of an open file that leads to it.
    pub fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Self { device: metadata.dev(), inode: metadata.ino() })
    }
}

/// Every namespace but our own by inode, with the first file that leads to it. Directories that are
/// missing have none.
pub fn find(directories: &[PathBuf], own: &Own) -> BTreeMap<u64, PathBuf> {
    let mut found = BTreeMap::new();
    for directory in directories {
        let paths = if directory == Path::new(PROC) { processes() } else { files(directory) };
        let paths = paths.unwrap_or_else(|error| {
            debug!(directory = %directory.display(), %error, "no network namespaces here");
            Vec::new()
        });
        for path in paths {
            // Whoever made a file may not have mounted its namespace yet; a process may have ended.
            if let Ok(metadata) = std::fs::metadata(&path)
                && is_other_namespace(&metadata, own)
            {
                found.entry(metadata.ino()).or_insert(path);
            }
        }
    }
    found
}

fn is_other_namespace(metadata: &Metadata, own: &Own) -> bool {
    metadata.dev() == own.device && metadata.ino() != own.inode
}

fn files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
    // The same file each time, when several lead to one namespace.
    files.sort_unstable();
    Ok(files)
}

fn processes() -> io::Result<Vec<PathBuf>> {
    let mut ids: Vec<u32> = std::fs::read_dir(PROC)?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    // The oldest: least likely to end before its namespace.
    ids.sort_unstable();
    Ok(ids.into_iter().map(|id| Path::new(PROC).join(format!("{id}/ns/net"))).collect())
}
