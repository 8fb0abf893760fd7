//! The common form of an address.

use bytemuck::{Pod, Zeroable};

/// 16 bytes in network byte order; IPv4 is mapped (`::ffff:a.b.c.d`, RFC 4291, 2.5.5.2).
///
/// The tables that both families share use it, so an IPv6 socket that connects to a mapped address
/// finds the IPv4 Service without any code of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(transparent)]
pub struct Address([u32; 4]);

/// The third word of a mapped address.
const MAPPED: u32 = 0x0000_ffff_u32.to_be();

/// 192.0.0.8, the IPv4 dummy address (RFC 7600): nobody's, and no router forwards it.
const DISCARD_V4: Address = Address::mapped(0xc000_0008_u32.to_be());
/// 100::1, of the IPv6 discard prefix (RFC 6666).
const DISCARD_V6: Address = Address([0x0100_0000_u32.to_be(), 0, 0, 1_u32.to_be()]);

impl Address {
    /// `::`, the wildcard of IPv6.
    pub const UNSPECIFIED_V6: Self = Self([0; 4]);
    /// `::ffff:0.0.0.0`, the wildcard of IPv4.
    pub const UNSPECIFIED_V4: Self = Self::mapped(0);

    /// An IPv4 address, given as a word in memory order.
    #[inline(always)]
    pub const fn mapped(v4: u32) -> Self {
        Self([0, 0, MAPPED, v4])
    }

    /// A network namespace in place of a client's address: a form that no client's address has, as
    /// multicast is never a source (RFC 4291, 2.7).
    #[inline(always)]
    pub const fn of_namespace(cookie: u64) -> Self {
        Self([0xff00_0000_u32.to_be(), 0, (cookie >> 32) as u32, cookie as u32])
    }

    /// From four words in memory order.
    #[inline(always)]
    pub const fn from_words(words: [u32; 4]) -> Self {
        Self(words)
    }

    /// Becomes the address with these words in memory order, one by one (see [`crate::abi::Flow::copy_from`]).
    #[inline(always)]
    pub fn copy_from(&mut self, words: &[u32; 4]) {
        let [a, b, c, d] = words;
        let [to_a, to_b, to_c, to_d] = &mut self.0;
        *to_a = *a;
        *to_b = *b;
        *to_c = *c;
        *to_d = *d;
    }

    /// The four words in memory order.
    #[inline(always)]
    pub const fn words(self) -> [u32; 4] {
        self.0
    }

    /// Whether it is an IPv4 address in mapped form.
    #[inline(always)]
    pub const fn is_v4(self) -> bool {
        let [a, b, c, _] = self.0;
        a == 0 && b == 0 && c == MAPPED
    }

    /// The wildcard of this address's family, under which NodePorts are found.
    #[inline(always)]
    pub const fn wildcard(self) -> Self {
        if self.is_v4() { Self::UNSPECIFIED_V4 } else { Self::UNSPECIFIED_V6 }
    }

    /// Of this address's family, the one that leads to nobody: where a socket is connected whose packets
    /// are to be dropped in silence.
    #[inline(always)]
    pub const fn discard(self) -> Self {
        if self.is_v4() { DISCARD_V4 } else { DISCARD_V6 }
    }

    /// Whether it leads to nobody ([`discard`](Self::discard)).
    #[inline(always)]
    pub const fn is_discard(self) -> bool {
        let [a, b, c, d] = self.0;
        let [e, f, g, h] = self.discard().0;
        a == e && b == f && c == g && d == h
    }

    /// Whether it is the unspecified address of its family.
    #[inline(always)]
    pub const fn is_unspecified(self) -> bool {
        let [a, b, c, d] = self.0;
        a == 0 && b == 0 && d == 0 && (c == 0 || c == MAPPED)
    }

    /// Whether it is a loopback address (127.0.0.0/8, also mapped; ::1).
    #[inline(always)]
    pub const fn is_loopback(self) -> bool {
        let [a, b, c, d] = self.0;
        if self.is_v4() {
            d.to_ne_bytes()[0] == 127
        } else {
            a == 0 && b == 0 && c == 0 && d == 1_u32.to_be()
        }
    }
}

impl From<core::net::IpAddr> for Address {
    fn from(address: core::net::IpAddr) -> Self {
        let bytes = match address {
            core::net::IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            core::net::IpAddr::V6(v6) => v6.octets(),
        };
        Self(bytemuck::cast(bytes))
    }
}

impl From<Address> for core::net::IpAddr {
    fn from(address: Address) -> Self {
        let bytes: [u8; 16] = bytemuck::cast(address.0);
        core::net::Ipv6Addr::from(bytes).to_canonical()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::IpAddr;

    #[test]
    fn addresses_of_both_families_survive_the_round_trip() {
        for text in ["10.96.0.1", "0.0.0.0", "::", "::1", "fd00:96::1", "255.255.255.255"] {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(IpAddr::from(Address::from(address)), address);
        }
    }

    #[test]
    fn the_wildcard_keeps_the_family_and_loopback_is_known_in_both() {
        let of = |text: &str| Address::from(text.parse::<IpAddr>().unwrap());
        assert_eq!(of("10.0.0.1").wildcard(), of("0.0.0.0"));
        assert_eq!(of("fd00::1").wildcard(), of("::"));
        assert!(of("127.8.9.1").is_loopback() && of("::1").is_loopback());
        assert!(!of("::").is_loopback() && !of("128.0.0.1").is_loopback());
        assert!(of("::").is_unspecified() && of("0.0.0.0").is_unspecified());
        assert!(!of("::1").is_unspecified() && !of("0.0.0.1").is_unspecified());
    }

    #[test]
    fn each_family_has_an_address_that_leads_to_nobody() {
        let of = |text: &str| Address::from(text.parse::<IpAddr>().unwrap());
        assert_eq!(of("10.0.0.1").discard(), of("192.0.0.8"));
        assert_eq!(of("fd00::1").discard(), of("100::1"));
        assert!(of("192.0.0.8").is_discard() && of("100::1").is_discard());
        for other in ["192.0.0.9", "100::", "100::2", "100:0:0:1::1", "0.0.0.1", "::"] {
            assert!(!of(other).is_discard(), "{other}");
        }
    }

    #[test]
    fn a_namespace_is_no_address_that_a_client_can_have_and_no_other_namespace() {
        let forms = [1, 2, 1 << 32, u64::MAX].map(Address::of_namespace);
        for form in forms {
            assert!(IpAddr::from(form).is_multicast());
            assert_eq!(forms.iter().filter(|other| **other == form).count(), 1);
        }
    }
}
