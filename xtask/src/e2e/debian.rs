//! The Debian that nodes and the images of the tests are made of: debootstrapped once, kept as an archive.

use crate::oci::sha256;
use crate::progress::Step;
use crate::{apt, process, workspace};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Its systemd still boots with cgroup v1 controllers, as some hosts have them; the next release's doesn't.
const SUITE: &str = "bookworm";
/// What a node runs, then what the tests call inside their Pods.
const PACKAGES: &str = "systemd,systemd-sysv,runc,conntrack,ethtool,iproute2,iptables,jq,kmod,nftables,\
    procps,ca-certificates,bind9-dnsutils,curl,netcat-openbsd,wget";
/// Not needed by any program: half of the archive.
const DROPPED: [&str; 7] = [
    "./usr/share/doc",
    "./usr/share/man",
    "./usr/share/info",
    "./usr/share/locale",
    "./usr/lib/udev/hwdb.d",
    "./var/cache/apt",
    "./var/lib/apt/lists",
];
const LIMIT: Duration = Duration::from_secs(1200);

/// A tar archive of a file system.
pub struct Debian {
    pub archive: PathBuf,
    /// Names the content.
    pub version: String,
}

/// The archive, from the cache or made now; must run as root.
///
/// # Errors
/// When the mirror can't be reached or a package can't be installed: the log is named.
pub fn ensure(step: &mut Step) -> Result<Debian> {
    let archive = workspace::cache_dir("e2e")?.join(format!("debian-{SUITE}.tar"));
    if !is_made()? {
        bootstrap(&archive, step)?;
        let stamp = stamp()?;
        fs::write(&stamp, recipe()).with_context(|| format!("write {}", stamp.display()))?;
    }
    let version = sha256(&archive)?.get(..16).context("a short digest")?.to_owned();
    Ok(Debian { archive, version })
}

/// Whether the cache has the archive as it would be made now.
///
/// # Errors
/// When there is no cache.
pub fn is_made() -> Result<bool> {
    Ok(fs::read_to_string(stamp()?).is_ok_and(|made_from| made_from == recipe()))
}

fn recipe() -> String {
    format!("{SUITE} {PACKAGES} {}", DROPPED.join(","))
}

fn stamp() -> Result<PathBuf> {
    Ok(workspace::cache_dir("e2e")?.join(format!("debian-{SUITE}.built-from")))
}

fn bootstrap(archive: &Path, step: &mut Step) -> Result<()> {
    let root = archive.with_extension("root");
    let log = archive.with_extension("log");
    // Of a run that was interrupted.
    remove(&root)?;
    let mut debootstrap = Command::new("debootstrap");
    debootstrap.args(["--variant=minbase", "--include", PACKAGES, SUITE]);
    debootstrap.arg(&root).arg(apt::mirror()?);
    let ending = process::run_logged(&mut debootstrap, &log, LIMIT, step)?;
    ensure!(ending.success(), "debootstrap {SUITE} failed ({ending}): see {}", log.display());
    let partial = archive.with_extension("partial");
    let mut tar = Command::new("tar");
    tar.args(DROPPED.map(|path| format!("--exclude={path}/*")));
    tar.args(["--numeric-owner", "-C"]).arg(&root).arg("-cf").arg(&partial).arg(".");
    process::output(&mut tar)?;
    fs::rename(&partial, archive).with_context(|| format!("create {}", archive.display()))?;
    remove(&root)
}

fn remove(root: &Path) -> Result<()> {
    if !root.exists() {
        return Ok(());
    }
    // Not across file systems: an interrupted debootstrap leaves /proc and /sys mounted in it.
    for mounted in ["proc", "sys"] {
        let _ = process::output(Command::new("umount").arg("--recursive").arg(root.join(mounted)));
    }
    let mut rm = Command::new("rm");
    rm.args(["-r", "--one-file-system"]).arg(root);
    process::output(&mut rm).map(drop)
}
