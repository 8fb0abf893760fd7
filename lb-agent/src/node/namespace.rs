//! Network namespaces: their names, and visits. One of the few modules that may use `unsafe`.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
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

/// Lets its thread look into other network namespaces. For threads that do nothing else: what runs
/// on a thread is in the thread's namespace.
#[derive(Debug)]
pub struct Visitor {
    home: File,
}

impl Visitor {
    /// For the calling thread, whose namespace is home.
    pub fn new() -> io::Result<Self> {
        Ok(Self { home: File::open("/proc/thread-self/ns/net")? })
    }

    /// The namespace that it returns to.
    pub fn home(&self) -> &File {
        &self.home
    }

    /// Calls `look` inside the namespace that `path` leads to. Needs CAP_SYS_ADMIN. Sockets that
    /// `look` opens stay in there.
    pub fn visit<T>(&self, path: &Path, look: impl FnOnce() -> T) -> io::Result<T> {
        let namespace = File::open(path)?;
        setns(&namespace, CloneFlags::CLONE_NEWNET)?;
        let seen = look();
        setns(&self.home, CloneFlags::CLONE_NEWNET)?;
        Ok(seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_has_one_cookie_and_another_namespace_another() {
        let ours = netns_cookie().unwrap();
        assert_eq!(netns_cookie().unwrap(), ours);
        let theirs = std::thread::spawn(|| {
            nix::sched::unshare(CloneFlags::CLONE_NEWNET).expect("needs root");
            netns_cookie().unwrap()
        });
        assert_ne!(theirs.join().unwrap(), ours);
    }
}
