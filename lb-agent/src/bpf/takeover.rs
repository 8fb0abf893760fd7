//! TAKEOVER, and the flows of another proxy in the flow tables.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;

use lb_common::abi::{self, BackendIndex, Flow, FlowFlags, FlowKey, Region, ServiceIndex};
use lb_common::bytes::Be16;
use lb_common::family::{Family, V4, V6};
use lb_common::lb::takeover::{foreign, foreign_reply};

use super::error::BpfError;
use super::expiry::{self, CarriedFlows, now};
use super::frontends::{FrontendMaps, Frontends};
use super::hash::Hash;
use super::maps::{self, PinnedMaps};
use super::pins::Pins;
use super::sys::Access;
use super::table::Table;
use crate::cluster::snapshot::Protocol;
use crate::tables::encode::{protocol_number, socket_address};
use crate::tables::store::Store as _;
use crate::takeover::conntrack::{Stage, Translated};

/// Who opens flows, and which of those in the flow tables are another proxy's.
#[derive(Debug)]
pub struct Handover {
    flags: Table<u32>,
    v4: Hash<FlowKey<V4>, Flow<V4>>,
    v6: Hash<FlowKey<V6>, Flow<V6>>,
    pins: Pins,
}

impl Handover {
    /// Opens what is pinned under a BPF file system's mount point.
    pub fn at(bpffs: &Path, access: Access) -> Result<Self, BpfError> {
        Self::open(&Pins::at(bpffs), access)
    }

    pub(super) fn open(pins: &Pins, access: Access) -> Result<Self, BpfError> {
        Ok(Self {
            flags: maps::table(pins, abi::map::TAKEOVER, access)?,
            v4: Hash::open(pins, abi::map::FLOWS4, access)?,
            v6: Hash::open(pins, abi::map::FLOWS6, access)?,
            pins: pins.clone(),
        })
    }

    /// Bits of [`abi::TakeoverFlags`].
    pub fn flags(&self) -> u32 {
        self.flags.get(0).unwrap_or_default()
    }

    /// Changes them, for all programs at once.
    pub fn set_flags(&mut self, flags: u32) {
        self.flags.set_word(0, 0, flags);
    }

    /// Whether the other proxy leads these datagrams, or would, by its rules.
    pub(super) fn leads(&self, from: SocketAddr, to: SocketAddr) -> Result<bool, BpfError> {
        const LEADS: u32 = abi::TakeoverFlags::RULES | abi::TakeoverFlags::YIELDS;
        if self.flags() & LEADS != 0 {
            return Ok(true);
        }
        if from.is_ipv4() { leads(&self.v4, from, to) } else { leads(&self.v6, from, to) }
    }

    /// Whether programs of ours are attached.
    pub fn is_attached(&self) -> Result<bool, BpfError> {
        Ok(!self.pins.link_names()?.is_empty())
    }

    /// The Services, as the maps hold them.
    pub fn services(&self) -> Result<Services, BpfError> {
        let maps = PinnedMaps::open(&self.pins, Access::Read)?;
        Ok(Services { frontends: FrontendMaps::open(&self.pins)?.read()?, maps })
    }

    /// Marks the flows that other proxies carry and that nothing in their packets tells: datagrams, and
    /// connections whose opening packet may come again. What goes to an endpoint that the Service hasn't
    /// (any more) is ours with its next packet. Of those that are masqueraded, the ports are taken.
    pub fn remember(&self, services: &Services, flows: &Others) -> Result<usize, BpfError> {
        let mut remembered = 0;
        for flow in &flows.flows {
            let until = flows.until(flow);
            remembered += usize::from(if flow.frontend.is_ipv4() {
                mark(&self.v4, services, flow, until)?
            } else {
                mark(&self.v6, services, flow, until)?
            });
        }
        Ok(remembered)
    }

