//! One Service port in the maps: written and rewritten, make before break.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use lb_common::abi::{
    BackendFlags, BackendIndex, ServiceFlags, ServiceIndex, ServicePointer, ServiceRecord,
    SourceSet,
};

use super::Tables;
use super::alloc::Run;
use super::encode;
use super::layout::{Hashing, Layout};
use super::sources::{self, Sources};
use super::store::{Store, StoreError, Table};
use crate::cluster::snapshot::Protocol;
use crate::plan::desired::{ServicePortKey, ServicePortPlan};

/// What the maps hold of a Service port.
#[derive(Debug)]
pub struct Entry {
    /// Its element of SERVICES.
    pub index: ServiceIndex,
    /// Its current element of RECORDS; 0 before the first publication.
    pub record: u32,
    /// Its slots.
    pub run: Run,
    /// Its elements of BACKENDS; their addresses are there.
    pub backends: Box<[u32]>,
    /// Who may reach its load balancer addresses; `None` for everybody.
    pub sources: Option<Sources>,
}

impl Entry {
    /// A Service port that nothing is known of but its index.
    pub fn new(index: ServiceIndex) -> Self {
        Self { index, record: 0, run: Run::default(), backends: Box::default(), sources: None }
    }
}

/// Why a Service port could not be written.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// A table is full.
    #[error("the map {} is full; restart with a greater --{}{}", .0.map(), .0.flag(), .0.until_then())]
    Full(Full),
    /// The name doesn't fit into NAMES: not a name that an API server admits.
    #[error("its name is longer than Kubernetes allows; shorten it")]
    Name,
    /// The kernel refused a call.
    #[error(transparent)]
    Store(StoreError),
}

/// Which table is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// SERVICES, RECORDS or NAMES.
    Services,
    /// BACKENDS.
    Backends,
    /// SLOTS.
    Slots,
    /// SOURCE_RANGES.
    SourceRanges,
}

impl Full {
    fn map(self) -> &'static str {
        match self {
            Self::Services => "SERVICES",
            Self::Backends => "BACKENDS",
            Self::Slots => "SLOTS",
            Self::SourceRanges => "SOURCE_RANGES",
        }
    }

    fn flag(self) -> &'static str {
        match self {
            Self::Services => "max-services",
            Self::Backends => "max-backends",
            Self::Slots => "max-slots",
            Self::SourceRanges => "max-source-ranges",
        }
    }

    /// What it means for the Service, where it isn't that it stays as it was.
    fn until_then(self) -> &'static str {
        match self {
            Self::Services | Self::Backends | Self::Slots => "",
            Self::SourceRanges => "; until then its load balancer addresses admit nobody",
        }
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        match error {
            // The only hash that `write` fills is NAMES.
            StoreError::Full { .. } => Self::Full(Full::Services),
            error @ StoreError::Call { .. } => Self::Store(error),
        }
    }
}

/// Elements of BACKENDS of one Service port while it is being written.
type ByAddress = BTreeMap<SocketAddr, u32>;

/// The elements as the table has them: a copy of the addresses would be as large as the plan.
fn by_address<S: Store>(store: &S, entry: &Entry) -> ByAddress {
    let address = |index| encode::backend_address(&store.backend(BackendIndex(index)));
    entry.backends.iter().map(|&index| (address(index), index)).collect()
}

