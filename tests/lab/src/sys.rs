//! The lab's only unsafe code and its only knowledge of how a process gets into a host: network
//! namespace, cgroup, host name. Decides nothing.
//!
//! `ip netns exec` is not used: it mounts a new /sys, which hides the cgroup and bpf mounts that
//! the agent under test needs.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, anyhow};
use nix::errno::Errno;
use nix::libc;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::SigSet;
use nix::unistd::{sethostname, setsid, write};

/// Makes `command` start inside `namespace` and `cgroup` with `hostname`. With `session` it also
/// becomes a session leader: signals of the caller's terminal do not reach it.
pub(crate) fn enter(
    command: &mut Command,
    namespace: &Path,
    cgroup: &Path,
    hostname: &str,
    session: bool,
) -> Result<()> {
    let namespace = open(namespace)?;
    let processes = cgroup.join("cgroup.procs");
    let processes = File::options()
        .write(true)
        .open(&processes)
        .with_context(|| format!("open {}", processes.display()))?;
    let hostname = OsString::from(hostname);
    let child = move || -> io::Result<()> {
        write(&processes, b"0")?;
        setns(&namespace, CloneFlags::CLONE_NEWNET)?;
        unshare(CloneFlags::CLONE_NEWUTS)?;
        sethostname(&hostname)?;
        // What the caller blocks (to clean up before it ends) is no matter of the command's.
        SigSet::empty().thread_set_mask()?;
        if session {
            setsid()?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes system calls on descriptors and memory that
    // exist already; it neither allocates nor takes a lock.
    #[expect(unsafe_code, reason = "CommandExt::pre_exec is the only way into a namespace at exec")]
    unsafe {
        command.pre_exec(child);
    }
    Ok(())
}

/// Runs `work` on a thread of its own inside `namespace`; the caller's namespace stays as it is.
pub(crate) fn inside<T: Send>(
    namespace: &Path,
    work: impl FnOnce() -> Result<T> + Send,
) -> Result<T> {
    let handle = open(namespace)?;
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            setns(&handle, CloneFlags::CLONE_NEWNET)
                .with_context(|| format!("setns into {}", namespace.display()))?;
            work()
        });
        thread.join().map_err(|_| anyhow!("a thread inside {} panicked", namespace.display()))?
    })
}

/// Opens the TUN device called `name`, of this network namespace, to read and write its packets.
pub(crate) fn open_tun(name: &str) -> Result<File> {
    /// `TUNSETIFF`, `IFF_TUN` and `IFF_NO_PI` (include/uapi/linux/if_tun.h).
    const SET_INTERFACE: libc::c_ulong = 0x4004_54ca;
    const TUN_WITHOUT_HEADER: libc::c_short = 0x1001;
    let file = File::options().read(true).write(true).open("/dev/net/tun");
    let file = file.context("open /dev/net/tun")?;
    // SAFETY: all zeroes is a valid ifreq.
    #[expect(unsafe_code, reason = "an ifreq has no constructor")]
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = TUN_WITHOUT_HEADER;
    // SAFETY: the descriptor is open, and the request lives until the call returns.
    #[expect(unsafe_code, reason = "nix has no TUNSETIFF")]
    let result = unsafe { libc::ioctl(file.as_raw_fd(), SET_INTERFACE, &raw mut request) };
    Errno::result(result).with_context(|| format!("attach to the device {name}"))?;
    Ok(file)
}

fn open(namespace: &Path) -> Result<File> {
    File::open(namespace).with_context(|| {
        format!("open network namespace {} (is the lab still up?)", namespace.display())
    })
}

/// How often a socket of TCP has sent something again: after `connect`, how many SYNs were lost.
///
/// # Errors
/// The kernel's.
pub(crate) fn retransmissions(socket: &impl std::os::fd::AsFd) -> nix::Result<u32> {
    Ok(nix::sys::socket::getsockopt(socket, tcp_info::TcpInfo)?.tcpi_total_retrans)
}

mod tcp_info {
    use nix::libc;

    #[derive(Clone, Copy, Debug)]
    pub struct TcpInfo;

    nix::getsockopt_impl!(
        TcpInfo,
        libc::IPPROTO_TCP,
        libc::TCP_INFO,
        libc::tcp_info,
        nix::sys::socket::sockopt::GetStruct<libc::tcp_info>
    );
}
