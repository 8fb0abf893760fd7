//! The datapath's decisions (`lb-common`) over any tables, in this process. What a decision would write
//! is kept here and thrown away.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};

use bytemuck::{Pod, Zeroable as _};
use lb_common::abi::{
    Address, AffinityKey, AffinityValue, Backend, BackendIndex, ClientAddresses, Config,
    ConfigFlags, Device, Event, Flow, FlowKey, Frontend, FrontendKey, PeerKey, PeerValue,
    ReverseKey, ReverseValue, ServiceIndex, ServiceRanges, ServiceRecord, SourceRange, TrafficKey,
};
use lb_common::bytes::Be16;
use lb_common::env::{
    Balance, Carried, ChangeOf, ChecksumRule, Env, Frame, InsertError, Route, RouteQuery, Tables,
    Waiting,
};
use lb_common::family::Family;
use lb_common::lb::fragment::{Parked, ParkedKey, Parking};
use lb_common::lb::frontend::Destination;
use lb_common::lb::monitor::Subject;
use lb_common::lb::policy::Client;
use lb_common::lb::socket::{self, SocketEnv, SocketVerdict};
use lb_common::lb::{self, DropReason, Verdict};
use lb_common::packet::{FragmentKey, Packet, ReadHeader, Work};
use lb_common::wire::checksum::Sum;
use lb_common::wire::transport::Ports;
use lb_common::wire::{ethernet, ip};

use crate::node::route::Way;
use crate::tables::encode::socket_address;

/// FLOWS4 or FLOWS6, to be asked.
type Known<'a, F> = &'a dyn Fn(&FlowKey<F>) -> Option<Flow<F>>;

/// What a decision asks beside the Service tables.
pub struct Node<'a> {
    /// The constants of the loaded programs.
    pub config: Config,
    /// DEVICES.
    pub devices: &'a BTreeMap<u32, Device>,
    /// CLIENTS.
    pub clients: &'a BTreeMap<u64, ClientAddresses>,
    /// The routing table.
    pub route: &'a dyn Fn(IpAddr) -> Way,
    /// Packets that come in through the device of this question are passed on.
    pub forwards: bool,
}

/// What was decided about a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PacketDecision {
    /// The verdict.
    pub verdict: Verdict,
    /// What was counted.
    pub drop: Option<DropReason>,
    /// Source and destination that it leaves with, when it is translated.
    pub translated: Option<(SocketAddr, SocketAddr)>,
    /// The device that it leaves through, when it is forwarded.
    pub device: u32,
}

/// What was decided about a `connect`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketDecision {
    /// The verdict.
    pub verdict: SocketVerdict,
    /// What was counted.
    pub drop: Option<DropReason>,
}

/// Decides about the first packet of `frame` that comes in through a pod's device (`POD`) or an
/// external one.
pub fn packet<F: ReadHeader, T: Tables, const POD: bool>(
    tables: &mut T,
    node: &Node<'_>,
    flow: Known<'_, F>,
    frame: &[u8],
) -> PacketDecision {
    let mut work = Work::zeroed();
    let mut view = View::new(tables, node, frame);
    view.known = Some(flow);
    let mut verdict = lb::ingress::<F, _>(&mut view.plain::<POD>(), &mut work);
    if verdict == Verdict::HandOver {
        work = Work::zeroed();
        verdict = lb::ingress::<F, _>(&mut view.sctp::<POD>(), &mut work);
    }
    decision(&view, &work, verdict)
}

/// Decides about an SCTP packet of this node's own processes that is about to leave through an external
/// device.
pub fn leaving<F: ReadHeader, T: Tables>(
    tables: &mut T,
    node: &Node<'_>,
    flow: Known<'_, F>,
    frame: &[u8],
) -> PacketDecision {
    let mut work = Work::zeroed();
    let mut view = View::new(tables, node, frame);
    view.known = Some(flow);
    let verdict = lb::egress::<F, _>(&mut view.sctp::<false>(), &mut work);
    decision(&view, &work, verdict)
}

fn decision<F: Family, T>(
    view: &View<'_, F, T>,
    work: &Work<F>,
    verdict: Verdict,
) -> PacketDecision {
    let translated = match verdict {
        Verdict::Deliver | Verdict::Forward | Verdict::Raise => {
            let FlowKey { source, destination, source_port, destination_port, .. } =
                work.entry.translated;
            let from = socket_address::<F>(source, source_port);
            Some((from, socket_address::<F>(destination, destination_port)))
        }
        Verdict::Pass
        | Verdict::Answer
        | Verdict::Reset
        | Verdict::HandOver
        | Verdict::Parked
        | Verdict::Drop => None,
    };
    let device = if verdict == Verdict::Forward { work.device } else { 0 };
    PacketDecision { verdict, drop: view.drop(), translated, device }
}

