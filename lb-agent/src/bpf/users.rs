//! Who works with the pins, and which versions have left some.

use std::path::Path;

use super::error::BpfError;
use super::pins::Pins;

/// Who works with the pins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Users {
    /// An agent does; one that is just starting or ending may be missed.
    pub is_in_use: bool,
    /// Its process, if it can be seen.
    pub process: Option<u32>,
}

/// Looks at the lock of the pins' directory; leaves it as it is.
pub fn users(bpffs: &Path) -> Result<Users, BpfError> {
    let pins = Pins::at(bpffs);
    if !pins.root().try_exists().map_err(BpfError::pin("look at", pins.root()))? {
        return Ok(Users::default());
    }
    match pins.keep_unused() {
        Ok(_unused) => Ok(Users::default()),
        Err(BpfError::InUse(_)) => Ok(Users { is_in_use: true, process: holder(pins.root()) }),
        Err(error) => Err(error),
    }
}

/// The process that holds the lock. The kernel shows locks of this PID namespace alone.
fn holder(root: &Path) -> Option<u32> {
    use std::os::unix::fs::MetadataExt as _;
    let metadata = std::fs::metadata(root).ok()?;
    let (major, minor) = (libc::major(metadata.dev()), libc::minor(metadata.dev()));
    let file = format!("{major:02x}:{minor:02x}:{}", metadata.ino());
    // proc_locks(5): `1: FLOCK  ADVISORY  READ 1234 00:2f:5 0 EOF`.
    std::fs::read_to_string("/proc/locks").ok()?.lines().find_map(|line| {
        let fields: Vec<_> = line.split_whitespace().filter(|field| *field != "->").collect();
        match fields.as_slice() {
            [_, "FLOCK", _, "READ", process, place, ..] if *place == file => process.parse().ok(),
            _ => None,
        }
    })
}

/// Map schemas that are pinned, such as `v2`.
pub fn schemas(bpffs: &Path) -> Result<Vec<String>, BpfError> {
    let name = |pins: &Pins| pins.version().file_name().map(|name| name.to_string_lossy().into());
    Ok(Pins::of_all_versions(bpffs)?.iter().filter_map(name).collect())
}

/// Directories of other versions than this one's.
pub fn other_versions(bpffs: &Path) -> Result<Vec<String>, BpfError> {
    let own = Pins::at(bpffs);
    let all = Pins::of_all_versions(bpffs)?;
    let others = all.iter().filter(|other| **other != own);
    Ok(others.map(|other| other.version().display().to_string()).collect())
}
