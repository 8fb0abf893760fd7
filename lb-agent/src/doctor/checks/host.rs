//! The machine: kernel, capabilities, mounts.

use super::{finding, from_error};
use crate::bpf::pins::Mount;
use crate::doctor::facts::{Facts, Flags};
use crate::doctor::{Finding, Severity};
use Severity::{Error, Info, Ok as Fine, Warning};

/// The oldest kernel that the programs are made for.
const OLDEST: (u32, u32) = (6, 1);
/// The oldest with TCX links.
const TCX: (u32, u32) = (6, 6);
/// Bits of capabilities (include/uapi/linux/capability.h).
const NET_ADMIN: u32 = 12;
const SYS_ADMIN: u32 = 21;
const PERFMON: u32 = 38;
const BPF: u32 = 39;
pub fn flags(facts: &Facts) -> Vec<Finding> {
    const CHECK: &str = "flags";
    match facts.flags {
        Flags::Given => Vec::new(),
        Flags::Agents(process) => {
            let text = format!("as given to the running agent (process {process})");
            vec![finding(Info, CHECK, text, "")]
        }
        Flags::NotOf(process) => vec![finding(
            Warning,
            CHECK,
            format!(
                "the running agent (process {process}) is in a container: its flags name files that \
                 aren't here, and are left out"
            ),
            "run this in it: kubectl -n kube-system exec POD -- /lb-agent doctor",
        )],
    }
}

/// Major and minor number of a release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

pub fn kernel(facts: &Facts) -> Vec<Finding> {
    const CHECK: &str = "kernel";
    let release = &facts.kernel.release;
    let mut found = vec![match version(release) {
        Some(version) if version < OLDEST => finding(
            Error,
            CHECK,
            format!("Linux {release} is older than 6.1"),
            "boot a kernel of 6.1 or later",
        ),
        Some(version) if version < TCX => finding(
            Fine,
            CHECK,
            format!("Linux {release}; before 6.6 programs are filters of the clsact qdisc"),
            "",
        ),
        Some(_) => finding(Fine, CHECK, format!("Linux {release}"), ""),
        None => finding(
            Warning,
            CHECK,
            format!("the release {release:?} isn't understood"),
            "6.1 or later is needed",
        ),
    }];
    if facts.sysctls.get("net/core/bpf_jit_enable").is_some_and(|value| value == "0") {
        found.push(finding(
            Warning,
            CHECK,
            "programs are interpreted, which costs several times as much for each packet",
            "sysctl -w net.core.bpf_jit_enable=1",
        ));
    }
    if facts.sysctls.get("kernel/unprivileged_bpf_disabled").is_some_and(|value| value == "0") {
        found.push(finding(
            Info,
            CHECK,
            "every user may load BPF programs; the agent doesn't need that",
            "sysctl -w kernel.unprivileged_bpf_disabled=2",
        ));
    }
    found
}

pub fn programs(facts: &Facts) -> Vec<Finding> {
    const CHECK: &str = "programs";
    vec![match &facts.kernel.programs {
        None => finding(Fine, CHECK, "those of the running agent are loaded", ""),
        Some(Ok(number)) => {
            finding(Fine, CHECK, format!("the verifier takes all {number} programs"), "")
        }
        Some(Err(reason)) => finding(
            Error,
            CHECK,
            format!("the programs can't be loaded: {reason}"),
            "without them an agent can't start; the message says what is missing",
        ),
    }]
}

pub fn capabilities(facts: &Facts) -> Vec<Finding> {
    const CHECK: &str = "capabilities";
    let has = |bit: u32| facts.capabilities & 1 << bit != 0;
    let missing: Vec<_> = [
        ("NET_ADMIN", has(NET_ADMIN)),
        // CAP_SYS_ADMIN holds what these were split from.
        ("BPF", has(BPF) || has(SYS_ADMIN)),
        ("PERFMON", has(PERFMON) || has(SYS_ADMIN)),
    ]
    .into_iter()
    .filter_map(|(name, has)| (!has).then_some(name))
    .collect();
    if !missing.is_empty() {
        return vec![finding(
            Error,
            CHECK,
            format!("this process lacks {}, without which an agent can't work", missing.join(", ")),
            "run it as root, or in the agent's container (kubectl exec), or add them to the container",
        )];
    }
    if !has(SYS_ADMIN) {
        return vec![finding(
            Warning,
            CHECK,
            "SYS_ADMIN is missing: connected UDP sockets of pods whose endpoint left are not ended",
            "add it to the container, or live with that",
        )];
    }
    vec![finding(Fine, CHECK, "BPF, NET_ADMIN, PERFMON and SYS_ADMIN are there", "")]
}

pub fn mounts(facts: &Facts) -> Vec<Finding> {
    const CHECK: &str = "mounts";
    let path = facts.bpffs.display();
    let bpffs = match &facts.mount {
        Mount::Mounted => finding(Fine, CHECK, format!("a BPF file system on {path}"), ""),
        Mount::Missing => finding(
            Error,
            CHECK,
            format!(
                "no BPF file system on {path}: there is no datapath, and pins would have no place"
            ),
            format!("mount -t bpf bpf {path} (an agent that may does it when it starts)"),
        ),
        Mount::MissingForContainer => finding(
            Error,
            CHECK,
            format!(
                "{path} of the node is no BPF file system, and this container can't mount one for it"
            ),
            "mount -t bpf bpf /sys/fs/bpf on the node; systemd does at boot",
        ),
        Mount::NoDirectory(reason) => finding(
            Error,
            CHECK,
            reason.clone(),
            format!("create {path} and mount -t bpf bpf {path}, or name another with --bpffs"),
        ),
    };
    let cgroup = match &facts.cgroup {
        Ok((path, _)) => finding(Fine, CHECK, format!("cgroup2 at {}", path.display()), ""),
        Err(reason) => {
            from_error(Error, CHECK, reason, "name a cgroup2 directory with --cgroup-root")
        }
    };
    vec![bpffs, cgroup]
}
