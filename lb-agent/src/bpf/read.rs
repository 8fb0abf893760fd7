//! What the pinned maps hold, for the command line: opened to be read, nothing loaded or changed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use ipnet::IpNet;
use lb_common::abi::{
    Backend, BackendFlags, BackendIndex, Flow, FlowFlags, FlowKey, Frontend, FrontendKey,
    FrontendKind as AbiKind, ServiceFlags, ServiceIndex, ServiceName, ServiceRecord, SourceSet,
    Traffic, TrafficKey, map,
};
use lb_common::family::{Family, V4, V6};
use lb_common::lb::DropReason;

use super::counters::DropCounters;
use super::error::BpfError;
use super::expiry::{joined, now, seconds_between};
use super::hash::Hash;
use super::maps::PinnedMaps;
use super::pins::Pins;
use super::sys::Access;
use super::traffic::{TrafficCounters, by_service};
use super::usage::{CountedMaps, MapUsage};
use crate::cluster::snapshot::{IpFamily, Protocol};
use crate::inspect::rows::{
    BackendOfService, BackendRow, FlowPath, FlowRow, FrontendRow, PolicyRow, ServiceRow,
};
use crate::plan::desired::FrontendKind;
use crate::tables::encode::{self, socket_address};
use crate::tables::layout::run_of;
use crate::tables::store::{Store, StoreError, Table};

/// The maps of a running or stopped agent, open to be read.
#[derive(Debug)]
pub struct Reader {
    pins: Pins,
    maps: PinnedMaps,
}

/// Entries that are no flow of their own: the other direction, and what another proxy translates.
const NOT_LISTED: u32 = FlowFlags::FOREIGN | FlowFlags::REPLY;

/// Packets and connections that were not served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DropRow {
    /// `namespace/name:port` of the Service; `None` when none was involved or it is gone.
    pub service: Option<String>,
    /// Why.
    pub reason: DropReason,
    /// How many, all CPUs together.
    pub packets: u64,
}

impl Reader {
    /// Opens what is pinned under a BPF file system's mount point.
    pub fn open(bpffs: &Path) -> Result<Self, BpfError> {
        let pins = Pins::at(bpffs);
        let maps = PinnedMaps::open(&pins, Access::Read)?;
        Ok(Self { pins, maps })
    }

    /// Every Service port, sorted by name.
    pub fn services(&self) -> Result<Vec<ServiceRow>, BpfError> {
        let mut frontends: HashMap<ServiceIndex, Vec<FrontendRow>> = HashMap::new();
        for (key, frontend) in self.maps.frontends().map_err(read_error)? {
            frontends.entry(frontend.service).or_default().extend(frontend_row(&key, &frontend));
        }
        let sources = self.sources()?;
        let traffic = TrafficCounters::open(&self.pins, Access::Read)?.all()?;
        let mut backends = self.backends_by_service(&traffic);
        let mut sums = by_service(&traffic);
        let mut drops: HashMap<ServiceIndex, BTreeMap<&str, u64>> = HashMap::new();
        for (key, reason, packets) in DropCounters::open(&self.pins, Access::Read)?.by_service()? {
            drops.entry(key.service).or_default().insert(reason.label(), packets);
        }
        let mut rows: Vec<ServiceRow> = self
            .names()?
            .into_iter()
            .filter_map(|(index, name)| {
                let frontends = frontends.remove(&index).unwrap_or_default();
                let backends = backends.remove(&index).unwrap_or_default();
                let traffic = sums.remove(&index).unwrap_or_default().into();
                let drops = drops.remove(&index).unwrap_or_default();
                let row = self.service_row(index, &name, frontends, &sources)?;
                Some(ServiceRow { backends, traffic, drops, ..row })
            })
            .collect();
        rows.sort_by(|a, b| {
            let key =
                |row: &ServiceRow| (row.namespace.clone(), row.name.clone(), row.port_name.clone());
            (key(a), a.protocol, a.family).cmp(&(key(b), b.protocol, b.family))
        });
        Ok(rows)
    }

