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

/// Which sources are possible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source<F: Family> {
    /// The client's own address; its port too, unless another frontend of the same backend has
    /// that tuple already.
    Client,
    /// This address of the node, a port of the SNAT range.
    Node(F::Addr),
}

/// Finds a tuple for the backend's side of the flow, writes the reply entry under its inverse and
/// leaves that inverse in `key`.
///
/// `reply` is the reply entry as it will be written. The first candidate depends on the flow
/// alone: when the table lost the forward entry, the reply entry is found here and adopted.
#[inline(always)]
pub fn claim<F: Family, E: Env<F>>(
    env: &mut E,
    from: &FlowKey<F>,
    source: Source<F>,
    backend: (F::Addr, Be16),
    reply: &Flow<F>,
    key: &mut FlowKey<F>,
) -> Result<(), DropReason> {
    let (first, last) = env.snat_ports();
    let range = last.wrapping_sub(first) as u32 + 1;
    let start = select::mix(select::tuple_hash(from) ^ F::fold(from.destination))
        ^ from.destination_port.get() as u32;
    *key = FlowKey {
        source: backend.0,
        destination: match source {
            Source::Client => from.source,
            Source::Node(address) => address,
        },
        source_port: backend.1,
        destination_port: from.source_port,
        protocol: from.protocol,
    };
    for attempt in 0..TRIES {
        let keeps_port = attempt == 0 && source == Source::Client;
        if !keeps_port {
            let offset = start.wrapping_add(attempt) % range;
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
            Ok(()) => return Ok(()),
            Err(InsertError::Exists) => {}
            Err(InsertError::Refused) => return Err(DropReason::FlowTable),
        }
    }
    Err(DropReason::SnatExhausted)
}
