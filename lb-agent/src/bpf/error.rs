//! What can go wrong between the agent and the kernel's BPF, in words that say what to do.

use std::io;
use std::path::{Path, PathBuf};

/// What the agent must be allowed to do.
const CAPABILITIES: &str = "the agent needs the capabilities CAP_BPF, CAP_NET_ADMIN and \
    CAP_PERFMON: run it as root, or give its container `privileged: true` or these capabilities";

/// An error of the kernel's side.
#[derive(Debug, thiserror::Error)]
pub enum BpfError {
    /// `--bpffs` is no directory.
    #[error(
        "--bpffs {path}: {source}; name a directory, or mount /sys/fs/bpf of the node into this \
         container"
    )]
    NoDirectory {
        /// The directory.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// No BPF file system there, and none could be mounted.
    #[error(
        "mount a BPF file system on {path}: {source}; mount one (mount -t bpf bpf {path}), or name \
         another with --bpffs"
    )]
    Mount {
        /// The directory.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// No BPF file system there, and one that we mounted would be the container's own.
    #[error(
        "{0} of the node is no BPF file system, and one that this container mounted would end with \
         it; mount one on the node (mount -t bpf bpf /sys/fs/bpf), which systemd does at boot \
         unless the node is a container itself"
    )]
    MountOfContainer(PathBuf),
    /// Removing what an agent works with would leave half of it.
    #[error(
        "lb-agent runs on this node and works with {0}; stop it first (helm uninstall, kubectl delete \
         daemonset, systemctl stop)"
    )]
    InUse(PathBuf),
    /// Nothing of ours is pinned.
    #[error("no datapath here: is lb-agent running on this node? (looked in {0})")]
    NoDatapath(PathBuf),
    /// MONITOR holds one filter.
    #[error(
        "another `lb-agent monitor` watches this node, and only one can at a time: end it first (it \
         has locked {0})"
    )]
    Watched(PathBuf),
    /// A call on a pin or its directory.
    #[error("{call} {path}: {source}{}", hint(source))]
    Pin {
        /// What was done.
        call: &'static str,
        /// The pin.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A pinned map that this version can't use.
    #[error(
        "the pinned map {path} has another layout ({pinned}) than this version needs ({wanted}); \
         remove it with `lb-agent cleanup`, which interrupts translation until the next start"
    )]
    Layout {
        /// The pin.
        path: PathBuf,
        /// As it is.
        pinned: String,
        /// As it should be.
        wanted: String,
    },
    /// The kernel doesn't let us.
    #[error("{call} {object}: {source}; {CAPABILITIES}")]
    Permission {
        /// The system call and command.
        call: &'static str,
        /// The map or program.
        object: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The embedded object can't be used.
    #[error("the embedded kernel object: {0}; this build of lb-agent is broken, use another")]
    Object(String),
    /// A map could not be made.
    #[error(
        "create the map {map}: {reason}; this is Linux {kernel}, 6.1 or later is needed; if memory is \
         short, give smaller tables (--max-flows, --max-slots)"
    )]
    Map {
        /// Its name.
        map: String,
        /// The kernel's answer.
        reason: String,
        /// The running kernel's release.
        kernel: String,
    },
    /// The verifier rejected a program.
    #[error(
        "the kernel rejects the program {program} ({source}): {reason}; this is Linux {kernel}, 6.1 \
         or later is needed; if it is, report this with the output of --log-level debug"
    )]
    Rejected {
        /// Its name.
        program: String,
        /// The last line of the verifier that says something.
        reason: String,
        /// The kernel's answer.
        source: io::Error,
        /// The running kernel's release.
        kernel: String,
    },
    /// A program could not be attached.
    #[error("attach {program} to {target}: {source}{}", hint(source))]
    Attach {
        /// The program.
        program: &'static str,
        /// The cgroup or device.
        target: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Native XDP was asked for on a device that can't.
    #[error(
        "attach xdp_ingress to device {device} natively: {source}; its driver can't, or another XDP \
         program is there (`ip link show {device}`); use --xdp auto"
    )]
    NativeXdp {
        /// The device.
        device: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A call on a map.
    #[error("{call} on the map {map}: {source}")]
    Call {
        /// Its name.
        map: &'static str,
        /// The system call and command.
        call: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl BpfError {
    /// For calls on pins.
    pub(super) fn pin(call: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Pin { call, path, source }
    }

    /// For calls on maps.
    pub(super) fn call(map: &'static str, call: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Call { map, call, source }
    }
}

/// The remedy of what the kernel answers most often.
fn hint(source: &io::Error) -> String {
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => format!("; {CAPABILITIES}"),
        Some(libc::EROFS) => "; mount it writable".to_owned(),
        _ => String::new(),
    }
}

/// The running kernel's release.
pub fn kernel_release() -> String {
    nix::sys::utsname::uname()
        .map(|name| name.release().to_string_lossy().into_owned())
        .unwrap_or_else(|_| "unknown".to_owned())
}
