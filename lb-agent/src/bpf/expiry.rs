//! Removes flows that have ended. The tables are LRU and would make room by themselves; but a dead
//! flow occupies a SNAT port, and a table full of dead flows evicts living ones.
//!
//! A flow has two entries, and one of them may be idle while the other is busy (UDP without
//! answers). They are judged, and removed, together.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use lb_common::abi::{Flow, FlowFlags, FlowKey, map};
use lb_common::env::TICK_NANOSECONDS;
use lb_common::family::{Family, V4, V6};
use lb_common::lb::snat::gives_way;

use super::error::BpfError;
use super::frontends::{FrontendMaps, Frontends};
use super::hash::Hash;
use super::pins::Pins;
use super::sys::{self, Access};
use super::traffic::{Departed, SharedTraffic};
use super::usage::{CountedMaps, MapUsage};
use crate::serve::metrics::FlowUse;
use crate::tables::encode::{protocol, socket_address};
use crate::takeover::conntrack::Tuple;

const TCP: u32 = libc::IPPROTO_TCP.cast_unsigned();
const SCTP: u32 = libc::IPPROTO_SCTP.cast_unsigned();
const UDP: u32 = libc::IPPROTO_UDP.cast_unsigned();

/// After a FIN or RST: the peers' TIME_WAIT and a few retransmissions.
const CLOSED_SECONDS: u64 = 120;
/// Nothing came back yet, or the client hasn't answered that: as nf_conntrack_tcp_timeout_syn_recv. Who
/// sends SYNs under forged addresses gets no further.
const UNASSURED_SECONDS: u64 = 60;
/// A question, and perhaps its answer: as nf_conntrack_udp_timeout.
const UDP_UNASSURED_SECONDS: u64 = 30;
/// More than that. nf_conntrack_udp_timeout_stream has 120 s, as RFC 4787 asks for at least.
const UDP_SECONDS: u64 = 180;
/// As nf_conntrack_sctp_timeout_established; associations send heartbeats every 30 s (RFC 9260, 16).
const SCTP_SECONDS: u64 = 210;
/// As kube-proxy's --conntrack-tcp-timeout-established.
const TCP_SECONDS: u64 = 86_400;

/// Ticks of the programs' clock, now.
pub(super) fn now() -> u32 {
    // The counter wraps as the programs' does.
    (sys::monotonic_nanoseconds() / TICK_NANOSECONDS) as u32
}

/// Seconds in ticks, rounded down.
pub(super) fn ticks(seconds: u32) -> u32 {
    (u64::from(seconds) * 1_000_000_000 / TICK_NANOSECONDS) as u32
}

/// The later of two ticks.
pub(super) fn later(one: u32, other: u32) -> u32 {
    if other.wrapping_sub(one).cast_signed() > 0 { other } else { one }
}

/// Seconds from a tick to another; 0 when it is ahead.
pub(super) fn seconds_between(last_seen: u32, now: u32) -> u64 {
    let ticks = now.wrapping_sub(last_seen).cast_signed().max(0).cast_unsigned();
    u64::from(ticks) * TICK_NANOSECONDS / 1_000_000_000
}

/// The flags of both entries as one flow's: a bit that one of them has, but for [`FlowFlags::UNASSURED`],
/// where who knows better is right.
pub(super) fn joined<F: Family>(flow: &Flow<F>, other: Option<&Flow<F>>) -> u32 {
    let other = other.map_or(flow.flags, |other| other.flags);
    (flow.flags | other) & !FlowFlags::UNASSURED | flow.flags & other & FlowFlags::UNASSURED
}

/// Seconds without a packet after which a flow is dead. `flags` are those of both entries, [`joined`].
fn timeout(protocol: u32, flags: u32) -> u64 {
    if flags & FlowFlags::FOREIGN != 0 {
        // It says itself how long it is somebody's.
        0
    } else if flags & (FlowFlags::FIN | FlowFlags::RST) != 0 {
        CLOSED_SECONDS
    } else if flags & FlowFlags::ANSWERED == 0 || flags & FlowFlags::UNASSURED != 0 {
        if protocol == UDP { UDP_UNASSURED_SECONDS } else { UNASSURED_SECONDS }
    } else {
        match protocol {
            TCP => TCP_SECONDS,
            SCTP => SCTP_SECONDS,
            _ => UDP_SECONDS,
        }
    }
}

/// What one pass found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Expired {
    /// Entries looked at: the fill of the table before the pass. A flow has two.
    pub entries: u64,
    /// Entries removed.
    pub removed: u64,
    /// Entries the table can hold.
    pub capacity: u64,
    /// The flows that are left, but for those that nobody has seen removed.
    pub used: FlowUse,
}