    /// Every backend of every Service port, in the order of [`services`](Self::services).
    pub fn backends(&self) -> Result<Vec<BackendOfService>, BpfError> {
        let services = self.services()?.into_iter();
        let of_service = |service: ServiceRow| {
            let ServiceRow { namespace, name, port_name, protocol, family, backends, .. } = service;
            backends.into_iter().map(move |backend| BackendOfService {
                namespace: namespace.clone(),
                name: name.clone(),
                port_name: port_name.clone(),
                protocol,
                family,
                backend,
            })
        };
        Ok(services.flat_map(of_service).collect())
    }

    /// Every flow that packets from outside opened, sorted by Service and client.
    pub fn flows(&self) -> Result<Vec<FlowRow>, BpfError> {
        let names: HashMap<ServiceIndex, String> = self
            .names()?
            .into_iter()
            .filter_map(|(index, name)| {
                let (namespace, name, _) = parts(&name)?;
                Some((index, format!("{namespace}/{name}")))
            })
            .collect();
        let now = now();
        let mut rows = family_flows::<V4>(&self.pins, map::FLOWS4, &names, now)?;
        rows.extend(family_flows::<V6>(&self.pins, map::FLOWS6, &names, now)?);
        rows.sort_by(|a, b| {
            (&a.service, a.source, a.frontend).cmp(&(&b.service, b.source, b.frontend))
        });
        Ok(rows)
    }

    /// How many flows packets from outside opened: as many as [`flows`](Self::flows) lists, at the cost
    /// of a pass over the tables (100,000 entries in 30 ms).
    pub fn flow_count(&self) -> Result<u64, BpfError> {
        Ok(count_flows::<V4>(&self.pins, map::FLOWS4)?
            + count_flows::<V6>(&self.pins, map::FLOWS6)?)
    }

    /// What was not served and why, the most frequent first.
    pub fn drops(&self) -> Result<Vec<DropRow>, BpfError> {
        let names: HashMap<_, _> = self.names()?.into_iter().collect();
        let drops = DropCounters::open(&self.pins, Access::Read)?.by_service()?;
        let mut rows: Vec<DropRow> = drops
            .into_iter()
            .map(|(key, reason, packets)| DropRow {
                service: names.get(&key.service).and_then(text).map(str::to_owned),
                reason,
                packets,
            })
            .collect();
        rows.sort_by(|a, b| b.packets.cmp(&a.packets).then_with(|| a.service.cmp(&b.service)));
        Ok(rows)
    }

    /// Packets by reason, all Services together; reasons that never came too.
    pub fn drops_by_reason(&self) -> Result<Vec<(DropReason, u64)>, BpfError> {
        Ok(DropCounters::open(&self.pins, Access::Read)?.by_reason()?.into_iter().collect())
    }

    /// How full every map is, and what memory it takes. Of arrays the agent alone knows which elements
    /// are in use; here it is those that are reached from a Service.
    pub fn usage(&self) -> Result<Vec<MapUsage>, BpfError> {
        let (mut records, mut slots, mut backends) = (BTreeSet::new(), 0, BTreeSet::new());
        let names = self.names()?;
        for (index, _) in &names {
            let number = self.maps.pointer(*index).record;
            let record = self.maps.record(number);
            records.insert(number);
            slots += u64::from(run_of(&record).len);
            for region in [record.cluster, record.local] {
                backends.extend(self.maps.slots(region.offset, region.len));
            }
        }
        let ranges = self.maps.source_ranges().map_err(read_error)?.len() as u64;
        let mut usage = CountedMaps::open(&self.pins)?.usage()?;
        for MapUsage { map, entries, .. } in &mut usage {
            *entries = match *map {
                map::SERVICES => Some(names.len() as u64),
                map::RECORDS => Some(records.len() as u64),
                map::SLOTS => Some(slots),
                map::BACKENDS => Some(backends.len() as u64),
                map::SOURCE_RANGES => Some(ranges),
                _ => *entries,
            };
        }
        Ok(usage)
    }

    /// The ranges of every set.
    fn sources(&self) -> Result<HashMap<SourceSet, BTreeSet<IpNet>>, BpfError> {
        let mut sources: HashMap<SourceSet, BTreeSet<IpNet>> = HashMap::new();
        for range in self.maps.source_ranges().map_err(read_error)? {
            sources.entry(range.set).or_default().extend(encode::range_net(&range));
        }
        Ok(sources)
    }