    /// Forgets those that aren't among `flows` any more, and notes how long the rest is remembered.
    pub fn follow_others(&self, flows: &Others) -> Result<(), BpfError> {
        let known: HashMap<_, _> = flows
            .flows
            .iter()
            .flat_map(|flow| {
                let (protocol, until) = (protocol_number(flow.protocol), flows.until(flow));
                [(flow.client, flow.frontend), (flow.backend, flow.answered)]
                    .map(|(from, to)| ((protocol, from, to), until))
            })
            .collect();
        follow(&self.v4, &known)?;
        follow(&self.v6, &known)
    }

    /// Flows from outside that we carry and that have not ended, or are silent for long enough.
    pub fn carried(&self) -> Result<CarriedFlows, BpfError> {
        let mut carried = CarriedFlows::default();
        expiry::carried(&self.v4, &mut carried)?;
        expiry::carried(&self.v6, &mut carried)?;
        Ok(carried)
    }
}

/// The flows that conntrack translates to endpoints of Services.
#[derive(Debug)]
pub struct Others {
    /// They.
    pub flows: Vec<Translated>,
    /// When they were listed, ticks.
    listed: u32,
}

impl Others {
    /// Lists them now.
    pub fn list<E>(list: impl FnOnce() -> Result<Vec<Translated>, E>) -> Result<Self, E> {
        let listed = now();
        Ok(Self { flows: list()?, listed })
    }

    /// The tick until which conntrack remembers a flow.
    fn until(&self, flow: &Translated) -> u32 {
        self.listed.wrapping_add(expiry::ticks(flow.expires))
    }
}

/// Frontends and what is behind them.
#[derive(Debug)]
pub struct Services {
    frontends: Frontends,
    maps: PinnedMaps,
}

impl Services {
    /// The Service that has this address and port.
    pub fn of(&self, protocol: Protocol, frontend: SocketAddr) -> Option<ServiceIndex> {
        self.frontends.of(protocol_number(protocol), frontend)
    }

    fn backend(&self, service: ServiceIndex, to: SocketAddr) -> Option<(BackendIndex, u32)> {
        let record = self.maps.record(self.maps.pointer(service).record);
        let slots = |region: Region| self.maps.slots(region.offset, region.len);
        let indices = slots(record.cluster).into_iter().chain(slots(record.local));
        indices.map(BackendIndex).find_map(|index| {
            let backend = self.maps.backend(index);
            let is_it = backend.address == to.ip().into() && backend.port.get() == to.port();
            is_it.then_some((index, backend.generation))
        })
    }
}

fn key<F: Family>(protocol: Protocol, from: SocketAddr, to: SocketAddr) -> FlowKey<F> {
    FlowKey {
        source: F::narrow(from.ip().into()),
        destination: F::narrow(to.ip().into()),
        source_port: Be16::new(from.port()),
        destination_port: Be16::new(to.port()),
        protocol: protocol_number(protocol).into(),
    }
}

fn leads<F: Family>(
    flows: &Hash<FlowKey<F>, Flow<F>>,
    from: SocketAddr,
    to: SocketAddr,
) -> Result<bool, BpfError> {
    let flow = flows.get(&key::<F>(Protocol::Udp, from, to));
    let flow = flow.map_err(BpfError::call(flows.name(), "bpf(BPF_MAP_LOOKUP_ELEM)"))?;
    Ok(flow.is_some_and(|mut flow| lb_common::lb::takeover::leads(&mut flow, now()).is_some()))
}

/// Takes the port of a flow that is masqueraded, and marks the flow if it has to be; whether it had to.
fn mark<F: Family>(
    flows: &Hash<FlowKey<F>, Flow<F>>,
    services: &Services,
    flow: &Translated,
    until: u32,
) -> Result<bool, BpfError> {
    if flow.answered != flow.client && flow.stage != Stage::Closing {
        take_port(flows, flow, until)?;
    }
    if flow.protocol != Protocol::Udp && flow.stage != Stage::Opening {
        // Its packets tell.
        return Ok(false);
    }
    match services.of(flow.protocol, flow.frontend) {
        Some(service) => set(flows, flow, services.backend(service, flow.backend), until),
        None => Ok(false),
    }
}

