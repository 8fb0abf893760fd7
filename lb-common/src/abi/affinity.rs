//! AFFINITY: which endpoint a client of a Service with session affinity had last.

use bytemuck::{Pod, Zeroable};

use super::{Address, BackendIndex, ServiceIndex};

/// Key of AFFINITY: a client of a Service port. A Service port of one family has one index, so all
/// its frontends share what is remembered of a client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct AffinityKey {
    /// The client's address before any SNAT, or [`Address::of_namespace`] for a socket whose address
    /// isn't known.
    pub client: Address,
    /// The Service port.
    pub service: ServiceIndex,
}

/// Value of AFFINITY.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct AffinityValue {
    /// The endpoint of the client's last flow.
    pub backend: BackendIndex,
    /// Its generation when it was chosen.
    pub generation: u32,
    /// When the client's last flow began, in ticks.
    pub last_seen: u32,
}

const _: () = {
    assert!(size_of::<AffinityKey>() == 20 && align_of::<AffinityKey>() == 4);
    assert!(size_of::<AffinityValue>() == 12);
};
