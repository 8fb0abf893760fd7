//! What the datapath needs of TCP (RFC 9293) and UDP (RFC 768).

use bytemuck::{Pod, Zeroable};

use crate::bytes::Be16;

/// The ports, at the same place in TCP, UDP and SCTP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C, align(4))]
pub struct Ports {
    /// Source port.
    pub source: Be16,
    /// Destination port.
    pub destination: Be16,
}

/// Offset of the flags byte in a TCP header, bytes.
pub const TCP_FLAGS_OFFSET: u32 = 13;
/// Offset of the checksum in a TCP header, bytes.
pub const TCP_CHECKSUM_OFFSET: u32 = 16;
/// Offset of the checksum in a UDP header, bytes.
pub const UDP_CHECKSUM_OFFSET: u32 = 6;

/// TCP flag FIN.
pub const FIN: u8 = 0x01;
/// TCP flag SYN.
pub const SYN: u8 = 0x02;
/// TCP flag RST.
pub const RST: u8 = 0x04;
/// TCP flag ACK.
pub const ACK: u8 = 0x10;
