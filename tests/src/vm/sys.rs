//! Calls to the kernel that no safe wrapper of ours covers, and programs of the guest.

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;

/// Sets a network device up, as `ip link set dev NAME up` does (netdevice(7)).
pub fn set_link_up(name: &str) -> io::Result<()> {
    let mut request = request(name);
    request.ifr_ifru.ifru_flags = i16::try_from(libc::IFF_UP).map_err(io::Error::other)?;
    ask(libc::SIOCSIFFLAGS, &request)
}

/// Has the kernel fill in the checksums of what leaves through a device itself, CRCs of SCTP among them, as
/// `ethtool --offload NAME tx off` does.
pub fn compute_checksums(name: &str) -> io::Result<()> {
    /// `struct ethtool_value` (include/uapi/linux/ethtool.h).
    #[repr(C)]
    struct Value {
        command: u32,
        data: u32,
    }
    const ETHTOOL_STXCSUM: u32 = 0x17;
    const SIOCETHTOOL: libc::Ioctl = 0x8946;
    let mut off = Value { command: ETHTOOL_STXCSUM, data: 0 };
    let mut request = request(name);
    request.ifr_ifru.ifru_data = (&raw mut off).cast();
    ask(SIOCETHTOOL, &request)
}

fn request(name: &str) -> libc::ifreq {
    // SAFETY: an all-zero ifreq is a valid one: an array of characters and a union of plain numbers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last character stays zero.
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name.iter_mut().take(room).zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request
}

/// In the calling thread's network namespace.
fn ask(what: libc::Ioctl, request: &libc::ifreq) -> io::Result<()> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: both calls read one ifreq, which lives until they return, and so does what it points to.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), what, request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Runs a command in the calling thread's network namespace; what it prints. It must succeed.
pub fn run(command: &str) -> Result<String> {
    let mut words = command.split_whitespace();
    let output = Command::new(Path::new("/bin").join(words.next().unwrap_or_default()))
        .args(words)
        .output()
        .with_context(|| command.to_owned())?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command}: {errors}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
