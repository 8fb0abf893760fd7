//! The loaded tc and XDP programs with maps of their own, run by `BPF_PROG_TEST_RUN`.
//!
//! Loads the object itself, with small maps that nobody pins: what the agent does around the programs is
//! tested elsewhere.

use anyhow::{Context, Result, ensure};
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, MapData, PerCpuHashMap, ProgramArray, RingBuf};
use aya::programs::{Program, SchedClassifier, TcAttachType, TestRun, TestRunOptions, Xdp, tc};
use aya::{Ebpf, EbpfLoader, Pod};
use bytemuck::bytes_of;
use lb_common::abi::{
    Address, AffinityKey, AffinityValue, Backend, ClientAddresses, Config, Device, DropKey, Event,
    Flow, FlowKey, Frontend, FrontendKey, Monitor, ReverseKey, ReverseValue, SCTP_PROGRAMS,
    ServicePointer, ServiceRanges, ServiceRecord, SourceRange, Traffic, TrafficKey, map,
};
use lb_common::family::{Family, V4, V6};
use lb_common::lb::fragment::{ParkedFrame, ParkedKey};
use lb_common::model::world::World;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

/// Flow entries of each family that are more than any case has.
pub const FLOWS: u32 = 16_384;
/// Room for the longest frame of any case.
const FRAME: usize = 16 * 1024;
/// `struct __sk_buff`: its size and the members that a test run may set (include/uapi/linux/bpf.h).
const SK_BUFF: usize = 192;
const SK_BUFF_IFINDEX: usize = 40;
const SK_BUFF_GSO_SEGS: usize = 164;
const SK_BUFF_GSO_SIZE: usize = 176;

/// A packet program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// tc ingress of an Ethernet device.
    Ingress,
    /// tc egress of an Ethernet device.
    Egress,
    /// XDP.
    Xdp,
    /// tc ingress of a pod's device.
    PodIngress,
    /// tc egress of a pod's device.
    PodEgress,
}

impl Hook {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Ingress, Self::Egress, Self::Xdp, Self::PodIngress, Self::PodEgress];

    /// The program's name.
    pub const fn program(self) -> &'static str {
        match self {
            Self::Ingress => "tc_ingress",
            Self::Egress => "tc_egress",
            Self::Xdp => "xdp_ingress",
            Self::PodIngress => "pod_ingress",
            Self::PodEgress => "pod_egress",
        }
    }
}

/// What became of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// `TC_ACT_*` or `XDP_*`.
    pub action: i32,
    /// The frame as the program left it.
    pub bytes: Vec<u8>,
}

type TrafficBytes = [u8; size_of::<TrafficKey>()];
type Counters = [u8; size_of::<Traffic>()];

/// The loaded object.
#[derive(Debug)]
pub struct Programs {
    ebpf: Ebpf,
}

impl Programs {
    /// Loads the programs that `wanted` names, with room for as many flow entries of each family; the verifier has its say here, and takes seconds for each
    /// in a virtual machine without hardware support.
    ///
    /// # Errors
    /// The verifier's log, or the map that the kernel refused.
    pub fn load(config: &Config, flows: u32, wanted: impl Fn(&str) -> bool) -> Result<Self> {
        let mut loader = EbpfLoader::new();
        loader.override_global("CONFIG", bytes_of(config), true);
        for (name, entries) in [
            (map::SERVICES, 256),
            (map::RECORDS, 256),
            (map::SLOTS, 32_768),
            (map::BACKENDS, 512),
            (map::FLOWS4, flows),
            (map::FLOWS6, flows),
        ] {
            loader.map_max_entries(name, entries);
        }
        let mut ebpf = loader.load(lb_agent::bpf::OBJECT).context("load the kernel object")?;
        for (name, program) in ebpf.programs_mut().filter(|(name, _)| wanted(name)) {
            match program {
                Program::SchedClassifier(program) => program.load(),
                Program::Xdp(program) => program.load(),
                Program::CgroupSockAddr(program) => program.load(),
                Program::CgroupSock(program) => program.load(),
                _ => continue,
            }
            .with_context(|| format!("load the program {name}"))?;
        }
        set_calls(&mut ebpf)?;
        Ok(Self { ebpf })
    }

