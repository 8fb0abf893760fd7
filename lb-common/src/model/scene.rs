//! One node with Services of every kind, the same in both families.
//!
//! A Service port is named by its port number ([`port`]); each exists for TCP, UDP and SCTP.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::vec::Vec;

use super::node::{NextHop, Node};
use super::sockets::HOST;
use super::world::{Endpoint, Place, Service, World, frontend_key};
use crate::abi::{
    Address, ClientAddresses, Device, DeviceFlags, FrontendKind, ServiceFlags, ServiceIndex,
};
use crate::env::Tables;
use crate::family::Family;
use crate::lb::answer::AnswerFormat;

/// Who has an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A client outside the cluster.
    Client,
    /// Another client.
    OtherClient,
    /// A router between client and node.
    Router,
    /// This node, on its uplink.
    Node,
    /// This node, on its overlay device.
    Overlay,
    /// A second address of the node, on which no NodePort is served.
    Management,
    /// A ClusterIP.
    ClusterIp,
    /// An address of the Service range that no Service has.
    Unowned,
    /// An external IP.
    External,
    /// A load balancer's address.
    LoadBalancer,
    /// A pod here.
    LocalPod,
    /// A pod on another node, behind the uplink.
    RemotePod,
    /// A second one.
    SecondRemotePod,
    /// A third one.
    ThirdRemotePod,
    /// A pod on another node, behind the overlay.
    OverlayPod,
    /// A host outside the cluster.
    Site,
    /// A pod here of which the API doesn't say where it is.
    UnknownPod,
    /// A pod that the route table declares unreachable.
    LostPod,
}

/// The Service ports of the scene.
pub mod port {
    /// One local endpoint; all kinds of frontends.
    pub const LOCAL: u16 = 80;
    /// One remote endpoint; all kinds of frontends.
    pub const REMOTE: u16 = 81;
    /// No endpoints.
    pub const EMPTY: u16 = 82;
    /// External policy Local, endpoints on other nodes alone.
    pub const ELSEWHERE: u16 = 83;
    /// An endpoint outside the cluster.
    pub const SITE: u16 = 84;
    /// A remote endpoint behind the overlay.
    pub const OVERLAY: u16 = 85;
    /// A second Service with the endpoint of [`LOCAL`].
    pub const LOCAL_TOO: u16 = 86;
    /// Three remote endpoints and a Maglev table.
    pub const SPREAD: u16 = 87;
    /// An endpoint to which a route forbids to send.
    pub const LOST: u16 = 88;
    /// A local endpoint of which the API doesn't say where it is.
    pub const UNKNOWN: u16 = 89;
    /// Internal policy Local, endpoints on other nodes alone.
    pub const INTERNAL_ELSEWHERE: u16 = 90;
    /// Three remote endpoints, a Maglev table, session affinity.
    pub const STICKY: u16 = 91;
    /// The same and a local endpoint, external policy Local, session affinity.
    pub const STICKY_LOCAL: u16 = 92;
    /// One local endpoint; its load balancer address admits [`super::ADMITTED`] alone.
    pub const RANGES: u16 = 93;
    /// No endpoints; its load balancer address admits [`super::ADMITTED`] alone.
    pub const RANGES_EMPTY: u16 = 94;
    /// The NodePort of a Service port.
    pub const fn node_port(port: u16) -> u16 {
        30_000 + port
    }
    /// The endpoints' port.
    pub const BACKEND: u16 = 8080;
    /// The client's port.
    pub const CLIENT: u16 = 40_000;
}

/// Who is in the source ranges of the Services that have some.
pub const ADMITTED: [Role; 3] = [Role::Client, Role::Node, Role::LocalPod];

/// Session affinity of the Services that have it, seconds (the default of Kubernetes).
pub const AFFINITY: u32 = 10_800;

/// Interface indices: the uplink, the overlay and a pod's device (which is not external).
pub mod device {
    /// MTU 1500.
    pub const UPLINK: u32 = 102;
    /// MTU 1450.
    pub const OVERLAY: u32 = 103;
    /// Not in DEVICES.
    pub const POD: u32 = 104;
}

