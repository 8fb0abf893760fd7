//! Known flows: finding, judging, renewing and repairing them.

use super::takeover::REMEMBERED_TICKS;
use crate::abi::{BackendIndex, Flow, FlowFlags, FlowKey};
use crate::env::{Env, RENEWAL_TICKS, Tables};
use crate::family::Family;
use crate::packet::{Packet, Work};
use crate::wire::transport;

/// Finds the flow of a packet and copies its entry to `work.entry`. A flow that must not be used
/// any more is removed, so that the packet opens a new one.
#[inline(always)]
pub fn find<F: Family, E: Env<F>>(env: &mut E, work: &mut Work<F>) -> bool {
    let Work { packet, entry, other, key, .. } = work;
    match env.flow(&packet.tuple) {
        Some(known) => entry.copy_from(known),
        None => return false,
    }
    let Flow { backend, generation, flags, last_seen, .. } = *entry;
    let now = env.now();
    let is_forgotten = flags & FlowFlags::FOREIGN != 0 && has_passed(last_seen, now);
    if is_forgotten
        || flags & FlowFlags::REPLY == 0 && outdated(env, packet, flags, backend, generation)
    {
        env.delete_flow(&packet.tuple);
        *key = entry.translated.inverse();
        env.delete_flow(key);
        return false;
    }
    let added = seen(packet, flags) & !flags;
    let renewed = renewed(flags, last_seen, now);
    // The table may lose either entry. Between the answer and the assurance every packet looks after both:
    // a question from a port that was used a moment ago would find its flow, and the answer nothing.
    const NEW: u32 = FlowFlags::UNASSURED | FlowFlags::ANSWERED;
    let is_new = (flags | added) & NEW == NEW;
    if added == 0 && !is_new && renewed.is_none() {
        return true;
    }
    entry.flags |= added;
    if is_new && assures(packet, flags | added, renewed.is_some()) {
        entry.flags &= !FlowFlags::UNASSURED;
    }
    entry.last_seen = renewed.unwrap_or(last_seen);
    if let Some(known) = env.flow(&packet.tuple) {
        known.flags = entry.flags;
        known.last_seen = entry.last_seen;
    }
    if renew_other(env, &packet.tuple, entry, other, key) {
        return true;
    }
    // Answers would be another client's.
    env.delete_flow(&packet.tuple);
    false
}

/// Whether a tick has come.
#[inline(always)]
pub(super) fn has_passed(tick: u32, now: u32) -> bool {
    now.wrapping_sub(tick).cast_signed() >= 0
}

/// The `last_seen` of a flow with a packet now, if it has to be written.
#[inline(always)]
pub(super) fn renewed(flags: u32, last_seen: u32, now: u32) -> Option<u32> {
    let ahead = if flags & FlowFlags::FOREIGN != 0 { REMEMBERED_TICKS } else { 0 };
    let seen = now.wrapping_add(ahead);
    let is_due = seen.wrapping_sub(last_seen).cast_signed() >= RENEWAL_TICKS.cast_signed();
    is_due.then_some(seen)
}

/// Ends the flow whose replies would be taken for those to this packet, which isn't ours: a client
/// that uses the port of a flow to a local backend again, now to talk to that backend directly.
/// Seen at the packet that opens a connection, and at any datagram. The newer use wins.
#[inline(always)]
pub fn give_way<F: Family, E: Env<F>>(env: &mut E, work: &mut Work<F>) {
    let Work { packet, key, other, .. } = work;
    if packet.is_connection() && !packet.opens() {
        return;
    }
    *key = packet.tuple.inverse();
    match env.flow(key) {
        Some(known) => other.copy_from(known),
        None => return,
    }
    const LOCAL_REPLY: u32 = FlowFlags::LOCAL | FlowFlags::REPLY;
    if other.flags & LOCAL_REPLY == LOCAL_REPLY {
        env.delete_flow(key);
        *key = other.translated.inverse();
        env.delete_flow(key);
    }
}

/// Whether a packet in the forward direction needs a new choice of backend.
///
/// UDP follows its endpoint's generation: the first datagram after the endpoint left goes
/// elsewhere. Later fragments go where their first one went, or nobody would have the whole.
/// Connections are never cut: only a packet that opens one looks, when its port is used again
/// after the last connection ended or its endpoint left.
#[inline(always)]
fn outdated<F: Family, T: Tables>(
    tables: &T,
    packet: &Packet<F>,
    flags: u32,
    backend: BackendIndex,
    generation: u32,
) -> bool {
    let stale = || tables.backend(backend).is_none_or(|entry| entry.generation != generation);
    if packet.is_connection() {
        packet.opens() && (flags & (FlowFlags::FIN | FlowFlags::RST) != 0 || stale())
    } else {
        packet.has_transport && stale()
    }
}

/// Bits that this packet adds to its entry.
#[inline(always)]
fn seen<F: Family>(packet: &Packet<F>, flags: u32) -> u32 {
    let mut bits = 0;
    if packet.flags & transport::FIN != 0 {
        bits |= FlowFlags::FIN;
    }
    if packet.flags & transport::RST != 0 {
        bits |= FlowFlags::RST;
    }
    if flags & FlowFlags::REPLY != 0 {
        bits |= FlowFlags::ANSWERED;
    }
    bits
}

/// Whether this packet shows that the flow is more than its beginning. For datagrams conntrack wants two
/// seconds between the first and this one; here it is the time after which `last_seen` is renewed.
#[inline(always)]
fn assures<F: Family>(packet: &Packet<F>, flags: u32, is_later: bool) -> bool {
    if flags & FlowFlags::ANSWERED == 0 {
        return false;
    }
    if packet.is_connection() { flags & FlowFlags::REPLY == 0 && !packet.opens() } else { is_later }
}

/// Touches the entry of the other direction, so that the table's LRU keeps both or neither, and
/// writes it again if it was lost. `false` when it was, and the port is another flow's by now.
#[inline(always)]
fn renew_other<F: Family, E: Env<F>>(
    env: &mut E,
    tuple: &FlowKey<F>,
    flow: &Flow<F>,
    other: &mut Flow<F>,
    key: &mut FlowKey<F>,
) -> bool {
    *key = flow.translated.inverse();
    other.translated = tuple.inverse();
    if let Some(known) = env.flow(key) {
        if known.translated != other.translated {
            return flow.flags & FlowFlags::REPLY != 0;
        }
        known.last_seen = flow.last_seen;
        known.flags |= flow.flags & (FlowFlags::RST | FlowFlags::ANSWERED);
        if flow.flags & FlowFlags::FIN != 0 {
            known.flags |= FlowFlags::OTHER_FIN;
        }
        if flow.flags & FlowFlags::UNASSURED == 0 {
            known.flags &= !FlowFlags::UNASSURED;
        }
        return true;
    }
    other.copy_from(flow);
    other.translated = tuple.inverse();
    other.flags = (flow.flags ^ FlowFlags::REPLY) & !(FlowFlags::FIN | FlowFlags::OTHER_FIN);
    if flow.flags & FlowFlags::FIN != 0 {
        other.flags |= FlowFlags::OTHER_FIN;
    }
    if flow.flags & FlowFlags::OTHER_FIN != 0 {
        other.flags |= FlowFlags::FIN;
    }
    // Another CPU may have been faster, and a full table refuses: both are fine, the next renewal
    // tries again.
    let _ = env.insert_flow(key, other);
    true
}
