//! The socket hooks of one node, over plain collections.

use std::collections::HashMap;

use super::world::World;
use crate::abi::{
    Address, Backend, BackendIndex, ConnectedPeer, Frontend, FrontendKey, PeerKey, PeerValue,
    ReverseKey, ReverseValue, ServiceIndex, ServiceRecord,
};
use crate::env::Tables;
use crate::lb::DropReason;
use crate::lb::socket::SocketEnv;

/// One node and what its socket hooks remember.
#[derive(Clone, Debug, Default)]
pub struct Sockets {
    /// The Service tables.
    pub world: World,
    /// CONNECTED by socket cookie.
    pub connected: HashMap<u64, ConnectedPeer>,
    /// PEERS.
    pub peers: HashMap<PeerKey, PeerValue>,
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
    /// Whether it lives in the node's own network namespace.
    pub host: bool,
}

impl Sockets {
    /// The socket with this cookie.
    pub fn socket(&mut self, cookie: u64, host: bool) -> Socket<'_> {
        Socket { node: self, cookie, host }
    }
}

impl Tables for Socket<'_> {
    fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
        self.node.world.frontend(key)
    }
    fn record(&self, service: ServiceIndex) -> Option<&ServiceRecord> {
        self.node.world.record(service)
    }
    fn slot(&self, index: u32) -> Option<BackendIndex> {
        self.node.world.slot(index)
    }
    fn backend(&self, index: BackendIndex) -> Option<&Backend> {
        self.node.world.backend(index)
    }
    fn address_flags(&self, address: &Address) -> u32 {
        self.node.world.address_flags(address)
    }
    fn random(&self) -> u32 {
        self.node.world.random()
    }
    fn now(&self) -> u32 {
        self.node.world.now()
    }
    fn count_drop(&self, service: ServiceIndex, reason: DropReason) {
        self.node.world.count_drop(service, reason);
    }
}

impl SocketEnv for Socket<'_> {
    fn cookie(&self) -> u64 {
        self.cookie
    }
    fn in_host_namespace(&self) -> bool {
        self.host
    }
    fn connected(&self) -> Option<ConnectedPeer> {
        self.node.connected.get(&self.cookie).copied()
    }
    fn set_connected(&mut self, peer: &ConnectedPeer) -> bool {
        self.node.connected.insert(self.cookie, *peer);
        true
    }
    fn clear_connected(&mut self) {
        self.node.connected.remove(&self.cookie);
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
}
