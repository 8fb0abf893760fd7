//! SERVICES, RECORDS, SLOTS and NAMES: a Service port in one family and its endpoints.

use bytemuck::{Pod, Zeroable};

use super::SourceSet;

/// Index of a Service port in SERVICES; 0 is never used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(transparent)]
pub struct ServiceIndex(pub u32);

/// Element of SERVICES: which record is current. Written with one aligned 64-bit store, which
/// publishes a changed Service whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C, align(8))]
pub struct ServicePointer {
    /// Index in RECORDS; 0 when the Service has none.
    pub record: u32,
    /// Counts publications; for people who look.
    pub revision: u32,
}

/// A run of elements in SLOTS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Region {
    /// First element.
    pub offset: u32,
    /// Number of elements; 0 when there is nothing to choose from.
    pub len: u32,
}

/// Element of RECORDS. Immutable once published; reused only after a grace period.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C, align(8))]
pub struct ServiceRecord {
    /// Bits of [`ServiceFlags`].
    pub flags: u32,
    /// The Service that this record belongs to.
    pub service: ServiceIndex,
    /// Endpoints under policy Cluster.
    pub cluster: Region,
    /// Endpoints under policy Local; often a prefix of `cluster`.
    pub local: Region,
    /// Maglev table over `cluster`, for traffic from outside; empty when no frontend needs it.
    pub cluster_maglev: Region,
    /// Maglev table over `local`.
    pub local_maglev: Region,
    /// Session affinity, seconds; meaningful with [`ServiceFlags::AFFINITY`].
    pub affinity_timeout: u32,
    /// Who may reach its load balancer addresses; meaningful with [`ServiceFlags::SOURCE_RANGES`].
    pub sources: SourceSet,
    /// Always zero.
    pub pad: [u32; 4],
}

impl ServiceRecord {
    /// How long a client keeps its endpoint, seconds; `None` without session affinity.
    #[inline(always)]
    pub const fn affinity(&self) -> Option<u32> {
        if self.flags & ServiceFlags::AFFINITY != 0 { Some(self.affinity_timeout) } else { None }
    }
}

/// Bits of [`ServiceRecord::flags`].
pub struct ServiceFlags;

impl ServiceFlags {
    /// Something usable exists somewhere in the cluster: none here means DROP, not REJECT.
    pub const HAS_ENDPOINTS: u32 = 1;
    /// ClusterIP traffic uses `local`.
    pub const INTERNAL_LOCAL: u32 = 1 << 1;
    /// External traffic uses `local`.
    pub const EXTERNAL_LOCAL: u32 = 1 << 2;
    /// ClientIP session affinity.
    pub const AFFINITY: u32 = 1 << 3;
    /// Load balancer source ranges are set.
    pub const SOURCE_RANGES: u32 = 1 << 4;
}

/// Value of NAMES: what the Service port is called, for people and for adoption after a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C, align(4))]
pub struct ServiceName {
    /// `namespace/name:port`, UTF-8, zero-padded (63 + 1 + 63 + 1 + 15 bytes at most).
    pub text: [u8; 152],
    /// IP protocol number.
    pub protocol: u8,
    /// 4 or 6.
    pub family: u8,
    /// Always zero.
    pub pad: [u8; 6],
}

const _: () = {
    assert!(size_of::<ServicePointer>() == 8 && align_of::<ServicePointer>() == 8);
    assert!(size_of::<ServiceRecord>() == 64 && align_of::<ServiceRecord>() == 8);
    assert!(core::mem::offset_of!(ServiceRecord, affinity_timeout) == 40);
    assert!(size_of::<ServiceName>() == 160);
};
