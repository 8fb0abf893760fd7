//! Which Service a destination belongs to.

use crate::abi::{Address, Frontend, FrontendKey, FrontendKind, NodeAddressFlags, ServiceIndex};
use crate::bytes::Be16;
use crate::env::Tables;

/// A destination as a packet or an application names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

/// Looks a destination up: exact addresses first, then NodePorts on the node's own addresses
/// (kube-proxy's order, nftables/proxier.go, "nodeports are checked last").
///
/// `own` says whether the address counts as the node's own beyond NODE_ADDRESSES (loopback, for
/// sockets of the node itself).
#[inline(always)]
pub fn find<T: Tables>(tables: &T, destination: &Destination, own: bool) -> Option<Found> {
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
    let serves_node_ports = own
        || tables
            .node_address(&destination.address)
            .is_some_and(|flags| flags & NodeAddressFlags::NODE_PORTS != 0);
    if !serves_node_ports {
        return None;
    }
    key.address = wildcard;
    tables.frontend(&key).and_then(found)
}

#[inline(always)]
fn found(frontend: Frontend) -> Option<Found> {
    let kind = FrontendKind::from_number(frontend.kind)?;
    Some(Found { service: frontend.service, kind })
}
