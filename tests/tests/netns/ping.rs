//! ICMP echo with a raw socket inside a host: no tool that a machine may lack.

use std::fs::File;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, recv, sendto,
    setsockopt, socket, sockopt::ReceiveTimeout,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::stage::Stage;

const IDENTIFIER: [u8; 2] = *b"lb";

/// Whether `to` answers an echo request from `host`.
pub fn ping(stage: &Stage, host: &str, to: IpAddr) -> bool {
    let namespace = File::open(stage.lab().namespace(host).unwrap()).unwrap();
    // A thread of its own: it is in the other namespace for the rest of its life.
    let echo = move || {
        setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
        echo(to)
    };
    std::thread::spawn(echo).join().unwrap().unwrap()
}

fn echo(to: IpAddr) -> Result<bool, Errno> {
    let (family, protocol, request, reply) = match to {
        IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp, 8, 0),
        IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6, 128, 129),
    };
    let socket = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
    setsockopt(&socket, ReceiveTimeout, &TimeVal::milliseconds(200))?;
    let mut message = [request, 0, 0, 0, IDENTIFIER[0], IDENTIFIER[1], 0, 1];
    // The kernel fills the checksum of ICMPv6 in, but not that of ICMP.
    let sum = message.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let folded: u32 = sum;
    let checksum = !((folded & 0xffff) + (folded >> 16)) as u16;
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
    let target = SockaddrStorage::from(SocketAddr::new(to, 0));
    match sendto(socket.as_raw_fd(), &message, &target, MsgFlags::empty()) {
        Ok(_) => {}
        // A tc program of the sender's own device dropped it (NET_XMIT_DROP).
        Err(Errno::ENOBUFS) => return Ok(false),
        Err(errno) => return Err(errno),
    }
    let deadline = Instant::now() + Duration::from_secs(2);
    let mut buffer = [0; 256];
    while Instant::now() < deadline {
        let Ok(length) = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) else { continue };
        // Raw IPv4 sockets get the IP header too.
        let skip = if to.is_ipv4() { usize::from(buffer[0] & 15) * 4 } else { 0 };
        let answer = &buffer[skip..length.max(skip)];
        if answer.first() == Some(&reply) && answer.get(4..6) == Some(&IDENTIFIER) {
            return Ok(true);
        }
    }
    Ok(false)
}
