//! What is tested on other kernels, inside the virtual machines of `cargo xtask vm`.
//!
//! `boot` makes a bare kernel usable and ends the machine; this file decides what is tested. It may not
//! assume a network device, a disk or any program but those of `xtask/src/vm/tools.rs`.

pub mod boot;
mod datapath;
mod ipvs;
mod networks;
mod place;
mod sctp;
mod sys;

use crate::{packet, socket};
use anyhow::{Context, Error, Result, ensure};
use std::path::Path;

/// One thing that must hold on every kernel.
type Check = (&'static str, fn() -> Result<()>);

const CHECKS: [Check; 8] = [
    ("the kernel describes its types in BTF", kernel_has_btf),
    ("the cgroup2 hierarchy takes a new group", cgroup2_takes_groups),
    ("the BPF file system takes a folder for pins", bpffs_takes_folders),
    ("the loopback device is up", loopback_is_up),
    ("the datapath loads, attaches and leaves", datapath::loads_attaches_and_leaves),
    ("SCTP associations reach Services from everywhere", sctp::associations_reach_services),
    (
        "Services are reached through tunnels of every kind and from a VLAN",
        networks::services_are_reached,
    ),
    ("what kube-proxy's mode ipvs leaves is removed, and nothing else", ipvs::leftovers_go),
];

/// How many checks passed and failed.
#[derive(Clone, Copy, Default, Debug)]
pub struct Tally {
    /// Those that held.
    pub passed: u32,
    /// Those that did not.
    pub failed: u32,
}

impl Tally {
    /// Runs one check and prints its line, in the form of libtest.
    pub fn check(&mut self, name: &str, check: impl FnOnce() -> Result<()>) {
        match check() {
            Ok(()) => {
                self.passed += 1;
                println!("test {name} ... ok");
            }
            Err(error) => {
                self.failed += 1;
                println!("test {name} ... FAILED\n    {error:#}");
            }
        }
    }
}

/// Runs every check whose name contains `filter`.
pub fn run(filter: Option<&str>) -> Tally {
    let mut tally = Tally::default();
    for (name, check) in CHECKS {
        if filter.is_none_or(|filter| name.contains(filter)) {
            tally.check(name, check);
        }
    }
    // The suites take minutes to find that none of their cases is meant.
    if CHECKS.iter().any(|(name, _)| filter == Some(name)) {
        return tally;
    }
    for (name, result) in packet::run_all().into_iter().chain(socket::run_all()) {
        if filter.is_none_or(|filter| name.contains(filter)) {
            tally.check(&name, || result.map_err(Error::msg));
        }
    }
    tally
}

fn kernel_has_btf() -> Result<()> {
    let size =
        std::fs::metadata("/sys/kernel/btf/vmlinux").context("no /sys/kernel/btf/vmlinux")?;
    ensure!(size.len() > 0, "it is empty");
    Ok(())
}

fn cgroup2_takes_groups() -> Result<()> {
    takes_folder(&Path::new(boot::CGROUP_ROOT).join("lb-vm-check"))
}

fn bpffs_takes_folders() -> Result<()> {
    takes_folder(&Path::new(boot::BPFFS).join("lb-vm-check"))
}

fn takes_folder(folder: &Path) -> Result<()> {
    std::fs::create_dir(folder).with_context(|| format!("create {}", folder.display()))?;
    std::fs::remove_dir(folder).with_context(|| format!("remove {}", folder.display()))
}

fn loopback_is_up() -> Result<()> {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        std::net::UdpSocket::bind(address).with_context(|| format!("bind {address}"))?;
    }
    Ok(())
}
