//! BACKENDS: where endpoints are.

use bytemuck::{Pod, Zeroable};

use super::{Address, ServiceIndex};
use crate::bytes::Be16;

/// Index in BACKENDS; 0 is never used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(transparent)]
pub struct BackendIndex(pub u32);

/// Element of BACKENDS: one endpoint of one Service port.
///
/// Not shared between Services: when an endpoint leaves one Service, only that Service's flows
/// must choose anew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C, align(8))]
pub struct Backend {
    /// Address of the endpoint.
    pub address: Address,
    /// Port of the endpoint.
    pub port: Be16,
    /// Bits of [`BackendFlags`].
    pub flags: u16,
    /// Rises when the endpoint leaves; a flow that remembers an older one is stale. Written with
    /// one aligned store.
    pub generation: u32,
    /// The Service port that it belongs to.
    pub service: ServiceIndex,
    /// Always zero.
    pub pad: u32,
}

/// Bits of [`Backend::flags`].
pub struct BackendFlags;

impl BackendFlags {
    /// `nodeName` is this node.
    pub const LOCAL: u16 = 1;
    /// `nodeName` is another node. Neither bit: outside the cluster or unknown, the route decides.
    pub const REMOTE: u16 = 1 << 1;
    /// The element is in use.
    pub const LIVE: u16 = 1 << 2;
    /// It is one of the current record's endpoints under policy Cluster.
    pub const IN_CLUSTER: u16 = 1 << 3;
    /// It is one of the current record's endpoints under policy Local.
    pub const IN_LOCAL: u16 = 1 << 4;
}

const _: () = {
    assert!(size_of::<Backend>() == 32 && align_of::<Backend>() == 8);
    assert!(core::mem::offset_of!(Backend, generation) == 20);
};
