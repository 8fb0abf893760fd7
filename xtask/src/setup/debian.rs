//! Programs that come as Debian packages.
//!
//! A program counts as there when it can be run, whoever installed it.

use super::{Purpose, go};
use crate::process;
use crate::progress::Progress;
use anyhow::{Context, Result, bail, ensure};
use std::process::Command;
use std::time::Duration;

const UPDATE_LIMIT: Duration = Duration::from_secs(300);
const INSTALL_LIMIT: Duration = Duration::from_secs(1200);

/// A program, the package that has it, and why we want it.
#[derive(Clone, Copy, Debug)]
pub struct Package {
    program: &'static str,
    name: &'static str,
    why: &'static str,
    purpose: Purpose,
}

impl std::fmt::Display for Package {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} is missing ({}: {})", self.program, self.name, self.why)
    }
}

const fn package(
    purpose: Purpose,
    program: &'static str,
    name: &'static str,
    why: &'static str,
) -> Package {
    Package { program, name, why, purpose }
}

/// A package of its own since trixie; before, docker.io has it.
const DOCKER_CLIENT: &str = "docker-cli";

const PACKAGES: [Package; 17] = [
    package(Purpose::Build, "cc", "gcc", "links the agent and its tools"),
    package(Purpose::Demo, "ip", "iproute2", "shows and changes the lab's networks"),
    package(Purpose::Demo, "ethtool", "ethtool", "turns checksum offload off where XDP rewrites"),
    package(Purpose::Demo, "nft", "nftables", "plays the CNI that masquerades"),
    package(Purpose::Test, "qemu-system-x86_64", "qemu-system-x86", "boots the other kernels"),
    package(Purpose::Test, "depmod", "kmod", "orders the other kernels' modules"),
    package(Purpose::Test, "xz", "xz-utils", "unpacks the other kernels' modules"),
    package(Purpose::Test, "go", "golang-go", "builds the API server of the cluster tests"),
    package(
        Purpose::Test,
        "iptables",
        "iptables",
        "writes the rules of kube-proxy, and joins the nodes of e2e",
    ),
    package(Purpose::Test, "ipset", "ipset", "makes the sets of kube-proxy's mode ipvs"),
    package(Purpose::Test, "ipvsadm", "ipvsadm", "makes its virtual servers, on other kernels"),
    package(Purpose::Test, "wg", "wireguard-tools", "joins nodes by WireGuard, on other kernels"),
    package(Purpose::Test, "zsh", "zsh", "loads the completion script that is made for it"),
    package(Purpose::Test, "fish", "fish", "loads the completion script that is made for it"),
    package(Purpose::E2e, "debootstrap", "debootstrap", "makes what nodes consist of"),
    package(Purpose::E2e, "dockerd", "docker.io", "runs the nodes of a cluster"),
    package(Purpose::E2e, "docker", DOCKER_CLIENT, "starts the nodes of a cluster"),
];

/// What `purpose` needs and this machine lacks.
pub fn missing(purpose: Purpose) -> Vec<Package> {
    let wanted = PACKAGES.iter().filter(|package| package.purpose <= purpose);
    wanted.filter(|package| process::find(package.program).is_none()).copied().collect()
}

/// The packages' names in one line.
pub fn names(packages: &[Package]) -> String {
    packages.iter().map(|package| package.name).collect::<Vec<_>>().join(" ")
}

/// Installs packages with the machine's own apt; must run as root.
///
/// # Errors
/// When there is no apt, or it can't install one of them: says how to get them by hand.
pub fn install(packages: &[Package]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    for package in packages {
        eprintln!("setup: {package}");
    }
    if process::find("apt-get").is_none() {
        bail!(
            "no apt-get on this machine: install what Debian calls {} by its own means",
            names(packages)
        );
    }
    let apt = || {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive").args(["--quiet=2", "-o"]);
        command.arg("Acquire::Retries=3");
        command
    };
    let run = |what: &str, command: &mut Command, limit| {
        let log = std::env::temp_dir().join(format!("lb-setup-apt-{}.log", std::process::id()));
        let mut step = Progress::new().step("setup", what);
        let ending = process::run_logged(command, &log, limit, &mut step)?;
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        std::fs::remove_file(&log).with_context(|| format!("remove {}", log.display()))?;
        ensure!(ending.success(), "{command:?} failed ({ending}):\n{text}");
        step.finish(&format!("{what}: done"));
        anyhow::Ok(())
    };
    run("refresh apt's index", apt().arg("update"), UPDATE_LIMIT)?;
    if packages.iter().any(|package| package.program == "go") {
        go::check_candidate()?;
    }
    let mut packages = packages.to_vec();
    packages.retain(|package| package.name != DOCKER_CLIENT || is_known(DOCKER_CLIENT));
    let mut install = apt();
    install.args(["install", "--yes", "--no-install-recommends"]);
    install.args(packages.iter().map(|package| package.name));
    run(&format!("install {}", names(&packages)), &mut install, INSTALL_LIMIT)
}

/// Whether this release of the distribution has the package.
fn is_known(package: &str) -> bool {
    process::output(Command::new("apt-cache").args(["show", package])).is_ok()
}
