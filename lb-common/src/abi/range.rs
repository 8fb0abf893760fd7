//! SERVICE_RANGES: the address ranges that the cluster takes ClusterIPs from.

use bytemuck::{Pod, Zeroable};

use super::Address;

/// Ranges of one family that fit. A cluster has one, and another after it ran out of addresses.
pub const SERVICE_RANGES_MAX: usize = 8;

/// A range: addresses that are `network` under `mask`. Of IPv4, both are in the mapped form.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct ServiceRange {
    /// The first address.
    pub network: Address,
    /// A one for each bit that counts.
    pub mask: Address,
}

impl ServiceRange {
    /// Whether it holds `address`.
    #[inline(always)]
    pub const fn holds(&self, address: Address) -> bool {
        let [a, b, c, d] = address.words();
        let [na, nb, nc, nd] = self.network.words();
        let [ma, mb, mc, md] = self.mask.words();
        (a ^ na) & ma | (b ^ nb) & mb | (c ^ nc) & mc | (d ^ nd) & md == 0
    }
}

/// Element of SERVICE_RANGES: the ranges of one family. A range isn't written while it is in use, and
/// one store of `used` changes which are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct ServiceRanges {
    /// Bit `i` is set when `ranges[i]` is in use.
    pub used: u32,
    /// Always zero.
    pub pad: u32,
    /// The ranges.
    pub ranges: [ServiceRange; SERVICE_RANGES_MAX],
}

impl ServiceRanges {
    /// The element that holds the ranges of IPv4.
    pub const V4: u32 = 0;
    /// The element that holds the ranges of IPv6.
    pub const V6: u32 = 1;

    /// Whether one of the ranges holds `address`.
    #[inline(always)]
    pub fn hold(&self, address: Address) -> bool {
        // In order, and no further than the last one in use: most clusters have one.
        let mut used = self.used;
        for range in &self.ranges {
            if used == 0 {
                break;
            }
            if used & 1 != 0 && range.holds(address) {
                return true;
            }
            used >>= 1;
        }
        false
    }
}

const _: () = {
    assert!(size_of::<ServiceRange>() == 32 && align_of::<ServiceRange>() == 4);
    assert!(size_of::<ServiceRanges>() == 8 + 32 * SERVICE_RANGES_MAX);
    assert!(core::mem::offset_of!(ServiceRanges, ranges) == 8);
    assert!(SERVICE_RANGES_MAX <= u32::BITS as usize);
};

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::IpAddr;

    fn address(text: &str) -> Address {
        text.parse::<IpAddr>().unwrap().into()
    }

    fn range(network: &str, mask: &str) -> ServiceRange {
        ServiceRange { network: address(network), mask: address(mask) }
    }

    #[test]
    fn only_ranges_in_use_hold_addresses_and_each_holds_exactly_its_own() {
        let mut four = ServiceRanges::default();
        assert!(!four.hold(address("0.0.0.0")), "an empty element holds nothing");
        let mut mask = address("255.255.0.0").words();
        mask[..3].fill(u32::MAX);
        four.ranges[1] =
            ServiceRange { network: address("10.96.0.0"), mask: Address::from_words(mask) };
        assert!(!four.hold(address("10.96.0.1")), "not in use");
        four.used = 0b10;
        for (text, held) in [
            ("10.96.0.0", true),
            ("10.96.255.255", true),
            ("10.95.255.255", false),
            ("10.97.0.0", false),
            ("::10.96.0.1", false),
            ("0.0.0.0", false),
        ] {
            assert_eq!(four.hold(address(text)), held, "{text}");
        }
        let mut six = ServiceRanges { used: 0b101, ..ServiceRanges::default() };
        six.ranges[0] = range("fd00:96::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:0");
        six.ranges[1] = range("::", "ffff::");
        six.ranges[2] = range("fd00:97::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:0");
        for (text, held) in [
            ("fd00:96::", true),
            ("fd00:96::ffff", true),
            ("fd00:96::1:0", false),
            ("fd00:97::1", true),
            ("fd00:98::1", false),
            ("::1", false),
        ] {
            assert_eq!(six.hold(address(text)), held, "{text}");
        }
    }
}
