//! The typed mirror of the maps: what they hold, what must change, in which order.
//!
//! Knows neither Kubernetes nor BPF: it writes a plan ([`Delta`]) through a [`Store`]. Within a
//! change the order is frontends−, backends+, slots, record, publish, frontends+, backends−: make
//! before break. What was published is never written again before every program run that could
//! see it has ended ([`Store::barrier`]).

mod addresses;
mod adopt;
pub mod alloc;
pub mod encode;
mod entry;
pub mod layout;
mod ranges;
mod sources;
pub mod store;

#[cfg(any(test, feature = "model"))]
pub mod fake_store;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use lb_common::abi::{
    Address, Backend, BackendIndex, ClientAddresses, Frontend, FrontendKind as AbiKind,
    ServiceIndex, ServicePointer,
};

use crate::cluster::snapshot::Protocol;
use crate::node::facts::{self, NodeFacts};
use crate::plan::desired::{
    Delta, Desired, FrontendAddress, FrontendKind, ServicePortKey, ServicePortPlan,
};
use addresses::Addresses;
use alloc::{Indices, Run, Runs};
use entry::{Entry, Problem};
use sources::Sources;
use store::{Store, StoreError, Table};

/// Everything that the maps hold, and what is free in them.
#[derive(Debug)]
pub struct Tables<S> {
    store: S,
    entries: BTreeMap<ServicePortKey, Entry>,
    services: Indices,
    records: Indices,
    backends: Indices,
    slots: Runs,
    /// Numbers of sets in SOURCE_RANGES.
    sets: Indices,
    /// Entries of SOURCE_RANGES.
    ranges: u32,
    addresses: Addresses,
    retired: Retired,
    unfit: BTreeMap<ServicePortKey, Unfit>,
    /// Frontends that the map had no room for, or whose Service port is not there.
    skipped: BTreeMap<FrontendAddress, (ServicePortKey, FrontendKind)>,
    /// ClusterIPs and ports that processes of this node listen at.
    listeners: BTreeSet<FrontendAddress>,
    /// Frontends that the map doesn't hold because of them.
    left: BTreeMap<FrontendAddress, (ServicePortKey, FrontendKind)>,
    /// Backends of UDP Service ports were retired since this was last asked, or what was dropped in
    /// silence isn't any more.
    udp_left: bool,
    /// What was for TCP Service ports and dropped in silence isn't any more, since this was last asked.
    tcp_silence_ended: bool,
    /// UDP frontends were given to Service ports since this was last asked.
    udp_frontends: bool,
}

/// A Service port that is not, or not as planned, in the maps.
#[derive(Debug)]
struct Unfit {
    reason: String,
    plan: Arc<ServicePortPlan>,
}

/// Unpublished, but perhaps still being read.
#[derive(Debug, Default)]
struct Retired {
    services: Vec<u32>,
    records: Vec<u32>,
    backends: Vec<u32>,
    slots: Vec<Run>,
    sources: Vec<Sources>,
}

impl Retired {
    fn is_empty(&self) -> bool {
        let Self { services, records, backends, slots, sources } = self;
        services.is_empty()
            && records.is_empty()
            && backends.is_empty()
            && slots.is_empty()
            && sources.is_empty()
    }
}

impl<S: Store> Tables<S> {
    /// Reads what the maps hold now.
    pub fn adopt(store: S) -> Result<Self, StoreError> {
        adopt::adopt(store)
    }

    /// The maps themselves.
    pub fn store(&self) -> &S {
        &self.store
    }

    /// Gives the maps back, for a fresh start.
    pub fn into_store(self) -> S {
        self.store
    }

    /// Makes the maps hold exactly `desired`: the difference to what they hold, applied like any
    /// other.
    pub fn reconcile(&mut self, desired: &Desired) -> Result<(), StoreError> {
        let mut delta = Delta::default();
        for key in self.entries.keys() {
            if !desired.ports.contains_key(key) {
                delta.ports.insert(key.clone(), None);
            }
        }
        for (key, plan) in &desired.ports {
            delta.ports.insert(key.clone(), Some(plan.clone()));
        }
        let wanted: BTreeSet<_> = desired.frontends.keys().map(encode::frontend_key).collect();
        for (key, _) in self.store.frontends()? {
            if !wanted.contains(&key) {
                self.store.remove_frontend(&key)?;
            }
        }
        self.skipped.clear();
        self.left.clear();
        self.unfit.retain(|key, _| desired.ports.contains_key(key));
        for (address, holder) in &desired.frontends {
            delta.frontends.insert(*address, Some(holder.clone()));
        }
        delta.ranges.clone_from(&desired.ranges);
        self.apply(&delta)?;
        self.addresses.settle(&mut self.store)
    }

