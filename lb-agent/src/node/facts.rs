//! What is known of this node: its addresses and devices.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Who is at the other end of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Clients outside and other nodes: an uplink or an overlay.
    External,
    /// A pod of this node.
    Pod,
    /// The node itself: the loopback device.
    Own,
}

impl Role {
    /// As metrics and people name it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::External => "external",
            Self::Pod => "pod",
            Self::Own => "own",
        }
    }
}

/// A device that packets are translated on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Who is at its other end.
    pub role: Role,
    /// Interface name.
    pub name: String,
    /// Interface index.
    pub index: u32,
    /// Kind from `IFLA_INFO_KIND`: `veth`, `vxlan`, …; empty for hardware.
    pub kind: String,
    /// MTU in bytes.
    pub mtu: u32,
    /// Frames start with an Ethernet header (ARPHRD_ETHER); false for tun, wireguard, ipip.
    pub ethernet: bool,
    /// A default route leads there, the cluster knows the node by an address of it, or the operator named it.
    pub uplink: bool,
    /// Source address for IPv4 packets that we send through it (SNAT).
    pub address4: Option<Ipv4Addr>,
    /// Source address for IPv6 packets that we send through it (SNAT); global scope.
    pub address6: Option<Ipv6Addr>,
}

/// What the sockets of one network namespace send from, unless they say otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientAddresses {
    /// Over IPv4.
    pub address4: Option<Ipv4Addr>,
    /// Over IPv6.
    pub address6: Option<Ipv6Addr>,
}

/// Facts that the datapath needs of the node itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// Every address of the node's own interfaces without loopback and link-local; true when
    /// NodePorts are served on it (`--nodeport-addresses`).
    pub addresses: BTreeMap<IpAddr, bool>,
    /// External devices by index.
    pub devices: BTreeMap<u32, Device>,
    /// The node's ends of the devices of its pods, by index.
    pub pod_devices: BTreeMap<u32, Device>,
    /// The loopback device, by index.
    pub own_devices: BTreeMap<u32, Device>,
    /// The addresses that stand for the node.
    pub own: ClientAddresses,
}
