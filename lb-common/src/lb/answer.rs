//! What we send ourselves: refusals, "too big" and "time exceeded". ICMP errors, but for TCP
//! connections that are refused: a reset passes where ICMP is filtered, and a client's kernel that
//! is still inside `connect` can't lose it.

use bytemuck::Pod;

use crate::bytes::Be16;
use crate::family::{Addr4, Addr6, Family, V4, V6};
use crate::packet::ReadHeader;
use crate::wire::checksum::Sum;
use crate::wire::icmp::{self, IcmpHeader};
use crate::wire::ip::{self, Ipv4Header, Ipv6Header};
use crate::wire::transport::{self, Ports, TcpHeader};

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

/// The families' formats of what we send.
pub trait AnswerFormat: ReadHeader {
    /// As much of the offending packet as is quoted: its IP header and 8 bytes (RFC 792).
    type Quote: Pod;
    /// The IP header.
    type Header: Pod;
    /// The IP header in front of `payload` bytes.
    fn header(
        source: Self::Addr,
        destination: Self::Addr,
        protocol: u8,
        payload: u16,
    ) -> Self::Header;
    /// The ICMP header in front of `quote`.
    fn icmp(
        answer: Answer,
        source: Self::Addr,
        destination: Self::Addr,
        quote: &Self::Quote,
    ) -> IcmpHeader;
}

/// Bytes behind the IP header of an ICMP error.
#[inline(always)]
pub const fn error_len<F: AnswerFormat>() -> u32 {
    icmp::HEADER_LEN + size_of::<F::Quote>() as u32
}

/// The reset that refuses a TCP segment (RFC 9293, 3.10.7.1), from the address that it named.
///
/// `payload`: bytes behind the segment's header.
#[inline(always)]
pub fn reset<F: AnswerFormat>(
    source: F::Addr,
    destination: F::Addr,
    segment: &TcpHeader,
    payload: u32,
) -> TcpHeader {
    let Ports { source: from, destination: to } = segment.ports;
    let mut header = TcpHeader {
        ports: Ports { source: to, destination: from },
        offset: (transport::TCP_HEADER_LEN as u8 / 4) << 4,
        ..TcpHeader::default()
    };
    if segment.flags & transport::ACK != 0 {
        header.sequence = segment.acknowledgment;
        header.flags = transport::RST;
    } else {
        let counted = |flag: u8| (segment.flags & flag != 0) as u32;
        let length = payload + counted(transport::SYN) + counted(transport::FIN);
        header.acknowledgment = u32::from_be(segment.sequence).wrapping_add(length).to_be();
        header.flags = transport::RST | transport::ACK;
    }
    let words: [u32; 5] = bytemuck::cast(header);
    header.checksum = F::sum(source)
        .add(F::sum(destination))
        .add(Sum::of_word(transport::TCP_HEADER_LEN.to_be()))
        .add(Sum::of_word((ip::TCP as u32).to_be()))
        .add(sum_words(&words))
        .checksum();
    header
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
    fn header(source: Addr4, destination: Addr4, protocol: u8, payload: u16) -> Ipv4Header {
        let mut ip = Ipv4Header {
            version_ihl: 0x45,
            tos: 0,
            total_len: Be16::new(Self::HEADER_LEN as u16 + payload),
            id: Be16::new(0),
            fragment: Be16::new(0),
            ttl: HOP_LIMIT,
            protocol,
            checksum: Be16::new(0),
            source,
            destination,
        };
        let words: [u32; 5] = bytemuck::cast(ip);
        ip.checksum = sum_words(&words).checksum();
        ip
    }

    #[inline(always)]
    fn icmp(answer: Answer, _: Addr4, _: Addr4, quote: &[u32; 7]) -> IcmpHeader {
        let (kind, code, rest) = match answer {
            Answer::PortUnreachable => (icmp::V4_UNREACHABLE, icmp::V4_PORT_UNREACHABLE, 0),
            Answer::TooBig { mtu } => {
                (icmp::V4_UNREACHABLE, icmp::V4_FRAGMENTATION_NEEDED, (mtu & 0xffff).to_be())
            }
            Answer::TimeExceeded => (icmp::V4_TIME_EXCEEDED, 0, 0),
        };
        let mut header = IcmpHeader { kind, code, checksum: Be16::new(0), rest };
        header.checksum = icmp_sum(&header).add(sum_words(quote)).checksum();
        header
    }
}

impl AnswerFormat for V6 {
    type Quote = [u32; 12];
    type Header = Ipv6Header;

    #[inline(always)]
    fn header(source: Addr6, destination: Addr6, protocol: u8, payload: u16) -> Ipv6Header {
        Ipv6Header {
            version_class_flow: (6_u32 << 28).to_be(),
            payload_len: Be16::new(payload),
            next_header: protocol,
            hop_limit: HOP_LIMIT,
            source,
            destination,
        }
    }

    #[inline(always)]
    fn icmp(answer: Answer, source: Addr6, destination: Addr6, quote: &[u32; 12]) -> IcmpHeader {
        let (kind, code, rest) = match answer {
            Answer::PortUnreachable => (icmp::V6_UNREACHABLE, icmp::V6_PORT_UNREACHABLE, 0),
            Answer::TooBig { mtu } => (icmp::V6_PACKET_TOO_BIG, 0, mtu.to_be()),
            Answer::TimeExceeded => (icmp::V6_TIME_EXCEEDED, 0, 0),
        };
        let mut header = IcmpHeader { kind, code, checksum: Be16::new(0), rest };
        let pseudo = sum_words(&source.0)
            .add(sum_words(&destination.0))
            .add(Sum::of_word(error_len::<Self>().to_be()))
            .add(Sum::of_word((Self::ICMP as u32).to_be()));
        header.checksum = pseudo.add(icmp_sum(&header)).add(sum_words(quote)).checksum();
        header
    }
}

const _: () = {
    assert!(size_of::<Ipv4Header>() == 20 && size_of::<[u32; 7]>() == 28);
    assert!(size_of::<Ipv6Header>() == 40 && size_of::<[u32; 12]>() == 48);
};