/// Decides about `connect` on a socket that is bound to no address, in the network namespace with this
/// cookie.
pub fn connect<F: ReadHeader, T: Tables>(
    tables: &mut T,
    node: &Node<'_>,
    namespace: u64,
    destination: &Destination,
) -> SocketDecision {
    let mut view = View::<F, T>::new(tables, node, &[]);
    view.namespace = namespace;
    let verdict = socket::connect(&mut view.plain::<false>(), destination);
    SocketDecision { verdict, drop: view.drop() }
}

struct View<'a, F: Family, T> {
    tables: &'a mut T,
    node: &'a Node<'a>,
    frame: &'a [u8],
    known: Option<Known<'a, F>>,
    /// Entries that were asked for or written.
    flows: HashMap<FlowKey<F>, Option<Flow<F>>>,
    drops: RefCell<Vec<DropReason>>,
    namespace: u64,
}

impl<'a, F: Family, T> View<'a, F, T> {
    fn new(tables: &'a mut T, node: &'a Node<'a>, frame: &'a [u8]) -> Self {
        let (flows, drops) = (HashMap::new(), RefCell::default());
        Self { tables, node, frame, known: None, flows, drops, namespace: 0 }
    }

    fn plain<const POD: bool>(&mut self) -> Hook<'a, '_, F, T, POD, false> {
        Hook(self)
    }

    fn sctp<const POD: bool>(&mut self) -> Hook<'a, '_, F, T, POD, true> {
        Hook(self)
    }

    fn drop(&self) -> Option<DropReason> {
        self.drops.borrow().last().copied()
    }
}

/// A view as one of the programs.
struct Hook<'a, 'b, F: Family, T, const POD: bool, const SCTP: bool>(&'b mut View<'a, F, T>);

impl<F: Family, T: Tables, const POD: bool, const SCTP: bool> Tables
    for Hook<'_, '_, F, T, POD, SCTP>
{
    fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
        self.0.tables.frontend(key)
    }
    fn record(&self, service: ServiceIndex) -> Option<&ServiceRecord> {
        self.0.tables.record(service)
    }
    fn slot(&self, index: u32) -> Option<BackendIndex> {
        self.0.tables.slot(index)
    }
    fn backend(&self, index: BackendIndex) -> Option<&Backend> {
        self.0.tables.backend(index)
    }
    fn address_flags(&self, address: &Address) -> u32 {
        self.0.tables.address_flags(address)
    }
    fn service_ranges(&self, address: Address) -> Option<&ServiceRanges> {
        self.0.tables.service_ranges(address)
    }
    fn takeover(&self) -> u32 {
        self.0.tables.takeover()
    }
    fn source_range(&self, key: &SourceRange) -> bool {
        self.0.tables.source_range(key)
    }
    fn affinity(&mut self, key: &AffinityKey) -> Option<&mut AffinityValue> {
        self.0.tables.affinity(key)
    }
    fn set_affinity(&mut self, key: &AffinityKey, value: &AffinityValue) {
        self.0.tables.set_affinity(key, value);
    }
    fn random(&self) -> u32 {
        self.0.tables.random()
    }
    fn now(&self) -> u32 {
        self.0.tables.now()
    }
    fn count_drop(&self, _: ServiceIndex, reason: DropReason) {
        self.0.drops.borrow_mut().push(reason);
    }
    /// Nobody: it is no event.
    fn watched(&self) -> u32 {
        0
    }
    fn count_socket(&self, _: &TrafficKey) {}
    fn count_carried(&self, _: &TrafficKey, _: &Carried) {}
}

impl<F: Family, T, const POD: bool, const SCTP: bool> Frame for Hook<'_, '_, F, T, POD, SCTP> {
    const FIXED_HEADERS: bool = false;
    const IP_OFFSET: u32 = ethernet::HEADER_LEN;
    const SCTP: bool = SCTP;

    fn opaque(&self, value: u32) -> Option<u32> {
        Some(value)
    }
    fn load<V: Pod>(&self, offset: u32) -> Option<V> {
        let start = offset as usize;
        self.0.frame.get(start..start + size_of::<V>()).map(bytemuck::pod_read_unaligned)
    }
    // What a packet becomes stands in its flow entry.
    fn store<V: Pod>(&mut self, _: u32, _: &V, _: Balance) -> bool {
        true
    }
    fn change_header_checksum(&mut self, _: u32, _: Sum) -> bool {
        true
    }
    fn change_transport_checksum(&mut self, _: u32, _: Sum, _: ChangeOf, _: ChecksumRule) -> bool {
        true
    }
}

impl<F: Family, T: Tables, const POD: bool, const SCTP: bool> Waiting
    for Hook<'_, '_, F, T, POD, SCTP>
{
    // The packet is whole.
    const PARKING: Parking = Parking::Never;

    fn parked(&self, _: &ParkedKey) -> Option<u32> {
        None
    }
    fn park(&mut self, _: &ParkedKey) -> Parked {
        Parked::Refused
    }
    fn forget_parked(&mut self, _: &ParkedKey) {}
    fn set_aside(&mut self) -> bool {
        false
    }
    fn resend_parked(&mut self, _: &ParkedKey) {}
    fn take_back(&mut self) -> bool {
        false
    }
}

