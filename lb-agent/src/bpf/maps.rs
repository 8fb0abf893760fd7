//! The pinned maps of the Service tables, as `tables` needs them: arrays by mmap, hashes by bpf(2).

use std::io;
use std::mem::offset_of;
use std::os::fd::{AsFd as _, OwnedFd};

use aya_obj::generated::bpf_map_type;
use bytemuck::Pod;
use lb_common::abi::{
    self, Address, Backend, BackendIndex, ClientAddresses, Device, Frontend, FrontendKey,
    ServiceIndex, ServiceName, ServicePointer, ServiceRange, ServiceRanges, ServiceRecord,
    SourceRange,
};

use super::counters::DropCounters;
use super::error::BpfError;
use super::hash::{self, Hash};
use super::pins::Pins;
use super::sys::{self, Access};
use super::table::Table;
use super::traffic::TrafficCounters;
use super::trie::Trie;
use crate::tables::store::{Store, StoreError, Table as TableName};

const LOOKUP: &str = "bpf(BPF_MAP_LOOKUP_BATCH)";
const NEXT: &str = "bpf(BPF_MAP_GET_NEXT_KEY)";
const UPDATE: &str = "bpf(BPF_MAP_UPDATE_ELEM)";
const DELETE: &str = "bpf(BPF_MAP_DELETE_ELEM)";

/// The Service tables under one pin directory.
#[derive(Debug)]
pub struct PinnedMaps {
    services: Table<ServicePointer>,
    records: Table<ServiceRecord>,
    slots: Table<u32>,
    backends: Table<Backend>,
    service_ranges: Table<ServiceRanges>,
    frontends: Hash<FrontendKey, Frontend>,
    names: Hash<u32, ServiceName>,
    addresses: Hash<Address, u32>,
    clients: Hash<u64, ClientAddresses>,
    source_ranges: Trie<SourceRange>,
    devices: Hash<u32, Device>,
    traffic: TrafficCounters,
    drops: DropCounters,
    barrier: Option<Barrier>,
}

impl PinnedMaps {
    /// Opens the pins. With [`Access::Read`] nothing can be changed: writes to arrays are without
    /// effect, others are errors.
    pub fn open(pins: &Pins, access: Access) -> Result<Self, BpfError> {
        Ok(Self {
            services: table(pins, abi::map::SERVICES, access)?,
            records: table(pins, abi::map::RECORDS, access)?,
            slots: table(pins, abi::map::SLOTS, access)?,
            backends: table(pins, abi::map::BACKENDS, access)?,
            service_ranges: table(pins, abi::map::SERVICE_RANGES, access)?,
            frontends: Hash::open(pins, abi::map::FRONTENDS, access)?,
            names: Hash::open(pins, abi::map::NAMES, access)?,
            addresses: Hash::open(pins, abi::map::ADDRESSES, access)?,
            clients: Hash::open(pins, abi::map::CLIENTS, access)?,
            source_ranges: Trie::open(pins, abi::map::SOURCE_RANGES, access)?,
            devices: Hash::open(pins, abi::map::DEVICES, access)?,
            traffic: TrafficCounters::open(pins, access)?,
            drops: DropCounters::open(pins, access)?,
            barrier: match access {
                Access::Read => None,
                Access::ReadWrite => Some(Barrier::new()?),
            },
        })
    }
}

/// Maps a pinned array.
pub(super) fn table<T: Pod>(
    pins: &Pins,
    name: &'static str,
    access: Access,
) -> Result<Table<T>, BpfError> {
    let kinds = [bpf_map_type::BPF_MAP_TYPE_ARRAY];
    // Writable in any case: a shared mapping of a read-only descriptor isn't shared for the kernel
    // (mm/mmap.c clears VM_SHARED), and BPF refuses such. `access` protects the pages instead.
    let (map, len) = hash::open::<u32, T>(pins, name, Access::ReadWrite, &kinds)?;
    Table::new(map.as_fd(), len, access).map_err(BpfError::call(name, "mmap"))
}

fn all<K: Pod, V: Pod>(hash: &Hash<K, V>) -> Result<Vec<(K, V)>, StoreError> {
    hash.entries().map_err(|source| StoreError::Call { map: hash.name(), call: LOOKUP, source })
}

