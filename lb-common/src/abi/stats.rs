//! DROPS: why packets and connections were not served.

use bytemuck::{Pod, Zeroable};

use super::ServiceIndex;

/// Key of DROPS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct DropKey {
    /// The Service port; 0 when none was involved.
    pub service: ServiceIndex,
    /// A [`crate::lb::DropReason`] as its number.
    pub reason: u32,
}

const _: () = assert!(size_of::<DropKey>() == 8);
