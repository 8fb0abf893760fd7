//! The Service tables in plain collections, and an easy way to fill them.

use core::cell::{Cell, RefCell};
use core::net::{IpAddr, SocketAddr};
use std::collections::{BTreeMap, BTreeSet};
use std::vec::Vec;

use crate::abi::{
    Address, AddressFlags, AffinityKey, AffinityValue, Backend, BackendFlags, BackendIndex,
    ClientAddresses, Device, DropKey, Event, EventKinds, Frontend, FrontendKey, FrontendKind,
    Monitor, Pace, Region, ServiceFlags, ServiceIndex, ServiceRange, ServiceRanges, ServiceRecord,
    SourceRange, SourceSet, Traffic, TrafficKey,
};
use crate::bytes::Be16;
use crate::env::{Carried, TICK_NANOSECONDS, Tables};
use crate::lb::{DropReason, monitor, select};
use crate::maglev;

/// MONITOR of somebody who wants every event.
pub const EVERYTHING: Monitor = Monitor {
    until: u64::MAX,
    kinds: EventKinds::CONNECTIONS | EventKinds::DROPS | EventKinds::REFUSALS,
    rate: u32::MAX,
    address: Address::UNSPECIFIED_V6,
    port: Be16::from_raw(0),
    protocol: 0,
    conditions: 0,
    pad: 0,
};

/// What the maps of one node hold.
#[derive(Clone, Debug, Default)]
pub struct World {
    /// FRONTENDS.
    pub frontends: BTreeMap<FrontendKey, Frontend>,
    /// SERVICES and RECORDS in one: the current record of each Service.
    pub records: BTreeMap<ServiceIndex, ServiceRecord>,
    /// SLOTS.
    pub slots: Vec<BackendIndex>,
    /// BACKENDS; element 0 is never used.
    pub backends: Vec<Backend>,
    /// ADDRESSES.
    pub addresses: BTreeMap<Address, u32>,
    /// CLIENTS by namespace cookie.
    pub clients: BTreeMap<u64, ClientAddresses>,
    /// AFFINITY.
    pub affinity: BTreeMap<AffinityKey, AffinityValue>,
    /// SERVICE_RANGES, IPv4 first.
    pub service_ranges: [ServiceRanges; 2],
    /// TAKEOVER: bits of [`crate::abi::TakeoverFlags`].
    pub takeover: u32,
    /// SOURCE_RANGES.
    pub source_ranges: Vec<SourceRange>,
    /// DEVICES by interface index.
    pub devices: BTreeMap<u32, Device>,
    /// DROPS.
    pub drops: RefCell<BTreeMap<(ServiceIndex, DropReason), u64>>,
    /// TRAFFIC.
    pub traffic: RefCell<BTreeMap<TrafficKey, Traffic>>,
    /// MONITOR.
    pub monitor: Monitor,
    /// WATCHED.
    pub watched: BTreeSet<ServiceIndex>,
    /// PACE.
    pub pace: RefCell<Pace>,
    /// EVENTS, the oldest first.
    pub events: RefCell<Vec<Event>>,
    /// State of the random numbers.
    pub seed: Cell<u32>,
    /// The clock, ticks.
    pub now: Cell<u32>,
}

/// An endpoint as a test names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Where it listens.
    pub address: SocketAddr,
    /// Where it is.
    pub place: Place,
}

/// What the API says about an endpoint's node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// This node.
    Here,
    /// Another node.
    There,
    /// Nothing.
    Unknown,
}

/// A Service port as a test names it.
#[derive(Clone, Debug)]
pub struct Service<'a> {
    /// Addresses that it answers on; a NodePort has the unspecified address.
    pub frontends: &'a [(SocketAddr, FrontendKind)],
    /// IP protocol number.
    pub protocol: u8,
    /// Endpoints under policy Cluster.
    pub cluster: &'a [Endpoint],
    /// Endpoints under policy Local.
    pub local: &'a [Endpoint],
    /// Bits of [`crate::abi::ServiceFlags`].
    pub flags: u32,
    /// Whether it has Maglev tables.
    pub maglev: bool,
    /// Session affinity, seconds; `None` for no affinity.
    pub affinity: Option<u32>,
    /// Who may reach its load balancer addresses: prefixes of an address and a length; `None` for
    /// everybody.
    pub sources: Option<&'a [(IpAddr, u8)]>,
}

