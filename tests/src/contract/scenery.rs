//! Who is who in every case: the addresses of `lb_common::model::scene`, so that its routes lead to them.

use super::case::Case;
use lb_agent::contract::{Here, Place};
use lb_agent::node::facts::ClientAddresses;
use lb_common::family::{V4, V6};
use lb_common::model::scene::{self, Role};
use lb_common::model::sockets;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The node of every case.
pub const NODE: &str = "node-a";
/// Another one.
pub const OTHER_NODE: &str = "node-b";

/// Pods of this node.
pub const PODS: [Role; 2] = [Role::LocalPod, Role::UnknownPod];
/// Hosts that are not on this node, behind its uplink.
pub const ELSEWHERE: [Role; 4] =
    [Role::RemotePod, Role::SecondRemotePod, Role::ThirdRemotePod, Role::Site];
/// Hosts that send packets to this node.
pub const CLIENTS: [Role; 3] = [Role::Client, Role::OtherClient, Role::RemotePod];
/// The node's own.
pub const OWN: [Role; 3] = [Role::Node, Role::Overlay, Role::Management];

/// The addresses of a role in both families.
pub fn both(role: Role) -> [IpAddr; 2] {
    [scene::ip::<V4>(role), scene::ip::<V6>(role)]
}

/// The address of a role in the family of another address.
pub fn beside(role: Role, address: IpAddr) -> IpAddr {
    if address.is_ipv4() { scene::ip::<V4>(role) } else { scene::ip::<V6>(role) }
}

/// The same as a pair.
pub fn pair(role: Role) -> (Option<Ipv4Addr>, Option<Ipv6Addr>) {
    let mut pair = (None, None);
    for address in both(role) {
        match address {
            IpAddr::V4(v4) => pair.0 = Some(v4),
            IpAddr::V6(v6) => pair.1 = Some(v6),
        }
    }
    pair
}

/// What the node knows of itself.
pub fn here(case: &Case) -> Here {
    let own = OWN.into_iter().flat_map(both);
    Here {
        name: NODE.to_owned(),
        addresses: own.map(|address| (address, case.node_ports.contains(&address))).collect(),
        pods: PODS.into_iter().flat_map(both).collect(),
        masquerades_all: case.masquerades_all,
    }
}

/// The addresses of the network namespaces, by cookie: the node's own, and that of its first pod, of
/// which only the IPv4 address is known.
pub fn clients() -> BTreeMap<u64, ClientAddresses> {
    let (address4, address6) = pair(Role::Node);
    let node = ClientAddresses { address4, address6 };
    let pod = ClientAddresses { address4: pair(Role::LocalPod).0, address6: None };
    [(sockets::HOST, node), (sockets::POD, pod)].into()
}

/// What is known of the source of a socket that isn't bound.
pub fn known_source(place: Place, destination: IpAddr) -> Option<IpAddr> {
    let cookie = match place {
        Place::Node => sockets::HOST,
        Place::Pod | Place::Outside => sockets::POD,
    };
    let ClientAddresses { address4, address6 } = clients().get(&cookie).copied()?;
    if destination.is_ipv4() { address4.map(IpAddr::V4) } else { address6.map(IpAddr::V6) }
}