/// Keeps our flows off the port that masquerades a flow.
fn take_port<F: Family>(
    flows: &Hash<FlowKey<F>, Flow<F>>,
    flow: &Translated,
    until: u32,
) -> Result<(), BpfError> {
    let key = key::<F>(flow.protocol, flow.backend, flow.answered);
    let known = flows.get(&key);
    let known = known.map_err(BpfError::call(flows.name(), "bpf(BPF_MAP_LOOKUP_ELEM)"))?;
    if known.is_none_or(|known| known.flags & FlowFlags::FOREIGN != 0) {
        let entry = foreign_reply(&key, until);
        let set = flows.set(&key, &entry);
        set.map_err(BpfError::call(flows.name(), "bpf(BPF_MAP_UPDATE_ELEM)"))?;
    }
    Ok(())
}

/// Whether the flow is marked now.
fn set<F: Family>(
    flows: &Hash<FlowKey<F>, Flow<F>>,
    flow: &Translated,
    backend: Option<(BackendIndex, u32)>,
    until: u32,
) -> Result<bool, BpfError> {
    let key = key::<F>(flow.protocol, flow.client, flow.frontend);
    let known = flows.get(&key);
    let known = known.map_err(BpfError::call(flows.name(), "bpf(BPF_MAP_LOOKUP_ELEM)"))?;
    if known.is_some_and(|known| known.flags & FlowFlags::FOREIGN == 0) {
        return Ok(false);
    }
    // A packet may have come since they were listed.
    let until = known.map_or(until, |known| expiry::later(known.last_seen, until));
    let Some((backend, generation)) = backend else {
        // Also when our hook has marked it without a look at where it goes.
        let removed = flows.remove(&key);
        removed.map_err(BpfError::call(flows.name(), "bpf(BPF_MAP_DELETE_ELEM)"))?;
        return Ok(false);
    };
    let entry = Flow { backend, generation, ..foreign(&key, until) };
    flows.set(&key, &entry).map_err(BpfError::call(flows.name(), "bpf(BPF_MAP_UPDATE_ELEM)"))?;
    Ok(true)
}

fn follow<F: Family>(
    flows: &Hash<FlowKey<F>, Flow<F>>,
    known: &HashMap<(u8, SocketAddr, SocketAddr), u32>,
) -> Result<(), BpfError> {
    let (mut gone, mut later) = (Vec::new(), Vec::new());
    let listed = flows.for_each(|key, flow| {
        if flow.flags & FlowFlags::FOREIGN == 0 {
            return;
        }
        let from = socket_address::<F>(key.source, key.source_port);
        let to = socket_address::<F>(key.destination, key.destination_port);
        match known.get(&(key.protocol as u8, from, to)) {
            None => gone.push((*key, *flow)),
            // A packet may have come since they were listed.
            Some(until) => {
                let last_seen = expiry::later(flow.last_seen, *until);
                if last_seen != flow.last_seen {
                    later.push((*key, Flow { last_seen, ..*flow }));
                }
            }
        }
    });
    listed.map_err(BpfError::call(flows.name(), "bpf(BPF_MAP_LOOKUP_BATCH)"))?;
    for (key, flow) in gone {
        expiry::remove_silent(flows, &key, &flow, Some(&flow))?;
    }
    for (key, flow) in later {
        let known = flows.get(&key);
        let known = known.map_err(BpfError::call(flows.name(), "bpf(BPF_MAP_LOOKUP_ELEM)"))?;
        if known.is_some_and(|known| known.flags == flow.flags) {
            let set = flows.set(&key, &flow);
            set.map_err(BpfError::call(flows.name(), "bpf(BPF_MAP_UPDATE_ELEM)"))?;
        }
    }
    Ok(())
}
