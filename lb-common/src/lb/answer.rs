//! ICMP errors that we send ourselves: refusals, "too big" and "time exceeded".

use bytemuck::Pod;

use crate::bytes::Be16;
use crate::family::{Addr4, Addr6, V4, V6};
use crate::packet::ReadHeader;
use crate::wire::checksum::Sum;
use crate::wire::icmp::{self, IcmpHeader};
use crate::wire::ip::{Ipv4Header, Ipv6Header};

/// What the sender is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, u32)]
pub enum Answer {
    /// Nobody listens there: applications see ECONNREFUSED (kube-proxy's REJECT).
    PortUnreachable,
    /// Send no more than this many bytes (RFC 1191, RFC 8201).
    TooBig {
        /// Next-hop MTU, bytes.
        mtu: u32,
    },
    /// The hop limit ran out here.
    TimeExceeded,
}

/// Hop limit of packets that we originate, as Linux has it.
const HOP_LIMIT: u8 = 64;
/// Protocol number of ICMPv6.
const ICMPV6: u8 = 58;

/// The families' formats of an error.
pub trait AnswerFormat: ReadHeader {
    /// As much of the offending packet as is quoted: its IP header and 8 bytes (RFC 792).
    type Quote: Pod;
    /// The new IP header.
    type Header: Pod;
    /// IP header and ICMP header in front of `quote`.
    fn headers(
        answer: Answer,
        source: Self::Addr,
        destination: Self::Addr,
        quote: &Self::Quote,
    ) -> (Self::Header, IcmpHeader);
}

/// Bytes in front of the quote: the new headers.
#[inline(always)]
pub const fn header_len<F: AnswerFormat>() -> u32 {
    F::HEADER_LEN + icmp::HEADER_LEN
}

/// Sum over words as they lie in memory.
#[inline(always)]
fn sum_words<const N: usize>(words: &[u32; N]) -> Sum {
    let mut total = Sum::default();
    for word in words {
        total = total.add(Sum::of_word(*word));
    }
    total
}

#[inline(always)]
fn icmp_sum(header: &IcmpHeader) -> Sum {
    let words: [u32; 2] = bytemuck::cast(*header);
    sum_words(&words)
}

impl AnswerFormat for V4 {
    type Quote = [u32; 7];
    type Header = Ipv4Header;

    #[inline(always)]
    fn headers(
        answer: Answer,
        source: Addr4,
        destination: Addr4,
        quote: &[u32; 7],
    ) -> (Ipv4Header, IcmpHeader) {
        let mut ip = Ipv4Header {
            version_ihl: 0x45,
            tos: 0,
            total_len: Be16::new((20 + 8 + 28) as u16),
            id: Be16::new(0),
            fragment: Be16::new(0),
            ttl: HOP_LIMIT,
            protocol: 1,
            checksum: Be16::new(0),
            source,
            destination,
        };
        let words: [u32; 5] = bytemuck::cast(ip);
        ip.checksum = sum_words(&words).checksum();
        let (kind, code, rest) = match answer {
            Answer::PortUnreachable => (icmp::V4_UNREACHABLE, icmp::V4_PORT_UNREACHABLE, 0),
            Answer::TooBig { mtu } => {
                (icmp::V4_UNREACHABLE, icmp::V4_FRAGMENTATION_NEEDED, (mtu & 0xffff).to_be())
            }
            Answer::TimeExceeded => (icmp::V4_TIME_EXCEEDED, 0, 0),
        };
        let mut header = IcmpHeader { kind, code, checksum: Be16::new(0), rest };
        header.checksum = icmp_sum(&header).add(sum_words(quote)).checksum();
        (ip, header)
    }
}

impl AnswerFormat for V6 {
    type Quote = [u32; 12];
    type Header = Ipv6Header;

    #[inline(always)]
    fn headers(
        answer: Answer,
        source: Addr6,
        destination: Addr6,
        quote: &[u32; 12],
    ) -> (Ipv6Header, IcmpHeader) {
        const LENGTH: u16 = 8 + 48;
        let ip = Ipv6Header {
            version_class_flow: (6_u32 << 28).to_be(),
            payload_len: Be16::new(LENGTH),
            next_header: ICMPV6,
            hop_limit: HOP_LIMIT,
            source,
            destination,
        };
        let (kind, code, rest) = match answer {
            Answer::PortUnreachable => (icmp::V6_UNREACHABLE, icmp::V6_PORT_UNREACHABLE, 0),
            Answer::TooBig { mtu } => (icmp::V6_PACKET_TOO_BIG, 0, mtu.to_be()),
            Answer::TimeExceeded => (icmp::V6_TIME_EXCEEDED, 0, 0),
        };
        let mut header = IcmpHeader { kind, code, checksum: Be16::new(0), rest };
        let pseudo = sum_words(&source.0)
            .add(sum_words(&destination.0))
            .add(Sum::of_word((LENGTH as u32).to_be()))
            .add(Sum::of_word((ICMPV6 as u32).to_be()));
        header.checksum = pseudo.add(icmp_sum(&header)).add(sum_words(quote)).checksum();
        (ip, header)
    }
}

const _: () = {
    assert!(size_of::<Ipv4Header>() == 20 && size_of::<[u32; 7]>() == 28);
    assert!(size_of::<Ipv6Header>() == 40 && size_of::<[u32; 12]>() == 48);
};
