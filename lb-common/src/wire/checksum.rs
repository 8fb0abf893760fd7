//! Internet checksums: sums in one's complement and incremental updates (RFC 1071, RFC 1624).
//!
//! Words are added as they lie in memory; one's complement addition doesn't care about byte order
//! as long as all words agree (RFC 1071, section 2 B).

use crate::bytes::Be16;

/// A sum of 16-bit words, with room for the carries of more of them than a packet has. A carry that is added at
/// each step is a branch to the compiler and two ways to the kernel's verifier, which doubles them each time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum(u32);

/// Zero as one's complement has it too: a multiple of 0xffff, and more than the sum of any header.
const ZERO: u32 = 0xffff << 12;

impl Sum {
    /// Of a 32-bit word as it lies in memory.
    #[inline(always)]
    pub const fn of_word(word: u32) -> Self {
        Self((word & 0xffff) + (word >> 16))
    }

    /// Of a 16-bit word as it lies in memory.
    #[inline(always)]
    pub const fn of_half(half: u16) -> Self {
        Self(half as u32)
    }

    /// Both together.
    #[inline(always)]
    #[must_use]
    pub const fn add(self, other: Self) -> Self {
        Self(self.0.wrapping_add(other.0))
    }

    /// What must be added to a sum that holds `old` so that it holds `new` instead:
    /// `~old + new` (RFC 1624, equation 3).
    #[inline(always)]
    #[must_use]
    pub const fn change(old: Self, new: Self) -> Self {
        Self(ZERO.wrapping_sub(old.0)).add(new)
    }

    /// The sum folded to 16 bits, not complemented.
    #[inline(always)]
    pub const fn fold(self) -> u16 {
        let once = (self.0 & 0xffff) + (self.0 >> 16);
        ((once & 0xffff) + (once >> 16)) as u16
    }

    /// The checksum field for data with this sum.
    #[inline(always)]
    pub const fn checksum(self) -> Be16 {
        Be16::from_raw(!self.fold())
    }
}

/// The checksum field after the data under it changed by `change` ([`Sum::change`]).
#[inline(always)]
pub const fn update(field: Be16, change: Sum) -> Be16 {
    Sum::of_half(!field.raw()).add(change).checksum()
}

/// Like [`update`] for UDP, where zero means "no checksum": none stays none, and a computed zero
/// is sent as all ones (RFC 768).
#[inline(always)]
pub const fn update_udp(field: Be16, change: Sum) -> Be16 {
    if field.raw() == 0 {
        return field;
    }
    let updated = update(field, change);
    if updated.raw() == 0 { Be16::from_raw(0xffff) } else { updated }
}

/// Sum of a byte slice; an odd last byte is padded with zero.
pub fn sum_bytes(bytes: &[u8]) -> Sum {
    let mut total = Sum::default();
    let mut pairs = bytes.chunks_exact(2);
    for pair in &mut pairs {
        if let [a, b] = pair {
            total = total.add(Sum::of_half(u16::from_ne_bytes([*a, *b])));
        }
    }
    if let [last] = pairs.remainder() {
        total = total.add(Sum::of_half(u16::from_ne_bytes([*last, 0])));
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_example_of_rfc_1071_sums_to_ddf2() {
        let data = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(u16::from_be(sum_bytes(&data).fold()), 0xddf2);
    }

    proptest! {
        #[test]
        fn an_incremental_update_equals_the_full_sum(
            mut data in prop::collection::vec(any::<u8>(), 8..64),
            new in any::<u32>(),
        ) {
            data.truncate(data.len() & !3);
            let before = sum_bytes(&data).checksum();
            let old = u32::from_ne_bytes([data[4], data[5], data[6], data[7]]);
            data[4..8].copy_from_slice(&new.to_ne_bytes());
            let after = sum_bytes(&data).checksum();
            let updated = update(before, Sum::change(Sum::of_word(old), Sum::of_word(new)));
            // One's complement has two zeros; a receiver accepts both.
            let same = |a: Be16, b: Be16| a == b || (a.raw() ^ b.raw() == 0xffff && (a.raw() == 0 || b.raw() == 0));
            prop_assert!(same(after, updated), "{after:?} {updated:?}");
        }
    }
}
