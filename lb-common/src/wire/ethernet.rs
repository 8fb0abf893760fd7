//! Ethernet II (IEEE 802.3).

/// Length of the header without VLAN tags, bytes.
pub const HEADER_LEN: u32 = 14;
/// Offset of the EtherType field, bytes.
pub const TYPE_OFFSET: u32 = 12;