/// What a pass over both tables found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pass {
    /// FLOWS4.
    pub v4: Expired,
    /// FLOWS6.
    pub v6: Expired,
    /// How full every map is after it.
    pub hashes: Vec<MapUsage>,
}

/// Both flow tables, and the counters of endpoints, which are looked through as often.
#[derive(Debug)]
pub struct FlowTables {
    v4: Hash<FlowKey<V4>, Flow<V4>>,
    v6: Hash<FlowKey<V6>, Flow<V6>>,
    /// Counted with each pass: that costs what a pass costs, and only maps that are full cost much.
    all: CountedMaps,
    departed: Departed,
    frontends: FrontendMaps,
}

impl FlowTables {
    /// Opens the pins.
    pub fn open(pins: &Pins, traffic: SharedTraffic) -> Result<Self, BpfError> {
        Ok(Self {
            v4: Hash::open(pins, map::FLOWS4, Access::ReadWrite)?,
            v6: Hash::open(pins, map::FLOWS6, Access::ReadWrite)?,
            all: CountedMaps::open(pins)?,
            departed: Departed::open(pins, traffic)?,
            frontends: FrontendMaps::open(pins)?,
        })
    }

    /// Removes what is dead now, or leads to an endpoint of a Service that hasn't the address any more. A
    /// full table takes a second: `run` gives it a thread of its own.
    pub fn expire(&mut self) -> Result<Pass, BpfError> {
        let now = now();
        self.departed.look()?;
        let frontends = self.frontends.read()?;
        let (v4, v6) = (expire(&self.v4, &frontends, now)?, expire(&self.v6, &frontends, now)?);
        Ok(Pass { v4, v6, hashes: self.all.usage()? })
    }
}

/// Datagrams that stop for longer than keepalives do (RFC 9000, 10.1.2 and WireGuard: up to 30 s) are
/// of a flow that may go elsewhere.
const SILENT_SECONDS: u64 = 35;
/// After this long without a packet nothing more comes of a connection that has ended.
const LAST_SECONDS: u64 = 5;

/// What [`carried`] found.
#[derive(Clone, Debug, Default)]
pub struct CarriedFlows {
    /// Flows that are ours and would break without us: connections that have not ended, and datagrams
    /// that were answered and aren't silent.
    pub count: usize,
    /// How they leave this node, and those that may still have a packet under way, where a port of this
    /// node's is their source.
    pub masqueraded: HashSet<Tuple>,
}

/// Looks through the flows. Those that are over are forgotten: who takes their port next, client or
/// masquerade, is not ours.
pub(super) fn carried<F: Family>(
    flows: &Hash<FlowKey<F>, Flow<F>>,
    carried: &mut CarriedFlows,
) -> Result<(), BpfError> {
    const NOT_OURS: u32 = FlowFlags::FOREIGN | FlowFlags::REPLY;
    let error = |call| BpfError::call(flows.name(), call);
    let (now, mut over) = (now(), Vec::new());
    let listed = flows.for_each(|key, flow| {
        if flow.flags & NOT_OURS != 0 {
            return;
        }
        let other = flows.get(&flow.translated.inverse()).ok().flatten();
        let flags = joined(flow, other.as_ref());
        let last = other.map_or(u64::MAX, |other| seconds_between(other.last_seen, now));
        let idle = seconds_between(flow.last_seen, now).min(last);
        let fins = flow.flags & other.map_or(0, |other| other.flags) & FlowFlags::FIN;
        let has_ended = fins != 0 || flags & FlowFlags::RST != 0;
        let is_over = match key.protocol {
            UDP => idle > SILENT_SECONDS,
            _ => has_ended && idle > LAST_SECONDS,
        };
        if is_over {
            over.push((*key, *flow, other));
            return;
        }
        let is_answered = flow.flags & FlowFlags::ANSWERED != 0;
        let is_alive = idle <= timeout(key.protocol, flags);
        carried.count += usize::from(is_answered && !has_ended && is_alive);
        if flow.flags & FlowFlags::LOCAL == 0 {
            carried.masqueraded.extend(tuple(&flow.translated));
        }
    });
    listed.map_err(error("bpf(BPF_MAP_LOOKUP_BATCH)"))?;
    for (key, flow, other) in over {
        remove_silent(flows, &key, &flow, other.as_ref())?;
    }
    Ok(())
}

