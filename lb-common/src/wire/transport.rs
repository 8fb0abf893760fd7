//! What the datapath needs of TCP (RFC 9293), UDP (RFC 768) and SCTP (RFC 9260).

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

/// A TCP header without options.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct TcpHeader {
    /// Ports.
    pub ports: Ports,
    /// Sequence number, network byte order.
    pub sequence: u32,
    /// Acknowledgment number, network byte order.
    pub acknowledgment: u32,
    /// Header length in words of 4 bytes (high four bits).
    pub offset: u8,
    /// Flags.
    pub flags: u8,
    /// Receive window.
    pub window: Be16,
    /// Checksum.
    pub checksum: Be16,
    /// Urgent pointer.
    pub urgent: Be16,
}

/// Length of [`TcpHeader`], bytes.
pub const TCP_HEADER_LEN: u32 = 20;
const _: () = assert!(size_of::<TcpHeader>() == TCP_HEADER_LEN as usize);

/// Offset of the flags byte in a TCP header, bytes.
pub const TCP_FLAGS_OFFSET: u32 = 13;
/// Offset of the checksum in a TCP header, bytes.
pub const TCP_CHECKSUM_OFFSET: u32 = 16;
/// Offset of the checksum in a UDP header, bytes.
pub const UDP_CHECKSUM_OFFSET: u32 = 6;

/// Offset of the checksum in an SCTP header, bytes.
pub const SCTP_CHECKSUM_OFFSET: u32 = 8;
/// Offset of the first chunk's type in an SCTP packet, bytes.
pub const SCTP_CHUNK_OFFSET: u32 = 12;

/// The TCP flags that say what an SCTP packet's first chunk says: that an association begins, that it
/// is at its end, or that it is aborted. These chunks are never bundled behind others (RFC 9260, 6.10),
/// but for an abort.
#[inline(always)]
pub const fn flags_of_chunk(kind: u8) -> u8 {
    const INIT: u8 = 1;
    const ABORT: u8 = 6;
    const SHUTDOWN_ACK: u8 = 8;
    const SHUTDOWN_COMPLETE: u8 = 14;
    match kind {
        INIT => SYN,
        ABORT => RST,
        SHUTDOWN_ACK | SHUTDOWN_COMPLETE => FIN,
        _ => 0,
    }
}

/// TCP flag FIN.
pub const FIN: u8 = 0x01;
/// TCP flag SYN.
pub const SYN: u8 = 0x02;
/// TCP flag RST.
pub const RST: u8 = 0x04;
/// TCP flag ACK.
pub const ACK: u8 = 0x10;
