//! The packet that opens a connection, as a frame, and the addresses of a frame that a program made of
//! it. Checksums are zero: nobody receives it.

use std::net::{IpAddr, SocketAddr};

use lb_common::family::{Family as _, V4, V6};
use lb_common::wire::{ethernet, ip};

/// Length of an Ethernet header, bytes.
const LINK: usize = ethernet::HEADER_LEN as usize;
const SYN: u8 = 0x02;
/// SCTP's INIT chunk, and its length without parameters.
const INIT: [u8; 4] = [1, 0, 0, 20];

/// The frame of the packet that opens a connection; `protocol` is its IP number.
pub fn opening(source: SocketAddr, destination: SocketAddr, protocol: u8) -> Vec<u8> {
    let transport = transport(source.port(), destination.port(), protocol);
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    match (source.ip(), destination.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            frame.extend([0x08, 0x00, 0x45, 0]);
            frame.extend((20 + transport.len() as u16).to_be_bytes());
            // Identification; "don't fragment"; TTL; no checksum.
            frame.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
            frame.extend(source.octets());
            frame.extend(destination.octets());
        }
        (source, destination) => {
            let v6 = |address| match address {
                IpAddr::V4(v4) => v4.to_ipv6_mapped(),
                IpAddr::V6(v6) => v6,
            };
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend((transport.len() as u16).to_be_bytes());
            frame.extend([protocol, 64]);
            frame.extend(v6(source).octets());
            frame.extend(v6(destination).octets());
        }
    }
    frame.extend(transport);
    frame
}

fn transport(source: u16, destination: u16, protocol: u8) -> Vec<u8> {
    let mut header = [source.to_be_bytes(), destination.to_be_bytes()].concat();
    match protocol {
        ip::TCP => header.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, SYN, 0x20, 0, 0, 0, 0, 0]),
        ip::SCTP => {
            header.extend([0; 8]);
            header.extend(INIT);
            header.extend([0; 16]);
        }
        _ => header.extend([0, 8, 0, 0]),
    }
    header
}

/// Whether a frame carries ICMP of either family, without extension headers.
pub fn is_icmp(frame: &[u8]) -> bool {
    let at = |offset: usize| frame.get(LINK + offset).copied();
    match at(0) {
        Some(0x45) => at(9) == Some(V4::ICMP),
        Some(0x60) => at(6) == Some(V6::ICMP),
        _ => false,
    }
}

/// Source and destination of such a frame, or of the answer to it: `None` for what is neither.
pub fn ends(frame: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let take = |start: usize, length: usize| frame.get(LINK + start..LINK + start + length);
    let v4 = |start| Some(IpAddr::from(<[u8; 4]>::try_from(take(start, 4)?).ok()?));
    let v6 = |start| Some(IpAddr::from(<[u8; 16]>::try_from(take(start, 16)?).ok()?));
    let (source, destination, ports) = match take(0, 1)? {
        [0x45] => (v4(12)?, v4(16)?, 20),
        [0x60] => (v6(8)?, v6(24)?, 40),
        _ => return None,
    };
    let port = |start| Some(u16::from_be_bytes(<[u8; 2]>::try_from(take(start, 2)?).ok()?));
    Some((SocketAddr::new(source, port(ports)?), SocketAddr::new(destination, port(ports + 2)?)))
}

#[cfg(test)]
mod tests {
    use lb_common::model::node::{Node, Tc};
    use lb_common::model::world::World;

    use super::*;

    #[test]
    fn the_frame_has_the_ends_that_it_was_made_with_and_the_datapath_reads_it() {
        for (source, destination) in
            [("192.0.2.1:4000", "198.51.100.1:80"), ("[2001:db8::1]:4000", "[2001:db8::2]:80")]
        {
            let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
            for protocol in [ip::TCP, ip::UDP, ip::SCTP] {
                let frame = opening(source, destination, protocol);
                assert_eq!(ends(&frame), Some((source, destination)));
                assert!(!is_icmp(&frame));
                let mut world = World::default();
                world
                    .addresses
                    .insert(destination.ip().into(), lb_common::abi::AddressFlags::CLUSTER_IP);
                // A port that nobody has on a ClusterIP: counted only if the packet is understood.
                let drops = if destination.is_ipv4() {
                    let mut node = Node::<V4>::new(world);
                    node.ingress::<Tc>(&frame);
                    node.world.dropped()
                } else {
                    let mut node = Node::<V6>::new(world);
                    node.ingress::<Tc>(&frame);
                    node.world.dropped()
                };
                assert_eq!(drops.values().sum::<u64>(), 1, "{source} {protocol}");
            }
        }
    }
}
