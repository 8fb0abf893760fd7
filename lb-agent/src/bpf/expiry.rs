//! Removes flows that have ended. The tables are LRU and would make room by themselves; but a dead
//! flow occupies a SNAT port, and a table full of dead flows evicts living ones.
//!
//! A flow has two entries, and one of them may be idle while the other is busy (UDP without
//! answers). They are judged, and removed, together.

use std::io;

use lb_common::abi::{Flow, FlowFlags, FlowKey, map};
use lb_common::env::TICK_NANOSECONDS;
use lb_common::family::{Family, V4, V6};

use super::error::BpfError;
use super::hash::Hash;
use super::pins::Pins;
use super::sys::{self, Access};

const TCP: u32 = libc::IPPROTO_TCP.cast_unsigned();

/// After a FIN or RST: the peers' TIME_WAIT and a few retransmissions.
const CLOSED_SECONDS: u64 = 120;
/// Nothing came back yet.
const UNANSWERED_SECONDS: u64 = 60;
/// As nf_conntrack_udp_timeout_stream and the usual advice for UDP; RFC 4787 asks for 120 at least.
const UDP_SECONDS: u64 = 180;
/// As kube-proxy's --conntrack-tcp-timeout-established.
const TCP_SECONDS: u64 = 86_400;

/// Ticks of the programs' clock, now.
pub(super) fn now() -> u32 {
    // The counter wraps as the programs' does.
    (sys::monotonic_nanoseconds() / TICK_NANOSECONDS) as u32
}

/// Seconds from a tick to another; 0 when it is ahead.
pub(super) fn seconds_between(last_seen: u32, now: u32) -> u64 {
    let ticks = now.wrapping_sub(last_seen).cast_signed().max(0).cast_unsigned();
    u64::from(ticks) * TICK_NANOSECONDS / 1_000_000_000
}

/// Seconds without a packet after which a flow is dead. `flags` are those of both entries.
fn timeout(protocol: u32, flags: u32) -> u64 {
    if flags & (FlowFlags::FIN | FlowFlags::RST) != 0 {
        CLOSED_SECONDS
    } else if flags & FlowFlags::ANSWERED == 0 {
        UNANSWERED_SECONDS
    } else if protocol == TCP {
        TCP_SECONDS
    } else {
        UDP_SECONDS
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
}

/// What a pass over both tables found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pass {
    /// FLOWS4.
    pub v4: Expired,
    /// FLOWS6.
    pub v6: Expired,
}

/// Both flow tables.
#[derive(Debug)]
pub struct FlowTables {
    v4: Hash<FlowKey<V4>, Flow<V4>>,
    v6: Hash<FlowKey<V6>, Flow<V6>>,
}

impl FlowTables {
    /// Opens the pins.
    pub fn open(pins: &Pins) -> Result<Self, BpfError> {
        Ok(Self {
            v4: Hash::open(pins, map::FLOWS4, Access::ReadWrite)?,
            v6: Hash::open(pins, map::FLOWS6, Access::ReadWrite)?,
        })
    }

    /// Removes what is dead now. A full table takes a second: `run` gives it a thread of its own.
    pub fn expire(&self) -> Result<Pass, BpfError> {
        let now = now();
        Ok(Pass { v4: expire(&self.v4, now)?, v6: expire(&self.v6, now)? })
    }
}

fn expire<F: Family>(flows: &Hash<FlowKey<F>, Flow<F>>, now: u32) -> Result<Expired, BpfError> {
    let error = |call| BpfError::call(flows.name(), call);
    let mut expired = Expired { capacity: flows.capacity().into(), ..Expired::default() };
    let mut candidates = Vec::new();
    flows
        .for_each(|key, flow| {
            expired.entries += 1;
            if seconds_between(flow.last_seen, now) > timeout(key.protocol, flow.flags) {
                candidates.push((*key, *flow));
            }
        })
        .map_err(error("bpf(BPF_MAP_LOOKUP_BATCH)"))?;
    for (key, flow) in candidates {
        let other_key = flow.translated.inverse();
        let other = flows.get(&other_key).map_err(error("bpf(BPF_MAP_LOOKUP_ELEM)"))?;
        if !is_dead(key.protocol, &flow, other.as_ref(), now) {
            continue;
        }
        let remove = |key| -> io::Result<u64> { flows.remove(key).map(u64::from) };
        for key in [&key, &other_key] {
            expired.removed += remove(key).map_err(error("bpf(BPF_MAP_DELETE_ELEM)"))?;
        }
    }
    Ok(expired)
}

/// Judges both entries as one flow; `other` may have been evicted.
fn is_dead<F: Family>(protocol: u32, flow: &Flow<F>, other: Option<&Flow<F>>, now: u32) -> bool {
    let idle = seconds_between(flow.last_seen, now);
    let other_idle = other.map_or(idle, |other| seconds_between(other.last_seen, now));
    let flags = flow.flags | other.map_or(0, |other| other.flags);
    idle.min(other_idle) > timeout(protocol, flags)
}

#[cfg(test)]
mod tests {
    use super::*;

    const UDP: u32 = libc::IPPROTO_UDP.cast_unsigned();
    const ANSWERED: u32 = FlowFlags::ANSWERED;

    #[test]
    fn a_flow_lives_as_long_as_its_protocol_and_state_allow() {
        for (case, protocol, flags, timeout_seconds) in [
            ("UDP without an answer", UDP, 0, 60),
            ("UDP with answers", UDP, ANSWERED, 180),
            ("TCP without an answer", TCP, 0, 60),
            ("TCP established", TCP, ANSWERED, 86_400),
            ("TCP after a FIN", TCP, ANSWERED | FlowFlags::FIN, 120),
            ("TCP after a RST", TCP, ANSWERED | FlowFlags::RST, 120),
            ("TCP refused", TCP, FlowFlags::RST, 120),
            ("direction and place don't matter", UDP, FlowFlags::REPLY | FlowFlags::LOCAL, 60),
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
            ("alone and idle", UDP, entry(61, 0), None, true),
            ("alone and young", UDP, entry(59, 0), None, false),
            ("the other is busy", UDP, entry(500, 0), Some(entry(1, 0)), false),
            ("both idle", UDP, entry(500, 0), Some(entry(61, 0)), true),
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
    fn the_clock_wraps_and_a_packet_may_be_ahead_of_us() {
        assert_eq!(seconds_between(u32::MAX - 59, 0), 1);
        assert_eq!(seconds_between(10, 5), 0);
    }
}
