//! The packet hooks of one node, over plain collections.

use core::marker::PhantomData;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::vec::Vec;

use bytemuck::{Pod, Zeroable};

use super::world::{HasWorld, World};
use crate::abi::{Address, Device, DeviceFlags, Event, EventHook, Flow, FlowKey, ServiceIndex};
use crate::bytes::Be16;
use crate::env::{
    Balance, ChangeOf, ChecksumRule, Env, Frame, InsertError, Route, RouteQuery, Waiting,
};
use crate::family::Family;
use crate::lb::answer::{self, AnswerFormat};
use crate::lb::fragment::{self, ParkedKey, Parking};
use crate::lb::monitor::{self, Subject};
use crate::lb::policy::Client;
use crate::lb::{self, Answer, DropReason, Verdict};
use crate::packet::{FragmentKey, Packet, Work};
use crate::wire::checksum::{self, Sum};
use crate::wire::ethernet;
use crate::wire::icmp;
use crate::wire::ip;
use crate::wire::transport::{self, Ports, TcpHeader};

/// What the hooks differ in.
pub trait Hook {
    /// As [`Frame::FIXED_HEADERS`].
    const FIXED_HEADERS: bool;
    /// As [`Env::FINAL`].
    const FINAL: bool;
    /// As [`Frame::IP_OFFSET`].
    const IP_OFFSET: u32;
    /// As [`Env::CLIENTS`].
    const CLIENTS: Client = Client::Outside;
    /// As [`Waiting::PARKING`], for frames that enter.
    const PARKING: Parking;
}

/// tc on an Ethernet device.
pub enum Tc {}
/// tc on a device whose frames begin with the IP header.
pub enum TcL3 {}
/// XDP.
pub enum Xdp {}
/// tc on a pod's device.
pub enum PodTc {}

impl Hook for Tc {
    const FIXED_HEADERS: bool = false;
    const FINAL: bool = true;
    const IP_OFFSET: u32 = ethernet::HEADER_LEN;
    const PARKING: Parking = Parking::OwnAddresses;
}

impl Hook for TcL3 {
    const FIXED_HEADERS: bool = false;
    const FINAL: bool = true;
    const IP_OFFSET: u32 = 0;
    const PARKING: Parking = Parking::OwnAddresses;
}

impl Hook for Xdp {
    const FIXED_HEADERS: bool = true;
    const FINAL: bool = false;
    const IP_OFFSET: u32 = ethernet::HEADER_LEN;
    const PARKING: Parking = Parking::Never;
}

impl Hook for PodTc {
    const FIXED_HEADERS: bool = false;
    const FINAL: bool = true;
    const IP_OFFSET: u32 = ethernet::HEADER_LEN;
    const CLIENTS: Client = Client::OnNode;
    const PARKING: Parking = Parking::OwnAddresses;
}

/// Where the routing table sends packets to one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextHop {
    /// Through a device.
    Device {
        /// Interface index.
        index: u32,
        /// MTU of the path, bytes.
        mtu: u32,
        /// Whether the next hop's link address is known.
        resolved: bool,
    },
    /// The route forbids.
    Forbidden,
}

/// One node and everything that its packet hooks remember.
#[derive(Clone, Debug)]
pub struct Node<F: Family> {
    /// The Service tables.
    pub world: World,
    /// FLOWS4 or FLOWS6.
    pub flows: HashMap<FlowKey<F>, Flow<F>>,
    /// The flow table refuses new entries.
    pub flows_full: bool,
    /// FRAGMENTS4 or FRAGMENTS6.
    pub fragments: HashMap<FragmentKey<F>, Ports>,
    /// PARKED.
    pub parked: HashMap<ParkedKey, Parked>,
    /// Frames that were sent through their hook again, oldest first.
    pub resent: Vec<Parked>,
    /// The routing table; addresses without an entry are the stack's business, as `bpf_fib_lookup`
    /// makes no difference between "no route" and "local".
    pub routes: BTreeMap<Address, NextHop>,
    /// Whether frames come from sockets of this machine.
    pub from_sockets: bool,
    /// Tuples that sockets of the node receive.
    pub host_sockets: HashSet<FlowKey<F>>,
    /// Ports, host byte order, on which a socket of the node receives from anybody.
    pub bound_ports: BTreeSet<u16>,
    /// First and last SNAT port, host byte order.
    pub snat_ports: (u16, u16),
    /// The device that packets come in through.
    pub input: u32,
    /// Whether the hooks on pods' devices serve all protocols, or SCTP alone.
    pub pod_packets: bool,
    /// Whether endpoints see an address of the node for nearly every client.
    pub masquerades_all: bool,
    /// IP payload per segment when a frame holds merged segments; 0 for plain frames.
    pub segment: u32,
}

