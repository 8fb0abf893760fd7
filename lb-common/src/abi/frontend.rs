//! FRONTENDS: which Service answers on an address, port and protocol.

use bytemuck::{Pod, Zeroable};

use super::{Address, ServiceIndex};
use crate::bytes::Be16;

/// Key of FRONTENDS. A NodePort has the wildcard address of its family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(C, align(4))]
pub struct FrontendKey {
    /// Destination address.
    pub address: Address,
    /// Destination port.
    pub port: Be16,
    /// IP protocol number.
    pub protocol: u8,
    /// Always zero.
    pub pad: u8,
}

/// Value of FRONTENDS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Frontend {
    /// The Service port behind it.
    pub service: ServiceIndex,
    /// A [`FrontendKind`] as its number.
    pub kind: u32,
}

/// What kind of address a frontend is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum FrontendKind {
    /// ClusterIP: the internal traffic policy applies.
    ClusterIp = 1,
    /// An external IP: the external traffic policy applies.
    ExternalIp = 2,
    /// A load balancer's VIP: external traffic policy and source ranges.
    LoadBalancer = 3,
    /// A NodePort on any address of the node: external traffic policy.
    NodePort = 4,
}

impl FrontendKind {
    /// From its number; `None` for numbers that no version of this ABI writes.
    #[inline(always)]
    pub const fn from_number(number: u32) -> Option<Self> {
        match number {
            1 => Some(Self::ClusterIp),
            2 => Some(Self::ExternalIp),
            3 => Some(Self::LoadBalancer),
            4 => Some(Self::NodePort),
            _ => None,
        }
    }
}

const _: () = {
    assert!(size_of::<FrontendKey>() == 20 && align_of::<FrontendKey>() == 4);
    assert!(size_of::<Frontend>() == 8 && align_of::<Frontend>() == 4);
    assert!(core::mem::offset_of!(FrontendKey, port) == 16);
};
