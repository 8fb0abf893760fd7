//! Which endpoint a new flow goes to.

use crate::abi::{BackendIndex, FlowKey, Region};
use crate::env::Tables;
use crate::family::Family;

/// A uniformly random endpoint (kube-proxy's choice for every new connection).
#[inline(always)]
pub fn random<T: Tables>(tables: &T, slots: Region) -> Option<BackendIndex> {
    at(tables, slots, tables.random())
}

/// The endpoint that every node of the cluster chooses for this tuple: by Maglev table, or over
/// the plain list when there is no table.
#[inline(always)]
pub fn consistent<F: Family, T: Tables>(
    tables: &T,
    slots: Region,
    maglev: Region,
    tuple: &FlowKey<F>,
) -> Option<BackendIndex> {
    let hash = tuple_hash(tuple);
    if maglev.len != 0 { at(tables, maglev, hash) } else { at(tables, slots, hash) }
}

#[inline(always)]
fn at<T: Tables>(tables: &T, region: Region, number: u32) -> Option<BackendIndex> {
    if region.len == 0 {
        return None;
    }
    tables.slot(region.offset.wrapping_add(number % region.len))
}

/// Hash of the client's side of a tuple, the same on every node and for every address that a
/// Service answers on (a NodePort has another address on each node).
#[inline(always)]
pub fn tuple_hash<F: Family>(tuple: &FlowKey<F>) -> u32 {
    let ports = (tuple.source_port.get() as u32) << 16 | tuple.protocol;
    mix(mix(F::fold(tuple.source)) ^ ports)
}

/// The finalizer of MurmurHash3 (Appleby, public domain).
#[inline(always)]
pub fn mix(value: u32) -> u32 {
    let value = (value ^ (value >> 16)).wrapping_mul(0x85eb_ca6b);
    let value = (value ^ (value >> 13)).wrapping_mul(0xc2b2_ae35);
    value ^ (value >> 16)
}
