//! Names of network namespaces. One of the few modules that may use `unsafe`.

use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// Why the namespace has no name.
#[derive(Debug, thiserror::Error)]
#[error("getsockopt(SO_NETNS_COOKIE): {0}; it needs Linux 5.14")]
pub struct CookieError(#[source] Errno);

/// The cookie of the calling thread's network namespace: what `bpf_get_netns_cookie` returns for
/// its sockets. Never 0 (Linux gives 0 to no namespace).
pub fn netns_cookie() -> Result<u64, CookieError> {
    let any = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
        .map_err(CookieError)?;
    let mut cookie = 0u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: both pointers are to live locals, and `length` is the size of what the first one
    // points to; the kernel writes no more than that.
    let result = unsafe {
        libc::getsockopt(
            any.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    Errno::result(result).map_err(CookieError)?;
    Ok(cookie)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_has_one_cookie_and_another_namespace_another() {
        let ours = netns_cookie().unwrap();
        assert_eq!(netns_cookie().unwrap(), ours);
        let theirs = std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("needs root");
            netns_cookie().unwrap()
        });
        assert_ne!(theirs.join().unwrap(), ours);
    }
}