impl<F: ReadHeader, T: Tables, const POD: bool, const SCTP: bool> Env<F>
    for Hook<'_, '_, F, T, POD, SCTP>
{
    const FINAL: bool = true;
    const CLIENTS: Client = if POD { Client::OnNode } else { Client::Outside };

    fn serves(&self, protocol: u8) -> bool {
        !POD || protocol == ip::SCTP || self.0.node.config.flags & ConfigFlags::POD_PACKETS != 0
    }

    fn masquerades_all(&self) -> bool {
        self.0.node.config.flags & ConfigFlags::MASQUERADE_ALL != 0
    }

    fn flow(&mut self, key: &FlowKey<F>) -> Option<&mut Flow<F>> {
        let known = self.0.known;
        let entry = self.0.flows.entry(*key);
        entry.or_insert_with(|| known.and_then(|known| known(key))).as_mut()
    }

    fn insert_flow(&mut self, key: &FlowKey<F>, flow: &Flow<F>) -> Result<(), InsertError> {
        if self.flow(key).is_some() {
            return Err(InsertError::Exists);
        }
        self.0.flows.insert(*key, Some(*flow));
        Ok(())
    }

    fn delete_flow(&mut self, key: &FlowKey<F>) {
        self.0.flows.insert(*key, None);
    }

    /// Kept for replies, which aren't asked about.
    fn here(&self) -> u32 {
        0
    }

    fn device(&self, index: u32) -> Option<&Device> {
        self.0.node.devices.get(&index)
    }

    fn own_address(&self) -> F::Addr {
        let own = self.0.node.clients.get(&self.0.node.config.host_netns_cookie);
        own.map_or_else(F::Addr::default, |own| {
            F::narrow(if F::HAS_HEADER_CHECKSUM { own.address4 } else { own.address6 })
        })
    }

    /// As `bpf_fib_lookup` answers.
    fn route(&mut self, query: &RouteQuery<F>) -> Route {
        if !self.0.node.forwards {
            return Route::None;
        }
        match (self.0.node.route)(F::widen(query.destination).into()) {
            // It makes no difference between these two.
            Way::Here | Way::Nowhere => Route::Stack,
            Way::Device { index, .. } => Route::Via { device: index },
            Way::Forbidden => Route::None,
        }
    }

    fn has_socket(&self) -> bool {
        false
    }

    /// Sockets of the node aren't asked for: another port than the first may be chosen.
    fn host_socket(&self, _: &FlowKey<F>) -> bool {
        false
    }

    fn snat_ports(&self) -> (u16, u16) {
        (self.0.node.config.snat_port_min, self.0.node.config.snat_port_max)
    }

    fn wire_length(&self, packet: &Packet<F>) -> u32 {
        packet.length
    }

    fn wire_packets(&self) -> u32 {
        1
    }

    fn fragment(&self, _: &FragmentKey<F>) -> Option<Ports> {
        None
    }

    fn remember_fragment(&mut self, _: &FragmentKey<F>, _: &Ports) {}
    fn report(&self, _: &Work<F>, _: Subject, _: u8) {}
}

impl<F: ReadHeader, T: Tables, const POD: bool, const SCTP: bool> SocketEnv
    for Hook<'_, '_, F, T, POD, SCTP>
{
    fn cookie(&self) -> u64 {
        0
    }
    fn namespace(&self) -> u64 {
        self.0.namespace
    }
    fn in_host_namespace(&self) -> bool {
        self.0.namespace == self.0.node.config.host_netns_cookie
    }
    fn serves_pods(&self) -> bool {
        self.0.node.config.flags & ConfigFlags::NODE_SOCKETS_ONLY == 0
    }
    fn bound(&self) -> Address {
        Address::UNSPECIFIED_V6
    }
    fn local_port(&self) -> Be16 {
        Be16::default()
    }
    fn foreign_flow(&mut self, _: (Address, Be16), _: &Destination) -> Option<(BackendIndex, u32)> {
        None
    }
    fn client_addresses(&self, namespace: u64) -> Option<ClientAddresses> {
        self.0.node.clients.get(&namespace).copied()
    }
    // A new socket: nothing is remembered of it.
    fn connected_to(&self) -> Option<(Address, Be16)> {
        None
    }
    fn peer(&self, _: &PeerKey) -> Option<PeerValue> {
        None
    }
    fn set_peer(&mut self, _: &PeerKey, _: &PeerValue) {}
    fn reverse(&self, _: &ReverseKey) -> Option<ReverseValue> {
        None
    }
    fn set_reverse(&mut self, _: &ReverseKey, _: &ReverseValue) {}
    fn clear_reverse(&mut self, _: &ReverseKey) {}
    fn report(&self, _: &mut Event) {}
}
