//! SERVICE_RANGES: the ranges that ClusterIPs are taken from.
//!
//! A range in use is never written: new ones are written where nobody looks, and one store of
//! [`ServiceRanges::used`] makes them count.

use std::collections::BTreeSet;

use ipnet::IpNet;
use lb_common::abi::{SERVICE_RANGES_MAX, ServiceRange, ServiceRanges};

use super::encode;
use super::store::{Store, StoreError};
use crate::plan::RANGES_MAX;

// What the plan takes for fitting does fit.
const _: () = assert!(RANGES_MAX == SERVICE_RANGES_MAX);

/// Makes the map hold these ranges.
pub(super) fn set<S: Store>(store: &mut S, ranges: &BTreeSet<IpNet>) -> Result<(), StoreError> {
    for (family, is_v4) in [(ServiceRanges::V4, true), (ServiceRanges::V6, false)] {
        let wanted = ranges.iter().filter(|range| matches!(range, IpNet::V4(_)) == is_v4);
        set_family(store, family, wanted.map(encode::service_range).collect())?;
    }
    Ok(())
}

fn set_family<S: Store>(
    store: &mut S,
    family: u32,
    mut wanted: BTreeSet<ServiceRange>,
) -> Result<(), StoreError> {
    let ServiceRanges { used, ranges, .. } = store.service_ranges(family);
    let mut kept = 0;
    for (at, range) in ranges.iter().enumerate() {
        if used & (1 << at) != 0 && wanted.remove(range) {
            kept |= 1 << at;
        }
    }
    if used != kept {
        store.use_service_ranges(family, kept);
        store.barrier()?;
    }
    let mut free = (0..ranges.len()).filter(|at| kept & (1 << at) == 0);
    let mut now_used = kept;
    for (range, at) in wanted.iter().zip(free.by_ref()) {
        store.set_service_range(family, at, range);
        now_used |= 1 << at;
    }
    if now_used != kept {
        store.use_service_ranges(family, now_used);
    }
    Ok(())
}
