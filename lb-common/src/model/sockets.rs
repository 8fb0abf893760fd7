//! The socket hooks of one node, over plain collections.

use std::collections::HashMap;

use super::world::{HasWorld, World};
use crate::abi::{
    Address, BackendIndex, ClientAddresses, Event, EventHook, Flow, PeerKey, PeerValue, ReverseKey,
    ReverseValue,
};
use crate::bytes::Be16;
use crate::family::V6;
use crate::lb::frontend::Destination;
use crate::lb::socket::{self, SocketEnv, SocketVerdict};
use crate::lb::takeover;

/// One node and what its socket hooks remember.
#[derive(Clone, Debug, Default)]
pub struct Sockets {
    /// The Service tables.
    pub world: World,
    /// Pods' sockets are left alone.
    pub node_sockets_only: bool,
    /// Where the kernel has connected sockets, by cookie.
    pub connected: HashMap<u64, (Address, Be16)>,
    /// PEERS.
    pub peers: HashMap<PeerKey, PeerValue>,
    /// Other proxies' flows in the flow table, by their sources and where they go.
    pub foreign: HashMap<(Address, Be16, Destination), Flow<V6>>,
    /// REVERSE.
    pub reverse: HashMap<ReverseKey, ReverseValue>,
}

/// One socket of the node.
#[derive(Debug)]
pub struct Socket<'a> {
    /// The node.
    pub node: &'a mut Sockets,
    /// The socket's cookie.
    pub cookie: u64,
    /// Cookie of the network namespace that it lives in.
    pub namespace: u64,
    /// The address that it is bound to; an unspecified one when it isn't.
    pub bound: Address,
    /// The port that it is bound to, or 0.
    pub port: Be16,
}

/// Cookie of the node's own network namespace.
pub const HOST: u64 = 1;
/// Cookie of a pod's network namespace.
pub const POD: u64 = 2;

impl Sockets {
    /// The socket with this cookie, bound to no address, of the node itself or of a pod.
    pub fn socket(&mut self, cookie: u64, host: bool) -> Socket<'_> {
        let namespace = if host { HOST } else { POD };
        Socket { node: self, cookie, namespace, bound: Address::UNSPECIFIED_V6, port: Be16::new(0) }
    }
}

impl Socket<'_> {
    /// `connect`, with the kernel's part of it.
    pub fn connect(&mut self, destination: &Destination) -> SocketVerdict {
        let verdict = socket::connect(self, destination);
        let peer = match verdict {
            SocketVerdict::Pass => Some((destination.address, destination.port)),
            SocketVerdict::Translate(address, port) => Some((address, port)),
            SocketVerdict::Discard => Some((destination.address.discard(), destination.port)),
            SocketVerdict::Refuse | SocketVerdict::Unreachable => None,
        };
        self.node.connected.extend(peer.map(|peer| (self.cookie, peer)));
        verdict
    }
}

impl HasWorld for Socket<'_> {
    fn world(&self) -> &World {
        &self.node.world
    }
    fn world_mut(&mut self) -> &mut World {
        &mut self.node.world
    }
}

impl SocketEnv for Socket<'_> {
    fn cookie(&self) -> u64 {
        self.cookie
    }
    fn namespace(&self) -> u64 {
        self.namespace
    }
    fn in_host_namespace(&self) -> bool {
        self.namespace == HOST
    }
    fn serves_pods(&self) -> bool {
        !self.node.node_sockets_only
    }
    fn bound(&self) -> Address {
        self.bound
    }
    fn local_port(&self) -> Be16 {
        self.port
    }
    fn foreign_flow(
        &mut self,
        from: (Address, Be16),
        destination: &Destination,
    ) -> Option<(BackendIndex, u32)> {
        let now = self.node.world.now.get();
        takeover::leads(self.node.foreign.get_mut(&(from.0, from.1, *destination))?, now)
    }
    fn client_addresses(&self, namespace: u64) -> Option<ClientAddresses> {
        self.node.world.clients.get(&namespace).copied()
    }
    fn connected_to(&self) -> Option<(Address, Be16)> {
        self.node.connected.get(&self.cookie).copied()
    }
    fn peer(&self, key: &PeerKey) -> Option<PeerValue> {
        self.node.peers.get(key).copied()
    }
    fn set_peer(&mut self, key: &PeerKey, value: &PeerValue) {
        self.node.peers.insert(*key, *value);
    }
    fn reverse(&self, key: &ReverseKey) -> Option<ReverseValue> {
        self.node.reverse.get(key).copied()
    }
    fn set_reverse(&mut self, key: &ReverseKey, value: &ReverseValue) {
        self.node.reverse.insert(*key, *value);
    }
    fn clear_reverse(&mut self, key: &ReverseKey) {
        self.node.reverse.remove(key);
    }
    /// Whichever call it is: it is said to be `connect`.
    fn report(&self, event: &mut Event) {
        event.hook = EventHook::Connect as u8;
        self.node.world.tell(event);
    }
}
