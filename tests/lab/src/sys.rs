//! The lab's only unsafe code and its only knowledge of how a process gets into a host: network
//! namespace, cgroup, host name. Decides nothing.
//!
//! `ip netns exec` is not used: it mounts a new /sys, which hides the cgroup and bpf mounts that
//! the agent under test needs.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, anyhow};
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