/// The address of `role` in family `F`.
pub fn ip<F: Family>(role: Role) -> IpAddr {
    let (v4, v6) = match role {
        Role::Client => ([192, 0, 2, 10], [0x2001, 0xdb8, 2, 0, 0, 0, 0, 10]),
        Role::OtherClient => ([192, 0, 2, 11], [0x2001, 0xdb8, 2, 0, 0, 0, 0, 11]),
        Role::Router => ([192, 0, 2, 1], [0x2001, 0xdb8, 2, 0, 0, 0, 0, 1]),
        Role::Node => ([10, 0, 0, 1], [0xfd00, 10, 0, 0, 0, 0, 0, 1]),
        Role::Overlay => ([10, 245, 1, 0], [0xfd00, 245, 1, 0, 0, 0, 0, 0]),
        Role::Management => ([10, 9, 0, 1], [0xfd00, 9, 0, 0, 0, 0, 0, 1]),
        Role::ClusterIp => ([10, 96, 0, 10], [0xfd00, 96, 0, 0, 0, 0, 0, 10]),
        Role::Unowned => ([10, 96, 255, 10], [0xfd00, 96, 0, 0, 0, 0, 0, 0xff0a]),
        Role::External => ([198, 51, 100, 5], [0x2001, 0xdb8, 5, 0, 0, 0, 0, 5]),
        Role::LoadBalancer => ([198, 51, 100, 6], [0x2001, 0xdb8, 5, 0, 0, 0, 0, 6]),
        Role::LocalPod => ([10, 244, 1, 5], [0xfd00, 244, 1, 0, 0, 0, 0, 5]),
        Role::RemotePod => ([10, 244, 2, 5], [0xfd00, 244, 2, 0, 0, 0, 0, 5]),
        Role::SecondRemotePod => ([10, 244, 2, 6], [0xfd00, 244, 2, 0, 0, 0, 0, 6]),
        Role::ThirdRemotePod => ([10, 244, 2, 7], [0xfd00, 244, 2, 0, 0, 0, 0, 7]),
        Role::OverlayPod => ([10, 244, 3, 5], [0xfd00, 244, 3, 0, 0, 0, 0, 5]),
        Role::Site => ([203, 0, 113, 10], [0x2001, 0xdb8, 113, 0, 0, 0, 0, 10]),
        Role::UnknownPod => ([10, 244, 1, 6], [0xfd00, 244, 1, 0, 0, 0, 0, 6]),
        Role::LostPod => ([10, 244, 9, 5], [0xfd00, 244, 9, 0, 0, 0, 0, 5]),
    };
    if F::HAS_HEADER_CHECKSUM { Ipv4Addr::from(v4).into() } else { Ipv6Addr::from(v6).into() }
}

/// The range that ClusterIPs are taken from: its first address and the length of its prefix.
pub fn service_range<F: Family>() -> (IpAddr, u8) {
    if F::HAS_HEADER_CHECKSUM {
        (Ipv4Addr::new(10, 96, 0, 0).into(), 16)
    } else {
        (Ipv6Addr::new(0xfd00, 96, 0, 0, 0, 0, 0, 0).into(), 112)
    }
}

/// The address of `role` with a port.
pub fn at<F: Family>(role: Role, port: u16) -> SocketAddr {
    SocketAddr::new(ip::<F>(role), port)
}

/// The tables of the scene.
pub fn world<F: Family>() -> World {
    let mut world = World::default();
    for protocol in [6, 17, 132] {
        for (port, cluster, local, flags, maglev) in services::<F>() {
            let bits = if F::HAS_HEADER_CHECKSUM { 32 } else { 128 };
            let ranges = ADMITTED.map(|role| (ip::<F>(role), bits));
            let restricted = [port::RANGES, port::RANGES_EMPTY].contains(&port);
            let sticky = [port::STICKY, port::STICKY_LOCAL].contains(&port);
            let node_port = SocketAddr::new(wildcard::<F>(), port::node_port(port));
            world.serve(&Service {
                frontends: &[
                    (at::<F>(Role::ClusterIp, port), FrontendKind::ClusterIp),
                    (at::<F>(Role::External, port), FrontendKind::ExternalIp),
                    (at::<F>(Role::LoadBalancer, port), FrontendKind::LoadBalancer),
                    (node_port, FrontendKind::NodePort),
                ],
                protocol,
                cluster: &cluster,
                local: &local,
                flags,
                maglev,
                affinity: sticky.then_some(AFFINITY),
                sources: restricted.then_some(&ranges),
            });
        }
    }
    let (range, len) = service_range::<F>();
    world.reserve(range, len);
    world.own(ip::<F>(Role::Node), true);
    world.own(ip::<F>(Role::Overlay), true);
    world.own(ip::<F>(Role::Management), false);
    let own = Address::from(ip::<F>(Role::Node));
    let mut clients = ClientAddresses::default();
    if own.is_v4() {
        clients.address4 = own
    } else {
        clients.address6 = own
    }
    world.clients.insert(HOST, clients);
    let device = |role, mtu, flags| {
        let own = Address::from(ip::<F>(role));
        let none = Address::UNSPECIFIED_V6;
        let (address4, address6) = if own.is_v4() { (own, none) } else { (none, own) };
        Device { address4, address6, mtu, flags }
    };
    let ethernet = DeviceFlags::ETHERNET;
    world.devices.insert(device::UPLINK, device(Role::Node, 1500, ethernet | DeviceFlags::XDP));
    world.devices.insert(device::OVERLAY, device(Role::Overlay, 1450, ethernet));
    world
}

