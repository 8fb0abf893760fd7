//! What processes of this node listen at: of the addresses that it has on its devices, those that are
//! ClusterIPs too. A DNS cache in front of the cluster's DNS takes its address so (NodeLocal DNSCache).

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use crate::cluster::snapshot::{IpFamily, Protocol};
use crate::flows::diag::{Diag, DiagError};

/// Where exactly a socket listens; one that listens at all addresses is none.
pub type Listener = (Protocol, SocketAddr);

/// Those at these addresses, in the network namespace of the calling thread. Asks the kernel only if there are
/// addresses.
pub fn at(addresses: &BTreeSet<IpAddr>) -> Result<BTreeSet<Listener>, DiagError> {
    let mut found = BTreeSet::new();
    if addresses.is_empty() {
        return Ok(found);
    }
    let mut diag = Diag::here()?;
    for family in [IpFamily::V4, IpFamily::V6] {
        let sockets = diag.listening(family)?;
        let listeners = sockets.iter().map(|socket| (socket.protocol(), socket.local()));
        found.extend(listeners.filter(|(_, local)| addresses.contains(&local.ip())));
    }
    Ok(found)
}
