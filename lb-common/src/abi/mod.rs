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
mod monitor;
mod node;
mod range;
mod service;
mod socket;
mod source;
mod stats;
mod takeover;

pub use address::Address;
pub use affinity::{AffinityKey, AffinityValue};
pub use backend::{Backend, BackendFlags, BackendIndex};
pub use client::ClientAddresses;
pub use config::{Config, ConfigFlags};
pub use flow::{Flow, FlowFlags, FlowKey};
pub use frontend::{Frontend, FrontendKey, FrontendKind};
pub use monitor::{Conditions, Event, EventHook, EventKinds, Monitor, Pace};
pub use node::{AddressFlags, Device, DeviceFlags};
pub use range::{SERVICE_RANGES_MAX, ServiceRange, ServiceRanges};
pub use service::{Region, ServiceFlags, ServiceIndex, ServiceName, ServicePointer, ServiceRecord};
pub use socket::{PeerKey, PeerValue, ReverseKey, ReverseValue};
pub use source::{SourceRange, SourceSet};
pub use stats::{DropKey, Traffic, TrafficKey};
pub use takeover::TakeoverFlags;

/// Version of the layouts below; part of the pin path (`…/lb/v<VERSION>/`).
pub const VERSION: u32 = 2;

/// The programs for SCTP, by their index in CALLS: ingress and egress of Ethernet devices, of devices
/// whose frames begin with the IP header, and of pods' devices.
pub const SCTP_PROGRAMS: [&str; 6] = [
    "sctp_ingress",
    "sctp_egress",
    "sctp_ingress_l3",
    "sctp_egress_l3",
    "sctp_pod_in",
    "sctp_pod_out",
];

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
    /// Hash [`super::Address`] → `u32` [`super::AddressFlags`]: the node's own addresses, its pods' and those of Services.
    pub const ADDRESSES: &str = "ADDRESSES";
    /// Hash `u64` network namespace cookie → [`super::ClientAddresses`].
    pub const CLIENTS: &str = "CLIENTS";
    /// LRU hash [`super::AffinityKey`] → [`super::AffinityValue`].
    pub const AFFINITY: &str = "AFFINITY";
    /// LPM trie [`super::SourceRange`] → `u32`, always 1.
    pub const SOURCE_RANGES: &str = "SOURCE_RANGES";
    /// Mmapable array of [`super::ServiceRanges`]: one element for each family.
    pub const SERVICE_RANGES: &str = "SERVICE_RANGES";
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
    /// LRU hash [`crate::lb::fragment::ParkedKey`] → [`crate::lb::fragment::ParkedFrame`]; not pinned.
    pub const PARKED: &str = "PARKED";
    /// LRU per-CPU hash [`super::DropKey`] → `u64` packets.
    pub const DROPS: &str = "DROPS";
    /// Per-CPU hash [`super::TrafficKey`] → [`super::Traffic`].
    pub const TRAFFIC: &str = "TRAFFIC";
    /// Program array: the programs for SCTP, in the order of [`super::SCTP_PROGRAMS`].
    pub const CALLS: &str = "CALLS";
    /// Mmapable array with one `u32`, bits of [`super::TakeoverFlags`].
    pub const TAKEOVER: &str = "TAKEOVER";
    /// Ring buffer of [`super::Event`].
    pub const EVENTS: &str = "EVENTS";
    /// Mmapable array with one [`super::Monitor`].
    pub const MONITOR: &str = "MONITOR";
    /// Hash `u32` service index → `u32`, always 1: whom [`super::Conditions::SERVICES`] is about.
    pub const WATCHED: &str = "WATCHED";
    /// Per-CPU array with one [`super::Pace`].
    pub const PACE: &str = "PACE";
}
