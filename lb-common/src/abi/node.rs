//! ADDRESSES and DEVICES: whose an address is, and the node's own devices.

use bytemuck::{Pod, Zeroable};

use super::Address;

/// Bits of the value of ADDRESSES.
pub struct AddressFlags;

impl AddressFlags {
    /// NodePorts are served on this address (`--nodeport-addresses`).
    pub const NODE_PORTS: u32 = 1;
    /// An address of the node itself.
    pub const NODE: u32 = 1 << 1;
    /// The ClusterIP of a Service: on ports that no Service has there, connections are refused
    /// (kube-proxy, nftables/proxier.go, chain `cluster-ips-check`).
    pub const CLUSTER_IP: u32 = 1 << 2;
    /// An external IP or a load balancer's address of a Service. What no Service has there is the
    /// business of whoever has the address.
    pub const EXTERNAL: u32 = 1 << 3;
    /// A pod of this node that is served by packet: answers to it may be translated.
    pub const POD: u32 = 1 << 4;
    /// An endpoint on this node: its answers may be translated as they leave.
    pub const ENDPOINT: u32 = 1 << 5;
    /// Packets to such an address may be translated.
    pub const OURS: u32 = Self::NODE | Self::CLUSTER_IP | Self::EXTERNAL | Self::POD;
}

/// Value of DEVICES: a device on which packets enter from outside or from other nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Device {
    /// Source of IPv4 packets that we send through it; the IPv6 wildcard when it has none.
    pub address4: Address,
    /// Source of IPv6 packets that we send through it; the wildcard when it has none.
    pub address6: Address,
    /// MTU, bytes.
    pub mtu: u32,
    /// Bits of [`DeviceFlags`].
    pub flags: u32,
}

/// Bits of [`Device::flags`].
pub struct DeviceFlags;

impl DeviceFlags {
    /// Frames begin with an Ethernet header.
    pub const ETHERNET: u32 = 1;
    /// Frames may be sent to it from XDP (an XDP program of ours is attached natively).
    pub const XDP: u32 = 1 << 1;
}

const _: () = assert!(size_of::<Device>() == 40 && align_of::<Device>() == 4);
