//! The pinned tables as the datapath's decisions ask for them, and runs of the loaded programs on a
//! packet that nobody sent. Reads; what a run of a program leaves behind is removed again.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use lb_common::abi::{
    Address, AffinityKey, AffinityValue, Backend, BackendIndex, ClientAddresses, Device, Flow,
    FlowKey, Frontend, FrontendKey, Region, ServiceIndex, ServiceName, ServicePointer,
    ServiceRanges, ServiceRecord, SourceRange, TrafficKey, map,
};
use lb_common::env::{Carried, Tables};
use lb_common::family::Family;
use lb_common::lb::DropReason;
use lb_common::lb::frontend::Destination;

use super::counters::DropCounters;
use super::error::BpfError;
use super::hash::Hash;
use super::links::Place;
use super::maps::table;
use super::pins::Pins;
use super::sys::{self, Access};
use super::table::Table;
use super::trie::Trie;
use super::{expiry, filters, read};

const LOOKUP: &str = "bpf(BPF_MAP_LOOKUP_ELEM)";

/// What is pinned, open to be asked.
#[derive(Debug)]
pub struct Evidence {
    pins: Pins,
    frontends: Hash<FrontendKey, Frontend>,
    services: Table<ServicePointer>,
    records: Table<ServiceRecord>,
    slots: Table<u32>,
    backends: Table<Backend>,
    names: Hash<u32, ServiceName>,
    addresses: Hash<Address, u32>,
    clients: Hash<u64, ClientAddresses>,
    affinity: Hash<AffinityKey, AffinityValue>,
    source_ranges: Trie<SourceRange>,
    service_ranges: Table<ServiceRanges>,
    takeover: Table<u32>,
    devices: Hash<u32, Device>,
}

/// Which way packets pass a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// They come in.
    In,
    /// They leave.
    Out,
}

/// What a program made of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// `TC_ACT_*`.
    pub action: i32,
    /// The frame as the program left it.
    pub frame: Vec<u8>,
    /// Reasons whose counters rose meanwhile.
    pub reasons: Vec<DropReason>,
}

impl Evidence {
    /// Opens the pins under a BPF file system's mount point.
    pub fn open(bpffs: &Path) -> Result<Self, BpfError> {
        let pins = Pins::at(bpffs);
        Ok(Self {
            frontends: Hash::open(&pins, map::FRONTENDS, Access::Read)?,
            services: table(&pins, map::SERVICES, Access::Read)?,
            records: table(&pins, map::RECORDS, Access::Read)?,
            slots: table(&pins, map::SLOTS, Access::Read)?,
            backends: table(&pins, map::BACKENDS, Access::Read)?,
            names: Hash::open(&pins, map::NAMES, Access::Read)?,
            addresses: Hash::open(&pins, map::ADDRESSES, Access::Read)?,
            clients: Hash::open(&pins, map::CLIENTS, Access::Read)?,
            affinity: Hash::open(&pins, map::AFFINITY, Access::ReadWrite)?,
            source_ranges: Trie::open(&pins, map::SOURCE_RANGES, Access::Read)?,
            service_ranges: table(&pins, map::SERVICE_RANGES, Access::Read)?,
            takeover: table(&pins, map::TAKEOVER, Access::Read)?,
            devices: Hash::open(&pins, map::DEVICES, Access::Read)?,
            pins,
        })
    }

    /// DEVICES.
    pub fn devices(&self) -> Result<BTreeMap<u32, Device>, BpfError> {
        let entries = self.devices.entries().map_err(BpfError::call(map::DEVICES, LOOKUP))?;
        Ok(entries.into_iter().collect())
    }

    /// CLIENTS.
    pub fn clients(&self) -> Result<BTreeMap<u64, ClientAddresses>, BpfError> {
        let entries = self.clients.entries().map_err(BpfError::call(map::CLIENTS, LOOKUP))?;
        Ok(entries.into_iter().collect())
    }

    /// `namespace/name:port` of a Service port.
    pub fn name(&self, service: ServiceIndex) -> Option<String> {
        let name = self.names.get(&service.0).ok()??;
        read::text(&name).map(str::to_owned)
    }

    /// Bits of ADDRESSES.
    pub fn address_flags(&self, address: &Address) -> Result<u32, BpfError> {
        let flags = self.addresses.get(address).map_err(BpfError::call(map::ADDRESSES, LOOKUP))?;
        Ok(flags.unwrap_or(0))
    }

