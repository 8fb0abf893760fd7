//! `lb-agent cleanup`: everything that we made in the kernel, and nothing else.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::error::BpfError;
use super::filters;
use super::links;
use super::pins::{self, Pins};

/// What was removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Attachments: links, tc filters and their qdiscs.
    pub attachments: usize,
    /// Maps.
    pub maps: usize,
    /// Our directory, if it was there.
    pub directory: Option<PathBuf>,
}

/// Removes the datapath of every version. Nothing there is fine, a running agent is not.
///
/// Attachments go first, all of them, so that no program runs with half of its maps. A BPF file
/// system that the agent mounted stays mounted: others may have begun to use it.
pub fn cleanup(bpffs: &Path) -> Result<Removed, BpfError> {
    let root = Pins::at(bpffs).root().to_owned();
    let mut removed = Removed::default();
    if !root.try_exists().map_err(BpfError::pin("look at", &root))? {
        return Ok(removed);
    }
    let _unused = Pins::at(bpffs).keep_unused()?;
    let versions = Pins::of_all_versions(bpffs)?;
    for version in &versions {
        removed.attachments += filters::remove_others(version, &|_| false)?;
        removed.attachments += unpin_links(&version.links())?;
    }
    for version in &versions {
        removed.maps += unpin_maps(&version.maps())?;
        remove_directory(version.version())?;
    }
    remove_directory(&root)?;
    removed.directory = Some(root);
    Ok(removed)
}

/// Makes sure that no agent works with the datapath, nor begins to as long as the result lives.
pub fn keep_unused(bpffs: &Path) -> Result<File, BpfError> {
    Pins::at(bpffs).keep_unused()
}

/// Detaches the hooks that lead sockets to endpoints, and leaves those that show them the Service's
/// address.
pub fn stop_translating_sockets(bpffs: &Path) -> Result<(), BpfError> {
    for version in Pins::of_all_versions(bpffs)? {
        for hook in ["connect4", "connect6", "sendmsg4", "sendmsg6"] {
            let pin = version.link(&format!("cgroup_{hook}"));
            links::remove(&pin).map_err(BpfError::pin("detach and unpin", &pin))?;
        }
    }
    Ok(())
}

fn unpin_links(directory: &Path) -> Result<usize, BpfError> {
    let names = pins::names(directory).map_err(BpfError::pin("list", directory))?;
    for name in &names {
        let pin = directory.join(name);
        links::remove(&pin).map_err(BpfError::pin("detach and unpin", &pin))?;
    }
    remove_directory(directory)?;
    Ok(names.len())
}

fn unpin_maps(directory: &Path) -> Result<usize, BpfError> {
    let names = pins::names(directory).map_err(BpfError::pin("list", directory))?;
    for name in &names {
        let pin = directory.join(name);
        std::fs::remove_file(&pin).map_err(BpfError::pin("unpin", &pin))?;
    }
    remove_directory(directory)?;
    Ok(names.len())
}

fn remove_directory(directory: &Path) -> Result<(), BpfError> {
    match std::fs::remove_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(BpfError::pin("remove the directory", directory)(error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}
