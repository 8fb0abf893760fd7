//! Session affinity `ClientIP`: a client's next flow goes to the endpoint of its last one.
//!
//! The contract is kube-proxy's (nftables/proxier.go, affinity sets): what is remembered holds for as
//! long as the Service says, counted from the beginning of the client's last flow, and only while
//! the endpoint is one of those that the policy allows this flow. Else the choice is made anew.

use crate::abi::{AffinityKey, AffinityValue, BackendIndex};
use crate::env::{TICK_SHIFT, Tables};

/// The endpoint for a new flow of this client: the remembered one, or a `fresh` choice, which is
/// then remembered. `timeout` is in seconds; `list` is the bit of the endpoints that are allowed.
#[inline(always)]
pub fn choose<T: Tables>(
    tables: &mut T,
    key: &AffinityKey,
    timeout: u32,
    list: u16,
    fresh: impl FnOnce(&T) -> Option<BackendIndex>,
) -> Option<BackendIndex> {
    if let Some(index) = remembered(tables, key, timeout, list) {
        return Some(index);
    }
    let index = fresh(tables)?;
    let generation = tables.backend(index)?.generation;
    let value = AffinityValue { backend: index, generation, last_seen: tables.now() };
    tables.set_affinity(key, &value);
    Some(index)
}

#[inline(always)]
fn remembered<T: Tables>(
    tables: &mut T,
    key: &AffinityKey,
    timeout: u32,
    list: u16,
) -> Option<BackendIndex> {
    let now = tables.now();
    let known = tables.affinity(key)?;
    if now.wrapping_sub(known.last_seen) >= ticks(timeout) {
        return None;
    }
    let (index, generation) = (known.backend, known.generation);
    // Renewed before it is known to be good: a bad one is written again, by the fresh choice.
    known.last_seen = now;
    let backend = tables.backend(index)?;
    (backend.generation == generation && backend.flags & list != 0).then_some(index)
}

/// Ticks of so many seconds. The longest that Kubernetes allows is a day: 5 million.
#[inline(always)]
const fn ticks(seconds: u32) -> u32 {
    ((seconds as u64 * 1_000_000_000) >> TICK_SHIFT) as u32
}
