//! Which Service a destination belongs to.

use crate::abi::{Address, AddressFlags, Frontend, FrontendKey, FrontendKind, ServiceIndex};
use crate::bytes::Be16;
use crate::env::Tables;

/// A destination as a packet or an application names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Destination {
    /// Address.
    pub address: Address,
    /// Port.
    pub port: Be16,
    /// IP protocol number.
    pub protocol: u8,
}

/// The Service behind a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The Service port.
    pub service: ServiceIndex,
    /// Kind of the address.
    pub kind: FrontendKind,
}

/// Whose a destination is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// A Service's.
    Service(Found),
    /// A port that no Service has on an address that is a ClusterIP.
    UnknownPort,
    /// Nobody's that we know.
    NotOurs,
}

/// Looks a destination up: exact addresses first, then NodePorts on the node's own addresses
/// (kube-proxy's order, nftables/proxier.go, "nodeports are checked last").
///
/// `own` says whether the address counts as the node's own beyond ADDRESSES (loopback, for
/// sockets of the node itself).
#[inline(always)]
pub fn find<T: Tables>(tables: &T, destination: &Destination, own: bool) -> Lookup {
    let mut key = FrontendKey {
        address: destination.address,
        port: destination.port,
        protocol: destination.protocol,
        pad: 0,
    };
    // NodePorts are kept under the unspecified address, which is no Service's: a pod that connects to
    // it means its own loopback.
    let wildcard = destination.address.wildcard();
    if destination.address != wildcard
        && let Some(frontend) = tables.frontend(&key)
    {
        return found(frontend);
    }
    let flags = tables.address_flags(&destination.address);
    if own || flags & AddressFlags::NODE_PORTS != 0 {
        key.address = wildcard;
        if let Some(frontend) = tables.frontend(&key) {
            return found(frontend);
        }
    }
    // A node that has a ClusterIP on one of its devices (a DNS cache does that) serves it itself.
    const ROLES: u32 = AddressFlags::CLUSTER_IP | AddressFlags::NODE;
    if flags & ROLES == AddressFlags::CLUSTER_IP { Lookup::UnknownPort } else { Lookup::NotOurs }
}

#[inline(always)]
fn found(frontend: Frontend) -> Lookup {
    match FrontendKind::from_number(frontend.kind) {
        Some(kind) => Lookup::Service(Found { service: frontend.service, kind }),
        None => Lookup::NotOurs,
    }
}
