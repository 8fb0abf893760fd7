//! Under which source a flow reaches its backend, and the claim of its reply tuple.

use super::DropReason;
use super::select;
use crate::abi::{Flow, FlowKey};
use crate::bytes::Be16;
use crate::env::{Env, InsertError};
use crate::family::Family;

/// Ports that are tried before the range counts as exhausted for this backend. With a range that
/// is three quarters full, all of them are taken once in 10,000 tries.
const TRIES: u32 = 32;

/// From one port that is tried to the next. Neighbours would not do: ports that are taken lie in
/// rows then, and a row of [`TRIES`] is there as soon as half of the range is. Primes beyond the
/// longest range, so that all ports of a short one are tried.
const STRIDES: [u32; 8] = [181_123, 296_683, 412_253, 527_843, 643_403, 758_971, 874_543, 990_137];

/// Under whose address a flow reaches its backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The client's own, with its own port too, unless another frontend of the same backend has that
    /// tuple already.
    Client,
    /// The node's, with a port of the SNAT range.
    Node,
}

/// Finds a tuple for the backend's side of the flow, writes the reply entry under its inverse and
/// leaves that inverse in `key`, whose destination is the source address already.
///
/// `reply` is the reply entry as it will be written. The first candidate depends on the flow
/// alone: when the table lost the forward entry, the reply entry is found here and adopted; only
/// one that is new makes `opened` 1.
#[inline(always)]
pub fn claim<F: Family, E: Env<F>>(
    env: &mut E,
    from: &FlowKey<F>,
    source: Source,
    backend: (F::Addr, Be16),
    reply: &Flow<F>,
    key: &mut FlowKey<F>,
    opened: &mut u32,
) -> Result<(), DropReason> {
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
            continue;
        }
        if source != Source::Client && env.host_socket(key) {
            continue;
        }
        match env.insert_flow(key, reply) {
            Ok(()) => {
                // Entries that were never looked up are the first to make room, even the newest
                // (bpf_lru_list.c): the entry of the other direction would take this one's place.
                let _ = env.flow(key);
                *opened = 1;
                return Ok(());
            }
            Err(InsertError::Exists) => {}
            Err(InsertError::Refused) => return Err(DropReason::FlowTable),
        }
    }
    Err(DropReason::SnatExhausted)
}