/// Writes `plan`. When it doesn't fit, what was there before stays as it was.
pub fn write<S: Store>(
    tables: &mut Tables<S>,
    key: &ServicePortKey,
    plan: &ServicePortPlan,
) -> Result<(), Problem> {
    let (key, mut entry) = match tables.entries.remove_entry(key) {
        Some(known) => known,
        None => (key.clone(), new_entry(tables, key)?),
    };
    let before = silence(tables, &entry);
    let admitted = sources::settle(tables, &mut entry, plan);
    let elements = elements(plan);
    let mut backends = by_address(&tables.store, &entry);
    let mut added = Vec::new();
    let written = add_backends(tables, entry.index, &mut backends, &elements, &mut added)
        .and_then(|()| publish(tables, &mut entry, &backends, plan));
    match &written {
        Ok(()) => settle_backends(tables, &key, &mut backends, &elements),
        Err(_) => give_back(tables, &mut backends, added),
    }
    if before.is_some() && before != silence(tables, &entry) {
        tables.udp_left |= key.protocol == Protocol::Udp;
        tables.tcp_silence_ended |= key.protocol == Protocol::Tcp;
    }
    entry.backends = backends.into_values().collect();
    if entry.record != 0 {
        tables.entries.insert(key, entry);
    } else {
        entry.backends.iter().for_each(|index| tables.retire_backend(&key, *index));
        tables.retired.sources.extend(entry.sources);
        tables.store.remove_name(entry.index)?;
        tables.services.give(entry.index.0);
    }
    written.and(admitted)
}

/// What the current record has sockets of this node dropped in silence by: the internal policy, or a
/// set of source ranges.
pub fn silence<S: Store>(tables: &Tables<S>, entry: &Entry) -> Option<(bool, Option<SourceSet>)> {
    const POLICY: u32 = ServiceFlags::INTERNAL_LOCAL | ServiceFlags::HAS_ENDPOINTS;
    let record = (entry.record != 0).then(|| tables.store.record(entry.record))?;
    let policy = record.flags & POLICY == POLICY && record.local.len == 0;
    let sources = (record.flags & ServiceFlags::SOURCE_RANGES != 0).then_some(record.sources);
    (policy || sources.is_some()).then_some((policy, sources))
}

fn new_entry<S: Store>(tables: &mut Tables<S>, key: &ServicePortKey) -> Result<Entry, Problem> {
    let name = encode::service_name(key).ok_or(Problem::Name)?;
    let index = tables.services.take().ok_or(Problem::Full(Full::Services))?;
    if let Err(error) = tables.store.set_name(ServiceIndex(index), &name) {
        tables.services.give(index);
        return Err(error.into());
    }
    Ok(Entry::new(ServiceIndex(index)))
}

/// Gives back what a failed write took, so that a full table costs nobody else. Never published:
/// no flow knows these elements.
fn give_back<S: Store>(tables: &mut Tables<S>, backends: &mut ByAddress, added: Vec<SocketAddr>) {
    for index in added.iter().filter_map(|address| backends.remove(address)) {
        tables.set_backend_flags(BackendIndex(index), 0);
        tables.backends.give(index);
    }
}

/// The flags of every endpoint's element of BACKENDS.
fn elements(plan: &ServicePortPlan) -> BTreeMap<SocketAddr, u16> {
    let mut elements = BTreeMap::new();
    for (backends, list) in [
        (plan.endpoints.serving(), 0),
        (plan.endpoints.cluster(), BackendFlags::IN_CLUSTER),
        (plan.endpoints.local(), BackendFlags::IN_LOCAL),
    ] {
        for backend in backends {
            let flags = encode::backend_flags(backend.placement);
            *elements.entry(backend.address).or_insert(flags) |= list;
        }
    }
    elements
}

/// Makes sure that every endpoint has its element; new ones are also listed in `added`. Clients may
/// be sent to what the current record lists as long as it is current.
fn add_backends<S: Store>(
    tables: &mut Tables<S>,
    service: ServiceIndex,
    backends: &mut ByAddress,
    elements: &BTreeMap<SocketAddr, u16>,
    added: &mut Vec<SocketAddr>,
) -> Result<(), Problem> {
    const LISTS: u16 = BackendFlags::IN_CLUSTER | BackendFlags::IN_LOCAL;
    for (address, flags) in elements {
        if let Some(index) = backends.get(address) {
            let index = BackendIndex(*index);
            let listed = tables.store.backend(index).flags & LISTS;
            tables.set_backend_flags(index, flags | listed);
            continue;
        }
        let index = tables.backends.take().ok_or(Problem::Full(Full::Backends))?;
        let generation = tables.store.backend(BackendIndex(index)).generation;
        let element = encode::backend(*address, *flags, service, generation);
        tables.store.set_backend(BackendIndex(index), &element);
        tables.addresses.set_endpoint(element.address, 0, *flags);
        backends.insert(*address, index);
        added.push(*address);
    }
    Ok(())
}

