//! Finds the cgroup2 hierarchy whose processes get ClusterIPs translated.
//!
//! Its place differs between distributions (/sys/fs/cgroup, /sys/fs/cgroup/unified, a bind mount in
//! a container): the mount table knows it, so it is never assumed.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::DirEntry;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

const MOUNT_TABLE: &str = "/proc/self/mountinfo";

/// Why there is no cgroup to attach to.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The mount table couldn't be read.
    #[error("read {MOUNT_TABLE}: {0}; mount /proc")]
    MountTable(#[source] std::io::Error),
    /// No cgroup2 mount.
    #[error(
        "no cgroup2 file system is mounted; mount one (mount -t cgroup2 none /sys/fs/cgroup/unified), \
         or mount the node's into this container, or name it with --cgroup-root"
    )]
    NotMounted,
    /// The directory can't be looked at.
    #[error("--cgroup-root {path}: {source}; name a directory of a cgroup2 file system")]
    Unreadable {
        /// The directory.
        path: PathBuf,
        /// Cause.
        #[source]
        source: nix::Error,
    },
    /// The directory is something else.
    #[error(
        "--cgroup-root {0} is not in a cgroup2 file system, and none is mounted below it; `findmnt -t \
         cgroup2` shows where one is"
    )]
    NotCgroup2(PathBuf),
}

/// The directory that was asked for, checked, or the root of the cgroup2 mount.
///
/// Where cgroup v1 controllers are mounted, cgroup2 is below them: /sys/fs/cgroup is then no cgroup2
/// directory but has one, so that one manifest serves both kinds of node.
pub fn cgroup_root(asked: Option<&Path>) -> Result<PathBuf, CgroupError> {
    let table = || std::fs::read(MOUNT_TABLE).map_err(CgroupError::MountTable);
    let Some(path) = asked else {
        return cgroup2_mount(&table()?, Path::new("/")).ok_or(CgroupError::NotMounted);
    };
    match statfs(path) {
        Err(source) => Err(CgroupError::Unreadable { path: path.to_owned(), source }),
        Ok(info) if info.filesystem_type() == CGROUP2_SUPER_MAGIC => Ok(path.to_owned()),
        Ok(_) => {
            cgroup2_mount(&table()?, path).ok_or_else(|| CgroupError::NotCgroup2(path.to_owned()))
        }
    }
}

/// The directory of the cgroup with this id, which is the number of its inode; `None` when it can't be
/// seen from here.
pub fn directory(id: u64) -> Option<PathBuf> {
    let root = cgroup2_mount(&std::fs::read(MOUNT_TABLE).ok()?, Path::new("/"))?;
    let mut candidates = VecDeque::from([root]);
    // The nearest to the root first: agents are given one of the first levels.
    while let Some(path) = candidates.pop_front() {
        if std::fs::metadata(&path).ok().is_some_and(|metadata| metadata.ino() == id) {
            return Some(path);
        }
        // Pods come and go meanwhile.
        let entries = std::fs::read_dir(&path).into_iter().flatten().flatten();
        let is_directory = |entry: &DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
        candidates.extend(entries.filter(is_directory).map(|entry| entry.path()));
    }
    None
}

/// Of the mounts at or below `above`, picks one of the whole hierarchy before one of a part of it; of
/// equals the last, which hides the others. The form of the table: proc_pid_mountinfo(5).
fn cgroup2_mount(table: &[u8], above: &Path) -> Option<PathBuf> {
    let mounts = table.split(|byte| *byte == b'\n').filter_map(|line| {
        let mut fields = line.split(|byte| *byte == b' ');
        let root = fields.nth(3)?;
        let mount_point = fields.next()?;
        // Options and a variable number of optional fields end with a lone hyphen.
        let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
        let mount_point = PathBuf::from(OsString::from_vec(unescape(mount_point)));
        (kind == b"cgroup2" && mount_point.starts_with(above))
            .then_some((root == b"/", mount_point))
    });
    mounts.max_by_key(|(is_whole, _)| *is_whole).map(|(_, mount_point)| mount_point)
}

/// Blank, tab, newline and backslash are written as `\` and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let escaped = (*first == b'\\')
            .then(|| tail.get(..3))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match escaped {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_is_found_wherever_it_is() {
        for (case, table, expected) in [
            ("no cgroup2", "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n", None),
            (
                "hybrid",
                "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
                 41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n",
                Some("/sys/fs/cgroup/unified"),
            ),
            (
                "optional fields",
                "31 23 0:28 / /sys/fs/cgroup rw shared:9 master:1 - cgroup2 cgroup2 rw,nsdelegate\n",
                Some("/sys/fs/cgroup"),
            ),
            (
                "a part before the whole",
                "1 2 0:3 /kubepods /part rw - cgroup2 none rw\n1 2 0:3 / /whole rw - cgroup2 none rw\n",
                Some("/whole"),
            ),
            ("a part only", "1 2 0:3 /kubepods /part rw - cgroup2 none rw\n", Some("/part")),
            (
                "a blank in the path",
                "1 2 0:3 / /run/my\\040cgroups rw - cgroup2 none rw\n",
                Some("/run/my cgroups"),
            ),
            ("a torn line", "1 2 0:3 /\n", None),
        ] {
            let found = cgroup2_mount(table.as_bytes(), Path::new("/"));
            assert_eq!(found, expected.map(PathBuf::from), "{case}");
        }
    }

    #[test]
    fn below_a_directory_its_own_mounts_alone_count() {
        let table = "31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n\
                     41 31 0:28 /../.. /host/cgroup/unified rw - cgroup2 cgroup2 rw\n\
                     42 31 0:28 / /host/cgroups rw - cgroup2 cgroup2 rw\n";
        for (above, expected) in [
            ("/host/cgroup", Some("/host/cgroup/unified")),
            ("/host/cgroup/unified", Some("/host/cgroup/unified")),
            ("/run", None),
        ] {
            let found = cgroup2_mount(table.as_bytes(), Path::new(above));
            assert_eq!(found, expected.map(PathBuf::from), "{above}");
        }
    }

    #[test]
    fn a_cgroup_is_found_by_its_id() {
        // Needs a cgroup2 mount, as the agent does, but no rights on it.
        let root = cgroup_root(None).unwrap();
        let child = std::fs::read_dir(&root).unwrap().flatten().map(|entry| entry.path());
        for expected in child.filter(|path| path.is_dir()).take(1).chain([root.clone()]) {
            let id = std::fs::metadata(&expected).unwrap().ino();
            assert_eq!(directory(id), Some(expected));
        }
        assert_eq!(directory(u64::MAX), None);
    }

    #[test]
    fn a_directory_outside_cgroup2_is_refused_with_a_remedy() {
        let error = cgroup_root(Some(Path::new("/proc"))).expect_err("not cgroup2").to_string();
        assert!(error.contains("findmnt"), "{error}");
        let error = cgroup_root(Some(Path::new("/nowhere"))).expect_err("absent").to_string();
        assert!(error.contains("/nowhere"), "{error}");
    }
}
