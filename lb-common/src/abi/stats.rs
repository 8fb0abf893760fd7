//! DROPS and TRAFFIC: what was not served and why, and what was.

use core::ops::Add;

use bytemuck::{Pod, Zeroable};

use super::{BackendIndex, ServiceIndex};

/// Key of DROPS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct DropKey {
    /// The Service port; 0 when none was involved.
    pub service: ServiceIndex,
    /// A [`crate::lb::DropReason`] as its number.
    pub reason: u32,
}

impl DropKey {
    /// Where the agent keeps what was counted for Services that are gone.
    pub const fn of_departed(reason: u32) -> Self {
        Self { service: ServiceIndex(u32::MAX), reason }
    }
}

/// Key of TRAFFIC: an endpoint of a Service port.
///
/// The generation makes it one endpoint's: the index goes to another when it has left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct TrafficKey {
    /// The Service port.
    pub service: ServiceIndex,
    /// The backend; 0 for the sum of those that have left, which the agent keeps.
    pub backend: BackendIndex,
    /// The backend's generation when it was chosen; 0 for that sum.
    pub generation: u32,
}

impl TrafficKey {
    /// The sum of the endpoints that have left a Service port.
    pub const fn of_departed(service: ServiceIndex) -> Self {
        Self { service, backend: BackendIndex(0), generation: 0 }
    }
}

/// Value of TRAFFIC: what went to an endpoint and came back. No packet of a connection that was
/// translated at its socket passes a program, so those are in `sockets` alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Traffic {
    /// Times that a socket was led there: `connect` calls, and choices for unconnected UDP sockets.
    pub sockets: u64,
    /// Flows that were opened by a packet.
    pub flows: u64,
    /// Packets to it.
    pub packets_to: u64,
    /// Packets from it.
    pub packets_from: u64,
    /// Bytes to it, IP headers included.
    pub bytes_to: u64,
    /// Bytes from it, IP headers included.
    pub bytes_from: u64,
}

impl Add for Traffic {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            sockets: self.sockets.wrapping_add(other.sockets),
            flows: self.flows.wrapping_add(other.flows),
            packets_to: self.packets_to.wrapping_add(other.packets_to),
            packets_from: self.packets_from.wrapping_add(other.packets_from),
            bytes_to: self.bytes_to.wrapping_add(other.bytes_to),
            bytes_from: self.bytes_from.wrapping_add(other.bytes_from),
        }
    }
}

const _: () = {
    assert!(size_of::<DropKey>() == 8);
    assert!(size_of::<TrafficKey>() == 12 && align_of::<TrafficKey>() == 4);
    assert!(size_of::<Traffic>() == 48 && align_of::<Traffic>() == 8);
};
