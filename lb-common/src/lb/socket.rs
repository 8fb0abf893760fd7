//! The cgroup hooks' decisions: translate where a socket names its peer, nothing per packet.
//!
//! Addresses are in their common 16-byte form, so IPv4, IPv6 and IPv4-mapped sockets share every
//! line here.

use super::frontend::{self, Destination, Lookup};
use super::policy::{self, Allowed, Candidates, Client};
use super::{DropReason, affinity, monitor, select, source, takeover};
use crate::abi::{
    Address, AffinityKey, Backend, BackendIndex, ClientAddresses, Event, PeerKey, PeerValue,
    ReverseKey, ReverseValue, ServiceIndex, SourceSet, TrafficKey,
};
use crate::bytes::Be16;
use crate::env::Tables;
use crate::wire::ip;

/// Ticks after which an unconnected socket's choice of backend is made anew: as long as the
/// kernel's conntrack remembers a UDP stream (nf_conntrack_udp_timeout_stream, 120 s).
const PEER_TIMEOUT_TICKS: u32 = (120_000_000_000_u64 >> crate::env::TICK_SHIFT) as u32;

/// What a socket hook may ask beside the Service tables.
pub trait SocketEnv: Tables {
    /// The socket's cookie.
    fn cookie(&self) -> u64;
    /// The cookie of the network namespace that the socket lives in.
    fn namespace(&self) -> u64;
    /// Whether that is the node's own.
    fn in_host_namespace(&self) -> bool;
    /// Whether sockets in pods are translated, and not their packets.
    fn serves_pods(&self) -> bool;
    /// The address that the socket is bound to, or that this datagram names as its source; an
    /// unspecified one when the kernel is to choose.
    fn bound(&self) -> Address;
    /// The port that the socket is bound to; 0 where it isn't yet.
    fn local_port(&self) -> Be16;
    /// Where another proxy leads datagrams from this address and port, as the flow table has it
    /// ([`takeover::leads`]).
    fn foreign_flow(
        &mut self,
        from: (Address, Be16),
        destination: &Destination,
    ) -> Option<(BackendIndex, u32)>;
    /// CLIENTS: the addresses of a network namespace.
    fn client_addresses(&self, namespace: u64) -> Option<ClientAddresses>;
    /// Where the socket is connected at the moment.
    fn connected_to(&self) -> Option<(Address, Be16)>;
    /// PEERS.
    fn peer(&self, key: &PeerKey) -> Option<PeerValue>;
    /// Writes PEERS.
    fn set_peer(&mut self, key: &PeerKey, value: &PeerValue);
    /// REVERSE.
    fn reverse(&self, key: &ReverseKey) -> Option<ReverseValue>;
    /// Writes REVERSE.
    fn set_reverse(&mut self, key: &ReverseKey, value: &ReverseValue);
    /// Removes an entry of REVERSE.
    fn clear_reverse(&mut self, key: &ReverseKey);
    /// EVENTS: tells who watches, if it is what they want. The time and the hook are still to be written.
    fn report(&self, event: &mut Event);
}

/// What the application's call gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketVerdict {
    /// The address as it is.
    Pass,
    /// This address and port instead.
    Translate(Address, Be16),
    /// Silence: the address that leads to nobody ([`Address::discard`]) instead, with the same port.
    /// Policy Local, and no endpoint on this node; or a source that isn't admitted.
    Discard,
    /// An error: refused, as by a host with nobody listening.
    Refuse,
    /// An error: only some sources are admitted, and nobody knows this one.
    Unreachable,
}

/// A resolved destination.
enum Resolved {
    NotOurs,
    Verdict(SocketVerdict),
    /// Dropped in silence; the set of source ranges that the client isn't in, 0 if it is the policy's.
    Silence(SourceSet),
    Endpoints(ServiceIndex, Candidates),
}

/// `connect` on a TCP or UDP socket.
#[inline(always)]
pub fn connect<E: SocketEnv>(env: &mut E, destination: &Destination) -> SocketVerdict {
    if takeover::yields(env) {
        return pass(env, destination);
    }
    let (service, candidates) = match resolve(env, destination) {
        Resolved::NotOurs => return pass(env, destination),
        // The call fails before the kernel touches the socket: a connected UDP socket keeps its
        // peer (net/ipv4/af_inet.c, inet_dgram_connect), and so do we.
        Resolved::Verdict(verdict) => return verdict,
        Resolved::Silence(sources) => {
            forget_backend(env, destination);
            remember_silence(env, destination, sources);
            return SocketVerdict::Discard;
        }
        Resolved::Endpoints(service, candidates) => (service, candidates),
    };
    let Some((index, backend)) = choose(env, destination, service, &candidates) else {
        return SocketVerdict::Refuse;
    };
    forget_backend(env, destination);
    remember_backend(env, destination, index, &backend);
    SocketVerdict::Translate(backend.address, backend.port)
}