    fn names(&self) -> Result<Vec<(ServiceIndex, ServiceName)>, BpfError> {
        self.maps.names().map_err(read_error)
    }

    fn service_row(
        &self,
        index: ServiceIndex,
        name: &ServiceName,
        mut frontends: Vec<FrontendRow>,
        sources: &HashMap<SourceSet, BTreeSet<IpNet>>,
    ) -> Option<ServiceRow> {
        let (namespace, service, port_name) = parts(name)?;
        frontends.sort_by_key(|row| (row.kind, row.address, row.port));
        let record = self.maps.record(self.maps.pointer(index).record);
        Some(ServiceRow {
            namespace: namespace.to_owned(),
            name: service.to_owned(),
            port_name: port_name.to_owned(),
            protocol: encode::protocol(name.protocol)?,
            family: family(name),
            frontends,
            backends: Vec::new(),
            traffic: Traffic::default().into(),
            drops: BTreeMap::new(),
            policy: policy_row(&record, sources),
        })
    }

    /// Every backend in use, sorted by address, with what was counted for it and no earlier one.
    fn backends_by_service(
        &self,
        traffic: &BTreeMap<TrafficKey, Traffic>,
    ) -> HashMap<ServiceIndex, Vec<BackendRow>> {
        let mut rows: HashMap<ServiceIndex, Vec<BackendRow>> = HashMap::new();
        for index in 1..self.maps.capacity(Table::Backends) {
            let index = BackendIndex(index);
            let backend = self.maps.backend(index);
            if backend.flags & BackendFlags::LIVE == 0 {
                continue;
            }
            let Backend { service, generation, .. } = backend;
            let counted = traffic.get(&TrafficKey { service, backend: index, generation });
            let policies = self.maps.record(self.maps.pointer(service).record).flags;
            let local = policies & (ServiceFlags::INTERNAL_LOCAL | ServiceFlags::EXTERNAL_LOCAL);
            // The list of endpoints for policy Local is there in any case.
            let for_local = if local == 0 { 0 } else { BackendFlags::IN_LOCAL };
            let listed = BackendFlags::IN_CLUSTER | for_local;
            rows.entry(service).or_default().push(BackendRow {
                address: backend.address.into(),
                port: backend.port.get(),
                local: backend.flags & BackendFlags::LOCAL != 0,
                active: backend.flags & listed != 0,
                traffic: counted.copied().unwrap_or_default().into(),
            });
        }
        for rows in rows.values_mut() {
            rows.sort_by_key(|row| (row.address, row.port));
        }
        rows
    }
}

/// The error of a store, whose maps are only looked at here.
pub(super) fn read_error(error: StoreError) -> BpfError {
    match error {
        StoreError::Full { map } => {
            BpfError::Call { map, call: "read", source: std::io::ErrorKind::StorageFull.into() }
        }
        StoreError::Call { map, call, source } => BpfError::Call { map, call, source },
    }
}

fn frontend_row(key: &FrontendKey, frontend: &Frontend) -> Option<FrontendRow> {
    let kind = match AbiKind::from_number(frontend.kind)? {
        AbiKind::ClusterIp => FrontendKind::ClusterIp,
        AbiKind::ExternalIp => FrontendKind::ExternalIp,
        AbiKind::LoadBalancer => FrontendKind::LoadBalancer,
        AbiKind::NodePort => FrontendKind::NodePort,
    };
    Some(FrontendRow { address: key.address.into(), port: key.port.get(), kind })
}

fn policy_row(record: &ServiceRecord, sources: &HashMap<SourceSet, BTreeSet<IpNet>>) -> PolicyRow {
    let has = |flag| record.flags & flag != 0;
    PolicyRow {
        internal_local: has(ServiceFlags::INTERNAL_LOCAL),
        external_local: has(ServiceFlags::EXTERNAL_LOCAL),
        affinity_timeout: record.affinity(),
        source_ranges: has(ServiceFlags::SOURCE_RANGES)
            .then(|| sources.get(&record.sources).into_iter().flatten().copied().collect()),
    }
}

