//! CRC-32C, SCTP's checksum (RFC 9260, appendix A), after a change of a few bytes.
//!
//! A CRC is linear: the checksum of a changed packet differs from the old one by the CRC of the
//! difference, without initial value and final inversion. The difference is one word at the front of
//! the packet, so its CRC is that word, multiplied by x^(8 n) for a packet of n bytes.

/// The polynomial with its bits reversed, as the checksum has them.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// Powers of two of a length, from 4 (SCTP pads to words) to 32,768.
const FIRST_POWER: u32 = 2;
const POWERS: usize = 14;

/// For each power of two: what each value of each nibble of a word becomes when so many bytes of zeros
/// follow. Tables, and not shifts: a verifier would follow each way through 448 conditions.
static SHIFTED: [[[u32; 16]; 8]; POWERS] = shifted();

const fn shifted() -> [[[u32; 16]; 8]; POWERS] {
    let mut table = [[[0; 16]; 8]; POWERS];
    // x^8, for one byte: 1 is the highest bit.
    let mut factor = 1 << (31 - 8);
    let mut power = 0;
    while power < FIRST_POWER {
        factor = multiply(factor, factor);
        power += 1;
    }
    let mut row = 0;
    while row < POWERS {
        let mut nibble = 0;
        while nibble < 8 {
            let mut value = 0;
            while value < 16 {
                table[row][nibble][value] = multiply((value as u32) << (4 * nibble), factor);
                value += 1;
            }
            nibble += 1;
        }
        factor = multiply(factor, factor);
        row += 1;
    }
    table
}

/// The product of two polynomials modulo the CRC's.
const fn multiply(a: u32, b: u32) -> u32 {
    let (mut product, mut shifted, mut bit) = (0, b, 1 << 31);
    while bit != 0 {
        if a & bit != 0 {
            product ^= shifted;
        }
        shifted = (shifted >> 1) ^ if shifted & 1 != 0 { POLYNOMIAL } else { 0 };
        bit >>= 1;
    }
    product
}

/// The checksum field of an SCTP packet of `length` bytes (a multiple of four, below 64 KiB) after its
/// first word changed from `old` to `new`. All words as they lie in memory.
#[inline(always)]
pub fn update(field: u32, old: u32, new: u32, length: u32) -> u32 {
    let mut word = u32::from_le(old ^ new);
    for (row, of_power) in SHIFTED.iter().enumerate() {
        if (length >> (row as u32 + FIRST_POWER)) & 1 != 0 {
            let mut result = 0;
            for (nibble, of_nibble) in of_power.iter().enumerate() {
                result ^= of_nibble[(word >> (4 * nibble as u32)) as usize & 15];
            }
            word = result;
        }
    }
    field ^ word.to_le()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The checksum of `bytes` as the field holds it.
    fn checksum(bytes: &[u8]) -> u32 {
        let mut state = u32::MAX;
        for byte in bytes {
            state ^= u32::from(*byte);
            for _ in 0..8 {
                state = (state >> 1) ^ if state & 1 != 0 { POLYNOMIAL } else { 0 };
            }
        }
        (!state).to_le()
    }

    #[test]
    fn the_check_value_of_the_algorithm_is_met() {
        // The customary check input of CRC catalogues; RFC 3720, B.4 has more.
        assert_eq!(u32::from_le(checksum(b"123456789")), 0xe306_9283);
        assert_eq!(u32::from_le(checksum(&[0; 32])), 0x8a91_36aa);
    }

    proptest! {
        #[test]
        fn an_update_equals_the_whole_checksum(
            mut data in prop::collection::vec(any::<u8>(), 4..3_000),
            new in any::<u32>(),
        ) {
            data.truncate(data.len() & !3);
            let before = checksum(&data);
            let old = u32::from_ne_bytes([data[0], data[1], data[2], data[3]]);
            data[..4].copy_from_slice(&new.to_ne_bytes());
            prop_assert_eq!(update(before, old, new, data.len() as u32), checksum(&data));
        }
    }

    #[test]
    fn the_longest_packet_is_updated_too() {
        let mut data = std::vec![7; 65_532];
        let before = checksum(&data);
        data[..4].copy_from_slice(&[1, 2, 3, 4]);
        let (old, new) = (u32::from_ne_bytes([7; 4]), u32::from_ne_bytes([1, 2, 3, 4]));
        assert_eq!(update(before, old, new, 65_532), checksum(&data));
    }
}