/// A frame that waits for the first fragment of its datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parked {
    /// Since when, ticks.
    pub since: u32,
    /// The device that it was parked at.
    pub device: u32,
    /// The frame.
    pub bytes: Vec<u8>,
}

/// What became of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The verdict. An answer that could not be built is a drop.
    pub verdict: Verdict,
    /// The frame as it is now: rewritten, or the answer in its place.
    pub bytes: Vec<u8>,
    /// The device that it leaves through, when it is forwarded; when it is raised, that where it enters
    /// the stack.
    pub device: u32,
}

impl<F: AnswerFormat> Node<F> {
    /// A node with these tables, an empty flow table and no routes.
    pub fn new(world: World) -> Self {
        Self {
            world,
            flows: HashMap::new(),
            flows_full: false,
            fragments: HashMap::new(),
            parked: HashMap::new(),
            resent: Vec::new(),
            routes: BTreeMap::new(),
            from_sockets: false,
            host_sockets: HashSet::new(),
            bound_ports: BTreeSet::new(),
            snat_ports: (20_000, 29_999),
            input: 2,
            pod_packets: true,
            masquerades_all: false,
            segment: 0,
        }
    }

    /// A frame enters through [`Node::input`].
    pub fn ingress<H: Hook>(&mut self, bytes: &[u8]) -> Outcome {
        self.handle::<H, false>(bytes)
    }

    /// A frame is about to leave through [`Node::input`].
    pub fn egress<H: Hook>(&mut self, bytes: &[u8]) -> Outcome {
        self.handle::<H, true>(bytes)
    }

    /// One program, and the one for SCTP if that is where the frame belongs.
    fn handle<H: Hook, const LEAVES: bool>(&mut self, bytes: &[u8]) -> Outcome {
        let outcome = self.run::<H, LEAVES, false>(bytes);
        if outcome.verdict == Verdict::HandOver {
            self.run::<H, LEAVES, true>(bytes)
        } else {
            outcome
        }
    }

    fn run<H: Hook, const LEAVES: bool, const SCTP: bool>(&mut self, bytes: &[u8]) -> Outcome {
        let mut work = Work::zeroed();
        let mut view = View::<'_, F, H, LEAVES, SCTP> {
            node: self,
            bytes: bytes.to_vec(),
            aside: Vec::new(),
            hook: PhantomData,
        };
        let mut verdict = if LEAVES {
            lb::egress(&mut view, &mut work)
        } else {
            lb::ingress(&mut view, &mut work)
        };
        // An answer is tc's to send; XDP passes the frame on as it is.
        let sent = match verdict {
            Verdict::Answer => !H::FINAL || view.answer(work.answer),
            Verdict::Reset => !H::FINAL || view.reset(&work.packet),
            Verdict::Pass
            | Verdict::Deliver
            | Verdict::Forward
            | Verdict::Raise
            | Verdict::HandOver
            | Verdict::Parked
            | Verdict::Drop => true,
        };
        if !sent {
            let subject = Subject::packet(ServiceIndex(0));
            monitor::not_served(&view, &work, subject, DropReason::Answer);
            verdict = Verdict::Drop;
        }
        let sends = matches!(verdict, Verdict::Forward | Verdict::Raise);
        let device = if sends { work.device } else { 0 };
        Outcome { verdict, bytes: view.bytes, device }
    }
}

/// A node with a frame in its hands.
struct View<'a, F: Family, H, const LEAVES: bool, const SCTP: bool> {
    node: &'a mut Node<F>,
    bytes: Vec<u8>,
    aside: Vec<u8>,
    hook: PhantomData<H>,
}

impl<F: AnswerFormat, H: Hook, const LEAVES: bool, const SCTP: bool> View<'_, F, H, LEAVES, SCTP> {
    /// The frame becomes the answer to itself; `false` when it is too short.
    fn answer(&mut self, answer: Answer) -> bool {
        let l3 = H::IP_OFFSET;
        let read = self.load::<F::Quote>(l3).zip(self.load(l3 + F::SOURCE_OFFSET));
        let Some(((quote, source), destination)) = read.zip(self.load(l3 + F::DESTINATION_OFFSET))
        else {
            return false;
        };
        let icmp_header = F::icmp(answer, destination, source, &quote);
        self.turn_round(destination, source, F::ICMP, answer::error_len::<F>())
            && self.store(l3 + F::HEADER_LEN, &icmp_header, Balance::Balanced)
            && self.store(l3 + F::HEADER_LEN + icmp::HEADER_LEN, &quote, Balance::Balanced)
    }

    /// The frame becomes the reset that refuses it; `false` when it is too short.
    fn reset(&mut self, packet: &Packet<F>) -> bool {
        let l4 = packet.transport_offset::<Self>();
        let Some(segment) = self.load::<TcpHeader>(l4) else {
            return false;
        };
        let headers = l4 - H::IP_OFFSET + u32::from(segment.offset >> 4) * 4;
        let FlowKey { source, destination, .. } = packet.tuple;
        let payload = packet.length.saturating_sub(headers);
        let reset = answer::reset::<F>(destination, source, &segment, payload);
        self.turn_round(destination, source, ip::TCP, transport::TCP_HEADER_LEN)
            && self.store(H::IP_OFFSET + F::HEADER_LEN, &reset, Balance::Balanced)
    }

    /// Makes room for `payload` bytes behind the link and IP headers of an answer.
    fn turn_round(&mut self, from: F::Addr, to: F::Addr, protocol: u8, payload: u32) -> bool {
        let l3 = H::IP_OFFSET;
        self.bytes.resize((l3 + F::HEADER_LEN + payload) as usize, 0);
        if let Some(link) = self.bytes.get_mut(..l3 as usize).filter(|link| !link.is_empty()) {
            link.get_mut(..12).into_iter().for_each(|addresses| addresses.rotate_left(6));
        }
        self.store(l3, &F::header(from, to, protocol, payload as u16), Balance::Balanced)
    }
}