fn set<K: Pod, V: Pod>(hash: &Hash<K, V>, key: &K, value: &V) -> Result<(), StoreError> {
    hash.set(key, value).map_err(|source| refused(hash.name(), source))
}

/// An update that the kernel refused.
fn refused(map: &'static str, source: io::Error) -> StoreError {
    match source.raw_os_error() {
        // As many entries as the map may have: E2BIG of a hash, ENOSPC of a trie. ENOMEM isn't that:
        // it may pass.
        Some(libc::E2BIG | libc::ENOSPC) => StoreError::Full { map },
        _ => StoreError::Call { map, call: UPDATE, source },
    }
}

fn remove<K: Pod, V: Pod>(hash: &Hash<K, V>, key: &K) -> Result<(), StoreError> {
    hash.remove(key).map(drop).map_err(|source| StoreError::Call {
        map: hash.name(),
        call: DELETE,
        source,
    })
}

impl Store for PinnedMaps {
    fn capacity(&self, table: TableName) -> u32 {
        match table {
            TableName::Frontends => self.frontends.capacity(),
            TableName::Services => self.services.len(),
            TableName::Records => self.records.len(),
            TableName::Slots => self.slots.len(),
            TableName::Backends => self.backends.len(),
            TableName::SourceRanges => self.source_ranges.capacity(),
            TableName::Addresses => self.addresses.capacity(),
            TableName::Devices => self.devices.capacity(),
        }
    }

    fn pointer(&self, service: ServiceIndex) -> ServicePointer {
        self.services.word::<u64>(service.0, 0).map(bytemuck::cast).unwrap_or_default()
    }

    fn publish(&mut self, service: ServiceIndex, pointer: ServicePointer) {
        self.services.set_word::<u64>(service.0, 0, bytemuck::cast(pointer));
    }

    fn record(&self, index: u32) -> ServiceRecord {
        self.records.get(index).unwrap_or_default()
    }

    fn set_record(&mut self, index: u32, record: &ServiceRecord) {
        self.records.set(index, record);
    }

    fn slots(&self, offset: u32, len: u32) -> Vec<u32> {
        (offset..offset.saturating_add(len)).map_while(|index| self.slots.get(index)).collect()
    }

    fn set_slots(&mut self, offset: u32, slots: &[u32]) {
        for (index, slot) in (offset..).zip(slots) {
            self.slots.set(index, slot);
        }
    }

    fn backend(&self, index: BackendIndex) -> Backend {
        self.backends.get(index.0).unwrap_or_default()
    }

    fn set_backend(&mut self, index: BackendIndex, backend: &Backend) {
        self.backends.set(index.0, backend);
    }

    fn set_backend_flags(&mut self, index: BackendIndex, flags: u16) {
        self.backends.set_word(index.0, offset_of!(Backend, flags), flags);
    }

    fn set_generation(&mut self, index: BackendIndex, generation: u32) {
        self.backends.set_word(index.0, offset_of!(Backend, generation), generation);
    }

    fn service_ranges(&self, family: u32) -> ServiceRanges {
        self.service_ranges.get(family).unwrap_or_default()
    }

    fn set_service_range(&mut self, family: u32, at: usize, range: &ServiceRange) {
        let start = offset_of!(ServiceRanges, ranges) + at * size_of::<ServiceRange>();
        let words: [u32; 8] = bytemuck::cast(*range);
        for (word, offset) in words.into_iter().zip((start..).step_by(size_of::<u32>())) {
            self.service_ranges.set_word(family, offset, word);
        }
    }

    fn use_service_ranges(&mut self, family: u32, used: u32) {
        self.service_ranges.set_word(family, offset_of!(ServiceRanges, used), used);
    }

    fn frontends(&self) -> Result<Vec<(FrontendKey, Frontend)>, StoreError> {
        all(&self.frontends)
    }

    fn set_frontend(&mut self, key: &FrontendKey, value: &Frontend) -> Result<(), StoreError> {
        set(&self.frontends, key, value)
    }

    fn remove_frontend(&mut self, key: &FrontendKey) -> Result<(), StoreError> {
        remove(&self.frontends, key)
    }

    fn names(&self) -> Result<Vec<(ServiceIndex, ServiceName)>, StoreError> {
        let names = all(&self.names)?;
        Ok(names.into_iter().map(|(index, name)| (ServiceIndex(index), name)).collect())
    }

