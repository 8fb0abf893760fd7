//! EVENTS, MONITOR, WATCHED and PACE: what somebody who watches is told, and how much of it.

use core::ops::Add;

use bytemuck::{Pod, Zeroable};

use super::{Address, ServiceIndex};
use crate::bytes::Be16;

/// An element of EVENTS: a connection that was led to an endpoint, or a packet or call that wasn't served.
///
/// Addresses that nobody knows are `::` ([`Address::UNSPECIFIED_V6`]), ports 0: the port of a socket that
/// isn't bound yet, everything but the addresses of a packet that isn't let out, the endpoint of what is
/// dropped before one is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C, align(8))]
pub struct Event {
    /// CLOCK_MONOTONIC, nanoseconds.
    pub time: u64,
    /// Who asked.
    pub client: Address,
    /// What it asked for.
    pub frontend: Address,
    /// The endpoint.
    pub backend: Address,
    /// The Service port; 0 when none was involved.
    pub service: ServiceIndex,
    /// Index of the interface that the packet met the program at; 0 for sockets.
    pub device: u32,
    /// Port of the client.
    pub client_port: Be16,
    /// Port of the frontend.
    pub frontend_port: Be16,
    /// Port of the endpoint.
    pub backend_port: Be16,
    /// IP protocol number; 0 for packets that aren't let out.
    pub protocol: u8,
    /// A [`crate::lb::DropReason`] as its number; 0 for a connection.
    pub reason: u8,
    /// An [`EventHook`] as its number.
    pub hook: u8,
    /// Always zero.
    pub pad: [u8; 7],
}

/// Where an event was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum EventHook {
    /// `connect` of a socket.
    Connect = 1,
    /// `sendmsg` of a socket, with an address.
    SendMessage = 2,
    /// tc, a packet that came in through an external device.
    Ingress = 3,
    /// tc, a packet that was about to leave through an external device.
    Egress = 4,
    /// tc, a packet that a pod sent.
    PodIngress = 5,
    /// tc, a packet that was about to reach a pod.
    PodEgress = 6,
    /// XDP, a packet that came in through an external device.
    Xdp = 7,
}

impl EventHook {
    /// Every hook, in the order of their numbers.
    pub const ALL: [Self; 7] = [
        Self::Connect,
        Self::SendMessage,
        Self::Ingress,
        Self::Egress,
        Self::PodIngress,
        Self::PodEgress,
        Self::Xdp,
    ];

    /// From its number; `None` for numbers that no version of this ABI writes.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|hook| *hook as u8 == number)
    }
}

/// The only element of MONITOR: which events somebody wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C, align(8))]
pub struct Monitor {
    /// CLOCK_MONOTONIC, nanoseconds, from which on nobody watches: who does renews it, and may have died.
    pub until: u64,
    /// Bits of [`EventKinds`]; 0 when nobody watches. Written last, with one aligned store.
    pub kinds: u32,
    /// Events in a second on each CPU at most.
    pub rate: u32,
    /// With [`Conditions::ADDRESS`]: that of the client, the frontend or the endpoint.
    pub address: Address,
    /// With [`Conditions::PORT`]: that of the frontend or the endpoint.
    pub port: Be16,
    /// With [`Conditions::PROTOCOL`]: an IP protocol number.
    pub protocol: u8,
    /// Bits of [`Conditions`].
    pub conditions: u8,
    /// Always zero.
    pub pad: u32,
}

/// Bits of [`Monitor::kinds`].
pub struct EventKinds;

impl EventKinds {
    /// A socket or flow was led to an endpoint.
    pub const CONNECTIONS: u32 = 1;
    /// What wasn't served, but for refusals.
    pub const DROPS: u32 = 1 << 1;
    /// What was refused: nobody listens there.
    pub const REFUSALS: u32 = 1 << 2;
}

/// Bits of [`Monitor::conditions`]: what an event has to be, beside its kind.
pub struct Conditions;

impl Conditions {
    /// About [`Monitor::address`].
    pub const ADDRESS: u8 = 1;
    /// About [`Monitor::port`].
    pub const PORT: u8 = 1 << 1;
    /// Of [`Monitor::protocol`].
    pub const PROTOCOL: u8 = 1 << 2;
    /// About a Service that is in WATCHED.
    pub const SERVICES: u8 = 1 << 3;
}

/// The only element of PACE, on each CPU: how many events there were lately, and how many nobody saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C, align(8))]
pub struct Pace {
    /// Begin of the current second: CLOCK_MONOTONIC, nanoseconds.
    pub since: u64,
    /// Events in it.
    pub events: u64,
    /// Events that were more than [`Monitor::rate`] allows, ever.
    pub suppressed: u64,
    /// Events that EVENTS had no room for, ever.
    pub lost: u64,
}

impl Add for Pace {
    type Output = Self;

    /// The sums over CPUs; seconds don't add up.
    fn add(self, other: Self) -> Self {
        Self {
            since: 0,
            events: 0,
            suppressed: self.suppressed.wrapping_add(other.suppressed),
            lost: self.lost.wrapping_add(other.lost),
        }
    }
}

const _: () = {
    assert!(size_of::<Event>() == 80 && align_of::<Event>() == 8);
    assert!(core::mem::offset_of!(Event, client_port) == 64);
    assert!(size_of::<Monitor>() == 40 && align_of::<Monitor>() == 8);
    assert!(core::mem::offset_of!(Monitor, kinds) == 8);
    assert!(size_of::<Pace>() == 32 && align_of::<Pace>() == 8);
};