    /// Applies one change. What does not fit is remembered ([`unfit`](Self::unfit)); an error means
    /// that the maps can't be used any more.
    pub fn apply(&mut self, delta: &Delta) -> Result<(), StoreError> {
        for (address, holder) in &delta.frontends {
            if holder.is_none() {
                self.skipped.remove(address);
                self.left.remove(address);
                self.addresses.set_service(&mut self.store, address, None)?;
                self.store.remove_frontend(&encode::frontend_key(address))?;
            }
        }
        for (key, plan) in &delta.ports {
            if let Some(plan) = plan {
                self.write_port(key, plan)?;
            }
        }
        for (address, holder) in &delta.frontends {
            if let Some((key, kind)) = holder {
                self.udp_frontends |= address.protocol == Protocol::Udp;
                self.write_frontend(address, key, *kind)?;
                self.addresses.set_service(&mut self.store, address, Some(*kind))?;
            }
        }
        for (key, plan) in &delta.ports {
            if plan.is_none() {
                self.remove_port(key)?;
            }
        }
        self.addresses.settle_endpoints(&mut self.store)?;
        delta.ranges.as_ref().map_or(Ok(()), |wanted| ranges::set(&mut self.store, wanted))
    }

    /// Frees what nobody reads any more and tries again what did not fit.
    pub fn maintain(&mut self) -> Result<(), StoreError> {
        self.reclaim()?;
        for (key, Unfit { plan, .. }) in std::mem::take(&mut self.unfit) {
            self.write_port(&key, &plan)?;
        }
        for (address, (key, kind)) in std::mem::take(&mut self.skipped) {
            self.write_frontend(&address, &key, kind)?;
        }
        self.addresses.settle_endpoints(&mut self.store)
    }

    /// Makes the maps hold the node's own addresses and devices. `xdp` says for each device whether
    /// frames may be sent to it from XDP.
    pub fn set_node(
        &mut self,
        facts: &NodeFacts,
        xdp: impl Fn(u32) -> bool,
    ) -> Result<(), StoreError> {
        self.addresses.set_node(&mut self.store, &facts.addresses)?;
        let present: BTreeMap<_, _> = self.store.devices()?.into_iter().collect();
        for (index, device) in &facts.devices {
            let value = encode::device(device, xdp(*index));
            if present.get(index) != Some(&value) {
                self.store.set_device(*index, &value)?;
            }
        }
        for index in present.keys().filter(|index| !facts.devices.contains_key(index)) {
            self.store.remove_device(*index)?;
        }
        Ok(())
    }

    /// ClusterIPs that the node has on its devices: processes may listen there.
    pub fn cluster_ips_of_node(&self) -> BTreeSet<IpAddr> {
        self.addresses.cluster_ips_of_node()
    }

    /// Leaves frontends at ClusterIPs to the processes of this node that listen there, and serves those that
    /// have none any more. Whether that made a difference.
    pub fn set_listeners(
        &mut self,
        listeners: BTreeSet<FrontendAddress>,
    ) -> Result<bool, StoreError> {
        let gone: Vec<_> = self.listeners.difference(&listeners).copied().collect();
        let new = listeners.difference(&self.listeners);
        let new: BTreeMap<_, _> =
            new.map(|address| (encode::frontend_key(address), *address)).collect();
        self.listeners = listeners;
        let mut has_changed = false;
        for address in &gone {
            if let Some((key, kind)) = self.left.remove(address) {
                let is_udp = address.protocol == Protocol::Udp;
                // Sockets may be connected to the process that is gone.
                self.udp_left |= is_udp;
                self.udp_frontends |= is_udp;
                self.write_frontend(address, &key, kind)?;
                has_changed = true;
            }
        }
        let present = if new.is_empty() { Vec::new() } else { self.store.frontends()? };
        for (key, frontend) in present {
            let Some(address) = new.get(&key) else { continue };
            let holder = self.entries.iter().find(|(_, entry)| entry.index == frontend.service);
            let kind = AbiKind::from_number(frontend.kind).map(encode::desired_kind);
            if let (Some((holder, _)), Some(kind)) = (holder, kind) {
                let holder = holder.clone();
                self.write_frontend(address, &holder, kind)?;
                has_changed |= self.left.contains_key(address);
            }
        }
        Ok(has_changed)
    }