    fn set_name(&mut self, service: ServiceIndex, name: &ServiceName) -> Result<(), StoreError> {
        set(&self.names, &service.0, name)
    }

    fn remove_name(&mut self, service: ServiceIndex) -> Result<(), StoreError> {
        remove(&self.names, &service.0)
    }

    fn addresses(&self) -> Result<Vec<(Address, u32)>, StoreError> {
        all(&self.addresses)
    }

    fn set_address(&mut self, address: &Address, flags: u32) -> Result<(), StoreError> {
        set(&self.addresses, address, &flags)
    }

    fn remove_address(&mut self, address: &Address) -> Result<(), StoreError> {
        remove(&self.addresses, address)
    }

    fn clients(&self) -> Result<Vec<(u64, ClientAddresses)>, StoreError> {
        all(&self.clients)
    }

    fn set_client(&mut self, namespace: u64, value: &ClientAddresses) -> Result<(), StoreError> {
        set(&self.clients, &namespace, value)
    }

    fn remove_client(&mut self, namespace: u64) -> Result<(), StoreError> {
        remove(&self.clients, &namespace)
    }

    fn source_ranges(&self) -> Result<Vec<SourceRange>, StoreError> {
        let map = self.source_ranges.name();
        self.source_ranges.keys().map_err(|source| StoreError::Call { map, call: NEXT, source })
    }

    fn set_source_range(&mut self, range: &SourceRange) -> Result<(), StoreError> {
        self.source_ranges.add(range).map_err(|source| refused(self.source_ranges.name(), source))
    }

    fn remove_source_range(&mut self, range: &SourceRange) -> Result<(), StoreError> {
        let map = self.source_ranges.name();
        self.source_ranges.remove(range).map_err(|source| StoreError::Call {
            map,
            call: DELETE,
            source,
        })
    }

    fn devices(&self) -> Result<Vec<(u32, Device)>, StoreError> {
        all(&self.devices)
    }

    fn set_device(&mut self, index: u32, device: &Device) -> Result<(), StoreError> {
        set(&self.devices, &index, device)
    }

    fn remove_device(&mut self, index: u32) -> Result<(), StoreError> {
        remove(&self.devices, &index)
    }

    fn forget_counts(&mut self, gone: impl Fn(ServiceIndex) -> bool) -> Result<(), StoreError> {
        let error = |map| move |source| StoreError::Call { map, call: DELETE, source };
        self.traffic.forget(&gone).map_err(error(abi::map::TRAFFIC))?;
        self.drops.forget(&gone).map_err(error(abi::map::DROPS))
    }

    fn barrier(&self) -> Result<(), StoreError> {
        self.barrier.as_ref().map_or(Ok(()), Barrier::wait).map_err(|source| StoreError::Call {
            map: Barrier::NAME,
            call: UPDATE,
            source,
        })
    }
}

/// Waits for every program that runs now.
///
/// An update of a map-in-map through bpf(2) ends with `synchronize_rcu()`, so that the caller may
/// do with the replaced inner map what no program expects: `maybe_wait_bpf_programs()` in
/// <https://elixir.bootlin.com/linux/v6.1/source/kernel/bpf/syscall.c>, since 5.0 (commit
/// 1ae80cf31938) and promised to user space. Our programs don't sleep, so each of their runs is
/// inside one RCU read-side section. `membarrier(MEMBARRIER_CMD_GLOBAL)` would need no map, but it
/// fails on kernels with `nohz_full` and doesn't wait with a single CPU.
#[derive(Debug)]
struct Barrier {
    outer: OwnedFd,
    inner: OwnedFd,
}

impl Barrier {
    const NAME: &str = "of the barrier";

    fn new() -> Result<Self, BpfError> {
        let make = || -> io::Result<Self> {
            let inner = sys::create_tiny_array()?;
            let outer = sys::create_array_of_maps(inner.as_fd())?;
            Ok(Self { outer, inner })
        };
        make().map_err(BpfError::call(Self::NAME, "bpf(BPF_MAP_CREATE)"))
    }

    fn wait(&self) -> io::Result<()> {
        sys::put_map(self.outer.as_fd(), self.inner.as_fd())
    }
}
