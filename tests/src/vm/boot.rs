//! From the kernel's first program to a machine on which tests can run, and its end.
//!
//! Runs as process 1: whatever fails is said on the console, and the machine is ended all the same, because
//! `cargo xtask vm` waits for that.

use super::{Tally, sys};
use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// Where the cgroup2 hierarchy is mounted.
pub const CGROUP_ROOT: &str = "/sys/fs/cgroup";
/// Where the BPF file system is mounted.
pub const BPFFS: &str = "/sys/fs/bpf";

/// File systems and where they go, in this order.
const MOUNTS: [(&str, &str); 8] = [
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("devtmpfs", "/dev"),
    ("tmpfs", "/tmp"),
    ("tmpfs", "/run"),
    ("debugfs", "/sys/kernel/debug"),
    ("bpf", BPFFS),
    ("cgroup2", CGROUP_ROOT),
];

/// Prepares the machine, runs the tests, prints `vm: N passed, N failed` and ends the machine.
pub fn main() {
    let mut tally = Tally::default();
    tally.check("the machine comes up", prepare);
    if tally.failed == 0 {
        let filter = fs::read_to_string("/filter").ok();
        let Tally { passed, failed } = super::run(filter.as_deref());
        tally.passed += passed;
        tally.failed += failed;
    }
    println!("vm: {} passed, {} failed", tally.passed, tally.failed);
    nix::unistd::sync();
    // qemu runs with -no-reboot, so this is the end. Were it refused, returning makes the kernel panic,
    // which ends the machine too.
    let Err(error) = reboot(RebootMode::RB_AUTOBOOT);
    println!("end the machine: {error}");
}

fn prepare() -> Result<()> {
    for (kind, target) in MOUNTS {
        mount(Some(kind), target, Some(kind), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("mount {kind} on {target}"))?;
    }
    let kernel = nix::sys::utsname::uname().context("uname")?;
    println!("vm: Linux {}", kernel.release().to_string_lossy());
    load_modules(Path::new("/modules"))?;
    sys::set_link_up("lo").context("set lo up")?;
    Ok(())
}

/// Loads the modules in the order of their names.
fn load_modules(folder: &Path) -> Result<()> {
    let list = fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))?;
    let mut modules: Vec<PathBuf> = list.flatten().map(|entry| entry.path()).collect();
    modules.sort();
    for module in modules {
        let file = File::open(&module).with_context(|| format!("open {}", module.display()))?;
        nix::kmod::finit_module(&file, c"", nix::kmod::ModuleInitFlags::empty())
            .with_context(|| format!("load {}", module.display()))?;
    }
    Ok(())
}
