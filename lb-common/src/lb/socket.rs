//! The cgroup hooks' decisions: translate where a socket names its peer, nothing per packet.
//!
//! Addresses are in their common 16-byte form, so IPv4, IPv6 and IPv4-mapped sockets share every
//! line here.

use super::frontend::{self, Destination, Lookup};
use super::policy::{self, Allowed, Candidates, Client};
use super::{DropReason, affinity, select, source};
use crate::abi::{
    Address, AffinityKey, Backend, BackendIndex, ClientAddresses, PeerKey, PeerValue, ReverseKey,
    ReverseValue, ServiceIndex,
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
    /// The address that the socket is bound to, or that this datagram names as its source; an
    /// unspecified one when the kernel is to choose.
    fn bound(&self) -> Address;
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
}

/// What the application's call gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketVerdict {
    /// The address as it is.
    Pass,
    /// This address and port instead.
    Translate(Address, Be16),
    /// An error: refused, as by a host with nobody listening.
    Refuse,
    /// An error: policy Local, and no endpoint on this node; or a source that isn't admitted.
    Unreachable,
}

/// A resolved destination.
enum Resolved {
    NotOurs,
    Verdict(SocketVerdict),
    Endpoints(ServiceIndex, Candidates),
}

/// `connect` on a TCP or UDP socket.
#[inline(always)]
pub fn connect<E: SocketEnv>(env: &mut E, destination: &Destination) -> SocketVerdict {
    let (service, candidates) = match resolve(env, destination) {
        Resolved::NotOurs => {
            forget_backend(env, destination);
            // A socket that left a Service for one of its endpoints shows the endpoint. Not for TCP,
            // where that takes a `connect` to AF_UNSPEC between two connections, and where every
            // direct connection would pay for it.
            if destination.protocol == ip::UDP {
                env.clear_reverse(&reverse_key(env, destination.address, destination.port));
            }
            return SocketVerdict::Pass;
        }
        // The call fails before the kernel touches the socket: a connected UDP socket keeps its
        // peer (net/ipv4/af_inet.c, inet_dgram_connect), and so do we.
        Resolved::Verdict(verdict) => return verdict,
        Resolved::Endpoints(service, candidates) => (service, candidates),
    };
    let Some((index, backend)) = choose(env, destination, service, &candidates) else {
        return SocketVerdict::Refuse;
    };
    forget_backend(env, destination);
    remember_backend(env, destination, index, &backend);
    SocketVerdict::Translate(backend.address, backend.port)
}

/// `sendmsg` with an address on a UDP socket. A socket keeps its backend for a frontend, like a
/// flow in the packet path.
#[inline(always)]
pub fn sendmsg<E: SocketEnv>(env: &mut E, destination: &Destination) -> SocketVerdict {
    let (service, candidates) = match resolve(env, destination) {
        Resolved::NotOurs => return SocketVerdict::Pass,
        Resolved::Verdict(verdict) => return verdict,
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
        .filter(|(_, backend, generation)| backend.generation == *generation);
    let (index, backend) = match known {
        Some((index, backend, _)) => (index, backend),
        None => match choose(env, destination, service, &candidates) {
            Some(chosen) => chosen,
            None => return SocketVerdict::Refuse,
        },
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
    // Connecting to the unspecified address means loopback on Linux.
    let address = destination.address;
    let loopback = address.is_loopback() || address == address.wildcard();
    let own = loopback && env.in_host_namespace();
    let found = match frontend::find(env, destination, own) {
        Lookup::Service(found) => found,
        Lookup::UnknownPort => {
            env.count_drop(ServiceIndex(0), DropReason::UnknownPort);
            return Resolved::Verdict(SocketVerdict::Refuse);
        }
        Lookup::NotOurs => return Resolved::NotOurs,
    };
    let Some(record) = env.record(found.service) else {
        env.count_drop(found.service, DropReason::Inconsistent);
        return Resolved::Verdict(SocketVerdict::Refuse);
    };
    if !source::admitted(env, record, &found, |env| client_address(env, address)) {
        env.count_drop(found.service, DropReason::SourceRange);
        return Resolved::Verdict(SocketVerdict::Unreachable);
    }
    match policy::allowed(record, &found, Client::OnNode) {
        Allowed::Endpoints(candidates) => Resolved::Endpoints(found.service, candidates),
        Allowed::Refuse => {
            env.count_drop(found.service, DropReason::NoEndpoints);
            Resolved::Verdict(SocketVerdict::Refuse)
        }
        Allowed::Drop => {
            env.count_drop(found.service, DropReason::NoLocalEndpoint);
            Resolved::Verdict(SocketVerdict::Unreachable)
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
    env.backend(index).map(|backend| (index, *backend))
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