/// The text of a name; `None` when it isn't UTF-8, which no version writes.
pub(super) fn text(name: &ServiceName) -> Option<&str> {
    let bytes = name.text.split(|byte| *byte == 0).next()?;
    std::str::from_utf8(bytes).ok()
}

/// Namespace, name, port name.
pub(super) fn parts(name: &ServiceName) -> Option<(&str, &str, &str)> {
    let (namespace, rest) = text(name)?.split_once('/')?;
    let (service, port) = rest.split_once(':').unwrap_or((rest, ""));
    Some((namespace, service, port))
}

pub(super) fn family(name: &ServiceName) -> IpFamily {
    if name.family == 4 { IpFamily::V4 } else { IpFamily::V6 }
}

fn count_flows<F: Family>(pins: &Pins, name: &'static str) -> Result<u64, BpfError> {
    let flows: Hash<FlowKey<F>, Flow<F>> = Hash::open(pins, name, Access::Read)?;
    let mut count = 0;
    flows
        .for_each(|_, flow| count += u64::from(flow.flags & NOT_LISTED == 0))
        .map_err(BpfError::call(name, "bpf(BPF_MAP_LOOKUP_BATCH)"))?;
    Ok(count)
}

fn family_flows<F: Family>(
    pins: &Pins,
    name: &'static str,
    names: &HashMap<ServiceIndex, String>,
    now: u32,
) -> Result<Vec<FlowRow>, BpfError> {
    let flows: Hash<FlowKey<F>, Flow<F>> = Hash::open(pins, name, Access::Read)?;
    let entries = flows.entries().map_err(BpfError::call(name, "bpf(BPF_MAP_LOOKUP_BATCH)"))?;
    let (replies, forward): (Vec<_>, Vec<_>) =
        // Another proxy's aren't translated here.
        entries
            .into_iter()
            .filter(|(_, flow)| flow.flags & FlowFlags::FOREIGN == 0)
            .partition(|(_, flow)| flow.flags & FlowFlags::REPLY != 0);
    // By the bytes of their keys: addresses of a `Family` have no hash of their own.
    let replies: HashMap<&[u8], &Flow<F>> =
        replies.iter().map(|(key, flow)| (bytemuck::bytes_of(key), flow)).collect();
    Ok(forward
        .into_iter()
        .filter_map(|(key, flow)| {
            let reply = replies.get(bytemuck::bytes_of(&flow.translated.inverse())).copied();
            flow_row(&key, &flow, reply, names, now)
        })
        .collect())
}

fn flow_row<F: Family>(
    key: &FlowKey<F>,
    flow: &Flow<F>,
    reply: Option<&Flow<F>>,
    names: &HashMap<ServiceIndex, String>,
    now: u32,
) -> Option<FlowRow> {
    let translated = &flow.translated;
    let source = socket_address::<F>(key.source, key.source_port);
    let translated_source = socket_address::<F>(translated.source, translated.source_port);
    let idle = seconds_between(flow.last_seen, now);
    let protocol = encode::protocol(key.protocol as u8)?;
    let flags = joined(flow, reply);
    Some(FlowRow {
        protocol,
        source,
        frontend: socket_address::<F>(key.destination, key.destination_port),
        backend: socket_address::<F>(translated.destination, translated.destination_port),
        translated_source: Some(translated_source).filter(|address| *address != source),
        path: if flow.flags & FlowFlags::LOCAL != 0 { FlowPath::Local } else { FlowPath::Remote },
        state: state(protocol, flags).to_owned(),
        idle_seconds: reply.map_or(idle, |reply| idle.min(seconds_between(reply.last_seen, now))),
        service: names.get(&flow.service).cloned(),
    })
}

/// What the flags of both directions say.
fn state(protocol: Protocol, flags: u32) -> &'static str {
    let has = |flag| flags & flag != 0;
    match protocol {
        _ if has(FlowFlags::RST) => "reset",
        _ if has(FlowFlags::FIN) => "closing",
        _ if !has(FlowFlags::ANSWERED) => "unanswered",
        Protocol::Tcp | Protocol::Sctp if has(FlowFlags::UNASSURED) => "half-open",
        Protocol::Tcp => "established",
        Protocol::Udp | Protocol::Sctp => "answered",
    }
}
