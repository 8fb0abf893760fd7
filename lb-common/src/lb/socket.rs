//! The cgroup hooks' decisions: translate where a socket names its peer, nothing per packet.
//!
//! Addresses are in their common 16-byte form, so IPv4, IPv6 and IPv4-mapped sockets share every
//! line here.

use super::frontend::{self, Destination, Lookup};
use super::policy::{self, Allowed, Client};
use super::{DropReason, select};
use crate::abi::{
    Address, Backend, BackendIndex, ConnectedPeer, PeerKey, PeerValue, Region, ReverseKey,
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
    /// Whether the socket lives in the node's own network namespace.
    fn in_host_namespace(&self) -> bool;
    /// What `connect` stored with the socket.
    fn connected(&self) -> Option<ConnectedPeer>;
    /// Stores it; `false` when the kernel refuses.
    fn set_connected(&mut self, peer: &ConnectedPeer) -> bool;
    /// Forgets it.
    fn clear_connected(&mut self);
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
    /// An error: policy Local, and no endpoint on this node.
    Unreachable,
}

/// A resolved destination.
enum Resolved {
    NotOurs,
    Verdict(SocketVerdict),
    Endpoints(Region),
}

/// `connect` on a TCP or UDP socket.
#[inline(always)]
pub fn connect<E: SocketEnv>(env: &mut E, destination: &Destination) -> SocketVerdict {
    let slots = match resolve(env, destination) {
        Resolved::NotOurs => {
            // A UDP socket may connect again, elsewhere; then its old peer must not be shown.
            if destination.protocol == ip::UDP {
                forget_backend(env);
            }
            env.clear_connected();
            return SocketVerdict::Pass;
        }
        // The call fails before the kernel touches the socket: a connected UDP socket keeps its
        // peer (net/ipv4/af_inet.c, inet_dgram_connect), and so do we.
        Resolved::Verdict(verdict) => return verdict,
        Resolved::Endpoints(slots) => slots,
    };
    let Some((index, backend)) = choose(env, slots) else {
        return SocketVerdict::Refuse;
    };
    let peer = ConnectedPeer {
        frontend: destination.address,
        backend: backend.address,
        frontend_port: destination.port,
        backend_port: backend.port,
        index,
        generation: backend.generation,
    };
    if destination.protocol == ip::UDP {
        forget_backend(env);
        remember_backend(env, destination, index, &backend);
    }
    // Without storage the connection works and shows its backend as peer: better than none.
    let _ = env.set_connected(&peer);
    SocketVerdict::Translate(backend.address, backend.port)
}

/// `sendmsg` with an address on a UDP socket. A socket keeps its backend for a frontend, like a
/// flow in the packet path.
#[inline(always)]
pub fn sendmsg<E: SocketEnv>(env: &mut E, destination: &Destination) -> SocketVerdict {
    let slots = match resolve(env, destination) {
        Resolved::NotOurs => return SocketVerdict::Pass,
        Resolved::Verdict(verdict) => return verdict,
        Resolved::Endpoints(slots) => slots,
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
        None => match choose(env, slots) {
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

/// `recvmsg` on a UDP socket: who the application believes the datagram is from.
#[inline(always)]
pub fn recvmsg<E: SocketEnv>(env: &E, address: Address, port: Be16) -> Option<(Address, Be16)> {
    if let Some(peer) = getpeername(env, address, port) {
        return Some(peer);
    }
    env.reverse(&reverse_key(env, address, port)).map(|frontend| (frontend.address, frontend.port))
}

/// `getpeername`: the address that the application connected to.
#[inline(always)]
pub fn getpeername<E: SocketEnv>(env: &E, address: Address, port: Be16) -> Option<(Address, Be16)> {
    let peer = env.connected()?;
    // The storage outlives a connection; it speaks only for the backend that it names.
    (peer.backend == address && peer.backend_port == port)
        .then_some((peer.frontend, peer.frontend_port))
}

/// REVERSE holds what a UDP socket talks to, connected or not. The agent, which sees only where a
/// socket is connected, ends those whose endpoint has left, and must not end one that was connected
/// to the endpoint itself.
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

/// The socket leaves the backend that its last `connect` led to, perhaps for a connection of its own
/// to the same address.
#[inline(always)]
fn forget_backend<E: SocketEnv>(env: &mut E) {
    if let Some(peer) = env.connected() {
        env.clear_reverse(&reverse_key(env, peer.backend, peer.backend_port));
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
    match policy::allowed(record, &found, Client::OnNode) {
        Allowed::Endpoints { slots, .. } => Resolved::Endpoints(slots),
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
fn choose<E: SocketEnv>(env: &E, slots: Region) -> Option<(BackendIndex, Backend)> {
    let index = select::random(env, slots)?;
    env.backend(index).map(|backend| (index, *backend))
}
