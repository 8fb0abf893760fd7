//! PEERS and REVERSE: what sockets were told and where they really talk to.

use bytemuck::{Pod, Zeroable};

use super::{Address, BackendIndex};
use crate::bytes::Be16;

/// Key of PEERS: an unconnected UDP socket and the frontend that it sends to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
#[repr(C, align(8))]
pub struct PeerKey {
    /// Socket cookie.
    pub cookie: u64,
    /// Frontend address.
    pub address: Address,
    /// Frontend port.
    pub port: Be16,
    /// Always zero.
    pub pad: [u8; 6],
}

/// Value of PEERS: the backend that this socket's datagrams go to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct PeerValue {
    /// The chosen backend.
    pub backend: BackendIndex,
    /// Its generation when it was chosen.
    pub generation: u32,
    /// Time of the last datagram, in ticks.
    pub last_seen: u32,
}

/// Key of REVERSE: a socket and the backend that answers it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
#[repr(C, align(8))]
pub struct ReverseKey {
    /// Socket cookie.
    pub cookie: u64,
    /// Backend address.
    pub address: Address,
    /// Backend port.
    pub port: Be16,
    /// Always zero.
    pub pad: [u8; 6],
}

/// Value of REVERSE: the frontend that the application connected or sent to, and the backend that was chosen for
/// it. When the backend's generation is another one by now, the endpoint has left.
///
/// Under the key of an address that leads to nobody ([`Address::discard`]) there is no backend (0), and the
/// generation is the number of the set of source ranges that the client isn't in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C, align(4))]
pub struct ReverseValue {
    /// Frontend address.
    pub address: Address,
    /// Frontend port.
    pub port: Be16,
    /// Always zero.
    pub pad: [u8; 2],
    /// The chosen backend.
    pub backend: BackendIndex,
    /// Its generation when it was chosen.
    pub generation: u32,
}

const _: () = {
    assert!(size_of::<PeerKey>() == 32 && align_of::<PeerKey>() == 8);
    assert!(size_of::<PeerValue>() == 12);
    assert!(size_of::<ReverseKey>() == 32 && align_of::<ReverseKey>() == 8);
    assert!(size_of::<ReverseValue>() == 28);
};