    /// Frontends that are left to processes of this node, with their Service ports.
    pub fn left_to_listeners(&self) -> impl Iterator<Item = (&FrontendAddress, &ServicePortKey)> {
        self.left.iter().map(|(address, (key, _))| (address, key))
    }

    /// Makes the maps hold the addresses of these network namespaces, by cookie. Returns those that
    /// there was no room for: as if nothing were known of them.
    pub fn set_clients(
        &mut self,
        clients: &BTreeMap<u64, facts::ClientAddresses>,
    ) -> Result<Vec<u64>, StoreError> {
        let present: BTreeMap<u64, ClientAddresses> = self.store.clients()?.into_iter().collect();
        for namespace in present.keys().filter(|namespace| !clients.contains_key(namespace)) {
            self.store.remove_client(*namespace)?;
        }
        let mut left_out = Vec::new();
        for (namespace, addresses) in clients {
            let value = encode::client(addresses);
            if present.get(namespace) == Some(&value) {
                continue;
            }
            match self.store.set_client(*namespace, &value) {
                Ok(()) => {}
                Err(StoreError::Full { .. }) => left_out.push(*namespace),
                Err(error @ StoreError::Call { .. }) => return Err(error),
            }
        }
        Ok(left_out)
    }

    /// Makes the maps hold the addresses of the node's pods that are served by packet.
    pub fn set_pods(
        &mut self,
        pods: impl Iterator<Item = facts::ClientAddresses>,
    ) -> Result<(), StoreError> {
        let addresses = pods.flat_map(|facts::ClientAddresses { address4, address6 }| {
            [address4.map(IpAddr::from), address6.map(IpAddr::from)].into_iter().flatten()
        });
        self.addresses.set_pods(&mut self.store, addresses.map(Address::from).collect())
    }

    /// Service ports that are not, or not as planned, in the maps, and why.
    pub fn unfit(&self) -> impl Iterator<Item = (&ServicePortKey, &str)> {
        let skipped = self.skipped.values().map(|(key, _)| (key, FRONTENDS_FULL));
        let unfit = self.unfit.iter().map(|(key, unfit)| (key, unfit.reason.as_str()));
        let mut seen = BTreeSet::new();
        unfit.chain(skipped).filter(move |(key, _)| seen.insert((*key).clone()))
    }

    /// Whether endpoints have left UDP Service ports since the last call, or silence has.
    pub fn take_udp_left(&mut self) -> bool {
        std::mem::take(&mut self.udp_left)
    }

    /// Whether TCP Service ports have begun to serve what they dropped in silence, or are gone, since the last
    /// call.
    pub fn take_tcp_silence_ended(&mut self) -> bool {
        std::mem::take(&mut self.tcp_silence_ended)
    }

    /// Whether UDP frontends were given to Service ports since the last call: each may have been
    /// another's before.
    pub fn take_udp_frontends(&mut self) -> bool {
        std::mem::take(&mut self.udp_frontends)
    }

    /// Elements in use and in all, for each table.
    pub fn fill(&self) -> Vec<(Table, u32, u32)> {
        [
            (Table::Services, self.services.used()),
            (Table::Records, self.records.used()),
            (Table::Backends, self.backends.used()),
            (Table::Slots, self.slots.used()),
            (Table::SourceRanges, self.ranges),
        ]
        .into_iter()
        .map(|(table, used)| (table, used, self.store.capacity(table)))
        .collect()
    }

    /// Adds or changes a Service port; what does not fit is noted.
    fn write_port(
        &mut self,
        key: &ServicePortKey,
        plan: &Arc<ServicePortPlan>,
    ) -> Result<(), StoreError> {
        let mut result = entry::write(self, key, plan);
        if matches!(result, Err(Problem::Full(_))) && !self.retired.is_empty() {
            self.reclaim()?;
            result = entry::write(self, key, plan);
        }
        match result {
            Ok(()) => {
                self.unfit.remove(key);
                Ok(())
            }
            Err(Problem::Store(error)) => Err(error),
            Err(problem @ (Problem::Full(_) | Problem::Name)) => {
                let unfit = Unfit { reason: problem.to_string(), plan: plan.clone() };
                self.unfit.insert(key.clone(), unfit);
                Ok(())
            }
        }
    }

