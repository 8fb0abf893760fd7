//! What a datapath decision may ask of the world: tables, packet bytes, clock, random, routes.
//!
//! The kernel programs implement these traits with maps and BPF helpers, the host tests with plain
//! collections. Static dispatch only; every method is expected to be inlined.

use bytemuck::Pod;

use crate::abi::{
    Address, AffinityKey, AffinityValue, Backend, BackendIndex, Device, Flow, FlowKey, Frontend,
    FrontendKey, ServiceIndex, ServiceRanges, ServiceRecord, SourceRange, TrafficKey,
};
use crate::bytes::Be16;
use crate::family::Family;
use crate::lb::DropReason;
use crate::lb::fragment::{self, Parked, ParkedKey, Parking};
use crate::lb::monitor::Subject;
use crate::lb::policy::Client;
use crate::packet::{FragmentKey, Packet, Work};
use crate::wire::checksum::{self, Sum};
use crate::wire::transport::Ports;

/// Length of one tick of [`Tables::now`], nanoseconds. A power of two: the kernel side shifts.
pub const TICK_NANOSECONDS: u64 = 1 << TICK_SHIFT;
/// `nanoseconds >> TICK_SHIFT` of CLOCK_MONOTONIC are ticks (16.8 ms; wraps after 834 days).
pub const TICK_SHIFT: u32 = 24;
/// Ticks after which a flow's `last_seen` is written again: about one second.
pub const RENEWAL_TICKS: u32 = 64;

/// The Service tables, as socket hooks and packet hooks both need them.
pub trait Tables {
    /// FRONTENDS.
    fn frontend(&self, key: &FrontendKey) -> Option<Frontend>;
    /// The current record of a Service: one read of SERVICES, one of RECORDS.
    fn record(&self, service: ServiceIndex) -> Option<&ServiceRecord>;
    /// SLOTS.
    fn slot(&self, index: u32) -> Option<BackendIndex>;
    /// BACKENDS.
    fn backend(&self, index: BackendIndex) -> Option<&Backend>;
    /// ADDRESSES: bits of [`crate::abi::AddressFlags`], none for addresses that aren't in it.
    fn address_flags(&self, address: &Address) -> u32;
    /// SERVICE_RANGES: those of the family of `address`.
    fn service_ranges(&self, address: Address) -> Option<&ServiceRanges>;
    /// TAKEOVER: bits of [`crate::abi::TakeoverFlags`].
    fn takeover(&self) -> u32;
    /// Whether SOURCE_RANGES has a range around this address.
    fn source_range(&self, key: &SourceRange) -> bool;
    /// The AFFINITY entry under `key`, to read and to renew in place.
    fn affinity(&mut self, key: &AffinityKey) -> Option<&mut AffinityValue>;
    /// Writes AFFINITY.
    fn set_affinity(&mut self, key: &AffinityKey, value: &AffinityValue);
    /// 32 random bits.
    fn random(&self) -> u32;
    /// Monotonic time in ticks.
    fn now(&self) -> u32;
    /// Counts one packet or connection that was not served.
    fn count_drop(&self, service: ServiceIndex, reason: DropReason);
    /// MONITOR: kinds of events that somebody watches, bits of [`crate::abi::EventKinds`].
    fn watched(&self) -> u32;
    /// TRAFFIC: a socket was led to this endpoint.
    fn count_socket(&self, key: &TrafficKey);
    /// TRAFFIC: a packet was carried to or from this endpoint.
    fn count_carried(&self, key: &TrafficKey, carried: &Carried);
}

/// What a packet adds to TRAFFIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Carried {
    /// Flows that it opened, 0 or 1.
    pub flows: u32,
    /// It comes from the endpoint.
    pub reply: bool,
    /// Packets on the wire.
    pub packets: u32,
    /// IP length, bytes; headers of merged segments count once.
    pub bytes: u32,
}

/// Whether a store changes bytes that a checksum elsewhere in the packet makes up for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Balance {
    /// Another field (a header checksum) is changed so that the sum over the packet stays.
    Balanced,
    /// The sum over the packet changes by the difference.
    Unbalanced,
}

/// Which checksum rule a transport checksum follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChecksumRule {
    /// TCP, ICMP, ICMPv6.
    Plain,
    /// UDP: zero means none, and is never sent as a result.
    Udp,
}

impl ChecksumRule {
    /// The field after the data under it changed by `change`.
    #[inline(always)]
    pub const fn update(self, field: Be16, change: Sum) -> Be16 {
        match self {
            Self::Plain => checksum::update(field, change),
            Self::Udp => checksum::update_udp(field, change),
        }
    }
}

/// What the change of a transport checksum comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeOf {
    /// The pseudo header (addresses).
    PseudoHeader,
    /// Bytes of the packet under the checksum.
    Payload,
}

/// The bytes of one packet.
pub trait Frame {
    /// Whether only packets with the fixed IP header (no options, no extension headers) are
    /// handled here, so that every offset is a constant. Others are passed on untouched.
    const FIXED_HEADERS: bool;
    /// Where the IP header starts, bytes from the start of the frame.
    const IP_OFFSET: u32;
    /// Whether this program carries SCTP, and nothing else; or everything else. Its checksum needs
    /// so much of the verifier that together they would be refused.
    const SCTP: bool;

