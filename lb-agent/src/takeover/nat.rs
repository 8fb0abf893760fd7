//! What the kernel's NAT of known flows lives on.
//!
//! Measured: a flow that was translated is translated until it ends, whatever becomes of the rule that did
//! it first, as long as the kernel does NAT for its family and conntrack sees its packets. The one is due to a
//! chain of type nat or to a table nat, even an empty one; the other to any rule that needs conntrack.

use crate::cluster::snapshot::IpFamily;

/// Extensions of iptables that need conntrack (`nf_ct_netns_get` in net/netfilter/xt_*.c).
const EXTENSIONS: [&str; 13] = [
    "conntrack",
    "state",
    "connmark",
    "connlimit",
    "connbytes",
    "connlabel",
    "helper",
    "DNAT",
    "SNAT",
    "MASQUERADE",
    "REDIRECT",
    "NETMAP",
    "CONNMARK",
];

/// Whether rules with this match or target of iptables need conntrack. Those that we don't know are said
/// not to: it costs a wait, and no flow.
pub(super) fn needs_conntrack(extension: &str) -> bool {
    EXTENSIONS.contains(&extension)
}

/// What there is of it, for IPv4 and IPv6.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Nat {
    places: [bool; 2],
    conntrack: [bool; 2],
}

impl Nat {
    /// There is a chain or a table for these families.
    pub fn add_place(&mut self, families: &[IpFamily]) {
        add(&mut self.places, families);
    }

    /// There is a rule for these families that needs conntrack.
    pub fn add_conntrack(&mut self, families: &[IpFamily]) {
        add(&mut self.conntrack, families);
    }

    /// With what there is elsewhere.
    pub fn and(self, other: Self) -> Self {
        let both = |ours: [bool; 2], theirs: [bool; 2]| {
            let ([v4, v6], [other_v4, other_v6]) = (ours, theirs);
            [v4 || other_v4, v6 || other_v6]
        };
        Self {
            places: both(self.places, other.places),
            conntrack: both(self.conntrack, other.conntrack),
        }
    }

    /// Whether known flows of this family are translated.
    pub fn is_on(self, family: IpFamily) -> bool {
        let of = |[v4, v6]: [bool; 2]| match family {
            IpFamily::V4 => v4,
            IpFamily::V6 => v6,
        };
        of(self.places) && of(self.conntrack)
    }
}

fn add([v4, v6]: &mut [bool; 2], families: &[IpFamily]) {
    *v4 |= families.contains(&IpFamily::V4);
    *v6 |= families.contains(&IpFamily::V6);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows_are_translated_where_there_is_a_place_for_nat_and_conntrack_is_needed() {
        let (mut iptables, mut nftables) = (Nat::default(), Nat::default());
        iptables.add_place(&[IpFamily::V4, IpFamily::V6]);
        assert!(!iptables.is_on(IpFamily::V4));
        nftables.add_conntrack(&[IpFamily::V6]);
        assert!(!nftables.is_on(IpFamily::V6));
        let both = iptables.and(nftables);
        assert!(!both.is_on(IpFamily::V4) && both.is_on(IpFamily::V6));
    }
}