impl<F: Family, H, const LEAVES: bool, const SCTP: bool> HasWorld for View<'_, F, H, LEAVES, SCTP> {
    fn world(&self) -> &World {
        &self.node.world
    }
    fn world_mut(&mut self) -> &mut World {
        &mut self.node.world
    }
}

impl<F: Family, H: Hook, const LEAVES: bool, const SCTP: bool> Frame
    for View<'_, F, H, LEAVES, SCTP>
{
    const FIXED_HEADERS: bool = H::FIXED_HEADERS;
    const IP_OFFSET: u32 = H::IP_OFFSET;
    const SCTP: bool = SCTP;

    fn opaque(&self, value: u32) -> Option<u32> {
        Some(value)
    }

    fn load<T: Pod>(&self, offset: u32) -> Option<T> {
        let start = offset as usize;
        self.bytes.get(start..start + size_of::<T>()).map(bytemuck::pod_read_unaligned)
    }

    fn store<T: Pod>(&mut self, offset: u32, value: &T, _balance: Balance) -> bool {
        let start = offset as usize;
        match self.bytes.get_mut(start..start + size_of::<T>()) {
            Some(room) => {
                room.copy_from_slice(bytemuck::bytes_of(value));
                true
            }
            None => false,
        }
    }

    fn change_header_checksum(&mut self, offset: u32, change: Sum) -> bool {
        match self.load::<Be16>(offset) {
            Some(field) => self.store(offset, &checksum::update(field, change), Balance::Balanced),
            None => false,
        }
    }

    fn change_transport_checksum(
        &mut self,
        offset: u32,
        change: Sum,
        _of: ChangeOf,
        rule: ChecksumRule,
    ) -> bool {
        let Some(field) = self.load::<Be16>(offset) else {
            return false;
        };
        self.store(offset, &rule.update(field, change), Balance::Balanced)
    }
}

impl<F: Family, H: Hook, const LEAVES: bool, const SCTP: bool> View<'_, F, H, LEAVES, SCTP> {
    /// As `bpf_fib_lookup` answers: about the length first, about the device after it.
    fn looked_up(&self, query: &RouteQuery<F>, index: u32, mtu: u32, resolved: bool) -> Route {
        if query.length > mtu {
            return Route::TooBig { device: 0, mtu };
        }
        let frame = self.bytes.len() as u32 - H::IP_OFFSET;
        if H::FINAL {
            // Without a length, the helper of tc compares the frame itself.
            if query.length == 0 && self.node.segment == 0 && frame > mtu {
                return Route::TooBig { device: index, mtu };
            }
            return Route::Via { device: index };
        }
        let prepared = index == self.node.input
            || self.node.world.devices.get(&index).is_some_and(|d| d.flags & DeviceFlags::XDP != 0);
        if resolved && prepared { Route::Via { device: index } } else { Route::Elsewhere }
    }
}