    /// The object, to attach its programs.
    pub fn ebpf(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    /// Attaches programs to the ingress and the egress of a device.
    ///
    /// # Errors
    /// Names the program and the device that don't go together.
    pub fn attach(&mut self, device: &str, [ingress, egress]: [&str; 2]) -> Result<()> {
        // There already when another program is attached to the device.
        let _ = tc::qdisc_add_clsact(device);
        for (program, side) in [(ingress, TcAttachType::Ingress), (egress, TcAttachType::Egress)] {
            let loaded = self.ebpf.program_mut(program).context("no such program")?;
            let loaded: &mut SchedClassifier = loaded.try_into()?;
            loaded.attach(device, side).with_context(|| format!("attach {program} to {device}"))?;
        }
        Ok(())
    }

    /// Verified instructions by program, where the kernel tells (5.16).
    ///
    /// # Errors
    /// When a program's information can't be read.
    pub fn verified(&self) -> Result<BTreeMap<String, u32>> {
        let mut counts = BTreeMap::new();
        for (name, program) in self.ebpf.programs() {
            let info = program.info().with_context(|| format!("ask about the program {name}"))?;
            counts.insert(name.to_owned(), info.verified_instruction_count().unwrap_or_default());
        }
        Ok(counts)
    }

    /// Writes the Service tables; what the hashes held before goes.
    ///
    /// # Errors
    /// Names the map that refused.
    pub fn fill(&mut self, world: &World) -> Result<()> {
        let frontends = world.frontends.iter().map(|(key, value)| (bytes(key), bytes(value)));
        self.replace::<{ size_of::<FrontendKey>() }, { size_of::<Frontend>() }>(
            map::FRONTENDS,
            frontends,
        )?;
        let addresses = world.addresses.iter().map(|(key, flags)| (bytes(key), bytes(flags)));
        self.replace::<16, 4>(map::ADDRESSES, addresses)?;
        self.fill_clients(world)?;
        self.set_source_ranges(&world.source_ranges)?;
        let ranges = (0..).zip(&world.service_ranges).map(|(at, ranges)| (at, bytes(ranges)));
        self.set::<{ size_of::<ServiceRanges>() }>(map::SERVICE_RANGES, ranges)?;
        let devices = world.devices.iter().map(|(index, device)| (bytes(index), bytes(device)));
        self.replace::<4, { size_of::<Device>() }>(map::DEVICES, devices)?;
        // The record of a Service lies at the Service's own index.
        let current = world
            .records
            .keys()
            .map(|service| (service.0, bytes(&ServicePointer { record: service.0, revision: 1 })));
        self.set::<{ size_of::<ServicePointer>() }>(map::SERVICES, current)?;
        let records = world.records.iter().map(|(service, record)| (service.0, bytes(record)));
        self.set::<{ size_of::<ServiceRecord>() }>(map::RECORDS, records)?;
        let slots = (0..).zip(&world.slots).map(|(at, slot)| (at, bytes(slot)));
        self.set::<4>(map::SLOTS, slots)?;
        let backends = (0..).zip(&world.backends).map(|(at, backend)| (at, bytes(backend)));
        self.set::<{ size_of::<Backend>() }>(map::BACKENDS, backends)
    }

    /// Writes CLIENTS.
    ///
    /// # Errors
    /// When the map refuses.
    pub fn fill_clients(&mut self, world: &World) -> Result<()> {
        let clients = world.clients.iter().map(|(cookie, value)| (bytes(cookie), bytes(value)));
        self.replace::<8, { size_of::<ClientAddresses>() }>(map::CLIENTS, clients)
    }

    /// SOURCE_RANGES holds these, and no others.
    fn set_source_ranges(&mut self, ranges: &[SourceRange]) -> Result<()> {
        const DATA: usize = size_of::<SourceRange>() - size_of::<u32>();
        let map = self.ebpf.map_mut(map::SOURCE_RANGES).context("the object has no trie")?;
        let mut trie =
            LpmTrie::<_, [u8; DATA], u32>::try_from(map).context("the map SOURCE_RANGES")?;
        let present: Vec<_> = trie.keys().collect::<Result<_, _>>().context("list the ranges")?;
        for key in present {
            trie.remove(&key).context("remove a range")?;
        }
        for range in ranges {
            let data = bytes(range).split_off(size_of::<u32>());
            let key = Key::new(range.prefix_len, array::<DATA>(&data)?);
            trie.insert(&key, 1, 0).with_context(|| format!("insert {range:?}"))?;
        }
        Ok(())
    }

    /// Forgets flows, fragments, clients, what sockets talk to, and counters.
    ///
    /// # Errors
    /// Names the map that refused.
    pub fn forget(&mut self) -> Result<()> {
        self.clear::<{ size_of::<FlowKey<V4>>() }, { size_of::<Flow<V4>>() }>(map::FLOWS4)?;
        self.clear::<{ size_of::<FlowKey<V6>>() }, { size_of::<Flow<V6>>() }>(map::FLOWS6)?;
        self.forget_affinity()?;
        self.clear::<8, { size_of::<ClientAddresses>() }>(map::CLIENTS)?;
        self.clear::<16, 4>(map::FRAGMENTS4)?;
        self.clear::<40, 4>(map::FRAGMENTS6)?;
        self.clear::<{ size_of::<ParkedKey>() }, { size_of::<ParkedFrame>() }>(map::PARKED)?;
        self.forget_calls()
    }

    /// Forgets clients of Services with session affinity.
    ///
    /// # Errors
    /// When the map refuses.
    pub fn forget_affinity(&mut self) -> Result<()> {
        self.clear::<{ size_of::<AffinityKey>() }, { size_of::<AffinityValue>() }>(map::AFFINITY)
    }

    /// Forgets what sockets talk to, and counters.
    ///
    /// # Errors
    /// Names the map that refused.
    pub fn forget_calls(&mut self) -> Result<()> {
        self.clear::<{ size_of::<ReverseKey>() }, { size_of::<ReverseValue>() }>(map::REVERSE)?;
        let mut drops = self.drop_counters()?;
        let keys: Vec<_> = drops.keys().collect::<Result<_, _>>().context("list DROPS")?;
        for key in keys {
            drops.remove(&key).context("clear DROPS")?;
        }
        let mut traffic = self.traffic_counters()?;
        let keys: Vec<_> = traffic.keys().collect::<Result<_, _>>().context("list TRAFFIC")?;
        for key in keys {
            traffic.remove(&key).context("clear TRAFFIC")?;
        }
        Ok(())
    }

    /// Backends and frontends of REVERSE.
    ///
    /// # Errors
    /// When the map can't be listed.
    pub fn translations(&mut self) -> Result<Vec<(SocketAddr, SocketAddr)>> {
        let map =
            self.hash::<{ size_of::<ReverseKey>() }, { size_of::<ReverseValue>() }>(map::REVERSE)?;
        let mut found = Vec::new();
        for entry in map.iter() {
            let (key, value) = entry.context("list REVERSE")?;
            let key: ReverseKey = bytemuck::pod_read_unaligned(&key);
            let value: ReverseValue = bytemuck::pod_read_unaligned(&value);
            found.push((
                SocketAddr::new(key.address.into(), key.port.get()),
                SocketAddr::new(value.address.into(), value.port.get()),
            ));
        }
        Ok(found)
    }

    /// The backends that REVERSE says sockets talk to, one for each socket, sorted.
    ///
    /// # Errors
    /// When the map can't be listed.
    pub fn talked_to(&mut self) -> Result<Vec<SocketAddr>> {
        let map =
            self.hash::<{ size_of::<ReverseKey>() }, { size_of::<ReverseValue>() }>(map::REVERSE)?;
        let mut backends = Vec::new();
        for key in map.keys() {
            let key: ReverseKey = bytemuck::cast(key.context("list REVERSE")?);
            backends.push(SocketAddr::new(key.address.into(), key.port.get()));
        }
        backends.sort_unstable();
        Ok(backends)
    }

    /// How many fragments wait for their first one.
    ///
    /// # Errors
    /// When the map can't be listed.
    pub fn parked(&mut self) -> Result<usize> {
        let map =
            self.hash::<{ size_of::<ParkedKey>() }, { size_of::<ParkedFrame>() }>(map::PARKED)?;
        let keys: Vec<_> = map.keys().collect::<Result<_, _>>().context("list PARKED")?;
        Ok(keys.len())
    }

    /// Removes the flow entries whose flags are judged lost, as an LRU may; returns how many are left.
    ///
    /// # Errors
    /// Names the map that refused.
    pub fn lose_flows<F: Family>(&mut self, lost: impl Fn(u32) -> bool) -> Result<usize> {
        if F::HAS_HEADER_CHECKSUM {
            self.lose::<V4, { size_of::<FlowKey<V4>>() }, { size_of::<Flow<V4>>() }>(
                map::FLOWS4,
                lost,
            )
        } else {
            self.lose::<V6, { size_of::<FlowKey<V6>>() }, { size_of::<Flow<V6>>() }>(
                map::FLOWS6,
                lost,
            )
        }
    }

    fn lose<F: Family, const K: usize, const V: usize>(
        &mut self,
        name: &str,
        lost: impl Fn(u32) -> bool,
    ) -> Result<usize> {
        let mut flows = self.hash::<K, V>(name)?;
        let entries: Vec<_> =
            flows.iter().collect::<Result<_, _>>().with_context(|| format!("list {name}"))?;
        let mut left = 0;
        for (key, value) in entries {
            let flow: Flow<F> = bytemuck::pod_read_unaligned(&value);
            if lost(flow.flags) {
                flows.remove(&key).with_context(|| format!("remove from {name}"))?;
            } else {
                left += 1;
            }
        }
        Ok(left)
    }

    /// The addresses under which AFFINITY remembers clients.
    ///
    /// # Errors
    /// When the map can't be read.
    pub fn remembered_clients(&mut self) -> Result<BTreeSet<Address>> {
        let map = self
            .hash::<{ size_of::<AffinityKey>() }, { size_of::<AffinityValue>() }>(map::AFFINITY)?;
        map.keys()
            .map(|key| {
                let key: AffinityKey = bytemuck::pod_read_unaligned(&key.context("list AFFINITY")?);
                Ok(key.client)
            })
            .collect()
    }

    /// From now on these events are put into EVENTS.
    ///
    /// # Errors
    /// When the map refuses.
    pub fn watch(&mut self, monitor: &Monitor) -> Result<()> {
        let element = std::iter::once((0, bytes(monitor)));
        self.set::<{ size_of::<Monitor>() }>(map::MONITOR, element)
    }

    /// The events since the last call, without their times.
    ///
    /// # Errors
    /// When the ring buffer can't be read.
    pub fn events(&mut self) -> Result<Vec<Event>> {
        let map = self.ebpf.map_mut(map::EVENTS).context("the object has no EVENTS")?;
        let mut ring = RingBuf::try_from(map).context("the map EVENTS")?;
        let mut events = Vec::new();
        while let Some(item) = ring.next() {
            let event: Event = bytemuck::pod_read_unaligned(&item);
            events.push(Event { time: 0, ..event });
        }
        Ok(events)
    }

    /// Drops by Service and reason, over all CPUs.
    ///
    /// # Errors
    /// When the map can't be read.
    pub fn drops(&mut self) -> Result<BTreeMap<(u32, u32), u64>> {
        let drops = self.drop_counters()?;
        let mut counts = BTreeMap::new();
        for entry in drops.iter() {
            let (key, values) = entry.context("read DROPS")?;
            let key: DropKey = bytemuck::pod_read_unaligned(&key);
            counts.insert((key.service.0, key.reason), values.iter().sum());
        }
        Ok(counts)
    }

    /// Traffic by endpoint, over all CPUs.
    ///
    /// # Errors
    /// When the map can't be read.
    pub fn traffic(&mut self) -> Result<BTreeMap<TrafficKey, Traffic>> {
        let traffic = self.traffic_counters()?;
        let mut counts = BTreeMap::new();
        for entry in traffic.iter() {
            let (key, values) = entry.context("read TRAFFIC")?;
            let values = values.iter().map(|value| bytemuck::pod_read_unaligned::<Traffic>(value));
            let sum = values.fold(Traffic::default(), |sum, value| sum + value);
            counts.insert(bytemuck::pod_read_unaligned(&key), sum);
        }
        Ok(counts)
    }

    /// Runs a program on a frame that came in through (or is about to leave through) `device`; `segment`
    /// is the payload per segment of a frame that holds merged ones, or 0.
    ///
    /// # Errors
    /// When the kernel refuses the test run; it does for frames without a byte behind the Ethernet header.
    pub fn run(&self, hook: Hook, device: u32, segment: u32, frame: &[u8]) -> Result<Run> {
        let mut out = vec![0; FRAME];
        let mut context = [0; SK_BUFF];
        put(&mut context, SK_BUFF_IFINDEX, device);
        put(&mut context, SK_BUFF_GSO_SIZE, segment);
        put(&mut context, SK_BUFF_GSO_SEGS, segments(segment, frame.len()));
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.data_out = Some(&mut out);
        let result = match hook {
            Hook::Xdp => {
                let program: &Xdp = self.program(hook.program())?.try_into()?;
                program.test_run(options)
            }
            Hook::Ingress | Hook::Egress | Hook::PodIngress | Hook::PodEgress => {
                options.ctx_in = Some(&context);
                let program: &SchedClassifier = self.program(hook.program())?.try_into()?;
                program.test_run(options)
            }
        };
        let result = result
            .with_context(|| format!("BPF_PROG_TEST_RUN of {hook:?} with {} bytes", frame.len()))?;
        let len = result.data_size_out as usize;
        ensure!(len <= FRAME, "the frame grew to {len} bytes");
        out.truncate(len);
        Ok(Run { action: result.return_value as i32, bytes: out })
    }

    fn program(&self, name: &str) -> Result<&Program> {
        self.ebpf.program(name).with_context(|| format!("the object has no program {name}"))
    }

    fn hash<const K: usize, const V: usize>(
        &mut self,
        name: &str,
    ) -> Result<HashMap<&mut MapData, [u8; K], [u8; V]>> {
        let map = self.ebpf.map_mut(name).with_context(|| format!("the object has no {name}"))?;
        HashMap::try_from(map).with_context(|| format!("the map {name}"))
    }

    fn drop_counters(&mut self) -> Result<PerCpuHashMap<&mut MapData, [u8; 8], u64>> {
        let map = self.ebpf.map_mut(map::DROPS).context("the object has no DROPS")?;
        PerCpuHashMap::try_from(map).context("the map DROPS")
    }

    fn traffic_counters(&mut self) -> Result<PerCpuHashMap<&mut MapData, TrafficBytes, Counters>> {
        let map = self.ebpf.map_mut(map::TRAFFIC).context("the object has no TRAFFIC")?;
        PerCpuHashMap::try_from(map).context("the map TRAFFIC")
    }

    /// The hash holds these entries, and no others.
    fn replace<const K: usize, const V: usize>(
        &mut self,
        name: &str,
        entries: impl Iterator<Item = (Vec<u8>, Vec<u8>)>,
    ) -> Result<()> {
        let mut map = self.hash::<K, V>(name)?;
        let mut wanted = BTreeMap::new();
        for (key, value) in entries {
            wanted.insert(array::<K>(&key)?, array::<V>(&value)?);
        }
        let present: Vec<[u8; K]> =
            map.keys().collect::<Result<_, _>>().with_context(|| format!("list {name}"))?;
        for key in present.iter().filter(|key| !wanted.contains_key(*key)) {
            map.remove(key).with_context(|| format!("remove from {name}"))?;
        }
        for (key, value) in wanted {
            map.insert(key, value, 0).with_context(|| format!("insert into {name}"))?;
        }
        Ok(())
    }

    fn set<const V: usize>(
        &mut self,
        name: &str,
        elements: impl Iterator<Item = (u32, Vec<u8>)>,
    ) -> Result<()>
    where
        [u8; V]: Pod,
    {
        let map = self.ebpf.map_mut(name).with_context(|| format!("the object has no {name}"))?;
        let mut map =
            Array::<_, [u8; V]>::try_from(map).with_context(|| format!("the map {name}"))?;
        for (index, value) in elements {
            map.set(index, array::<V>(&value)?, 0).with_context(|| format!("write to {name}"))?;
        }
        Ok(())
    }

    fn clear<const K: usize, const V: usize>(&mut self, name: &str) -> Result<()> {
        let mut map = self.hash::<K, V>(name)?;
        let keys: Vec<_> =
            map.keys().collect::<Result<_, _>>().with_context(|| format!("list {name}"))?;
        for key in keys {
            // An LRU may have dropped it meanwhile.
            let _ = map.remove(&key);
        }
        Ok(())
    }
}

/// How many segments a frame of this length counts for here, and in the model: a real one has about as
/// many.
fn segments(segment: u32, frame: usize) -> u32 {
    if segment == 0 { 0 } else { (frame as u32).div_ceil(segment) }
}

fn put(context: &mut [u8; SK_BUFF], offset: usize, value: u32) {
    for (to, from) in context.iter_mut().skip(offset).zip(value.to_ne_bytes()) {
        *to = from;
    }
}

fn bytes<T: bytemuck::Pod>(value: &T) -> Vec<u8> {
    bytes_of(value).to_vec()
}

fn array<const N: usize>(bytes: &[u8]) -> Result<[u8; N]> {
    bytes.try_into().with_context(|| format!("{} bytes where {N} belong", bytes.len()))
}

/// The programs for SCTP, as far as they are loaded.
fn set_calls(ebpf: &mut Ebpf) -> Result<()> {
    for (index, name) in (0..).zip(SCTP_PROGRAMS) {
        let Some(Ok(fd)) = ebpf.program(name).map(Program::fd) else { continue };
        let fd = fd.try_clone()?;
        let map = ebpf.map_mut(map::CALLS).context("the object has no program array")?;
        let mut calls = ProgramArray::try_from(map)?;
        calls.set(index, &fd, 0).with_context(|| format!("put {name} into the program array"))?;
    }
    Ok(())
}
