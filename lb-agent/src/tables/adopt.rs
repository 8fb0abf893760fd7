//! A restart: what do the maps hold already?

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use ipnet::IpNet;
use lb_common::abi::{
    BackendFlags, BackendIndex, ServiceFlags, ServiceIndex, ServicePointer, SourceSet,
};

use super::addresses::Addresses;
use super::alloc::{Indices, Runs};
use super::entry::Entry;
use super::layout::run_of;
use super::sources::Sources;
use super::store::{Store, StoreError, Table};
use super::{Retired, Tables};
use crate::plan::desired::ServicePortKey;

/// Reads the maps. Only what a name leads to is ours to keep; the rest is left-over of a run that
/// ended between two stores, and free.
pub fn adopt<S: Store>(mut store: S) -> Result<Tables<S>, StoreError> {
    // Programs may still read what the last agent unpublished just before it ended.
    store.barrier()?;
    let mut entries: BTreeMap<ServicePortKey, Entry> = BTreeMap::new();
    for (index, name) in store.names()? {
        let known = super::encode::service_port_key(&name)
            .filter(|key| !entries.contains_key(key) && index.0 < store.capacity(Table::Services));
        match known {
            Some(key) => {
                let entry = read_entry(&store, index);
                entries.insert(key, entry);
            }
            None => {
                store.publish(index, ServicePointer::default());
                store.remove_name(index)?;
            }
        }
    }
    let known: BTreeSet<ServiceIndex> = entries.values().map(|entry| entry.index).collect();
    store.forget_counts(|service| !known.contains(&service))?;
    adopt_backends(&mut store, &mut entries);
    adopt_sources(&mut store, &mut entries)?;
    let sources = || entries.values().filter_map(|entry| entry.sources.as_ref());
    let sets = sources().map(|sources| sources.set.0).filter(|set| *set != 0).collect();
    let ranges = sources().map(|sources| sources.ranges.len() as u32).sum();
    let mut addresses = Addresses::adopt(&store)?;
    for index in entries.values().flat_map(|entry| &entry.backends) {
        let backend = store.backend(BackendIndex(*index));
        addresses.set_endpoint(backend.address, 0, backend.flags);
    }
    let used = |number: fn(&Entry) -> u32| -> BTreeSet<u32> {
        entries.values().map(number).filter(|number| *number != 0).collect()
    };
    Ok(Tables {
        services: Indices::new(store.capacity(Table::Services), &used(|entry| entry.index.0)),
        records: Indices::new(store.capacity(Table::Records), &used(|entry| entry.record)),
        backends: Indices::new(
            store.capacity(Table::Backends),
            &entries.values().flat_map(|entry| entry.backends.iter().copied()).collect(),
        ),
        slots: Runs::new(store.capacity(Table::Slots), entries.values().map(|entry| entry.run)),
        sets: Indices::new(u32::MAX, &sets),
        ranges,
        addresses,
        retired: Retired::default(),
        unfit: BTreeMap::new(),
        skipped: BTreeMap::new(),
        listeners: BTreeSet::new(),
        left: BTreeMap::new(),
        udp_left: false,
        tcp_silence_ended: false,
        udp_frontends: false,
        entries,
        store,
    })
}

fn read_entry<S: Store>(store: &S, index: ServiceIndex) -> Entry {
    let number = store.pointer(index).record;
    if number == 0 || number >= store.capacity(Table::Records) {
        return Entry::new(index);
    }
    let record = store.record(number);
    let run = run_of(&record);
    let fits =
        u64::from(run.offset) + u64::from(run.len) <= u64::from(store.capacity(Table::Slots));
    if record.service != index || !fits {
        return Entry::new(index);
    }
    let restricted = record.flags & ServiceFlags::SOURCE_RANGES != 0;
    let sources = restricted.then(|| Sources { set: record.sources, ranges: Vec::new() });
    Entry { record: number, run, sources, ..Entry::new(index) }
}

/// Hands each live element of BACKENDS to its Service port.
fn adopt_backends<S: Store>(store: &mut S, entries: &mut BTreeMap<ServicePortKey, Entry>) {
    let mut owned: BTreeMap<ServiceIndex, BTreeMap<SocketAddr, u32>> =
        entries.values().map(|entry| (entry.index, BTreeMap::new())).collect();
    for number in 1..store.capacity(Table::Backends) {
        let index = BackendIndex(number);
        let backend = store.backend(index);
        if backend.flags & BackendFlags::LIVE == 0 {
            continue;
        }
        let address = super::encode::backend_address(&backend);
        let known = owned
            .get_mut(&backend.service)
            .filter(|backends| !backends.contains_key(&address))
            .map(|backends| backends.insert(address, number));
        if known.is_none() {
            store.set_generation(index, backend.generation.wrapping_add(1));
            store.set_backend_flags(index, 0);
        }
    }
    for entry in entries.values_mut() {
        let backends = owned.remove(&entry.index).unwrap_or_default();
        entry.backends = backends.into_values().collect();
    }
}

/// Hands each set of ranges to the Service port whose record names it; the others' are left-overs.
fn adopt_sources<S: Store>(
    store: &mut S,
    entries: &mut BTreeMap<ServicePortKey, Entry>,
) -> Result<(), StoreError> {
    let mut sets: BTreeMap<SourceSet, BTreeSet<IpNet>> = entries
        .values()
        .filter_map(|entry| entry.sources.as_ref())
        .map(|sources| (sources.set, BTreeSet::new()))
        .collect();
    for range in store.source_ranges()? {
        match (sets.get_mut(&range.set), super::encode::range_net(&range)) {
            (Some(set), Some(net)) => {
                set.insert(net);
            }
            (None, _) | (_, None) => store.remove_source_range(&range)?,
        }
    }
    for sources in entries.values_mut().filter_map(|entry| entry.sources.as_mut()) {
        // A set belongs to one Service port.
        sources.ranges = sets.remove(&sources.set).unwrap_or_default().into_iter().collect();
    }
    Ok(())
}
