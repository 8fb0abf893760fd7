//! SOURCE_RANGES: who may reach load balancer addresses.

use bytemuck::{Pod, Zeroable};

use super::Address;

/// A set of ranges in SOURCE_RANGES, immutable once a record names it. 0 is never given to one: a
/// record that names it admits nobody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(transparent)]
pub struct SourceSet(pub u32);

/// Key of SOURCE_RANGES, a trie that finds the longest prefix (`struct bpf_lpm_trie_key`): a range of
/// a set, or an address whose range is looked up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct SourceRange {
    /// How many bits count, from the first of `set` on; host byte order.
    pub prefix_len: u32,
    /// The set; always counts whole.
    pub set: SourceSet,
    /// The range's first address, or the address that is looked up.
    pub address: Address,
}

impl SourceRange {
    /// Bits of a set's number.
    pub const SET_BITS: u32 = 32;
    /// In front of an IPv4 prefix, whose address is mapped.
    pub const MAPPED_BITS: u32 = 96;

    /// The key under which the range of an address is found.
    #[inline(always)]
    pub const fn around(set: SourceSet, address: Address) -> Self {
        Self { prefix_len: Self::SET_BITS + 128, set, address }
    }
}

const _: () = {
    assert!(size_of::<SourceRange>() == 24 && align_of::<SourceRange>() == 4);
    assert!(core::mem::offset_of!(SourceRange, set) == 4);
};
