//! The first packet of a flow: `frontend → policy → select → claim`.

use super::frontend::{self, Destination, Found, Lookup};
use super::policy::{self, Allowed, Candidates, Client};
use super::snat::{self, Source};
use super::{
    Answer, DropReason, Side, Verdict, affinity, carry, drop_packet, flow, select, source,
};
use crate::abi::{AffinityKey, BackendFlags, BackendIndex, Device, Flow, FlowFlags, ServiceIndex};
use crate::bytes::Be16;
use crate::env::{Env, Route, RouteQuery};
use crate::family::Family;
use crate::packet::{Packet, ReadHeader, Work};
use crate::wire::{ip, transport};

/// The endpoint that a flow will use.
struct Chosen<F: Family> {
    index: BackendIndex,
    generation: u32,
    address: F::Addr,
    port: Be16,
    flags: u16,
}

/// How a backend is reached.
enum Path<F: Family> {
    /// Up the stack of this node.
    Local,
    /// Forwarded, with this source address.
    Remote { source: F::Addr, device: u32 },
    /// Not from here.
    Verdict(Verdict),
    /// Not at all.
    Drop(DropReason),
}

/// Opens a flow for a packet from outside, if its destination is a Service's.
#[inline(always)]
pub fn new_flow<F: ReadHeader, E: Env<F>>(env: &mut E, work: &mut Work<F>) -> Verdict {
    let packet = &work.packet;
    let destination = Destination {
        address: F::widen(packet.tuple.destination),
        port: packet.tuple.destination_port,
        protocol: packet.protocol(),
    };
    let found = match frontend::find(env, &destination, false) {
        Lookup::Service(found) => found,
        Lookup::UnknownPort => {
            return refuse(env, work, ServiceIndex(0), DropReason::UnknownPort);
        }
        Lookup::NotOurs => {
            flow::give_way(env, work);
            return Verdict::Pass;
        }
    };
    let Some(record) = env.record(found.service) else {
        return drop_packet(env, found.service, DropReason::Inconsistent);
    };
    let from = packet.tuple.source;
    if !source::admitted(env, record, &found, |_| Some(F::widen(from))) {
        return drop_packet(env, found.service, DropReason::SourceRange);
    }
    match policy::allowed(record, &found, Client::Outside) {
        Allowed::Endpoints(candidates) => choose_and_carry(env, work, &found, &candidates),
        Allowed::Refuse => refuse(env, work, found.service, DropReason::NoEndpoints),
        Allowed::Drop => drop_packet(env, found.service, DropReason::NoLocalEndpoint),
    }
}

/// Counts the reason and tells the sender that nobody listens.
#[inline(always)]
fn refuse<F: ReadHeader, E: Env<F>>(
    env: &mut E,
    work: &mut Work<F>,
    service: ServiceIndex,
    reason: DropReason,
) -> Verdict {
    env.count_drop(service, reason);
    // Not for later fragments (see `tell`), and no reset for a reset.
    if !work.packet.has_transport || work.packet.tcp_flags & transport::RST != 0 {
        return Verdict::Drop;
    }
    if work.packet.protocol() == ip::TCP {
        return Verdict::Reset;
    }
    work.answer = Answer::PortUnreachable;
    Verdict::Answer
}

#[inline(always)]
fn choose_and_carry<F: ReadHeader, E: Env<F>>(
    env: &mut E,
    work: &mut Work<F>,
    found: &Found,
    candidates: &Candidates,
) -> Verdict {
    let Work { packet, entry, key, .. } = work;
    let Some(chosen) = choose::<F, E>(env, packet, found, candidates) else {
        return drop_packet(env, found.service, DropReason::Inconsistent);
    };
    let (source, local, device) = match path(env, packet, &chosen) {
        Path::Local => (Source::Client, FlowFlags::LOCAL, 0),
        Path::Remote { source, device } => (Source::Node(source), 0, device),
        Path::Verdict(verdict) => return verdict,
        Path::Drop(reason) => return drop_packet(env, found.service, reason),
    };
    *entry = Flow {
        translated: packet.tuple.inverse(),
        backend: chosen.index,
        generation: chosen.generation,
        service: found.service,
        last_seen: env.now(),
        flags: local | FlowFlags::REPLY,
        device,
    };
    let backend = (chosen.address, chosen.port);
    if let Err(reason) = snat::claim(env, &packet.tuple, source, backend, entry, key) {
        return drop_packet(env, found.service, reason);
    }
    entry.translated = key.inverse();
    entry.flags = local;
    // A refused forward entry costs the next packet this work again; the claim is then adopted.
    let _ = env.insert_flow(&packet.tuple, entry);
    carry(env, work, Side::Ingress)
}

#[inline(always)]
fn choose<F: ReadHeader, E: Env<F>>(
    env: &mut E,
    packet: &Packet<F>,
    found: &Found,
    candidates: &Candidates,
) -> Option<Chosen<F>> {
    let Candidates { slots, maglev, list, affinity } = *candidates;
    let fresh = |env: &E| select::consistent(env, slots, maglev, &packet.tuple);
    let index = match affinity {
        None => fresh(env)?,
        Some(timeout) => {
            let client = F::widen(packet.tuple.source);
            let key = AffinityKey { client, service: found.service };
            affinity::choose(env, &key, timeout, list, fresh)?
        }
    };
    let backend = env.backend(index)?;
    Some(Chosen {
        index,
        generation: backend.generation,
        address: F::narrow(backend.address),
        port: backend.port,
        flags: backend.flags,
    })
}

#[inline(always)]
fn path<F: ReadHeader, E: Env<F>>(env: &mut E, packet: &Packet<F>, chosen: &Chosen<F>) -> Path<F> {
    if chosen.flags & BackendFlags::LOCAL != 0 {
        return Path::Local;
    }
    let query = RouteQuery {
        source: F::Addr::default(),
        destination: chosen.address,
        protocol: packet.protocol(),
        // The length is judged when the packet is sent, with its real source.
        length: 0,
    };
    let device = match env.route(&query) {
        Route::Via { device } | Route::TooBig { device, .. } => device,
        Route::Stack => return Path::Local,
        Route::Elsewhere => return Path::Verdict(Verdict::Pass),
        Route::None => return Path::Drop(DropReason::NoRoute),
    };
    let Some(external) = env.device(device) else {
        // Behind a device that isn't external: a pod's. Unless the API says otherwise.
        let remote = chosen.flags & BackendFlags::REMOTE != 0;
        return if remote { Path::Drop(DropReason::NoSourceAddress) } else { Path::Local };
    };
    match source_address::<F>(external) {
        Some(source) => Path::Remote { source, device },
        None => Path::Drop(DropReason::NoSourceAddress),
    }
}

#[inline(always)]
fn source_address<F: Family>(device: &Device) -> Option<F::Addr> {
    let address = F::narrow(if F::HAS_HEADER_CHECKSUM { device.address4 } else { device.address6 });
    (address != F::Addr::default()).then_some(address)
}