impl<F: Family, H: Hook, const LEAVES: bool, const SCTP: bool> Waiting
    for View<'_, F, H, LEAVES, SCTP>
{
    const PARKING: Parking = match (SCTP, LEAVES, H::CLIENTS) {
        (true, _, _) | (_, true, Client::OnNode) => Parking::Never,
        (false, false, _) => H::PARKING,
        (false, true, Client::Outside) => Parking::LocalEndpoints,
    };

    fn parked(&self, key: &ParkedKey) -> Option<u32> {
        self.node.parked.get(key).map(|parked| parked.since)
    }

    fn park(&mut self, key: &ParkedKey) -> fragment::Parked {
        if self.bytes.len() > fragment::MAX_FRAME as usize {
            return fragment::Parked::Refused;
        }
        if self.node.parked.contains_key(key) {
            return fragment::Parked::Taken;
        }
        let Node { input, world, .. } = &*self.node;
        let parked = Parked { since: world.now.get(), device: *input, bytes: self.bytes.clone() };
        self.node.parked.insert(*key, parked);
        fragment::Parked::Kept
    }

    fn forget_parked(&mut self, key: &ParkedKey) {
        self.node.parked.remove(key);
    }

    fn set_aside(&mut self) -> bool {
        self.aside.clone_from(&self.bytes);
        self.bytes.len() <= fragment::MAX_FRAME as usize
    }

    fn resend_parked(&mut self, key: &ParkedKey) {
        if let Some(parked) = self.node.parked.remove(key) {
            self.bytes.clone_from(&parked.bytes);
            self.node.resent.push(parked);
        }
    }

    fn take_back(&mut self) -> bool {
        self.bytes.clone_from(&self.aside);
        true
    }
}

impl<F: Family, H: Hook, const LEAVES: bool, const SCTP: bool> Env<F>
    for View<'_, F, H, LEAVES, SCTP>
{
    const FINAL: bool = H::FINAL;
    const CLIENTS: Client = H::CLIENTS;

    fn serves(&self, protocol: u8) -> bool {
        H::CLIENTS == Client::Outside || self.node.pod_packets || protocol == ip::SCTP
    }

    fn masquerades_all(&self) -> bool {
        self.node.masquerades_all
    }

    fn flow(&mut self, key: &FlowKey<F>) -> Option<&mut Flow<F>> {
        self.node.flows.get_mut(key)
    }

    fn insert_flow(&mut self, key: &FlowKey<F>, flow: &Flow<F>) -> Result<(), InsertError> {
        if self.node.flows.contains_key(key) {
            return Err(InsertError::Exists);
        }
        if self.node.flows_full {
            return Err(InsertError::Refused);
        }
        self.node.flows.insert(*key, *flow);
        Ok(())
    }

    fn delete_flow(&mut self, key: &FlowKey<F>) {
        self.node.flows.remove(key);
    }

    fn here(&self) -> u32 {
        self.node.input
    }

    fn device(&self, index: u32) -> Option<&Device> {
        self.node.world.devices.get(&index)
    }

    fn own_address(&self) -> F::Addr {
        let own = self.node.world.clients.get(&super::sockets::HOST).copied().unwrap_or_default();
        F::narrow(own.towards(F::widen(F::Addr::default())))
    }

    fn route(&mut self, query: &RouteQuery<F>) -> Route {
        match self.node.routes.get(&F::widen(query.destination)) {
            Some(NextHop::Device { index, mtu, resolved }) => {
                self.looked_up(query, *index, *mtu, *resolved)
            }
            Some(NextHop::Forbidden) => Route::None,
            None => Route::Stack,
        }
    }

    fn has_socket(&self) -> bool {
        H::FINAL && self.node.from_sockets
    }

    fn host_socket(&self, reply: &FlowKey<F>) -> bool {
        self.node.host_sockets.contains(reply)
            || self.node.bound_ports.contains(&reply.destination_port.get())
    }

    fn snat_ports(&self) -> (u16, u16) {
        self.node.snat_ports
    }

    fn wire_length(&self, packet: &Packet<F>) -> u32 {
        if self.node.segment == 0 {
            return packet.length;
        }
        let l4 = packet.transport_offset::<Self>();
        let transport = match packet.protocol() {
            ip::TCP => self.load::<u8>(l4 + 12).map_or(20, |byte| u32::from(byte >> 4) * 4),
            _ => 8,
        };
        l4 - H::IP_OFFSET + transport + self.node.segment
    }

    fn wire_packets(&self) -> u32 {
        match self.node.segment {
            0 => 1,
            segment => (self.bytes.len() as u32).div_ceil(segment),
        }
    }

    fn fragment(&self, key: &FragmentKey<F>) -> Option<Ports> {
        self.node.fragments.get(key).copied()
    }

    fn remember_fragment(&mut self, key: &FragmentKey<F>, ports: &Ports) {
        self.node.fragments.insert(*key, *ports);
    }

    fn report(&self, work: &Work<F>, subject: Subject, reason: u8) {
        let mut event = Event::default();
        subject.describe(work, self, reason, &mut event);
        event.device = self.node.input;
        let hook = match (H::CLIENTS, H::FINAL, LEAVES) {
            (Client::OnNode, _, false) => EventHook::PodIngress,
            (Client::OnNode, _, true) => EventHook::PodEgress,
            (Client::Outside, false, _) => EventHook::Xdp,
            (Client::Outside, true, false) => EventHook::Ingress,
            (Client::Outside, true, true) => EventHook::Egress,
        };
        event.hook = hook as u8;
        self.node.world.tell(&mut event);
    }
}