/// Removes the entries of a flow that were read as these, unless a packet has come since: its answer
/// would find nobody. How many were removed.
pub(super) fn remove_silent<F: Family>(
    flows: &Hash<FlowKey<F>, Flow<F>>,
    key: &FlowKey<F>,
    flow: &Flow<F>,
    other: Option<&Flow<F>>,
) -> Result<u64, BpfError> {
    for (key, read) in [(*key, Some(flow)), (flow.translated.inverse(), other)] {
        let now =
            flows.get(&key).map_err(BpfError::call(flows.name(), "bpf(BPF_MAP_LOOKUP_ELEM)"))?;
        if now.is_some_and(|now| read.is_none_or(|read| now.last_seen != read.last_seen)) {
            return Ok(0);
        }
    }
    remove(flows, key, flow)
}

/// Removes both entries of a flow; how many were there.
fn remove<F: Family>(
    flows: &Hash<FlowKey<F>, Flow<F>>,
    key: &FlowKey<F>,
    flow: &Flow<F>,
) -> Result<u64, BpfError> {
    let mut removed = 0;
    for key in [*key, flow.translated.inverse()] {
        let was_there = flows.remove(&key);
        removed +=
            u64::from(was_there.map_err(BpfError::call(flows.name(), "bpf(BPF_MAP_DELETE_ELEM)"))?);
    }
    Ok(removed)
}

/// A key as conntrack would have it.
fn tuple<F: Family>(key: &FlowKey<F>) -> Option<Tuple> {
    Some(Tuple {
        protocol: protocol(key.protocol as u8)?,
        source: socket_address::<F>(key.source, key.source_port),
        destination: socket_address::<F>(key.destination, key.destination_port),
    })
}

fn expire<F: Family>(
    flows: &Hash<FlowKey<F>, Flow<F>>,
    frontends: &Frontends,
    now: u32,
) -> Result<Expired, BpfError> {
    let error = |call| BpfError::call(flows.name(), call);
    let mut expired = Expired { capacity: flows.capacity().into(), ..Expired::default() };
    let (mut candidates, mut moved) = (Vec::new(), Vec::new());
    let mut uses = Uses::default();
    flows
        .for_each(|key, flow| {
            expired.entries += 1;
            if has_moved(key, flow, frontends) {
                moved.push((*key, *flow));
            } else if seconds_between(flow.last_seen, now) > timeout(key.protocol, flow.flags) {
                candidates.push((*key, *flow));
            } else {
                uses.count(key, flow, now);
            }
        })
        .map_err(error("bpf(BPF_MAP_LOOKUP_BATCH)"))?;
    expired.used = uses.sum();
    for (key, flow) in candidates {
        let other = flows.get(&flow.translated.inverse());
        let other = other.map_err(error("bpf(BPF_MAP_LOOKUP_ELEM)"))?;
        if is_dead(key.protocol, &flow, other.as_ref(), now) {
            expired.removed += remove_silent(flows, &key, &flow, other.as_ref())?;
        }
    }
    for (key, flow) in moved {
        expired.removed += remove(flows, &key, &flow)?;
    }
    Ok(expired)
}

/// Whether datagrams go on to an endpoint of the Service port that had their destination before: as
/// kube-proxy, which has conntrack forget them (pkg/proxy/conntrack/cleanup.go). An address that is
/// nobody's any more keeps its flows.
fn has_moved<F: Family>(key: &FlowKey<F>, flow: &Flow<F>, frontends: &Frontends) -> bool {
    const OTHERS: u32 = FlowFlags::REPLY | FlowFlags::FOREIGN;
    if key.protocol != UDP || flow.flags & OTHERS != 0 {
        return false;
    }
    let to = socket_address::<F>(key.destination, key.destination_port);
    frontends.of(key.protocol as u8, to).is_some_and(|service| service != flow.service)
}

/// An endpoint as one node address reaches it: each port of the SNAT range is there once, and those that a
/// new flow may take aren't counted.
type SnatPool = (IpAddr, IpAddr, u16, u32);

/// Counts flows by the way they take.
#[derive(Default)]
struct Uses {
    local: u64,
    remote: u64,
    pools: HashMap<SnatPool, u64>,
}

impl Uses {
    fn count<F: Family>(&mut self, key: &FlowKey<F>, flow: &Flow<F>, now: u32) {
        if flow.flags & (FlowFlags::REPLY | FlowFlags::FOREIGN) != 0 {
            return;
        }
        if flow.flags & FlowFlags::LOCAL != 0 {
            self.local += 1;
            return;
        }
        self.remote += 1;
        if gives_way(flow.flags, flow.last_seen, now) {
            return;
        }
        let address = |address| IpAddr::from(F::widen(address));
        let FlowKey { source, destination, destination_port, .. } = flow.translated;
        let pool = (address(source), address(destination), destination_port.get(), key.protocol);
        *self.pools.entry(pool).or_default() += 1;
    }

    fn sum(&self) -> FlowUse {
        let snat_ports = self.pools.values().copied().max().unwrap_or_default();
        FlowUse { local: self.local, remote: self.remote, snat_ports }
    }
}

