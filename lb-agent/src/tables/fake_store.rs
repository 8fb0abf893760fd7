//! Maps made of plain collections, for tests of what is written in which order (feature `model`, never
//! part of the agent). A write that breaks the order of publication panics.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

use lb_common::abi::{
    Address, Backend, BackendIndex, ClientAddresses, Device, Frontend, FrontendKey, ServiceIndex,
    ServiceName, ServicePointer, ServiceRange, ServiceRanges, ServiceRecord, SourceRange, Traffic,
    TrafficKey,
};

use super::store::{Store, StoreError, Table};

/// Maps as large as told.
#[derive(Debug, Default)]
pub struct FakeStore {
    /// Entries that FRONTENDS may have.
    pub frontends_capacity: usize,
    /// SERVICES.
    pub pointers: Vec<ServicePointer>,
    /// RECORDS.
    pub records: Vec<ServiceRecord>,
    /// SLOTS.
    pub slots: Vec<u32>,
    /// BACKENDS.
    pub backends: Vec<Backend>,
    /// FRONTENDS.
    pub frontends: BTreeMap<FrontendKey, Frontend>,
    /// NAMES.
    pub names: BTreeMap<ServiceIndex, ServiceName>,
    /// ADDRESSES.
    pub addresses: BTreeMap<Address, u32>,
    /// CLIENTS.
    pub clients: BTreeMap<u64, ClientAddresses>,
    /// SOURCE_RANGES.
    pub source_ranges: BTreeSet<SourceRange>,
    /// Entries that SOURCE_RANGES may have.
    pub source_ranges_capacity: usize,
    /// DEVICES.
    pub devices: BTreeMap<u32, Device>,
    /// TRAFFIC.
    pub traffic: BTreeMap<TrafficKey, Traffic>,
    /// SERVICE_RANGES.
    pub service_ranges: [ServiceRanges; 2],
    /// Ranges that programs may still see in use, until a barrier.
    pub seen: Cell<[u32; 2]>,
    /// Calls of `barrier`.
    pub barriers: Cell<u32>,
    /// Stores to SERVICES, in order.
    pub published: Vec<(ServiceIndex, ServicePointer)>,
    /// Every write of any kind.
    pub writes: u32,
}

impl FakeStore {
    /// Empty maps with room for this many Service ports, backends and slots.
    pub fn new(services: usize, backends: usize, slots: usize) -> Self {
        Self {
            frontends_capacity: services * 4,
            source_ranges_capacity: 16,
            pointers: vec![ServicePointer::default(); services],
            records: vec![ServiceRecord::default(); services * 2],
            slots: vec![0; slots],
            backends: vec![Backend::default(); backends],
            ..Self::default()
        }
    }
}

impl FakeStore {
    fn is_not_published(&self, range: &SourceRange) {
        for pointer in self.pointers.iter().filter(|p| p.record != 0) {
            let named = self.records[pointer.record as usize].sources;
            assert_ne!(named, range.set, "the set of {range:?} is published");
        }
    }
}

