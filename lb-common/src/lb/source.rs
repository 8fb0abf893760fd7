//! `loadBalancerSourceRanges`: who may open a flow to a load balancer's address.
//!
//! The contract is kube-proxy's (nftables/proxier.go, the firewall chain): it holds for clients
//! inside and outside, before anything else is decided, and for no other address of the Service.

use super::frontend::Found;
use crate::abi::{Address, FrontendKind, ServiceFlags, ServiceRecord, SourceRange};
use crate::env::Tables;

/// Whether a client with this source may use this address. A source that nobody knows (`None`) is in
/// no range: an address with ranges is closed rather than open by mistake.
#[inline(always)]
pub fn admitted<T: Tables>(
    tables: &T,
    record: &ServiceRecord,
    found: &Found,
    source: impl FnOnce(&T) -> Option<Address>,
) -> bool {
    if record.flags & ServiceFlags::SOURCE_RANGES == 0 || found.kind != FrontendKind::LoadBalancer {
        return true;
    }
    match source(tables) {
        Some(address) => tables.source_range(&SourceRange::around(record.sources, address)),
        None => false,
    }
}
