//! Whose a flow is while another service proxy works on this node too.
//!
//! Our hooks come before the kernel's conntrack, so what the other proxy's rules translate passes here
//! first. A connection that it carries is told by what its packets don't do: open one. Datagrams open
//! nothing; those that it carries have an entry in the flow table ([`FlowFlags::FOREIGN`]), which the agent
//! writes from conntrack, and this module while the other proxy still opens flows.

use super::flow;
use super::socket::SocketEnv;
use crate::abi::{Address, BackendIndex, Flow, FlowFlags, FlowKey, ServiceIndex, TakeoverFlags};
use crate::bytes::Be16;
use crate::env::{Env, RENEWAL_TICKS, TICK_SHIFT, Tables};
use crate::family::Family;
use crate::packet::{Packet, ReadHeader, Work};

use super::frontend::Destination;

/// After a datagram conntrack remembers its flow for at least as long, by default (nf_conntrack_udp_timeout,
/// 30 s). Where it is told to forget sooner, the agent's next look corrects us.
pub const REMEMBERED_TICKS: u32 = (30_000_000_000_u64 >> TICK_SHIFT) as u32;

/// Whether the other proxy opens flows.
#[inline(always)]
pub(super) fn yields<T: Tables>(tables: &T) -> bool {
    tables.takeover() & TakeoverFlags::YIELDS != 0
}

/// Whether a packet to a Service that belongs to no flow of ours is left to the other proxy, which
/// is remembered if it may open one there.
#[inline(always)]
pub(super) fn leaves<F: ReadHeader, E: Env<F>>(
    env: &mut E,
    packet: &Packet<F>,
    entry: &mut Flow<F>,
) -> bool {
    let flags = env.takeover();
    if flags & TakeoverFlags::YIELDS != 0 {
        *entry = foreign(&packet.tuple, env.now().wrapping_add(REMEMBERED_TICKS));
        // A table that refuses costs a datagram's flow its endpoint, later, and no connection anything.
        let _ = env.insert_flow(&packet.tuple, entry);
        return true;
    }
    flags & TakeoverFlags::BESIDE != 0 && packet.is_connection() && !packet.opens()
}

/// The entry of another proxy's flow, with packets like `tuple`, which conntrack remembers until this
/// tick at least. `last_seen` says so: a packet that comes then or later is ours, as nobody else knows it.
#[inline(always)]
pub const fn foreign<F: Family>(tuple: &FlowKey<F>, until: u32) -> Flow<F> {
    Flow {
        translated: FlowKey {
            source: tuple.destination,
            destination: tuple.source,
            source_port: tuple.destination_port,
            destination_port: tuple.source_port,
            protocol: tuple.protocol,
        },
        backend: BackendIndex(0),
        generation: 0,
        service: ServiceIndex(0),
        last_seen: until,
        flags: FlowFlags::FOREIGN | FlowFlags::ANSWERED,
        device: 0,
    }
}

/// The entry of the answers to another proxy's flow that it masquerades, with packets like `tuple`: it
/// keeps our flows off the port.
#[inline(always)]
pub const fn foreign_reply<F: Family>(tuple: &FlowKey<F>, until: u32) -> Flow<F> {
    let flow = foreign(tuple, until);
    Flow { flags: flow.flags | FlowFlags::REPLY, ..flow }
}

/// Where another proxy leads a datagram: to this endpoint, and its generation. `None`: nobody does.
#[inline(always)]
pub fn leads<F: Family>(flow: &mut Flow<F>, now: u32) -> Option<(BackendIndex, u32)> {
    if flow.flags & FlowFlags::FOREIGN == 0 || flow::has_passed(flow.last_seen, now) {
        return None;
    }
    if let Some(until) = flow::renewed(flow.flags, flow.last_seen, now) {
        flow.last_seen = until;
    }
    Some((flow.backend, flow.generation))
}

/// A packet leaves that belongs to no flow of ours, but may be the first one of somebody else's with a port
/// that was ours: that of a socket of the node that took it later, or, while it opens flows, of the other
/// proxy. Our flow there ends if it is over, so that the answers are left to them; before the datagrams of a
/// socket in any case, as those would be lost to it. Our own packets, which pass here too, have just renewed
/// their flow.
#[inline(always)]
pub(super) fn vacate<F: ReadHeader, E: Env<F>>(env: &mut E, work: &mut Work<F>) {
    let Work { packet, key, other, .. } = work;
    // Most of what leaves: it begins nothing.
    if packet.is_connection() && !packet.opens() {
        return;
    }
    let (first, last) = env.snat_ports();
    let may_be_ours = (first..=last).contains(&packet.tuple.source_port.get());
    let has_socket = may_be_ours && packet.has_transport && env.has_socket();
    if !has_socket && !yields(env) {
        return;
    }
    *key = packet.tuple.inverse();
    match env.flow(key) {
        Some(known) => other.copy_from(known),
        None => return,
    }
    const KIND: u32 = FlowFlags::REPLY | FlowFlags::LOCAL | FlowFlags::FOREIGN;
    if other.flags & KIND != FlowFlags::REPLY {
        return;
    }
    let is_over = if packet.is_connection() {
        other.flags & (FlowFlags::FIN | FlowFlags::RST) != 0
    } else {
        env.now().wrapping_sub(other.last_seen) > RENEWAL_TICKS
            // The socket that sends may be a pod's, whose datagram has our port.
            || has_socket && env.host_socket(key)
    };
    if is_over {
        env.delete_flow(key);
        *key = other.translated.inverse();
        env.delete_flow(key);
    }
}

/// Whether a socket's datagram to a Service, that we have led nowhere yet, is left to the other proxy:
/// it opens flows, or it has carried datagrams of this socket since before we came. `source` is asked
/// last, and taken apart where it is found: a value that waits in an `Option` is read from stack that
/// nobody wrote.
#[inline(always)]
pub(super) fn leaves_socket<E: SocketEnv>(
    env: &mut E,
    destination: &Destination,
    source: impl FnOnce(&E) -> Option<Address>,
) -> bool {
    let flags = env.takeover();
    if flags & TakeoverFlags::YIELDS != 0 {
        return true;
    }
    if flags & TakeoverFlags::BESIDE == 0 {
        return false;
    }
    let port = env.local_port();
    if port.get() == 0 {
        return false;
    }
    let Some(source) = source(env) else {
        return false;
    };
    let Some((backend, generation)) = env.foreign_flow((source, port), destination) else {
        return false;
    };
    env.backend(backend).is_some_and(|entry| entry.generation == generation)
}

/// The key of a socket's datagrams in the flow table.
#[inline(always)]
pub fn socket_key<F: Family>(from: (Address, Be16), destination: &Destination) -> FlowKey<F> {
    FlowKey {
        source: F::narrow(from.0),
        destination: F::narrow(destination.address),
        source_port: from.1,
        destination_port: destination.port,
        protocol: destination.protocol as u32,
    }
}
