//! IPv4 (RFC 791) and IPv6 (RFC 8200) headers.

use bytemuck::{Pod, Zeroable};

use crate::bytes::Be16;
use crate::family::{Addr4, Addr6};

/// "Don't fragment" in [`Ipv4Header::fragment`], host byte order.
pub const DONT_FRAGMENT: u16 = 0x4000;
/// "More fragments" in [`Ipv4Header::fragment`], host byte order.
pub const MORE_FRAGMENTS: u16 = 0x2000;
/// Fragment offset in [`Ipv4Header::fragment`], host byte order, units of 8 bytes.
pub const FRAGMENT_OFFSET: u16 = 0x1fff;

/// The fixed part of an IPv4 header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Ipv4Header {
    /// Version (high four bits, 4) and header length in words of 4 bytes (low four bits).
    pub version_ihl: u8,
    /// Differentiated services and ECN.
    pub tos: u8,
    /// Length of header and payload, bytes.
    pub total_len: Be16,
    /// Identification, for fragments.
    pub id: Be16,
    /// Flags and fragment offset.
    pub fragment: Be16,
    /// Time to live, hops.
    pub ttl: u8,
    /// Protocol of the payload.
    pub protocol: u8,
    /// Checksum of the header.
    pub checksum: Be16,
    /// Source address.
    pub source: Addr4,
    /// Destination address.
    pub destination: Addr4,
}

/// Offset of [`Ipv4Header::ttl`], bytes.
pub const IPV4_TTL_OFFSET: u32 = 8;
/// Offset of [`Ipv4Header::checksum`], bytes.
pub const IPV4_CHECKSUM_OFFSET: u32 = 10;

/// The fixed IPv6 header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Ipv6Header {
    /// Version (high four bits, 6), traffic class, flow label; network byte order.
    pub version_class_flow: u32,
    /// Length of what follows this header, bytes.
    pub payload_len: Be16,
    /// Protocol of what follows.
    pub next_header: u8,
    /// Hop limit.
    pub hop_limit: u8,
    /// Source address.
    pub source: Addr6,
    /// Destination address.
    pub destination: Addr6,
}

/// Offset of [`Ipv6Header::hop_limit`], bytes.
pub const IPV6_HOP_LIMIT_OFFSET: u32 = 7;

/// IPv6 fragment header (RFC 8200, section 4.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Ipv6Fragment {
    /// Protocol of what follows.
    pub next_header: u8,
    /// Reserved.
    pub reserved: u8,
    /// Offset in units of 8 bytes (high 13 bits) and "more fragments" (lowest bit).
    pub offset_more: Be16,
    /// Identification; network byte order.
    pub id: u32,
}

/// The first two bytes that IPv6 extension headers share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Ipv6Extension {
    /// Protocol of what follows.
    pub next_header: u8,
    /// Length in units of 8 bytes, not counting the first 8.
    pub len: u8,
}

/// Hop-by-hop options.
pub const HOP_BY_HOP: u8 = 0;
/// Routing header.
pub const ROUTING: u8 = 43;
/// Fragment header.
pub const FRAGMENT: u8 = 44;
/// Destination options.
pub const DESTINATION_OPTIONS: u8 = 60;
/// Protocol number of TCP.
pub const TCP: u8 = 6;
/// Protocol number of UDP.
pub const UDP: u8 = 17;
/// Protocol number of SCTP.
pub const SCTP: u8 = 132;

const _: () = {
    assert!(size_of::<Ipv4Header>() == 20);
    assert!(size_of::<Ipv6Header>() == 40);
    assert!(size_of::<Ipv6Fragment>() == 8);
};
