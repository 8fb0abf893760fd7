//! What is inside of a network namespace, for a thread that is inside.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, SockaddrLike as _,
    SockaddrStorage, bind, recv, socket,
};

use crate::node::namespace::netns_cookie;

/// `RTMGRP_IPV4_IFADDR` and `RTMGRP_IPV6_IFADDR` (include/uapi/linux/rtnetlink.h).
const ADDRESS_GROUPS: u32 = 0x10 | 0x100;

/// The addresses that others reach a namespace by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// The first IPv4 address.
    pub v4: Option<Ipv4Addr>,
    /// The first IPv6 address.
    pub v6: Option<Ipv6Addr>,
}

impl Addresses {
    /// There is one.
    pub fn any(&self) -> bool {
        self.v4.is_some() || self.v6.is_some()
    }
}

/// What was seen.
pub struct Look {
    /// The namespace's cookie.
    pub cookie: u64,
    /// Its addresses.
    pub addresses: Addresses,
    /// Says when the addresses change; since before they were read.
    pub news: Option<News>,
}

impl Look {
    /// Looks around in the calling thread's namespace, and stays informed if `subscribe`.
    pub fn here(subscribe: bool) -> io::Result<Self> {
        // One descriptor for each namespace that is new, which are all at the start; who has no more
        // of them hears of changes later.
        let news = if subscribe { News::here().ok() } else { None };
        let cookie = netns_cookie().map_err(io::Error::other)?;
        Ok(Self { cookie, addresses: addresses()?, news })
    }
}

/// Devices come in the order of their indices: the CNI's own before those of attachments that pods
/// get beside it.
fn addresses() -> io::Result<Addresses> {
    let mut found = Addresses::default();
    for interface in getifaddrs()? {
        // Service addresses of other load balancers live on loopback devices.
        if interface.flags.contains(InterfaceFlags::IFF_LOOPBACK) {
            continue;
        }
        let Some(address) = interface.address else { continue };
        match address.family() {
            Some(AddressFamily::Inet) => found.v4 = found.v4.or_else(|| v4(&address)),
            Some(AddressFamily::Inet6) => found.v6 = found.v6.or_else(|| v6(&address)),
            // Link layer.
            _ => {}
        }
    }
    Ok(found)
}

fn v4(address: &SockaddrStorage) -> Option<Ipv4Addr> {
    address.as_sockaddr_in().map(|v4| v4.ip()).filter(|ip| !ip.is_link_local() && !ip.is_loopback())
}

fn v6(address: &SockaddrStorage) -> Option<Ipv6Addr> {
    address
        .as_sockaddr_in6()
        .map(|v6| v6.ip())
        .filter(|ip| !ip.is_unicast_link_local() && !ip.is_loopback())
}

/// Readable when an address of a namespace has come or gone.
pub struct News(OwnedFd);

impl News {
    fn here() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket =
            socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, ADDRESS_GROUPS))?;
        Ok(Self(socket))
    }

    /// Throws away what was told: it says only *that* something changed.
    pub fn drain(&self) {
        let mut message = [0; 4096];
        // ENOBUFS: some were lost; the others are still to be read.
        while matches!(
            recv(self.0.as_raw_fd(), &mut message, MsgFlags::empty()),
            Ok(1..) | Err(Errno::ENOBUFS | Errno::EINTR)
        ) {}
    }
}

impl AsFd for News {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
