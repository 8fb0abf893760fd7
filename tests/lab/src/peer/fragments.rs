//! A UDP datagram as IP fragments in an order of our choice, by a raw socket.

use std::io::{Error, Result};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU32, Ordering};

use etherparse::{IpFragOffset, IpNumber, Ipv4Header, Ipv6FragmentHeader, Ipv6Header, UdpHeader};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, sendto, socket,
};

use super::protocol::Fragments;

/// Bytes of each fragment but the last, without IP headers: a multiple of eight below every MTU of a lab.
const PIECE: usize = 1_200;

/// Sends `payload` from `local`'s port to `to`.
pub(super) fn send(
    fragments: Fragments,
    local: &UdpSocket,
    to: SocketAddr,
    payload: &[u8],
) -> Result<()> {
    static ID: AtomicU32 = AtomicU32::new(1);
    let to = SocketAddr::new(to.ip().to_canonical(), to.port());
    let from = SocketAddr::new(source(to)?, local.local_addr()?.port());
    let id = ID.fetch_add(1, Ordering::Relaxed);
    let mut packets = match (from.ip(), to.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            packets4((source, from.port()), (destination, to.port()), id, payload)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            packets6((source, from.port()), (destination, to.port()), id, payload)
        }
        (IpAddr::V4(_) | IpAddr::V6(_), _) => return Err(Error::other("two families")),
    }?;
    match fragments {
        Fragments::AsTheKernelDoes => {}
        Fragments::Reversed => packets.reverse(),
        Fragments::Shuffled => shuffle(&mut packets, id),
        Fragments::WithoutFirst => drop(packets.remove(0)),
    }
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    // This protocol means that packets are given with their headers.
    let raw = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw)?;
    let address = SockaddrStorage::from(SocketAddr::new(to.ip(), 0));
    for packet in packets {
        sendto(raw.as_raw_fd(), &packet, &address, MsgFlags::empty())?;
    }
    Ok(())
}

/// The address that the kernel would send from.
fn source(to: SocketAddr) -> Result<IpAddr> {
    let any: IpAddr =
        if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(to)?;
    Ok(socket.local_addr()?.ip())
}

fn packets4(
    (source, source_port): (Ipv4Addr, u16),
    (destination, port): (Ipv4Addr, u16),
    id: u32,
    payload: &[u8],
) -> Result<Vec<Vec<u8>>> {
    let (source, destination) = (source.octets(), destination.octets());
    let whole = Ipv4Header::new(0, 64, IpNumber::UDP, source, destination).map_err(Error::other)?;
    let udp = UdpHeader::with_ipv4_checksum(source_port, port, &whole, payload);
    let datagram = [&udp.map_err(Error::other)?.to_bytes(), payload].concat();
    pieces(&datagram, |offset, more, piece| {
        let mut header = whole.clone();
        header.set_payload_len(piece.len()).map_err(Error::other)?;
        // Zero would be replaced by the kernel, by another one for each.
        header.identification = (id % 65_535 + 1) as u16;
        header.dont_fragment = false;
        header.more_fragments = more;
        header.fragment_offset = offset;
        header.header_checksum = header.calc_header_checksum();
        Ok([&header.to_bytes(), piece].concat())
    })
}

fn packets6(
    (source, source_port): (Ipv6Addr, u16),
    (destination, port): (Ipv6Addr, u16),
    id: u32,
    payload: &[u8],
) -> Result<Vec<Vec<u8>>> {
    let whole = Ipv6Header {
        next_header: IpNumber::IPV6_FRAGMENTATION_HEADER,
        hop_limit: 64,
        source: source.octets(),
        destination: destination.octets(),
        ..Ipv6Header::default()
    };
    let udp = UdpHeader::with_ipv6_checksum(source_port, port, &whole, payload);
    let datagram = [&udp.map_err(Error::other)?.to_bytes(), payload].concat();
    pieces(&datagram, |offset, more, piece| {
        let fragment = Ipv6FragmentHeader::new(IpNumber::UDP, offset, more, id).to_bytes();
        let mut header = whole.clone();
        header.set_payload_length(fragment.len() + piece.len()).map_err(Error::other)?;
        Ok([&header.to_bytes()[..], &fragment, piece].concat())
    })
}

/// Calls `packet` with offset (units of 8 bytes), "more fragments" and bytes of each piece.
fn pieces(
    datagram: &[u8],
    packet: impl Fn(IpFragOffset, bool, &[u8]) -> Result<Vec<u8>>,
) -> Result<Vec<Vec<u8>>> {
    let count = datagram.chunks(PIECE).len();
    let each = datagram.chunks(PIECE).enumerate().map(|(number, piece)| {
        let offset = u16::try_from(number * PIECE / 8).map_err(Error::other)?;
        packet(IpFragOffset::try_new(offset).map_err(Error::other)?, number + 1 < count, piece)
    });
    each.collect()
}

/// Another order for each `seed`, never with the first in front.
fn shuffle(packets: &mut [Vec<u8>], seed: u32) {
    let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
    for at in (1..packets.len()).rev() {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        // Below `at`, not at it: every packet leaves its place (Sattolo).
        packets.swap(at, state as usize % at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shuffle_keeps_every_packet_and_none_in_its_place() {
        for seed in 0..1000 {
            let mut packets: Vec<_> = (0..7_u8).map(|number| vec![number]).collect();
            shuffle(&mut packets, seed);
            assert!((0_u8..).zip(&packets).all(|(number, packet)| *packet != [number]));
            packets.sort();
            assert_eq!(packets.concat(), [0, 1, 2, 3, 4, 5, 6]);
        }
    }
}
