//! ICMP (RFC 792, RFC 1191) and ICMPv6 (RFC 4443) errors.

use bytemuck::{Pod, Zeroable};

use crate::bytes::Be16;

/// Header of an ICMP or ICMPv6 error; the packet that caused it follows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct IcmpHeader {
    /// Type.
    pub kind: u8,
    /// Code.
    pub code: u8,
    /// Checksum; ICMPv6 includes a pseudo header.
    pub checksum: Be16,
    /// Depends on the type: next-hop MTU in the low half (ICMP 3/4) or whole (ICMPv6 2), network
    /// byte order.
    pub rest: u32,
}

/// Length of [`IcmpHeader`], bytes.
pub const HEADER_LEN: u32 = 8;
/// Offset of the checksum, bytes.
pub const CHECKSUM_OFFSET: u32 = 2;

/// ICMP: destination unreachable.
pub const V4_UNREACHABLE: u8 = 3;
/// ICMP 3: port unreachable.
pub const V4_PORT_UNREACHABLE: u8 = 3;
/// ICMP 3: fragmentation needed and DF set.
pub const V4_FRAGMENTATION_NEEDED: u8 = 4;
/// ICMP: time exceeded.
pub const V4_TIME_EXCEEDED: u8 = 11;
/// ICMP: parameter problem.
pub const V4_PARAMETER_PROBLEM: u8 = 12;

/// ICMPv6: destination unreachable.
pub const V6_UNREACHABLE: u8 = 1;
/// ICMPv6 1: port unreachable.
pub const V6_PORT_UNREACHABLE: u8 = 4;
/// ICMPv6: packet too big.
pub const V6_PACKET_TOO_BIG: u8 = 2;
/// ICMPv6: time exceeded.
pub const V6_TIME_EXCEEDED: u8 = 3;
/// ICMPv6: parameter problem.
pub const V6_PARAMETER_PROBLEM: u8 = 4;

const _: () = assert!(size_of::<IcmpHeader>() == 8);
