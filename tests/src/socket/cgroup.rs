//! A cgroup of its own for this process, so that the hooks see our sockets and nobody else's.

use anyhow::{Context, Result};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// The process lives in it until this is dropped.
#[derive(Debug)]
pub struct OwnCgroup {
    folder: PathBuf,
    before: PathBuf,
}

impl OwnCgroup {
    /// Makes a child of the cgroup2 group that this process is in, and moves it there.
    ///
    /// # Errors
    /// Names the file that refused; a cgroup2 hierarchy must be mounted, and we must be root.
    pub fn enter() -> Result<Self> {
        let root = lb_agent::node::cgroup::cgroup_root(None).context("find the cgroup2 mount")?;
        let membership =
            fs::read_to_string("/proc/self/cgroup").context("read /proc/self/cgroup")?;
        let path = membership.lines().find_map(|line| line.strip_prefix("0::/"));
        let before = root.join(path.context("this process is in no cgroup2 group")?);
        let folder = root.join(format!("lb-socket-test-{}", std::process::id()));
        fs::create_dir(&folder).with_context(|| format!("create {}", folder.display()))?;
        let own = Self { folder, before };
        enter(&own.folder)?;
        Ok(own)
    }

    /// The group's folder, open, to attach programs to.
    ///
    /// # Errors
    /// When it can't be opened.
    pub fn open(&self) -> Result<File> {
        File::open(&self.folder).with_context(|| format!("open {}", self.folder.display()))
    }
}

impl Drop for OwnCgroup {
    fn drop(&mut self) {
        // What can't be cleaned up is said; there is nobody to return an error to.
        if let Err(error) = enter(&self.before) {
            println!("leave {}: {error:#}", self.folder.display());
        }
        if let Err(error) = fs::remove_dir(&self.folder) {
            println!("remove {}: {error}", self.folder.display());
        }
    }
}

fn enter(folder: &Path) -> Result<()> {
    let file = folder.join("cgroup.procs");
    // 0 is the writer itself.
    fs::write(&file, "0").with_context(|| format!("write to {}", file.display()))
}