    /// The Service tables, as far as a packet or connection to `destination` asks for them.
    pub fn around(&self, destination: &Destination) -> Result<Snapshot<'_>, BpfError> {
        let mut snapshot = Snapshot {
            evidence: self,
            records: HashMap::new(),
            backends: HashMap::new(),
            affinity: HashMap::new(),
            service_ranges: [ServiceRanges::V4, ServiceRanges::V6]
                .map(|family| self.service_ranges.get(family).unwrap_or_default()),
            failure: RefCell::new(None),
        };
        for address in [destination.address, destination.address.wildcard()] {
            let Destination { port, protocol, .. } = *destination;
            let key = FrontendKey { address, port, protocol, pad: 0 };
            let found = self.frontends.get(&key).map_err(BpfError::call(map::FRONTENDS, LOOKUP))?;
            if let Some(frontend) = found {
                snapshot.load(frontend.service);
            }
        }
        Ok(snapshot)
    }

    fn flows<F: Family>(&self, access: Access) -> Result<Hash<FlowKey<F>, Flow<F>>, BpfError> {
        let name = if F::HAS_HEADER_CHECKSUM { map::FLOWS4 } else { map::FLOWS6 };
        Hash::open(&self.pins, name, access)
    }

    /// The flow of a tuple.
    pub fn flow<F: Family>(&self, key: &FlowKey<F>) -> Result<Option<Flow<F>>, BpfError> {
        let flows = self.flows::<F>(Access::Read)?;
        flows.get(key).map_err(BpfError::call(flows.name(), LOOKUP))
    }

    /// Whether a program sees packets that pass a device.
    pub fn watches(&self, device: u32, direction: Direction) -> Result<bool, BpfError> {
        self.program(device, direction).map(|program| program.is_some())
    }

    /// Runs the program for packets that pass a device; `None` when nothing is attached
    /// there. The flow that it opens for `tuple` is removed: the tables mustn't have one, which is for the
    /// caller to see to. What is remembered of the client under `affinity` is again what it was.
    pub fn run<F: Family>(
        &self,
        (device, direction): (u32, Direction),
        tuple: &FlowKey<F>,
        affinity: Option<&AffinityKey>,
        frame: &[u8],
    ) -> Result<Option<Run>, BpfError> {
        let Some(program) = self.program(device, direction)? else { return Ok(None) };
        let counters = DropCounters::open(&self.pins, Access::Read)?;
        let before = sums(&counters)?;
        let flows = self.flows::<F>(Access::ReadWrite)?;
        let links = self.pins.links();
        let failed = BpfError::pin("run (BPF_PROG_TEST_RUN) a program of", &links);
        let remembered = affinity.map(|key| self.affinity.get(key)).transpose();
        let remembered = remembered.map_err(BpfError::call(map::AFFINITY, LOOKUP))?.flatten();
        let (action, frame) = sys::run_program(program.as_fd(), device, frame).map_err(failed)?;
        if let Some(flow) = flows.get(tuple).map_err(BpfError::call(flows.name(), LOOKUP))? {
            for key in [*tuple, flow.translated.inverse()] {
                flows
                    .remove(&key)
                    .map_err(BpfError::call(flows.name(), "bpf(BPF_MAP_DELETE_ELEM)"))?;
            }
        }
        // Also when there is no flow: an endpoint is remembered before the way to it is looked for.
        if let Some(key) = affinity {
            match remembered {
                Some(value) => self
                    .affinity
                    .set(key, &value)
                    .map_err(BpfError::call(map::AFFINITY, "bpf(BPF_MAP_UPDATE_ELEM)"))?,
                None => {
                    let removed = self.affinity.remove(key);
                    removed.map_err(BpfError::call(map::AFFINITY, "bpf(BPF_MAP_DELETE_ELEM)"))?;
                }
            }
        }
        let after = sums(&counters)?;
        let rose = |reason: &DropReason| after.get(reason) > before.get(reason);
        let reasons = DropReason::ALL.into_iter().filter(rose).collect();
        Ok(Some(Run { action, frame, reasons }))
    }

    /// The program that is attached to a device.
    fn program(&self, device: u32, direction: Direction) -> Result<Option<OwnedFd>, BpfError> {
        let (place, note) = match direction {
            Direction::In => (Place::TcxIngress, filters::ingress_note(device)),
            Direction::Out => (Place::TcxEgress, filters::egress_note(device)),
        };
        let link = self.pins.link(&place.pin_name(device));
        // Links can't be opened to be read alone.
        let open = |pin: &Path| match sys::open_pin(pin, Access::ReadWrite) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            result => result.map(Some),
        };
        if let Some(opened) = open(&link).map_err(BpfError::pin("open the pin", &link))? {
            let program =
                sys::link_info(opened.as_fd()).and_then(|info| sys::program_by_id(info.program));
            return program.map(Some).map_err(BpfError::pin("open the program of", &link));
        }
        let note = self.pins.link(&note);
        open(&note).map_err(BpfError::pin("open the pin", &note))
    }
}

