//! CONFIG: constants of one agent run, set when the object is loaded.

use bytemuck::{Pod, Zeroable};

/// The global `CONFIG` of the object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C, align(8))]
pub struct Config {
    /// Cookie of the node's network namespace (`SO_NETNS_COOKIE`): NodePorts on loopback addresses
    /// are for sockets in it only.
    pub host_netns_cookie: u64,
    /// First port for SNAT, host byte order.
    pub snat_port_min: u16,
    /// Last port for SNAT, host byte order; not below `snat_port_min`.
    pub snat_port_max: u16,
    /// Bits of [`ConfigFlags`].
    pub flags: u32,
}

/// Bits of [`Config::flags`]: who translates for pods (`--pod-path`), what is counted
/// (`--traffic-counters`), and what endpoints see (`--masquerade-all`).
pub struct ConfigFlags;

impl ConfigFlags {
    /// Socket hooks serve the node's own sockets alone, not those of pods.
    pub const NODE_SOCKETS_ONLY: u32 = 1;
    /// Hooks on pods' devices serve every protocol; without it, those alone that have no socket hook.
    pub const POD_PACKETS: u32 = 1 << 1;
    /// TRAFFIC is counted.
    pub const TRAFFIC: u32 = 1 << 2;
    /// Endpoints see an address of the node in place of every client's; but not what comes for the external
    /// addresses of a Service with external policy Local.
    pub const MASQUERADE_ALL: u32 = 1 << 3;
}

const _: () = assert!(size_of::<Config>() == 16 && align_of::<Config>() == 8);