/// A `connect` that isn't ours leaves our last choice behind as well.
#[inline(always)]
fn pass<E: SocketEnv>(env: &mut E, destination: &Destination) -> SocketVerdict {
    forget_backend(env, destination);
    // A socket that left a Service for one of its endpoints shows the endpoint. Not for TCP, where
    // that takes a `connect` to AF_UNSPEC between two connections, and where every direct connection
    // would pay for it.
    if destination.protocol == ip::UDP {
        env.clear_reverse(&reverse_key(env, destination.address, destination.port));
    }
    SocketVerdict::Pass
}

/// `sendmsg` with an address on a UDP socket. A socket keeps its backend for a frontend, like a
/// flow in the packet path.
#[inline(always)]
pub fn sendmsg<E: SocketEnv>(env: &mut E, destination: &Destination) -> SocketVerdict {
    let (service, candidates) = match resolve(env, destination) {
        Resolved::NotOurs => return SocketVerdict::Pass,
        Resolved::Verdict(_) | Resolved::Silence(_) if takeover::yields(env) => {
            return SocketVerdict::Pass;
        }
        Resolved::Verdict(verdict) => return verdict,
        // Nobody answers, and the next datagram is judged anew: nothing to remember.
        Resolved::Silence(_) => return SocketVerdict::Discard,
        Resolved::Endpoints(service, candidates) => (service, candidates),
    };
    let key = PeerKey {
        cookie: env.cookie(),
        address: destination.address,
        port: destination.port,
        pad: [0; 6],
    };
    let now = env.now();
    let known = env
        .peer(&key)
        .filter(|peer| now.wrapping_sub(peer.last_seen) < PEER_TIMEOUT_TICKS)
        .and_then(|peer| Some((peer.backend, *env.backend(peer.backend)?, peer.generation)))
        .filter(|(_, backend, generation)| {
            // The address may be another Service's by now.
            backend.generation == *generation && backend.service == service
        });
    let (index, backend) = match known {
        Some((index, backend, _)) => (index, backend),
        None => {
            // Asked last: a socket that we have led somewhere stays there.
            let address = destination.address;
            if takeover::leaves_socket(env, destination, |env| client_address(env, address)) {
                return SocketVerdict::Pass;
            }
            match choose(env, destination, service, &candidates) {
                Some(chosen) => chosen,
                None => return SocketVerdict::Refuse,
            }
        }
    };
    env.set_peer(
        &key,
        &PeerValue { backend: index, generation: backend.generation, last_seen: now },
    );
    remember_backend(env, destination, index, &backend);
    SocketVerdict::Translate(backend.address, backend.port)
}

/// `recvmsg` on a UDP socket and `getpeername`: who the application believes it talks to.
#[inline(always)]
pub fn reveal<E: SocketEnv>(env: &E, address: Address, port: Be16) -> Option<(Address, Be16)> {
    env.reverse(&reverse_key(env, address, port)).map(|frontend| (frontend.address, frontend.port))
}

/// REVERSE holds what a socket talks to, connected or not: for the application, which is shown the
/// address that it named, and for the agent, which sees only where a socket is connected, ends UDP
/// sockets whose endpoint has left, and must not end one that was connected to the endpoint itself.
///
/// Not in the socket's own storage: making that takes two microseconds, twice the rest of a connect.
#[inline(always)]
fn remember_backend<E: SocketEnv>(
    env: &mut E,
    destination: &Destination,
    index: BackendIndex,
    backend: &Backend,
) {
    env.set_reverse(
        &reverse_key(env, backend.address, backend.port),
        &ReverseValue {
            address: destination.address,
            port: destination.port,
            pad: [0; 2],
            backend: index,
            generation: backend.generation,
        },
    );
}

/// A socket that was led to nobody is shown the address that it named, too, and the agent ends it when
/// the same call would not be dropped any more.
#[inline(always)]
fn remember_silence<E: SocketEnv>(env: &mut E, destination: &Destination, sources: SourceSet) {
    env.set_reverse(
        &reverse_key(env, destination.address.discard(), destination.port),
        &ReverseValue {
            address: destination.address,
            port: destination.port,
            pad: [0; 2],
            backend: BackendIndex(0),
            generation: sources.0,
        },
    );
}

/// A UDP socket that connects again leaves what its last `connect` led to.
#[inline(always)]
fn forget_backend<E: SocketEnv>(env: &mut E, destination: &Destination) {
    if destination.protocol == ip::UDP
        && let Some((address, port)) = env.connected_to()
    {
        env.clear_reverse(&reverse_key(env, address, port));
    }
}

