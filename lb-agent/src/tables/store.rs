//! What `tables` needs of the maps: reads and writes of single elements, no decisions.
//!
//! `bpf` implements it over pinned maps (mmap for arrays, bpf(2) for hashes); tests over plain
//! collections. Arrays are written by plain stores and can't fail within their bounds.

use lb_common::abi::{
    Address, Backend, BackendIndex, ClientAddresses, Device, Frontend, FrontendKey, ServiceIndex,
    ServiceName, ServicePointer, ServiceRange, ServiceRanges, ServiceRecord, SourceRange,
};

/// The tables whose fill is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// FRONTENDS, entries.
    Frontends,
    /// SERVICES, elements.
    Services,
    /// RECORDS, elements.
    Records,
    /// SLOTS, elements.
    Slots,
    /// BACKENDS, elements.
    Backends,
    /// SOURCE_RANGES, entries.
    SourceRanges,
    /// ADDRESSES, entries.
    Addresses,
    /// DEVICES, entries.
    Devices,
}

/// A write that the kernel refused.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The hash has no room for another key.
    #[error("the map {map} is full")]
    Full {
        /// Name of the map, as pinned.
        map: &'static str,
    },
    /// Anything else.
    #[error("{call} on the map {map}: {source}")]
    Call {
        /// Name of the map, as pinned.
        map: &'static str,
        /// The system call and command.
        call: &'static str,
        /// The kernel's answer.
        source: std::io::Error,
    },
}

/// The maps of the Service tables.
pub trait Store {
    /// Number of elements or entries that the table can hold.
    fn capacity(&self, table: Table) -> u32;

    /// Element of SERVICES.
    fn pointer(&self, service: ServiceIndex) -> ServicePointer;
    /// Publishes: one aligned 64-bit store.
    fn publish(&mut self, service: ServiceIndex, pointer: ServicePointer);
    /// Element of RECORDS.
    fn record(&self, index: u32) -> ServiceRecord;
    /// Writes an element of RECORDS that no pointer leads to.
    fn set_record(&mut self, index: u32, record: &ServiceRecord);
    /// Elements of SLOTS, `offset..offset + len`; shorter when the table ends before. A copy: the
    /// kernel rounds the stride of an array's elements up to 8 bytes, so they aren't adjacent.
    fn slots(&self, offset: u32, len: u32) -> Vec<u32>;
    /// Writes elements of SLOTS that no published record covers.
    fn set_slots(&mut self, offset: u32, slots: &[u32]);
    /// Element of BACKENDS.
    fn backend(&self, index: BackendIndex) -> Backend;
    /// Writes an element of BACKENDS that no published slot names.
    fn set_backend(&mut self, index: BackendIndex, backend: &Backend);
    /// Changes flags of a backend in use: one aligned 16-bit store.
    fn set_backend_flags(&mut self, index: BackendIndex, flags: u16);
    /// Makes flows to a backend stale: one aligned 32-bit store.
    fn set_generation(&mut self, index: BackendIndex, generation: u32);
    /// Element of SERVICE_RANGES.
    fn service_ranges(&self, family: u32) -> ServiceRanges;
    /// Writes a range of an element that isn't in use.
    fn set_service_range(&mut self, family: u32, at: usize, range: &ServiceRange);
    /// Changes which ranges of an element are in use: one aligned 32-bit store.
    fn use_service_ranges(&mut self, family: u32, used: u32);

    /// All of FRONTENDS.
    fn frontends(&self) -> Result<Vec<(FrontendKey, Frontend)>, StoreError>;
    /// Writes an entry of FRONTENDS, new or not.
    fn set_frontend(&mut self, key: &FrontendKey, value: &Frontend) -> Result<(), StoreError>;
    /// Removes an entry; gone already is fine.
    fn remove_frontend(&mut self, key: &FrontendKey) -> Result<(), StoreError>;
    /// All of NAMES.
    fn names(&self) -> Result<Vec<(ServiceIndex, ServiceName)>, StoreError>;
    /// Writes an entry of NAMES.
    fn set_name(&mut self, service: ServiceIndex, name: &ServiceName) -> Result<(), StoreError>;
    /// Removes an entry; gone already is fine.
    fn remove_name(&mut self, service: ServiceIndex) -> Result<(), StoreError>;
    /// All of ADDRESSES.
    fn addresses(&self) -> Result<Vec<(Address, u32)>, StoreError>;
    /// Writes an entry of ADDRESSES.
    fn set_address(&mut self, address: &Address, flags: u32) -> Result<(), StoreError>;
    /// Removes an entry; gone already is fine.
    fn remove_address(&mut self, address: &Address) -> Result<(), StoreError>;
    /// All of CLIENTS.
    fn clients(&self) -> Result<Vec<(u64, ClientAddresses)>, StoreError>;
    /// Writes an entry of CLIENTS.
    fn set_client(&mut self, namespace: u64, value: &ClientAddresses) -> Result<(), StoreError>;
    /// Removes an entry; gone already is fine.
    fn remove_client(&mut self, namespace: u64) -> Result<(), StoreError>;
    /// All of SOURCE_RANGES.
    fn source_ranges(&self) -> Result<Vec<SourceRange>, StoreError>;
    /// Writes an entry of SOURCE_RANGES, to a set that no published record names.
    fn set_source_range(&mut self, range: &SourceRange) -> Result<(), StoreError>;
    /// Removes an entry; gone already is fine.
    fn remove_source_range(&mut self, range: &SourceRange) -> Result<(), StoreError>;
    /// All of DEVICES.
    fn devices(&self) -> Result<Vec<(u32, Device)>, StoreError>;
    /// Writes an entry of DEVICES.
    fn set_device(&mut self, index: u32, device: &Device) -> Result<(), StoreError>;
    /// Removes an entry; gone already is fine.
    fn remove_device(&mut self, index: u32) -> Result<(), StoreError>;

    /// Takes what was counted for those of the Services that `gone` names from their indexes: each may
    /// be given to another.
    fn forget_counts(&mut self, gone: impl Fn(ServiceIndex) -> bool) -> Result<(), StoreError>;

    /// Returns when every program run that began before the call has ended: what was unpublished
    /// before may be written again after.
    fn barrier(&self) -> Result<(), StoreError>;
}