/// Writes slots and record where nobody reads, and makes them current with one store. Nothing is
/// written when nothing changed.
fn publish<S: Store>(
    tables: &mut Tables<S>,
    entry: &mut Entry,
    backends: &ByAddress,
    plan: &ServicePortPlan,
) -> Result<(), Problem> {
    let layout = Layout::new(plan, Hashing::of(plan), |address| backends.get(address).copied());
    let sources = entry.sources.as_ref().map_or(SourceSet(0), |sources| sources.set);
    let unchanged =
        entry.record != 0 && tables.store.slots(entry.run.offset, entry.run.len) == layout.slots;
    if unchanged {
        let record = layout.record(plan, entry.index, entry.run, sources);
        if record == tables.store.record(entry.record) {
            return Ok(());
        }
        let number = tables.records.take().ok_or(Problem::Full(Full::Services))?;
        make_current(tables, entry, number, &record);
        return Ok(());
    }
    let number = tables.records.take().ok_or(Problem::Full(Full::Services))?;
    let Some((layout, run)) = place(tables, backends, plan, layout) else {
        tables.records.give(number);
        return Err(Problem::Full(Full::Slots));
    };
    tables.store.set_slots(run.offset, &layout.slots);
    let old = std::mem::replace(&mut entry.run, run);
    if old.len != 0 {
        tables.retired.slots.push(old);
    }
    make_current(tables, entry, number, &layout.record(plan, entry.index, run, sources));
    Ok(())
}

/// Finds a run for the layout; without room for hash tables, one without them. Half of the slots
/// are for plain lists alone: tables are a hundred times as long, and a list that doesn't fit is a
/// Service that doesn't work.
fn place<S: Store>(
    tables: &mut Tables<S>,
    backends: &ByAddress,
    plan: &ServicePortPlan,
    layout: Layout,
) -> Option<(Layout, Run)> {
    let len = layout.slots.len() as u32;
    let crowded = tables.slots.used().saturating_add(len) > tables.store.capacity(Table::Slots) / 2;
    if !crowded && let Some(run) = tables.slots.take(len) {
        return Some((layout, run));
    }
    let plain = Layout::new(plan, Hashing::List, |address| backends.get(address).copied());
    let run = tables.slots.take(plain.slots.len() as u32)?;
    Some((plain, run))
}

/// Publishes a record, which `number` was taken for.
pub(super) fn make_current<S: Store>(
    tables: &mut Tables<S>,
    entry: &mut Entry,
    number: u32,
    record: &ServiceRecord,
) {
    tables.store.set_record(number, record);
    let revision = tables.store.pointer(entry.index).revision.wrapping_add(1);
    tables.store.publish(entry.index, ServicePointer { record: number, revision });
    let old = std::mem::replace(&mut entry.record, number);
    if old != 0 {
        tables.retired.records.push(old);
    }
}

/// Endpoints that left: their flows become stale. Those that left a list are remembered for no
/// client of that list any more.
fn settle_backends<S: Store>(
    tables: &mut Tables<S>,
    key: &ServicePortKey,
    backends: &mut ByAddress,
    elements: &BTreeMap<SocketAddr, u16>,
) {
    backends.retain(|address, index| match elements.get(address) {
        Some(flags) => {
            tables.set_backend_flags(BackendIndex(*index), *flags);
            true
        }
        None => {
            tables.retire_backend(key, *index);
            false
        }
    });
}