/// Drops by reason.
fn sums(counters: &DropCounters) -> Result<BTreeMap<DropReason, u64>, BpfError> {
    let mut sums = BTreeMap::new();
    for (_, reason, count) in counters.by_service()? {
        *sums.entry(reason).or_default() += count;
    }
    Ok(sums)
}

/// The part of the tables that one question needs. What a decision writes stays here.
#[derive(Debug)]
pub struct Snapshot<'a> {
    evidence: &'a Evidence,
    records: HashMap<ServiceIndex, ServiceRecord>,
    backends: HashMap<BackendIndex, Backend>,
    affinity: HashMap<AffinityKey, AffinityValue>,
    service_ranges: [ServiceRanges; 2],
    failure: RefCell<Option<BpfError>>,
}

impl Snapshot<'_> {
    fn load(&mut self, service: ServiceIndex) {
        let current = self.evidence.services.get(service.0).unwrap_or_default();
        if current.record == 0 {
            return;
        }
        let Some(record) = self.evidence.records.get(current.record) else { return };
        for Region { offset, len } in [record.cluster, record.local] {
            for at in 0..len {
                if let Some(index) = self.evidence.slots.get(offset.wrapping_add(at)) {
                    self.load_backend(BackendIndex(index));
                }
            }
        }
        self.records.insert(service, record);
    }

    fn load_backend(&mut self, index: BackendIndex) {
        if let Some(backend) = self.evidence.backends.get(index.0) {
            self.backends.insert(index, backend);
        }
    }

    /// What went wrong while it was asked; answers may be wrong then.
    pub fn failure(&self) -> Option<BpfError> {
        self.failure.take()
    }

    /// The answer, or nothing and a note of the error.
    fn noted<T: Default>(&self, map: &'static str, answer: io::Result<T>) -> T {
        answer.unwrap_or_else(|error| {
            self.failure.replace(Some(BpfError::call(map, LOOKUP)(error)));
            T::default()
        })
    }
}

impl Tables for Snapshot<'_> {
    fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
        self.noted(map::FRONTENDS, self.evidence.frontends.get(key))
    }

    fn record(&self, service: ServiceIndex) -> Option<&ServiceRecord> {
        self.records.get(&service)
    }

    fn slot(&self, index: u32) -> Option<BackendIndex> {
        self.evidence.slots.get(index).map(BackendIndex)
    }

    fn backend(&self, index: BackendIndex) -> Option<&Backend> {
        self.backends.get(&index)
    }

    fn address_flags(&self, address: &Address) -> u32 {
        self.noted(map::ADDRESSES, self.evidence.addresses.get(address)).unwrap_or(0)
    }

    fn service_ranges(&self, address: Address) -> Option<&ServiceRanges> {
        let family = if address.is_v4() { ServiceRanges::V4 } else { ServiceRanges::V6 };
        self.service_ranges.get(family as usize)
    }

    fn takeover(&self) -> u32 {
        self.evidence.takeover.get(0).unwrap_or_default()
    }

    fn source_range(&self, key: &SourceRange) -> bool {
        self.noted(map::SOURCE_RANGES, self.evidence.source_ranges.holds(key))
    }

    fn affinity(&mut self, key: &AffinityKey) -> Option<&mut AffinityValue> {
        if !self.affinity.contains_key(key)
            && let Some(value) = self.noted(map::AFFINITY, self.evidence.affinity.get(key))
        {
            self.load_backend(value.backend);
            self.affinity.insert(*key, value);
        }
        self.affinity.get_mut(key)
    }

    fn set_affinity(&mut self, key: &AffinityKey, value: &AffinityValue) {
        self.affinity.insert(*key, *value);
    }

    fn random(&self) -> u32 {
        0
    }

    fn now(&self) -> u32 {
        expiry::now()
    }

    /// Nothing is: see [`crate::trace::model`].
    fn count_drop(&self, _: ServiceIndex, _: DropReason) {}
    fn watched(&self) -> u32 {
        0
    }
    fn count_socket(&self, _: &TrafficKey) {}
    fn count_carried(&self, _: &TrafficKey, _: &Carried) {}
}
