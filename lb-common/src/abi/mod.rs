//! Layouts of every map key and value: the contract between the kernel programs and the agent.
//!
//! Rules: `repr(C)`, explicit padding, alignment of at least 4 (alignment 1 compiles to byte-wise
//! copies), no bool, enum or Option, byte order in the type, size and offsets asserted at compile
//! time. A change of any layout raises [`VERSION`], which is part of the pin path.

mod address;
mod affinity;
mod backend;
mod client;
mod config;
mod flow;
mod frontend;
mod node;
mod service;
mod socket;
mod source;
mod stats;

pub use address::Address;
pub use affinity::{AffinityKey, AffinityValue};
pub use backend::{Backend, BackendFlags, BackendIndex};
pub use client::ClientAddresses;
pub use config::Config;
pub use flow::{Flow, FlowFlags, FlowKey};
pub use frontend::{Frontend, FrontendKey, FrontendKind};
pub use node::{AddressFlags, Device, DeviceFlags};
pub use service::{Region, ServiceFlags, ServiceIndex, ServiceName, ServicePointer, ServiceRecord};
pub use socket::{PeerKey, PeerValue, ReverseKey, ReverseValue};
pub use source::{SourceRange, SourceSet};
pub use stats::DropKey;

/// Version of the layouts below; part of the pin path (`…/lb/v<VERSION>/`).
pub const VERSION: u32 = 2;

/// Names of the maps, as the object declares them and as they are pinned.
pub mod map {
    /// Hash [`super::FrontendKey`] → [`super::Frontend`].
    pub const FRONTENDS: &str = "FRONTENDS";
    /// Mmapable array of [`super::ServicePointer`] by [`super::ServiceIndex`].
    pub const SERVICES: &str = "SERVICES";
    /// Mmapable array of [`super::ServiceRecord`] by record index.
    pub const RECORDS: &str = "RECORDS";
    /// Mmapable array of `u32` backend indices; services own regions of it.
    pub const SLOTS: &str = "SLOTS";
    /// Mmapable array of [`super::Backend`] by [`super::BackendIndex`].
    pub const BACKENDS: &str = "BACKENDS";
    /// Hash `u32` service index → [`super::ServiceName`].
    pub const NAMES: &str = "NAMES";
    /// Hash [`super::Address`] → `u32` [`super::AddressFlags`]: the node's own addresses and ClusterIPs.
    pub const ADDRESSES: &str = "ADDRESSES";
    /// Hash `u64` network namespace cookie → [`super::ClientAddresses`].
    pub const CLIENTS: &str = "CLIENTS";
    /// LRU hash [`super::AffinityKey`] → [`super::AffinityValue`].
    pub const AFFINITY: &str = "AFFINITY";
    /// LPM trie [`super::SourceRange`] → `u32`, always 1.
    pub const SOURCE_RANGES: &str = "SOURCE_RANGES";
    /// Hash `u32` interface index → [`super::Device`].
    pub const DEVICES: &str = "DEVICES";
    /// LRU hash [`super::FlowKey`]`<V4>` → [`super::Flow`]`<V4>`.
    pub const FLOWS4: &str = "FLOWS4";
    /// LRU hash [`super::FlowKey`]`<V6>` → [`super::Flow`]`<V6>`.
    pub const FLOWS6: &str = "FLOWS6";
    /// LRU hash [`super::PeerKey`] → [`super::PeerValue`].
    pub const PEERS: &str = "PEERS";
    /// LRU hash [`super::ReverseKey`] → [`super::ReverseValue`].
    pub const REVERSE: &str = "REVERSE";
    /// LRU hash [`crate::packet::FragmentKey`]`<V4>` → [`crate::wire::transport::Ports`].
    pub const FRAGMENTS4: &str = "FRAGMENTS4";
    /// LRU hash [`crate::packet::FragmentKey`]`<V6>` → [`crate::wire::transport::Ports`].
    pub const FRAGMENTS6: &str = "FRAGMENTS6";
    /// LRU per-CPU hash [`super::DropKey`] → `u64` packets.
    pub const DROPS: &str = "DROPS";
}