impl World {
    /// Adds a Service and returns its index; records, slots and backends are appended.
    pub fn serve(&mut self, service: &Service<'_>) -> ServiceIndex {
        let index = ServiceIndex(self.records.len() as u32 + 1);
        for (address, kind) in service.frontends {
            self.frontends.insert(
                frontend_key(*address, service.protocol),
                Frontend { service: index, kind: *kind as u32 },
            );
            let mark = match kind {
                FrontendKind::ClusterIp => AddressFlags::CLUSTER_IP,
                FrontendKind::ExternalIp | FrontendKind::LoadBalancer => AddressFlags::EXTERNAL,
                FrontendKind::NodePort => continue,
            };
            *self.addresses.entry(address.ip().into()).or_default() |= mark;
        }
        let of_list = |world: &mut Self, endpoints, list| {
            world.endpoints(index, endpoints, list, service.maglev)
        };
        let (cluster, cluster_maglev) = of_list(self, service.cluster, BackendFlags::IN_CLUSTER);
        let (local, local_maglev) = of_list(self, service.local, BackendFlags::IN_LOCAL);
        let affinity = if service.affinity.is_some() { ServiceFlags::AFFINITY } else { 0 };
        let ranges = if service.sources.is_some() { ServiceFlags::SOURCE_RANGES } else { 0 };
        // A set of its own for each Service, so its number will do.
        let sources = SourceSet(index.0);
        self.admit(sources, service.sources.unwrap_or_default());
        let record = ServiceRecord {
            flags: service.flags | affinity | ranges,
            service: index,
            cluster,
            local,
            cluster_maglev,
            local_maglev,
            affinity_timeout: service.affinity.unwrap_or_default(),
            sources,
            ..ServiceRecord::default()
        };
        self.records.insert(index, record);
        index
    }

    /// Adds ranges to a set.
    pub fn admit(&mut self, set: SourceSet, ranges: &[(IpAddr, u8)]) {
        self.source_ranges.extend(ranges.iter().map(|(address, len)| {
            let mapped = if address.is_ipv4() { SourceRange::MAPPED_BITS } else { 0 };
            let prefix_len = SourceRange::SET_BITS + mapped + u32::from(*len);
            SourceRange { prefix_len, set, address: (*address).into() }
        }));
    }

    /// Makes a prefix of this length a range that ClusterIPs are taken from.
    pub fn reserve(&mut self, network: IpAddr, len: u8) {
        let (family, mapped) = match network {
            IpAddr::V4(_) => (ServiceRanges::V4, 96),
            IpAddr::V6(_) => (ServiceRanges::V6, 0),
        };
        let bits = u32::from(len) + mapped;
        let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
        let mask = Address::from_words(bytemuck::cast(mask.to_be_bytes()));
        if let Some(ranges) = self.service_ranges.get_mut(family as usize) {
            let at = ranges.used.count_ones();
            if let Some(range) = ranges.ranges.get_mut(at as usize) {
                *range = ServiceRange { network: network.into(), mask };
                ranges.used |= 1 << at;
            }
        }
    }

    /// Makes `address` the node's own, with NodePorts or without.
    pub fn own(&mut self, address: IpAddr, node_ports: bool) {
        let node_ports = if node_ports { AddressFlags::NODE_PORTS } else { 0 };
        *self.addresses.entry(address.into()).or_default() |= AddressFlags::NODE | node_ports;
    }

    /// The endpoint left: flows that remember it are stale.
    pub fn leave(&mut self, address: SocketAddr) {
        for backend in &mut self.backends {
            if backend.address == address.ip().into() && backend.port.get() == address.port() {
                backend.generation += 1;
            }
        }
    }

    /// Drops counted so far, under the numbers that DROPS has.
    pub fn dropped(&self) -> BTreeMap<(u32, u32), u64> {
        let counts = self.drops.borrow();
        counts.iter().map(|((service, reason), n)| ((service.0, *reason as u32), *n)).collect()
    }

    /// Puts an event into EVENTS, if somebody wants it.
    pub(super) fn tell(&self, event: &mut Event) {
        event.time = u64::from(self.now.get()) * TICK_NANOSECONDS;
        let is_watched = |service| self.watched.contains(&service);
        if monitor::wants(&self.monitor, event, is_watched)
            && monitor::admits(&mut self.pace.borrow_mut(), event.time, self.monitor.rate)
        {
            self.events.borrow_mut().push(*event);
        }
    }

    /// Adds to TRAFFIC; for an endpoint that has left only if it has an entry, as the programs do.
    fn count(&self, key: &TrafficKey, counted: Traffic) {
        let current = self.backends.get(key.backend.0 as usize);
        let is_current = current.is_some_and(|backend| backend.generation == key.generation);
        let mut traffic = self.traffic.borrow_mut();
        if is_current || traffic.contains_key(key) {
            let entry = traffic.entry(*key).or_default();
            *entry = *entry + counted;
        }
    }

    fn endpoints(
        &mut self,
        service: ServiceIndex,
        endpoints: &[Endpoint],
        list: u16,
        maglev: bool,
    ) -> (Region, Region) {
        let indices: Vec<BackendIndex> =
            endpoints.iter().map(|endpoint| self.backend_of(service, endpoint, list)).collect();
        let slots = self.region(&indices);
        if !maglev {
            return (slots, Region::default());
        }
        let addresses: Vec<SocketAddr> = endpoints.iter().map(|e| e.address).collect();
        let mut table = std::vec![0; maglev::table_len(addresses.len() as u32) as usize];
        maglev::fill(&mut table, &addresses, &mut std::vec![(0, 0); addresses.len()]);
        let chosen: Vec<BackendIndex> =
            table.iter().filter_map(|at| indices.get(*at as usize).copied()).collect();
        (slots, self.region(&chosen))
    }