/// The node of the scene, with its routes.
pub fn node<F: AnswerFormat>() -> Node<F> {
    let mut node = Node::new(world::<F>());
    node.input = device::UPLINK;
    let hop = |index, mtu| NextHop::Device { index, mtu, resolved: true };
    let routes = [
        (Role::Client, hop(device::UPLINK, 1500)),
        (Role::OtherClient, hop(device::UPLINK, 1500)),
        (Role::Router, hop(device::UPLINK, 1500)),
        (Role::RemotePod, hop(device::UPLINK, 1500)),
        (Role::SecondRemotePod, hop(device::UPLINK, 1500)),
        (Role::ThirdRemotePod, hop(device::UPLINK, 1500)),
        (Role::Site, hop(device::UPLINK, 1500)),
        (Role::OverlayPod, hop(device::OVERLAY, 1450)),
        (Role::ClusterIp, hop(device::UPLINK, 1500)),
        (Role::External, hop(device::UPLINK, 1500)),
        (Role::LoadBalancer, hop(device::UPLINK, 1500)),
        (Role::LocalPod, hop(device::POD, 1500)),
        (Role::UnknownPod, hop(device::POD, 1500)),
        (Role::LostPod, NextHop::Forbidden),
    ];
    node.routes = routes.into_iter().map(|(role, hop)| (ip::<F>(role).into(), hop)).collect();
    node
}

/// The Service behind a port of the external IP.
pub fn service<F: Family>(world: &World, port: u16, protocol: u8) -> ServiceIndex {
    world
        .frontend(&frontend_key(at::<F>(Role::External, port), protocol))
        .map(|frontend| frontend.service)
        .unwrap_or_default()
}

/// Port, endpoints under policy Cluster and Local, flags, whether there is a Maglev table.
type Row = (u16, Vec<Endpoint>, Vec<Endpoint>, u32, bool);

fn services<F: Family>() -> [Row; 15] {
    const SOME: u32 = ServiceFlags::HAS_ENDPOINTS;
    let endpoints = |roles: &[(Role, Place)]| -> Vec<Endpoint> {
        let endpoint = |(role, place): &(Role, Place)| Endpoint {
            address: at::<F>(*role, port::BACKEND),
            place: *place,
        };
        roles.iter().map(endpoint).collect()
    };
    let local = || endpoints(&[(Role::LocalPod, Place::Here)]);
    let remote = || endpoints(&[(Role::RemotePod, Place::There)]);
    let one = |role, place| endpoints(&[(role, place)]);
    let three = || {
        endpoints(&[
            (Role::RemotePod, Place::There),
            (Role::SecondRemotePod, Place::There),
            (Role::ThirdRemotePod, Place::There),
        ])
    };
    let four = || [local(), three()].concat();
    let none = || endpoints(&[]);
    [
        (port::LOCAL, local(), local(), SOME, false),
        (port::REMOTE, remote(), none(), SOME, false),
        (port::EMPTY, none(), none(), 0, false),
        (port::ELSEWHERE, remote(), none(), SOME | ServiceFlags::EXTERNAL_LOCAL, false),
        (port::SITE, one(Role::Site, Place::Unknown), none(), SOME, false),
        (port::OVERLAY, one(Role::OverlayPod, Place::There), none(), SOME, false),
        (port::LOCAL_TOO, local(), local(), SOME, false),
        (port::SPREAD, three(), none(), SOME, true),
        (port::LOST, one(Role::LostPod, Place::There), none(), SOME, false),
        (port::UNKNOWN, one(Role::UnknownPod, Place::Unknown), none(), SOME, false),
        (port::INTERNAL_ELSEWHERE, remote(), none(), SOME | ServiceFlags::INTERNAL_LOCAL, false),
        (port::STICKY, three(), none(), SOME, true),
        (port::STICKY_LOCAL, four(), local(), SOME | ServiceFlags::EXTERNAL_LOCAL, true),
        (port::RANGES, local(), local(), SOME, false),
        (port::RANGES_EMPTY, none(), none(), 0, false),
    ]
}

fn wildcard<F: Family>() -> IpAddr {
    if F::HAS_HEADER_CHECKSUM { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}
