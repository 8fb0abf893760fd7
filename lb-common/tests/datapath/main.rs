//! The datapath's decisions on the host: frames in, frames out, with etherparse as independent writer.
//!
//! Each test body is generic over the family and runs for IPv4 and IPv6, TCP and UDP.

mod affinity;
mod answers;
mod checksums;
mod flows;
mod fragments;
mod icmp;
mod local;
mod monitor;
mod node_sctp;
mod parse;
mod pods;
mod ranges;
mod remote;
mod sctp;
mod selection;
mod sockets;
mod sources;
mod takeover;

use lb_common::family::Family;
use lb_common::lb::Verdict;
use lb_common::model::frame::{Segment, Transport};
use lb_common::model::node::{Node, Outcome};
use lb_common::model::scene::{Role, at, ip, port};
use std::net::SocketAddr;

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// First packets of a flow.
const OPENERS: [Transport; 3] =
    [Transport::Tcp(SYN), Transport::Udp, Transport::UdpWithoutChecksum];

/// From the client to a frontend.
fn from_client<F: Family>(to: SocketAddr, transport: Transport) -> Segment {
    Segment::new(at::<F>(Role::Client, port::CLIENT), to, transport)
}

/// The external address with this port.
fn external<F: Family>(service: u16) -> SocketAddr {
    at::<F>(Role::External, service)
}

/// The endpoint's address.
fn pod<F: Family>(role: Role) -> SocketAddr {
    at::<F>(role, port::BACKEND)
}

/// The source that a remote backend saw, read from a forwarded frame.
#[expect(clippy::expect_used, reason = "a test fails here")]
fn source_of<F: Family>(outcome: &Outcome) -> SocketAddr {
    assert_eq!(outcome.verdict, Verdict::Forward);
    let header = 14 + F::HEADER_LEN as usize;
    let port = u16::from_be_bytes([outcome.bytes[header], outcome.bytes[header + 1]]);
    let source = 14 + F::SOURCE_OFFSET as usize;
    let role = [Role::Node, Role::Overlay].into_iter().find(|role| match ip::<F>(*role) {
        std::net::IpAddr::V4(v4) => outcome.bytes[source..source + 4] == v4.octets(),
        std::net::IpAddr::V6(v6) => outcome.bytes[source..source + 16] == v6.octets(),
    });
    at::<F>(role.expect("the node's address"), port)
}

/// Drops by reason, over all Services.
fn drops<F: Family>(node: &Node<F>) -> Vec<(lb_common::lb::DropReason, u64)> {
    node.world.drops.borrow().iter().map(|((_, reason), count)| (*reason, *count)).collect()
}