    /// The element of an endpoint; one that is in both lists has one element, as in the maps.
    fn backend_of(
        &mut self,
        service: ServiceIndex,
        endpoint: &Endpoint,
        list: u16,
    ) -> BackendIndex {
        if self.backends.is_empty() {
            self.backends.push(Backend::default());
        }
        let is_it = |known: &Backend| {
            known.service == service
                && known.address == endpoint.address.ip().into()
                && known.port.get() == endpoint.address.port()
        };
        if endpoint.place == Place::Here {
            let address = endpoint.address.ip().into();
            *self.addresses.entry(address).or_default() |= AddressFlags::ENDPOINT;
        }
        let known = (0..).zip(&mut self.backends).find(|(_, known)| is_it(known));
        if let Some((index, known)) = known {
            known.flags |= list;
            return BackendIndex(index);
        }
        let place = match endpoint.place {
            Place::Here => BackendFlags::LOCAL,
            Place::There => BackendFlags::REMOTE,
            Place::Unknown => 0,
        };
        self.backends.push(Backend {
            address: endpoint.address.ip().into(),
            port: Be16::new(endpoint.address.port()),
            flags: place | BackendFlags::LIVE | list,
            generation: 1,
            service,
            pad: 0,
        });
        BackendIndex(self.backends.len() as u32 - 1)
    }

    fn region(&mut self, elements: &[BackendIndex]) -> Region {
        let region = Region { offset: self.slots.len() as u32, len: elements.len() as u32 };
        self.slots.extend(elements);
        region
    }
}

/// The key of a frontend.
pub fn frontend_key(address: SocketAddr, protocol: u8) -> FrontendKey {
    FrontendKey { address: address.ip().into(), port: Be16::new(address.port()), protocol, pad: 0 }
}

/// The key of a drop counter.
pub fn drop_key(service: ServiceIndex, reason: DropReason) -> DropKey {
    DropKey { service, reason: reason as u32 }
}

/// Whoever has the Service tables: every hook of a node asks the same ones.
pub trait HasWorld {
    /// To read.
    fn world(&self) -> &World;
    /// To write.
    fn world_mut(&mut self) -> &mut World;
}

impl HasWorld for World {
    fn world(&self) -> &World {
        self
    }
    fn world_mut(&mut self) -> &mut World {
        self
    }
}

impl<W: HasWorld> Tables for W {
    fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
        self.world().frontends.get(key).copied()
    }

    fn record(&self, service: ServiceIndex) -> Option<&ServiceRecord> {
        self.world().records.get(&service)
    }

    fn slot(&self, index: u32) -> Option<BackendIndex> {
        self.world().slots.get(index as usize).copied()
    }

    fn backend(&self, index: BackendIndex) -> Option<&Backend> {
        self.world().backends.get(index.0 as usize)
    }

    fn address_flags(&self, address: &Address) -> u32 {
        self.world().addresses.get(address).copied().unwrap_or(0)
    }

    fn service_ranges(&self, address: Address) -> Option<&ServiceRanges> {
        let family = if address.is_v4() { ServiceRanges::V4 } else { ServiceRanges::V6 };
        self.world().service_ranges.get(family as usize)
    }

    fn takeover(&self) -> u32 {
        self.world().takeover
    }

    fn source_range(&self, key: &SourceRange) -> bool {
        let number = |address: Address| u128::from_be_bytes(bytemuck::cast(address.words()));
        self.world().source_ranges.iter().any(|range| {
            let host_bits = SourceRange::SET_BITS + 128 - range.prefix_len;
            let differ = number(range.address) ^ number(key.address);
            range.set == key.set && differ.checked_shr(host_bits).unwrap_or(0) == 0
        })
    }

    fn affinity(&mut self, key: &AffinityKey) -> Option<&mut AffinityValue> {
        self.world_mut().affinity.get_mut(key)
    }

    fn set_affinity(&mut self, key: &AffinityKey, value: &AffinityValue) {
        self.world_mut().affinity.insert(*key, *value);
    }

    fn random(&self) -> u32 {
        self.world().seed.set(select::mix(self.world().seed.get().wrapping_add(0x9e37_79b9)));
        self.world().seed.get()
    }

    fn now(&self) -> u32 {
        self.world().now.get()
    }

    fn count_drop(&self, service: ServiceIndex, reason: DropReason) {
        *self.world().drops.borrow_mut().entry((service, reason)).or_default() += 1;
    }

    fn watched(&self) -> u32 {
        self.world().monitor.kinds
    }

    fn count_socket(&self, key: &TrafficKey) {
        self.world().count(key, Traffic { sockets: 1, ..Traffic::default() });
    }

    fn count_carried(&self, key: &TrafficKey, carried: &Carried) {
        let Carried { flows, reply, packets, bytes } = *carried;
        let (packets, bytes) = (u64::from(packets), u64::from(bytes));
        let mut counted = Traffic { flows: flows.into(), ..Traffic::default() };
        if reply {
            (counted.packets_from, counted.bytes_from) = (packets, bytes);
        } else {
            (counted.packets_to, counted.bytes_to) = (packets, bytes);
        }
        self.world().count(key, counted);
    }
}
