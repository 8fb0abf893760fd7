//! Puts a flow's tuple into a packet: addresses, ports, hop limit and every checksum over them.

use crate::abi::FlowKey;
use crate::bytes::Be16;
use crate::env::{Balance, ChangeOf, ChecksumRule, Frame};
use crate::family::Family;
use crate::packet::{IcmpError, Packet};
use crate::wire::checksum::Sum;
use crate::wire::crc32c;
use crate::wire::transport::{self, Ports};
use crate::wire::{icmp, ip};

/// Whether we act as a router.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hop {
    /// The stack forwards it, or nobody does.
    Keep,
    /// We forward it: TTL or hop limit minus one.
    Decrement,
}

/// Rewrites a TCP, UDP or SCTP packet to `to`. `false` when the packet could not be written.
#[inline(always)]
pub fn transport<F: Family, E: Frame>(
    env: &mut E,
    packet: &Packet<F>,
    to: &FlowKey<F>,
    hop: Hop,
) -> bool {
    let from = &packet.tuple;
    let change = address_change::<F>(from, to);
    let outer = outer_header(env, to, change, packet.hop_limit, hop);
    if !packet.has_transport {
        return outer;
    }
    let l4 = packet.transport_offset::<E>();
    if E::SCTP {
        return outer && sctp_ports(env, packet, l4, to);
    }
    let (field, rule) = if packet.protocol() == ip::UDP {
        (l4 + transport::UDP_CHECKSUM_OFFSET, ChecksumRule::Udp)
    } else {
        (l4 + transport::TCP_CHECKSUM_OFFSET, ChecksumRule::Plain)
    };
    outer
        && env.change_transport_checksum(field, change, ChangeOf::PseudoHeader, rule)
        && env.change_transport_checksum(field, port_change(from, to), ChangeOf::Payload, rule)
        && env.store(l4, &ports(to), Balance::Balanced)
}

/// Ports of an SCTP packet, and its checksum, which covers no address.
///
/// A checksum of zero is one that the sender's kernel or a device will fill in (CHECKSUM_PARTIAL;
/// net/sctp/output.c). That of a fragmented packet can't be told from its first piece.
#[inline(always)]
fn sctp_ports<F: Family, E: Frame>(
    env: &mut E,
    packet: &Packet<F>,
    l4: u32,
    to: &FlowKey<F>,
) -> bool {
    let (old, new): (u32, u32) = (bytemuck::cast(ports(&packet.tuple)), bytemuck::cast(ports(to)));
    if old == new {
        return true;
    }
    let field = l4 + transport::SCTP_CHECKSUM_OFFSET;
    let Some(checksum) = env.load::<u32>(field) else {
        return false;
    };
    if checksum != 0 {
        let length = packet.length.wrapping_sub(l4 - E::IP_OFFSET);
        let updated = crc32c::update(checksum, old, new, length);
        if !packet.whole || !env.store(field, &updated, Balance::Unbalanced) {
            return false;
        }
    }
    env.store(l4, &ports(to), Balance::Unbalanced)
}

/// Rewrites an ICMP error: the outer header to `source` and `destination`, the quoted packet to
/// `quoted`. The quoted transport checksum stays: receivers don't look at it (RFC 5508, 4.2 asks
/// for addresses and ports).
#[inline(always)]
pub fn icmp_error<F: Family, E: Frame>(
    env: &mut E,
    error: &IcmpError<F>,
    source: F::Addr,
    destination: F::Addr,
    quoted: &FlowKey<F>,
    hop: Hop,
) -> bool {
    let outer_from = FlowKey { source: error.source, destination: error.destination, ..*quoted };
    let outer_to = FlowKey { source, destination, ..*quoted };
    let outer_change = address_change::<F>(&outer_from, &outer_to);
    let quoted_change = address_change::<F>(&error.quoted, quoted);
    let ports_changed = port_change(&error.quoted, quoted);
    let field = error.icmp + icmp::CHECKSUM_OFFSET;
    let written = outer_header(env, &outer_to, outer_change, error.hop_limit, hop)
        && env.store(error.quoted_l3 + F::SOURCE_OFFSET, &quoted.source, Balance::Balanced)
        && env.store(
            error.quoted_l3 + F::DESTINATION_OFFSET,
            &quoted.destination,
            Balance::Balanced,
        )
        && env.store(error.quoted_l4, &ports(quoted), Balance::Balanced);
    if !written {
        return false;
    }
    if F::HAS_HEADER_CHECKSUM {
        // The quoted header's own checksum makes up for its addresses, so the sum that the ICMP
        // checksum covers changes by the ports alone.
        env.change_header_checksum(error.quoted_l3 + ip::IPV4_CHECKSUM_OFFSET, quoted_change)
            && env.change_transport_checksum(
                field,
                ports_changed,
                ChangeOf::Payload,
                ChecksumRule::Plain,
            )
    } else {
        env.change_transport_checksum(
            field,
            outer_change,
            ChangeOf::PseudoHeader,
            ChecksumRule::Plain,
        ) && env.change_transport_checksum(
            field,
            quoted_change.add(ports_changed),
            ChangeOf::Payload,
            ChecksumRule::Plain,
        )
    }
}

/// Addresses and hop limit of the outer IP header, and its checksum.
#[inline(always)]
fn outer_header<F: Family, E: Frame>(
    env: &mut E,
    to: &FlowKey<F>,
    change: Sum,
    hop_limit: u8,
    hop: Hop,
) -> bool {
    // IPv4's header checksum and IPv6's transport checksum make up for the addresses; but the
    // kernel's helper for pseudo headers assumes an IPv4 header, so IPv6 tells the whole truth.
    let l3 = E::IP_OFFSET;
    let balance = if F::HAS_HEADER_CHECKSUM { Balance::Balanced } else { Balance::Unbalanced };
    let mut header_change = change;
    let mut written = env.store(l3 + F::SOURCE_OFFSET, &to.source, balance)
        && env.store(l3 + F::DESTINATION_OFFSET, &to.destination, balance);
    if hop == Hop::Decrement {
        let fewer = hop_limit.wrapping_sub(1);
        let offset =
            if F::HAS_HEADER_CHECKSUM { ip::IPV4_TTL_OFFSET } else { ip::IPV6_HOP_LIMIT_OFFSET };
        written = written && env.store(l3 + offset, &fewer, balance);
        // TTL is the high byte of its 16-bit word.
        let word = |limit: u8| Sum::of_half(Be16::new((limit as u16) << 8).raw());
        header_change = header_change.add(Sum::change(word(hop_limit), word(fewer)));
    }
    if F::HAS_HEADER_CHECKSUM {
        written =
            written && env.change_header_checksum(l3 + ip::IPV4_CHECKSUM_OFFSET, header_change);
    }
    written
}

#[inline(always)]
fn ports<F: Family>(tuple: &FlowKey<F>) -> Ports {
    Ports { source: tuple.source_port, destination: tuple.destination_port }
}

/// Out of line: a kernel program has no stack for sixteen words in flight.
#[inline(never)]
fn address_change<F: Family>(from: &FlowKey<F>, to: &FlowKey<F>) -> Sum {
    let sum = |tuple: &FlowKey<F>| F::sum(tuple.source).add(F::sum(tuple.destination));
    Sum::change(sum(from), sum(to))
}

#[inline(always)]
fn port_change<F: Family>(from: &FlowKey<F>, to: &FlowKey<F>) -> Sum {
    let sum = |tuple: &FlowKey<F>| {
        Sum::of_half(tuple.source_port.raw()).add(Sum::of_half(tuple.destination_port.raw()))
    };
    Sum::change(sum(from), sum(to))
}
