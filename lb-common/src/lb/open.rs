//! The first packet of a flow: `frontend → policy → select → claim`.

use super::frontend::{self, Destination, Found, Lookup};
use super::monitor::{self, Subject};
use super::policy::{self, Allowed, Candidates, Client};
use super::snat::{self, Source};
use super::{
    Answer, DropReason, Side, Verdict, affinity, carry, drop_packet, flow, select, source, takeover,
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

/// How a backend is reached. Source address and device are in the working memory: a value that only
/// some variants have is read from uninitialised stack in the others, which Linux 6.1 refuses.
#[derive(Clone, Copy)]
enum Path {
    /// Through the stack of this node.
    Local,
    /// Forwarded, with an address of the node as source.
    Remote,
    /// Not from here.
    Elsewhere,
    /// Not at all: [`DropReason::NoRoute`].
    NoRoute,
    /// Not at all: [`DropReason::NoSourceAddress`].
    NoSource,
}

/// Opens a flow for a packet, if its destination is a Service's. At egress it is one of this node's own
/// processes.
#[inline(always)]
pub(super) fn new_flow<F: ReadHeader, E: Env<F>>(
    env: &mut E,
    work: &mut Work<F>,
    side: Side,
) -> Verdict {
    let packet = &work.packet;
    let destination = Destination {
        address: F::widen(packet.tuple.destination),
        port: packet.tuple.destination_port,
        protocol: packet.protocol(),
    };
    let lookup = frontend::find(env, &destination, false);
    if lookup == Lookup::NotOurs {
        if side == Side::Ingress {
            flow::give_way(env, work);
        }
        return Verdict::Pass;
    }
    // What leaves has passed another proxy's rules already.
    if side == Side::Ingress && takeover::leaves(env, &work.packet, &mut work.entry) {
        return Verdict::Pass;
    }
    let Lookup::Service(found) = lookup else {
        return refuse(env, work, ServiceIndex(0), DropReason::UnknownPort);
    };
    let Some(record) = env.record(found.service) else {
        let subject = Subject::packet(found.service);
        return drop_packet(env, work, subject, DropReason::Inconsistent);
    };
    let from = packet.tuple.source;
    if !source::admitted(env, record, &found, |_| Some(F::widen(from))) {
        let subject = Subject::packet(found.service);
        return drop_packet(env, work, subject, DropReason::SourceRange);
    }
    let client = match side {
        Side::Ingress => E::CLIENTS,
        Side::Egress => Client::OnNode,
    };
    let masked = env.masquerades_all() && policy::may_be_masqueraded(record, &found);
    match policy::allowed(record, &found, client) {
        Allowed::Endpoints(candidates) => {
            choose_and_carry(env, work, &found, &candidates, side, masked)
        }
        Allowed::Refuse => refuse(env, work, found.service, DropReason::NoEndpoints),
        Allowed::Drop => {
            let subject = Subject::packet(found.service);
            drop_packet(env, work, subject, DropReason::NoLocalEndpoint)
        }
    }
}

/// Counts the reason, and tells who watches, and the sender, that nobody listens.
#[inline(always)]
fn refuse<F: ReadHeader, E: Env<F>>(
    env: &mut E,
    work: &mut Work<F>,
    service: ServiceIndex,
    reason: DropReason,
) -> Verdict {
    monitor::not_served(env, work, Subject::packet(service), reason);
    // Not for later fragments (see `tell`), and no reset for a reset.
    if !work.packet.has_transport || work.packet.flags & transport::RST != 0 {
        return Verdict::Drop;
    }
    if !E::SCTP && work.packet.protocol() == ip::TCP {
        return Verdict::Reset;
    }
    work.answer = Answer::PortUnreachable;
    Verdict::Answer
}

/// `masked`: the endpoint is to see an address of the node, even where its replies would find the client.
#[inline(always)]
fn choose_and_carry<F: ReadHeader, E: Env<F>>(
    env: &mut E,
    work: &mut Work<F>,
    found: &Found,
    candidates: &Candidates,
    side: Side,
    masked: bool,
) -> Verdict {
    let Work { packet, entry, other, key, device, opened, .. } = work;
    let Some(chosen) = choose::<F, E>(env, packet, found, candidates) else {
        let subject = Subject::packet(found.service);
        return drop_packet(env, work, subject, DropReason::Inconsistent);
    };
    *device = 0;
    *opened = 0;
    key.destination = packet.tuple.source;
    let path = match E::CLIENTS {
        Client::Outside if side == Side::Egress => {
            path_from_node(env, packet, &chosen, &mut key.destination, device)
        }
        Client::Outside | Client::OnNode if masked || chosen.address == packet.tuple.source => {
            path_as_node(env, packet, &chosen, &mut key.destination, device)
        }
        Client::Outside => path_from_outside(env, packet, &chosen, &mut key.destination, device),
        // The stack knows the way, for replies too: they pass it on their way to the pod.
        Client::OnNode => Path::Local,
    };
    let subject = Subject { backend: chosen.index, ..Subject::packet(found.service) };
    let (source, way) = match path {
        Path::Local => {
            *device = if side == Side::Ingress { env.here() } else { 0 };
            (Source::Client, FlowFlags::LOCAL)
        }
        Path::Remote => (Source::Node, 0),
        Path::Elsewhere => return Verdict::Pass,
        Path::NoRoute => return drop_packet(env, work, subject, DropReason::NoRoute),
        Path::NoSource => return drop_packet(env, work, subject, DropReason::NoSourceAddress),
    };
    let way = if side == Side::Egress { way | FlowFlags::FROM_NODE } else { way };
    // A connection that is met on its way has lost its entries, or begun elsewhere.
    let begins = !packet.is_connection() || packet.opens();
    let way = if begins { way | FlowFlags::UNASSURED } else { way };
    *entry = Flow {
        translated: packet.tuple.inverse(),
        backend: chosen.index,
        generation: chosen.generation,
        service: found.service,
        last_seen: env.now(),
        flags: way | FlowFlags::REPLY,
        device: *device,
    };
    let backend = (chosen.address, chosen.port);
    let mut claim = snat::Claim { reply: entry, key, spare: other, opened };
    if let Err(reason) = snat::claim(env, &packet.tuple, source, backend, &mut claim) {
        return drop_packet(env, work, subject, reason);
    }
    entry.translated = key.inverse();
    entry.flags = way;
    // A refused forward entry costs the next packet this work again; the claim is then adopted.
    let _ = env.insert_flow(&packet.tuple, entry);
    let opened = *opened;
    carry(env, work, side, opened)
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
fn path_from_outside<F: ReadHeader, E: Env<F>>(
    env: &mut E,
    packet: &Packet<F>,
    chosen: &Chosen<F>,
    source: &mut F::Addr,
    device: &mut u32,
) -> Path {
    if chosen.flags & BackendFlags::LOCAL != 0 {
        return Path::Local;
    }
    let index = match route_to(env, packet, chosen) {
        Route::Via { device } | Route::TooBig { device, .. } => device,
        Route::Stack => return Path::Local,
        Route::Elsewhere => return Path::Elsewhere,
        Route::None => return Path::NoRoute,
    };
    let Some(external) = env.device(index) else {
        // Behind a device that isn't external: a pod's. Unless the API says otherwise.
        let remote = chosen.flags & BackendFlags::REMOTE != 0;
        return if remote { Path::NoSource } else { Path::Local };
    };
    *source = source_address::<F>(external);
    *device = index;
    if *source == F::Addr::default() { Path::NoSource } else { Path::Remote }
}

/// From a process of this node: under its own address to pods here and to the node itself, else under that of the device that
/// leads there, as whatever the process had chosen was for the way to the Service.
#[inline(always)]
fn path_from_node<F: ReadHeader, E: Env<F>>(
    env: &mut E,
    packet: &Packet<F>,
    chosen: &Chosen<F>,
    source: &mut F::Addr,
    device: &mut u32,
) -> Path {
    *device = match route_to(env, packet, chosen) {
        Route::Via { device } | Route::TooBig { device, .. } => device,
        // An address of this node's own.
        Route::Stack => return Path::Local,
        Route::Elsewhere => return Path::Elsewhere,
        Route::None => return Path::NoRoute,
    };
    let Some(external) = env.device(*device) else {
        return Path::Local;
    };
    *source = source_address::<F>(external);
    if *source == F::Addr::default() { Path::NoSource } else { Path::Remote }
}

/// Under an address of the node, straight to the endpoint's device: the stack would look at where packets
/// with such a source come from. So a pod reaches itself, whose kernel refuses packets from an address of its
/// own; and everybody everybody, if the operator wants that. What the stack of this node keeps for itself has
/// the client's, as masquerading (in POSTROUTING) leaves it alone.
#[inline(always)]
fn path_as_node<F: ReadHeader, E: Env<F>>(
    env: &mut E,
    packet: &Packet<F>,
    chosen: &Chosen<F>,
    source: &mut F::Addr,
    device: &mut u32,
) -> Path {
    *device = match route_to(env, packet, chosen) {
        Route::Via { device } | Route::TooBig { device, .. } => device,
        Route::Stack => return Path::Local,
        Route::Elsewhere => return Path::Elsewhere,
        Route::None => return Path::NoRoute,
    };
    *source = match env.device(*device) {
        Some(external) => source_address::<F>(external),
        // Behind a device that isn't external: a pod's. Unless the API says otherwise.
        None if chosen.flags & BackendFlags::REMOTE != 0 => return Path::NoSource,
        None => env.own_address(),
    };
    if *source == F::Addr::default() { Path::NoSource } else { Path::Remote }
}

/// The route to the endpoint; the packet's length is judged when it is sent, with its real source.
#[inline(always)]
fn route_to<F: ReadHeader, E: Env<F>>(
    env: &mut E,
    packet: &Packet<F>,
    chosen: &Chosen<F>,
) -> Route {
    env.route(&RouteQuery {
        source: F::Addr::default(),
        destination: chosen.address,
        protocol: packet.protocol(),
        length: 0,
    })
}

/// Unspecified when the device has none of this family.
#[inline(always)]
fn source_address<F: Family>(device: &Device) -> F::Addr {
    F::narrow(if F::HAS_HEADER_CHECKSUM { device.address4 } else { device.address6 })
}
