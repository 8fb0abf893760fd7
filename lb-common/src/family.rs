//! The only place that knows that there are two IP families.
//!
//! Everything else is generic over [`Family`]: one implementation, compiled twice.

use core::fmt::Debug;
use core::hash::Hash;

use bytemuck::{Pod, Zeroable};

use crate::abi::Address;
use crate::wire::checksum::Sum;

/// An IPv4 address as one word in memory order (network byte order bytes, alignment 4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
#[repr(transparent)]
pub struct Addr4(pub u32);

/// An IPv6 address as four words in memory order (network byte order bytes, alignment 4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
#[repr(transparent)]
pub struct Addr6(pub [u32; 4]);

impl From<[u8; 4]> for Addr4 {
    #[inline(always)]
    fn from(bytes: [u8; 4]) -> Self {
        Self(u32::from_ne_bytes(bytes))
    }
}

impl From<[u8; 16]> for Addr6 {
    #[inline(always)]
    fn from(bytes: [u8; 16]) -> Self {
        Self(bytemuck::cast(bytes))
    }
}

/// What differs between IPv4 and IPv6.
pub trait Family: Copy + Eq + Hash + Debug + 'static {
    /// An address; alignment 4, so that copies are word-wise.
    type Addr: Pod + Eq + Hash + Debug + Default;
    /// Value of the EtherType field, host byte order.
    const ETHERTYPE: u16;
    /// Length of the IP header without options or extension headers, bytes.
    const HEADER_LEN: u32;
    /// Protocol number of this family's ICMP.
    const ICMP: u8;
    /// `AF_INET` or `AF_INET6` as Linux numbers them.
    const AF: u8;
    /// Whether the IP header carries a checksum of its own.
    const HAS_HEADER_CHECKSUM: bool;
    /// Where the protocol's number (IPv6: of the next header) is in the IP header, bytes.
    const PROTOCOL_OFFSET: u32;
    /// Offset of the source address in the IP header, bytes.
    const SOURCE_OFFSET: u32;
    /// Offset of the destination address in the IP header, bytes.
    const DESTINATION_OFFSET: u32;
    /// Smallest MTU that a path may report, bytes (RFC 791, RFC 8200).
    const MINIMUM_MTU: u32;

    /// The common 16-byte form (IPv4-mapped for IPv4).
    fn widen(address: Self::Addr) -> Address;
    /// The same, in place.
    fn widen_to(to: &mut Address, from: &Self::Addr);
    /// Back from the common form; the caller knows that the family fits.
    fn narrow(address: Address) -> Self::Addr;
    /// Copies an address word by word (see [`crate::abi::Flow::copy_from`]).
    fn copy(to: &mut Self::Addr, from: &Self::Addr);
    /// One's complement sum of the address, for checksums.
    fn sum(address: Self::Addr) -> Sum;
    /// A well-mixed 32-bit word of the address, for hashes.
    fn fold(address: Self::Addr) -> u32;
}

/// IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum V4 {}

/// IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum V6 {}

impl Family for V4 {
    type Addr = Addr4;
    const ETHERTYPE: u16 = 0x0800;
    const HEADER_LEN: u32 = 20;
    const ICMP: u8 = 1;
    const AF: u8 = 2;
    const HAS_HEADER_CHECKSUM: bool = true;
    const PROTOCOL_OFFSET: u32 = 9;
    const SOURCE_OFFSET: u32 = 12;
    const DESTINATION_OFFSET: u32 = 16;
    const MINIMUM_MTU: u32 = 68;

    #[inline(always)]
    fn widen(address: Addr4) -> Address {
        Address::mapped(address.0)
    }
    #[inline(always)]
    fn widen_to(to: &mut Address, from: &Addr4) {
        *to = Address::mapped(from.0);
    }
    #[inline(always)]
    fn narrow(address: Address) -> Addr4 {
        Addr4(address.words()[3])
    }
    #[inline(always)]
    fn copy(to: &mut Addr4, from: &Addr4) {
        to.0 = from.0;
    }
    #[inline(always)]
    fn sum(address: Addr4) -> Sum {
        Sum::of_word(address.0)
    }
    #[inline(always)]
    fn fold(address: Addr4) -> u32 {
        address.0
    }
}

impl Family for V6 {
    type Addr = Addr6;
    const ETHERTYPE: u16 = 0x86dd;
    const HEADER_LEN: u32 = 40;
    const ICMP: u8 = 58;
    const AF: u8 = 10;
    const HAS_HEADER_CHECKSUM: bool = false;
    const PROTOCOL_OFFSET: u32 = 6;
    const SOURCE_OFFSET: u32 = 8;
    const DESTINATION_OFFSET: u32 = 24;
    const MINIMUM_MTU: u32 = 1280;

    #[inline(always)]
    fn widen(address: Addr6) -> Address {
        Address::from_words(address.0)
    }
    #[inline(always)]
    fn widen_to(to: &mut Address, from: &Addr6) {
        to.copy_from(&from.0);
    }
    #[inline(always)]
    fn narrow(address: Address) -> Addr6 {
        Addr6(address.words())
    }
    #[inline(always)]
    fn copy(to: &mut Addr6, from: &Addr6) {
        let [a, b, c, d] = &from.0;
        let [to_a, to_b, to_c, to_d] = &mut to.0;
        *to_a = *a;
        *to_b = *b;
        *to_c = *c;
        *to_d = *d;
    }
    #[inline(always)]
    fn sum(address: Addr6) -> Sum {
        let [a, b, c, d] = address.0;
        Sum::of_word(a).add(Sum::of_word(b)).add(Sum::of_word(c)).add(Sum::of_word(d))
    }
    #[inline(always)]
    fn fold(address: Addr6) -> u32 {
        let [a, b, c, d] = address.0;
        a ^ b.rotate_left(8) ^ c.rotate_left(16) ^ d.rotate_left(24)
    }
}