    /// The same value, with nothing known about it any more. A verifier that follows each way
    /// through a loop with what it knows then sees one way behind it (Linux 6.1 counts a million
    /// instructions otherwise).
    ///
    /// `None` never happens; it is how a hook says that it has no memory to forget in.
    fn opaque(&self, value: u32) -> Option<u32>;
    /// Reads a value at `offset` bytes from the start; `None` past the end.
    fn load<T: Pod>(&self, offset: u32) -> Option<T>;
    /// Writes a value; `false` past the end or when the packet can't be written.
    fn store<T: Pod>(&mut self, offset: u32, value: &T, balance: Balance) -> bool;
    /// Changes the IPv4 header checksum at `offset`.
    fn change_header_checksum(&mut self, offset: u32, change: Sum) -> bool;
    /// Changes a transport checksum at `offset`.
    fn change_transport_checksum(
        &mut self,
        offset: u32,
        change: Sum,
        of: ChangeOf,
        rule: ChecksumRule,
    ) -> bool;
}

/// A question to the routing table.
#[derive(Clone, Copy, Debug)]
pub struct RouteQuery<F: Family> {
    /// Source address the packet will have; default when it isn't known yet.
    pub source: F::Addr,
    /// Destination address the packet will have.
    pub destination: F::Addr,
    /// IP protocol number.
    pub protocol: u8,
    /// IP length of the largest packet on the wire that this frame becomes, bytes.
    pub length: u32,
}

/// The answer of the routing table. The environment keeps what it needs to send the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// Through this device; the next hop's link address may still have to be resolved.
    Via {
        /// Interface index.
        device: u32,
    },
    /// The packet is longer than the path allows.
    TooBig {
        /// Interface index.
        device: u32,
        /// The path's MTU, bytes.
        mtu: u32,
    },
    /// To an address of this node: the stack's business.
    Stack,
    /// This hook can't tell or can't send there; another one may.
    Elsewhere,
    /// No route, or one that forbids.
    None,
}

/// Why a flow could not be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InsertError {
    /// The key is taken.
    Exists,
    /// The table refused.
    Refused,
}

/// Fragments that wait for the first one of their datagram.
pub trait Waiting: Tables + Sized {
    /// Which ones do here.
    const PARKING: Parking;

    /// Since when the fragment under `key` waits, ticks.
    fn parked(&self, key: &ParkedKey) -> Option<u32>;
    /// Keeps a copy of this frame; replaces none.
    fn park(&mut self, key: &ParkedKey) -> Parked;
    /// Forgets a copy.
    fn forget_parked(&mut self, key: &ParkedKey);
    /// Keeps the bytes of this frame, which [`Waiting::resend_parked`] may overwrite from then on;
    /// `false` when it is too long.
    fn set_aside(&mut self) -> bool;
    /// Sends a parked frame through the hook where it was parked, and forgets it.
    fn resend_parked(&mut self, key: &ParkedKey);
    /// This frame has the bytes again that it was set aside with; `false` when it is lost.
    fn take_back(&mut self) -> bool;
    /// `number` and one, where the compiler can't tell.
    fn next(&self, number: u32) -> u32 {
        number + 1
    }
    /// As [`fragment::park_somewhere`].
    fn park_somewhere(&mut self, first: &ParkedKey) -> bool {
        fragment::park_somewhere(self, &mut first.clone())
    }
    /// As [`fragment::resend_all`].
    fn resend_all(&mut self, first: &ParkedKey) -> bool {
        fragment::resend_all(self, &mut first.clone())
    }
}

/// Everything a packet decision may ask.
pub trait Env<F: Family>: Frame + Waiting {
    /// Whether packets that this hook passes on meet no other of ours. XDP carries known, forwarded
    /// flows alone; first packets, local backends (better served behind GRO) and answers it leaves
    /// to tc.
    const FINAL: bool;
    /// Who sends the packets that come in here.
    const CLIENTS: Client;

    /// Whether flows of this IP protocol are translated here: where the socket hooks serve a pod, its
    /// packets are left alone but for protocols that have no such hook.
    fn serves(&self, protocol: u8) -> bool;
    /// Whether endpoints see an address of the node wherever kube-proxy's `masqueradeAll` has them see one.
    fn masquerades_all(&self) -> bool;
    /// The flow entry under `key`, to read and to renew in place.
    fn flow(&mut self, key: &FlowKey<F>) -> Option<&mut Flow<F>>;
    /// Writes a new entry; never replaces one.
    fn insert_flow(&mut self, key: &FlowKey<F>, flow: &Flow<F>) -> Result<(), InsertError>;
    /// Removes an entry if it is there.
    fn delete_flow(&mut self, key: &FlowKey<F>);
    /// Index of the device that this packet came in through, or is about to leave through.
    fn here(&self) -> u32;
    /// DEVICES: an external device; `None` for every other interface.
    fn device(&self, index: u32) -> Option<&Device>;
    /// The address that stands for the node; unspecified when it has none of this family.
    fn own_address(&self) -> F::Addr;
    /// Asks the routing table.
    fn route(&mut self, query: &RouteQuery<F>) -> Route;
    /// Whether this packet comes from a socket of this machine, the node's or a pod's.
    fn has_socket(&self) -> bool;
    /// Whether a socket of this node already receives packets with the tuple `reply`.
    fn host_socket(&self, reply: &FlowKey<F>) -> bool;
    /// First and last port for SNAT, host byte order.
    fn snat_ports(&self) -> (u16, u16);
    /// IP length of the longest packet on the wire that this frame becomes, bytes: a frame of
    /// merged segments is split again before it is sent.
    fn wire_length(&self, packet: &Packet<F>) -> u32;
    /// Packets on the wire that this frame becomes: more than one for merged segments.
    fn wire_packets(&self) -> u32;
    /// The ports that the first fragment of this datagram had.
    fn fragment(&self, key: &FragmentKey<F>) -> Option<Ports>;
    /// Remembers the ports of a first fragment.
    fn remember_fragment(&mut self, key: &FragmentKey<F>, ports: &Ports);
    /// EVENTS: tells who watches, if it is what they want. `reason` as in [`crate::abi::Event::reason`].
    fn report(&self, work: &Work<F>, subject: Subject, reason: u8);
}
