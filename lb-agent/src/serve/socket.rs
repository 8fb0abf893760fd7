//! Listening sockets, with the meaning that Go gives to addresses, because kube-proxy's flags and
//! ports mean what Go's `net.Listen` makes of them.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpListener, TcpSocket};

/// Connections that wait to be accepted.
const BACKLOG: u32 = 128;

/// Listens on `address`. The unspecified address of either family means every address of both
/// (`net.Listen("tcp", "0.0.0.0:10256")`).
pub(super) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let own_family = || open(address, |socket| keep_to_family(socket, address));
    if !address.ip().is_unspecified() {
        return own_family();
    }
    let both = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), address.port());
    match open(both, |socket| setsockopt(socket, sockopt::Ipv6V6Only, &false)) {
        Err(error) if is_without_family(&error) && address.is_ipv4() => own_family(),
        result => result,
    }
}

/// Listens on `address` in its own family only (`tcp4`, `tcp6`).
///
/// An address that isn't the node's yet will do: a new IPv6 address can't be bound until the kernel
/// has asked the link for duplicates.
pub(super) fn listen_only(address: SocketAddr) -> io::Result<TcpListener> {
    open(address, |socket| {
        keep_to_family(socket, address)?;
        setsockopt(socket, sockopt::IpFreebind, &true)
    })
}

fn keep_to_family(socket: &TcpSocket, address: SocketAddr) -> nix::Result<()> {
    if address.is_ipv6() { setsockopt(socket, sockopt::Ipv6V6Only, &true) } else { Ok(()) }
}

/// The kernel runs without this family (`ipv6.disable=1`).
pub(super) fn is_without_family(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::EAFNOSUPPORT as i32)
}

fn open(
    address: SocketAddr,
    options: impl FnOnce(&TcpSocket) -> nix::Result<()>,
) -> io::Result<TcpListener> {
    let socket = match address.ip() {
        IpAddr::V4(_) => TcpSocket::new_v4()?,
        IpAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // Connections of the last run may still be closing.
    socket.set_reuseaddr(true)?;
    options(&socket)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}
