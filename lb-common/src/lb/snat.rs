//! Under which source a flow reaches its backend, and the claim of its reply tuple.

use super::DropReason;
use super::select;
use crate::abi::{Flow, FlowFlags, FlowKey};
use crate::bytes::Be16;
use crate::env::{Env, InsertError, TICK_SHIFT};
use crate::family::Family;

/// Ports that are tried before the range counts as exhausted for this backend. With a range that
/// is three quarters full, all of them are taken once in 10,000 tries.
const TRIES: u32 = 32;

/// From one port that is tried to the next. Neighbours would not do: ports that are taken lie in
/// rows then, and a row of [`TRIES`] is there as soon as half of the range is. Primes beyond the
/// longest range, so that all ports of a short one are tried.
const STRIDES: [u32; 8] = [181_123, 296_683, 412_253, 527_843, 643_403, 758_971, 874_543, 990_137];

/// For so long nobody else gets the port of a flow that is over (five seconds): a peer that lost the last
/// acknowledgment repeats itself a few times, and a slow answer comes. Backends accept a new connection
/// from a port that they have in TIME_WAIT (tcp_timewait_state_process).
const LINGER_TICKS: i32 = (5_000_000_000_u64 >> TICK_SHIFT) as i32;

/// Under whose address a flow reaches its backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The client's own, with its own port too, unless another frontend of the same backend has that
    /// tuple already.
    Client,
    /// The node's, with a port of the SNAT range.
    Node,
}

/// What [`claim`] reads and writes, all of it in the working memory: what a loop keeps in registers makes
/// states for the verifier.
pub struct Claim<'a, F: Family> {
    /// The reply entry as it will be written.
    pub reply: &'a Flow<F>,
    /// Its key; the destination is the source address already.
    pub key: &'a mut FlowKey<F>,
    /// Room for what is known of the best port that might be taken from another flow.
    pub spare: &'a mut Flow<F>,
    /// Becomes 1 with an entry that is new.
    pub opened: &'a mut u32,
}

/// Finds a tuple for the backend's side of the flow, writes the reply entry under its inverse and
/// leaves that inverse in `claim.key`.
///
/// The first candidate depends on the flow alone: when the table lost the forward entry, the reply
/// entry is found here and adopted. Where all are taken, the flow that was silent longest gives way, if
/// it [may](gives_way).
#[inline(always)]
pub fn claim<F: Family, E: Env<F>>(
    env: &mut E,
    from: &FlowKey<F>,
    source: Source,
    backend: (F::Addr, Be16),
    claim: &mut Claim<F>,
) -> Result<(), DropReason> {
    let Claim { reply, key, spare, opened } = claim;
    let (first, last) = env.snat_ports();
    let range = last.wrapping_sub(first) as u32 + 1;
    let start = select::mix(select::tuple_hash(from) ^ F::fold(from.destination))
        ^ from.destination_port.get() as u32;
    // Not the bits that choose the first port.
    let stride = STRIDES[(start >> 29) as usize];
    key.source = backend.0;
    key.source_port = backend.1;
    key.destination_port = from.source_port;
    key.protocol = from.protocol;
    let now = env.now();
    spare.last_seen = now;
    for attempt in 0..TRIES {
        let keeps_port = attempt == 0 && source == Source::Client;
        if !keeps_port {
            let offset = (start % range + attempt * stride) % range;
            key.destination_port = Be16::new(first.wrapping_add(offset as u16));
        }
        if let Some(existing) = env.flow(key) {
            if existing.translated == reply.translated {
                existing.copy_from(reply);
                return Ok(());
            }
            let is_older = existing.last_seen.wrapping_sub(spare.last_seen).cast_signed() < 0;
            if is_older && gives_way(existing.flags, existing.last_seen, now) {
                spare.last_seen = existing.last_seen;
                spare.translated.destination_port = key.destination_port;
            }
            continue;
        }
        if source != Source::Client && env.host_socket(key) {
            continue;
        }
        match insert(env, key, reply, opened) {
            Err(InsertError::Exists) => {}
            result => return result.map_err(|_| DropReason::FlowTable),
        }
    }
    if spare.last_seen == now {
        return Err(DropReason::SnatExhausted);
    }
    key.destination_port = spare.translated.destination_port;
    if let Some(existing) = env.flow(key) {
        spare.translated = existing.translated.inverse();
        // Its client's next packet opens a new flow; this one would send it under the new one's port.
        env.delete_flow(&spare.translated);
        env.delete_flow(key);
    }
    // Another CPU may have taken the same.
    insert(env, key, reply, opened).map_err(|_| DropReason::SnatExhausted)
}

#[inline(always)]
fn insert<F: Family, E: Env<F>>(
    env: &mut E,
    key: &FlowKey<F>,
    reply: &Flow<F>,
    opened: &mut u32,
) -> Result<(), InsertError> {
    env.insert_flow(key, reply)?;
    // Entries that were never looked up are the first to make room, even the newest
    // (kernel/bpf/bpf_lru_list.c): the entry of the other direction would take this one's place.
    let _ = env.flow(key);
    *opened = 1;
    Ok(())
}

/// Whether a flow whose last packet came at this tick leaves its port to a new one that finds no other:
/// when it has ended, or may have been no more than its beginning, and no packet that is still under way
/// is for it.
#[inline(always)]
#[must_use]
pub fn gives_way(flags: u32, last_seen: u32, now: u32) -> bool {
    let is_assured = flags & (FlowFlags::UNASSURED | FlowFlags::ANSWERED) == FlowFlags::ANSWERED;
    let is_over = !is_assured || FlowFlags::has_ended(flags);
    let idle = now.wrapping_sub(last_seen).cast_signed();
    flags & FlowFlags::FOREIGN == 0 && is_over && idle >= LINGER_TICKS
}