/// Judges both entries as one flow; `other` may have been evicted.
fn is_dead<F: Family>(protocol: u32, flow: &Flow<F>, other: Option<&Flow<F>>, now: u32) -> bool {
    let idle = seconds_between(flow.last_seen, now);
    let other_idle = other.map_or(idle, |other| seconds_between(other.last_seen, now));
    idle.min(other_idle) > timeout(protocol, joined(flow, other))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWERED: u32 = FlowFlags::ANSWERED;
    const UNASSURED: u32 = FlowFlags::UNASSURED;
    const LOCAL: u32 = FlowFlags::LOCAL;

    #[test]
    fn a_flow_lives_as_long_as_its_protocol_and_state_allow() {
        for (case, protocol, flags, timeout_seconds) in [
            ("UDP without an answer", UDP, 0, 30),
            ("a question by UDP and its answer", UDP, ANSWERED | UNASSURED, 30),
            ("UDP with answers", UDP, ANSWERED, 180),
            ("TCP without an answer", TCP, 0, 60),
            ("TCP half open", TCP, ANSWERED | UNASSURED, 60),
            ("TCP half open and reset", TCP, ANSWERED | UNASSURED | FlowFlags::RST, 120),
            ("TCP established", TCP, ANSWERED, 86_400),
            ("SCTP established", SCTP, ANSWERED, 210),
            ("SCTP shut down", SCTP, ANSWERED | FlowFlags::FIN, 120),
            ("TCP after a FIN", TCP, ANSWERED | FlowFlags::FIN, 120),
            ("TCP after a RST", TCP, ANSWERED | FlowFlags::RST, 120),
            ("TCP refused", TCP, FlowFlags::RST, 120),
            ("direction and place don't matter", UDP, FlowFlags::REPLY | FlowFlags::LOCAL, 30),
            ("another proxy's, once it is over", UDP, FlowFlags::FOREIGN | ANSWERED, 0),
        ] {
            assert_eq!(timeout(protocol, flags), timeout_seconds, "{case}");
        }
    }

    #[test]
    fn both_entries_are_judged_together() {
        let ticks = |seconds: u64| (seconds * 1_000_000_000 / TICK_NANOSECONDS) as u32 + 1;
        let now = ticks(1_000_000);
        let entry = |idle, flags| {
            let last_seen = now - ticks(idle);
            Flow::<V4> { last_seen, flags, ..bytemuck::Zeroable::zeroed() }
        };
        for (case, protocol, flow, other, expected) in [
            ("alone and idle", UDP, entry(31, 0), None, true),
            ("alone and young", UDP, entry(29, 0), None, false),
            ("the other is busy", UDP, entry(500, 0), Some(entry(1, 0)), false),
            ("both idle", UDP, entry(500, 0), Some(entry(31, 0)), true),
            (
                "half open for one, established for the other",
                TCP,
                entry(500, ANSWERED | UNASSURED),
                Some(entry(500, ANSWERED)),
                false,
            ),
            ("answered, seen by the other", UDP, entry(70, 0), Some(entry(70, ANSWERED)), false),
            (
                "closed by the other side",
                TCP,
                entry(200, ANSWERED),
                Some(entry(130, ANSWERED | FlowFlags::FIN)),
                true,
            ),
        ] {
            assert_eq!(is_dead(protocol, &flow, other.as_ref(), now), expected, "{case}");
        }
    }

    #[test]
    fn flows_are_counted_by_their_way_and_ports_by_endpoint() {
        let flow = |flags, backend: u8| {
            let mut flow = Flow::<V4> { flags, ..bytemuck::Zeroable::zeroed() };
            flow.translated.destination_port = lb_common::bytes::Be16::new(backend.into());
            flow
        };
        let key = FlowKey::<V4> { protocol: TCP, ..bytemuck::Zeroable::zeroed() };
        let mut uses = Uses::default();
        let (open, over) = (ANSWERED, ANSWERED | FlowFlags::RST);
        for flow in [flow(open, 1), flow(open, 1), flow(open, 2), flow(over, 1), flow(LOCAL, 1)] {
            uses.count(&key, &flow, ticks(10));
            let reply = Flow { flags: flow.flags | FlowFlags::REPLY, ..flow };
            uses.count(&key, &reply, ticks(10));
        }
        assert_eq!(uses.sum(), FlowUse { local: 1, remote: 4, snat_ports: 2 });
    }

    #[test]
    fn the_clock_wraps_and_a_packet_may_be_ahead_of_us() {
        assert_eq!(seconds_between(u32::MAX - 59, 0), 1);
        assert_eq!(seconds_between(10, 5), 0);
    }
}