impl Store for FakeStore {
    fn capacity(&self, table: Table) -> u32 {
        let len = match table {
            Table::Frontends => self.frontends_capacity,
            Table::Services => self.pointers.len(),
            Table::Records => self.records.len(),
            Table::Slots => self.slots.len(),
            Table::Backends => self.backends.len(),
            Table::SourceRanges => self.source_ranges_capacity,
            Table::Addresses | Table::Devices => 1 << 10,
        };
        u32::try_from(len).unwrap_or(u32::MAX)
    }
    fn pointer(&self, service: ServiceIndex) -> ServicePointer {
        self.pointers[service.0 as usize]
    }
    fn publish(&mut self, service: ServiceIndex, pointer: ServicePointer) {
        self.writes += 1;
        self.published.push((service, pointer));
        self.pointers[service.0 as usize] = pointer;
    }
    fn record(&self, index: u32) -> ServiceRecord {
        self.records[index as usize]
    }
    fn set_record(&mut self, index: u32, record: &ServiceRecord) {
        self.writes += 1;
        let current = self.pointers.iter().any(|p| p.record == index);
        assert!(!current, "record {index} is published and must not be written");
        self.records[index as usize] = *record;
    }
    fn slots(&self, offset: u32, len: u32) -> Vec<u32> {
        self.slots.iter().skip(offset as usize).take(len as usize).copied().collect()
    }
    fn set_slots(&mut self, offset: u32, slots: &[u32]) {
        self.writes += 1;
        let end = offset + slots.len() as u32;
        for pointer in self.pointers.iter().filter(|p| p.record != 0) {
            let run = super::layout::run_of(&self.records[pointer.record as usize]);
            let apart = end <= run.offset || run.offset + run.len <= offset;
            assert!(apart || run.len == 0, "slots {offset}..{end} are published");
        }
        self.slots[offset as usize..end as usize].copy_from_slice(slots);
    }
    fn backend(&self, index: BackendIndex) -> Backend {
        self.backends[index.0 as usize]
    }
    fn set_backend(&mut self, index: BackendIndex, backend: &Backend) {
        self.writes += 1;
        self.backends[index.0 as usize] = *backend;
    }
    fn set_backend_flags(&mut self, index: BackendIndex, flags: u16) {
        self.writes += 1;
        self.backends[index.0 as usize].flags = flags;
    }
    fn set_generation(&mut self, index: BackendIndex, generation: u32) {
        self.writes += 1;
        self.backends[index.0 as usize].generation = generation;
    }
    fn service_ranges(&self, family: u32) -> ServiceRanges {
        self.service_ranges[family as usize]
    }
    fn set_service_range(&mut self, family: u32, at: usize, range: &ServiceRange) {
        self.writes += 1;
        let seen = self.seen.get()[family as usize] & (1 << at);
        assert_eq!(seen, 0, "range {at} of family {family} is in use");
        self.service_ranges[family as usize].ranges[at] = *range;
    }
    fn use_service_ranges(&mut self, family: u32, used: u32) {
        self.writes += 1;
        self.service_ranges[family as usize].used = used;
        let mut seen = self.seen.get();
        seen[family as usize] |= used;
        self.seen.set(seen);
    }
    fn frontends(&self) -> Result<Vec<(FrontendKey, Frontend)>, StoreError> {
        Ok(self.frontends.iter().map(|(k, v)| (*k, *v)).collect())
    }
    fn set_frontend(&mut self, key: &FrontendKey, value: &Frontend) -> Result<(), StoreError> {
        let room = self.frontends.len() < self.frontends_capacity;
        if !room && !self.frontends.contains_key(key) {
            return Err(StoreError::Full { map: "FRONTENDS" });
        }
        let pointer = self.pointers[value.service.0 as usize];
        assert_ne!(pointer.record, 0, "a frontend must lead to a published Service");
        if self.frontends.insert(*key, *value) != Some(*value) {
            self.writes += 1;
        }
        Ok(())
    }
    fn remove_frontend(&mut self, key: &FrontendKey) -> Result<(), StoreError> {
        self.writes += 1;
        self.frontends.remove(key);
        Ok(())
    }
    fn names(&self) -> Result<Vec<(ServiceIndex, ServiceName)>, StoreError> {
        Ok(self.names.iter().map(|(k, v)| (*k, *v)).collect())
    }
    fn set_name(&mut self, service: ServiceIndex, name: &ServiceName) -> Result<(), StoreError> {
        self.writes += 1;
        self.names.insert(service, *name);
        Ok(())
    }
    fn remove_name(&mut self, service: ServiceIndex) -> Result<(), StoreError> {
        self.writes += 1;
        self.names.remove(&service);
        Ok(())
    }
    fn addresses(&self) -> Result<Vec<(Address, u32)>, StoreError> {
        Ok(self.addresses.iter().map(|(k, v)| (*k, *v)).collect())
    }
    fn set_address(&mut self, address: &Address, flags: u32) -> Result<(), StoreError> {
        self.writes += 1;
        self.addresses.insert(*address, flags);
        Ok(())
    }
    fn remove_address(&mut self, address: &Address) -> Result<(), StoreError> {
        self.writes += 1;
        self.addresses.remove(address);
        Ok(())
    }
    fn clients(&self) -> Result<Vec<(u64, ClientAddresses)>, StoreError> {
        Ok(self.clients.iter().map(|(k, v)| (*k, *v)).collect())
    }
    fn set_client(&mut self, namespace: u64, value: &ClientAddresses) -> Result<(), StoreError> {
        self.writes += 1;
        self.clients.insert(namespace, *value);
        Ok(())
    }
    fn remove_client(&mut self, namespace: u64) -> Result<(), StoreError> {
        self.writes += 1;
        self.clients.remove(&namespace);
        Ok(())
    }
    fn source_ranges(&self) -> Result<Vec<SourceRange>, StoreError> {
        Ok(self.source_ranges.iter().copied().collect())
    }
    fn set_source_range(&mut self, range: &SourceRange) -> Result<(), StoreError> {
        self.writes += 1;
        self.is_not_published(range);
        if self.source_ranges.len() >= self.source_ranges_capacity {
            return Err(StoreError::Full { map: "SOURCE_RANGES" });
        }
        assert!(self.source_ranges.insert(*range), "{range:?} is there already");
        Ok(())
    }
    fn remove_source_range(&mut self, range: &SourceRange) -> Result<(), StoreError> {
        self.writes += 1;
        self.is_not_published(range);
        self.source_ranges.remove(range);
        Ok(())
    }
    fn devices(&self) -> Result<Vec<(u32, Device)>, StoreError> {
        Ok(self.devices.iter().map(|(k, v)| (*k, *v)).collect())
    }
    fn set_device(&mut self, index: u32, device: &Device) -> Result<(), StoreError> {
        self.writes += 1;
        self.devices.insert(index, *device);
        Ok(())
    }
    fn remove_device(&mut self, index: u32) -> Result<(), StoreError> {
        self.writes += 1;
        self.devices.remove(&index);
        Ok(())
    }
    fn forget_counts(&mut self, gone: impl Fn(ServiceIndex) -> bool) -> Result<(), StoreError> {
        self.traffic.retain(|key, _| !gone(key.service));
        Ok(())
    }
    fn barrier(&self) -> Result<(), StoreError> {
        self.barriers.set(self.barriers.get() + 1);
        self.seen.set(self.service_ranges.map(|ranges| ranges.used));
        Ok(())
    }
}
