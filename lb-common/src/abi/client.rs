//! CLIENTS: what address the sockets of a network namespace send from.

use bytemuck::{Pod, Zeroable};

use super::Address;

/// Value of CLIENTS, by the cookie of a pod's or the node's network namespace (`SO_NETNS_COOKIE`).
///
/// A socket hook runs before the kernel has chosen a source address; this is what it will be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct ClientAddresses {
    /// IPv4 address; the wildcard when there is none.
    pub address4: Address,
    /// IPv6 address; the wildcard when there is none.
    pub address6: Address,
}

impl ClientAddresses {
    /// The address in the family of `peer`.
    #[inline(always)]
    pub const fn towards(&self, peer: Address) -> Address {
        if peer.is_v4() { self.address4 } else { self.address6 }
    }
}

impl Default for ClientAddresses {
    fn default() -> Self {
        Self { address4: Address::UNSPECIFIED_V4, address6: Address::UNSPECIFIED_V6 }
    }
}

const _: () = assert!(size_of::<ClientAddresses>() == 32 && align_of::<ClientAddresses>() == 4);
