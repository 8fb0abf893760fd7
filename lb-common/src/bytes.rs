//! Integers in network byte order, as types: a port can't be compared with a host number by mistake.

use bytemuck::{Pod, Zeroable};

/// A 16-bit integer in network byte order (ports, lengths, checksums on the wire).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(transparent)]
pub struct Be16(u16);

impl Be16 {
    /// From host byte order.
    #[inline(always)]
    pub const fn new(host: u16) -> Self {
        Self(host.to_be())
    }

    /// To host byte order.
    #[inline(always)]
    pub const fn get(self) -> u16 {
        u16::from_be(self.0)
    }

    /// The bits as they lie in memory.
    #[inline(always)]
    pub const fn raw(self) -> u16 {
        self.0
    }

    /// From bits as they lie in memory.
    #[inline(always)]
    pub const fn from_raw(raw: u16) -> Self {
        Self(raw)
    }
}
