//! A restart: what do the maps hold already?

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use lb_common::abi::{BackendFlags, BackendIndex, ServiceIndex, ServicePointer};

use super::addresses::Addresses;
use super::alloc::{Indices, Runs};
use super::entry::Entry;
use super::layout::run_of;
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
    adopt_backends(&mut store, &mut entries);
    let addresses = Addresses::adopt(&store)?;
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
        addresses,
        retired: Retired::default(),
        unfit: BTreeMap::new(),
        skipped: BTreeMap::new(),
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
    Entry { record: number, run, ..Entry::new(index) }
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
