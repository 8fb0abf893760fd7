//! The Service tables in plain collections, and an easy way to fill them.

use core::cell::{Cell, RefCell};
use core::net::{IpAddr, SocketAddr};
use std::collections::BTreeMap;
use std::vec::Vec;

use crate::abi::{
    Address, AddressFlags, Backend, BackendFlags, BackendIndex, Device, DropKey, Frontend,
    FrontendKey, FrontendKind, Region, ServiceIndex, ServiceRecord,
};
use crate::bytes::Be16;
use crate::env::Tables;
use crate::lb::{DropReason, select};
use crate::maglev;

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
    /// DEVICES by interface index.
    pub devices: BTreeMap<u32, Device>,
    /// DROPS.
    pub drops: RefCell<BTreeMap<(ServiceIndex, DropReason), u64>>,
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
            if *kind == FrontendKind::ClusterIp {
                let flags = self.addresses.entry(address.ip().into()).or_default();
                *flags |= AddressFlags::CLUSTER_IP;
            }
        }
        let (cluster, cluster_maglev) = self.endpoints(index, service.cluster, service.maglev);
        let (local, local_maglev) = self.endpoints(index, service.local, service.maglev);
        let record = ServiceRecord {
            flags: service.flags,
            service: index,
            cluster,
            local,
            cluster_maglev,
            local_maglev,
            ..ServiceRecord::default()
        };
        self.records.insert(index, record);
        index
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

    fn endpoints(
        &mut self,
        service: ServiceIndex,
        endpoints: &[Endpoint],
        maglev: bool,
    ) -> (Region, Region) {
        let indices: Vec<BackendIndex> =
            endpoints.iter().map(|endpoint| self.backend_of(service, endpoint)).collect();
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

    fn backend_of(&mut self, service: ServiceIndex, endpoint: &Endpoint) -> BackendIndex {
        if self.backends.is_empty() {
            self.backends.push(Backend::default());
        }
        let place = match endpoint.place {
            Place::Here => BackendFlags::LOCAL,
            Place::There => BackendFlags::REMOTE,
            Place::Unknown => 0,
        };
        self.backends.push(Backend {
            address: endpoint.address.ip().into(),
            port: Be16::new(endpoint.address.port()),
            flags: place | BackendFlags::LIVE,
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

impl Tables for World {
    fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
        self.frontends.get(key).copied()
    }

    fn record(&self, service: ServiceIndex) -> Option<&ServiceRecord> {
        self.records.get(&service)
    }

    fn slot(&self, index: u32) -> Option<BackendIndex> {
        self.slots.get(index as usize).copied()
    }

    fn backend(&self, index: BackendIndex) -> Option<&Backend> {
        self.backends.get(index.0 as usize)
    }

    fn address_flags(&self, address: &Address) -> u32 {
        self.addresses.get(address).copied().unwrap_or(0)
    }

    fn random(&self) -> u32 {
        self.seed.set(select::mix(self.seed.get().wrapping_add(0x9e37_79b9)));
        self.seed.get()
    }

    fn now(&self) -> u32 {
        self.now.get()
    }

    fn count_drop(&self, service: ServiceIndex, reason: DropReason) {
        *self.drops.borrow_mut().entry((service, reason)).or_default() += 1;
    }
}