#[inline(always)]
fn reverse_key<E: SocketEnv>(env: &E, address: Address, port: Be16) -> ReverseKey {
    ReverseKey { cookie: env.cookie(), address, port, pad: [0; 6] }
}

#[inline(always)]
fn resolve<E: SocketEnv>(env: &E, destination: &Destination) -> Resolved {
    if !env.serves_pods() && !env.in_host_namespace() {
        return Resolved::NotOurs;
    }
    // Connecting to the unspecified address means loopback on Linux.
    let address = destination.address;
    let loopback = address.is_loopback() || address == address.wildcard();
    let own = loopback && env.in_host_namespace();
    let found = match frontend::find(env, destination, own) {
        Lookup::Service(found) => found,
        Lookup::UnknownPort => {
            not_served(env, destination, ServiceIndex(0), DropReason::UnknownPort);
            return Resolved::Verdict(SocketVerdict::Refuse);
        }
        Lookup::NotOurs => return Resolved::NotOurs,
    };
    let Some(record) = env.record(found.service) else {
        not_served(env, destination, found.service, DropReason::Inconsistent);
        return Resolved::Verdict(SocketVerdict::Refuse);
    };
    if !source::admitted(env, record, &found, |env| client_address(env, address)) {
        not_served(env, destination, found.service, DropReason::SourceRange);
        return match client_address(env, address) {
            Some(_) => Resolved::Silence(record.sources),
            // Not the operator's verdict but our ignorance, which may pass: the caller is told to try
            // again, as nothing would end its silence.
            None => Resolved::Verdict(SocketVerdict::Unreachable),
        };
    }
    match policy::allowed(record, &found, Client::OnNode) {
        Allowed::Endpoints(candidates) => Resolved::Endpoints(found.service, candidates),
        Allowed::Refuse => {
            not_served(env, destination, found.service, DropReason::NoEndpoints);
            Resolved::Verdict(SocketVerdict::Refuse)
        }
        Allowed::Drop => {
            not_served(env, destination, found.service, DropReason::NoLocalEndpoint);
            Resolved::Silence(SourceSet(0))
        }
    }
}

#[inline(always)]
fn choose<E: SocketEnv>(
    env: &mut E,
    destination: &Destination,
    service: ServiceIndex,
    candidates: &Candidates,
) -> Option<(BackendIndex, Backend)> {
    let Candidates { slots, list, affinity, .. } = *candidates;
    let fresh = |env: &E| select::random(env, slots);
    let index = match affinity {
        None => fresh(env)?,
        Some(timeout) => {
            let namespace = || Address::of_namespace(env.namespace());
            let client = client_address(env, destination.address).unwrap_or_else(namespace);
            affinity::choose(env, &AffinityKey { client, service }, timeout, list, fresh)?
        }
    };
    let backend = *env.backend(index)?;
    env.count_socket(&TrafficKey { service, backend: index, generation: backend.generation });
    report(env, destination, service, Some(&backend), 0);
    Some((index, backend))
}

/// Counts what isn't served, and tells who watches.
#[inline(always)]
fn not_served<E: SocketEnv>(
    env: &E,
    destination: &Destination,
    service: ServiceIndex,
    reason: DropReason,
) {
    env.count_drop(service, reason);
    report(env, destination, service, None, reason as u8);
}

/// Tells who watches where a socket was led, or why it wasn't.
#[inline(always)]
fn report<E: SocketEnv>(
    env: &E,
    destination: &Destination,
    service: ServiceIndex,
    backend: Option<&Backend>,
    reason: u8,
) {
    if env.watched() & monitor::kind(reason) == 0 {
        return;
    }
    let mut event = Event {
        client: client_address(env, destination.address).unwrap_or_default(),
        client_port: env.local_port(),
        frontend: destination.address,
        frontend_port: destination.port,
        service,
        protocol: destination.protocol,
        reason,
        ..Event::default()
    };
    if let Some(backend) = backend {
        event.backend = backend.address;
        event.backend_port = backend.port;
    }
    env.report(&mut event);
}

/// The address that packets of this socket to `peer` would come from; `None` when nothing says.
#[inline(always)]
fn client_address<E: SocketEnv>(env: &E, peer: Address) -> Option<Address> {
    let bound = env.bound();
    // A socket can't send from an address of the other family: the call will fail.
    if !bound.is_unspecified() && bound.is_v4() == peer.is_v4() {
        return Some(bound);
    }
    let own = env.client_addresses(env.namespace())?.towards(peer);
    if own.is_unspecified() { None } else { Some(own) }
}