    fn write_frontend(
        &mut self,
        address: &FrontendAddress,
        key: &ServicePortKey,
        kind: FrontendKind,
    ) -> Result<(), StoreError> {
        if kind == FrontendKind::ClusterIp && self.listeners.contains(address) {
            self.skipped.remove(address);
            self.left.insert(*address, (key.clone(), kind));
            return self.store.remove_frontend(&encode::frontend_key(address));
        }
        self.left.remove(address);
        let written = match self.entries.get(key) {
            None => false,
            Some(entry) => {
                let value =
                    Frontend { service: entry.index, kind: encode::frontend_kind(kind) as u32 };
                match self.store.set_frontend(&encode::frontend_key(address), &value) {
                    Ok(()) => true,
                    Err(StoreError::Full { .. }) => false,
                    Err(error @ StoreError::Call { .. }) => return Err(error),
                }
            }
        };
        if written {
            self.skipped.remove(address);
        } else {
            self.skipped.insert(*address, (key.clone(), kind));
        }
        Ok(())
    }

    /// Takes a Service port out. Its frontends are gone or others' already.
    fn remove_port(&mut self, key: &ServicePortKey) -> Result<(), StoreError> {
        self.unfit.remove(key);
        let Some(entry) = self.entries.remove(key) else {
            return Ok(());
        };
        self.udp_left |= key.protocol == Protocol::Udp;
        self.tcp_silence_ended |=
            key.protocol == Protocol::Tcp && entry::silence(self, &entry).is_some();
        self.store.publish(entry.index, ServicePointer::default());
        self.store.remove_name(entry.index)?;
        for index in &entry.backends {
            self.retire_backend(key, *index);
        }
        self.retire_record(&entry);
        self.retired.sources.extend(entry.sources);
        self.retired.services.push(entry.index.0);
        Ok(())
    }

    /// Waits until nobody reads what is retired, and frees it.
    fn reclaim(&mut self) -> Result<(), StoreError> {
        if self.retired.is_empty() {
            return Ok(());
        }
        self.store.barrier()?;
        let Retired { services, records, backends, slots, sources } =
            std::mem::take(&mut self.retired);
        if !services.is_empty() {
            let gone: BTreeSet<u32> = services.iter().copied().collect();
            self.store.forget_counts(|service| gone.contains(&service.0))?;
        }
        services.into_iter().for_each(|index| self.services.give(index));
        records.into_iter().for_each(|index| self.records.give(index));
        backends.into_iter().for_each(|index| self.backends.give(index));
        slots.into_iter().for_each(|run| self.slots.give(run));
        sources.iter().try_for_each(|sources| sources::remove(self, sources))
    }

    fn retire_record(&mut self, entry: &Entry) {
        if entry.record != 0 {
            self.retired.records.push(entry.record);
        }
        if entry.run.len != 0 {
            self.retired.slots.push(entry.run);
        }
    }

    /// An endpoint left: its flows are stale from this store on.
    fn retire_backend(&mut self, key: &ServicePortKey, index: u32) {
        self.udp_left |= key.protocol == Protocol::Udp;
        let index = BackendIndex(index);
        let generation = self.store.backend(index).generation.wrapping_add(1);
        self.store.set_generation(index, generation);
        self.set_backend_flags(index, 0);
        self.retired.backends.push(index.0);
    }

    /// Changes the flags of an element of BACKENDS.
    fn set_backend_flags(&mut self, index: BackendIndex, flags: u16) {
        let Backend { address, flags: before, .. } = self.store.backend(index);
        if before == flags {
            return;
        }
        self.store.set_backend_flags(index, flags);
        self.addresses.set_endpoint(address, before, flags);
    }

    /// Whether there is a Service port of this protocol.
    pub fn serves(&self, protocol: Protocol) -> bool {
        self.entries.keys().any(|key| key.protocol == protocol)
    }

    /// The index of a Service port, for tests and tools.
    pub fn index_of(&self, key: &ServicePortKey) -> Option<ServiceIndex> {
        self.entries.get(key).map(|entry| entry.index)
    }
}

const FRONTENDS_FULL: &str = "the map FRONTENDS has no room for one of its addresses, or the \
    Service itself is not there; restart with a greater --max-services";
