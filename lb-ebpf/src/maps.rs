//! Every map. Sizes are defaults; the agent overrides them when it creates the maps.

use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC};
use aya_ebpf::macros::map;
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::maps::{
    Array, HashMap, LpmTrie, LruHashMap, LruPerCpuHashMap, PerCpuArray, PerCpuHashMap,
    ProgramArray, RingBuf,
};
use lb_common::abi::{
    Address, AffinityKey, AffinityValue, Backend, ClientAddresses, Config, Device, DropKey, Event,
    Flow, FlowKey, Frontend, FrontendKey, Monitor, Pace, PeerKey, PeerValue, ReverseKey,
    ReverseValue, SCTP_PROGRAMS, ServiceName, ServicePointer, ServiceRanges, ServiceRecord,
    SourceRange, SourceSet, Traffic, TrafficKey,
};
use lb_common::family::{Family, V4, V6};
use lb_common::packet::{FragmentKey, Work};
use lb_common::wire::transport::Ports;

use crate::fib::Fib;

#[map]
pub static FRONTENDS: HashMap<FrontendKey, Frontend> =
    HashMap::with_max_entries(65_536, BPF_F_NO_PREALLOC);
#[map]
pub static SERVICES: Array<ServicePointer> = Array::with_max_entries(65_536, BPF_F_MMAPABLE);
#[map]
pub static RECORDS: Array<ServiceRecord> = Array::with_max_entries(131_072, BPF_F_MMAPABLE);
#[map]
pub static SLOTS: Array<u32> = Array::with_max_entries(1_048_576, BPF_F_MMAPABLE);
#[map]
pub static BACKENDS: Array<Backend> = Array::with_max_entries(262_144, BPF_F_MMAPABLE);
/// Read by the agent and by people alone.
#[map]
pub static NAMES: HashMap<u32, ServiceName> = HashMap::with_max_entries(65_536, BPF_F_NO_PREALLOC);
#[map]
pub static ADDRESSES: HashMap<Address, u32> = HashMap::with_max_entries(69_632, BPF_F_NO_PREALLOC);
#[map]
pub static CLIENTS: HashMap<u64, ClientAddresses> =
    HashMap::with_max_entries(4_096, BPF_F_NO_PREALLOC);
#[map]
pub static AFFINITY: LruHashMap<AffinityKey, AffinityValue> =
    LruHashMap::with_max_entries(65_536, 0);
#[map]
pub static SOURCE_RANGES: LpmTrie<SourcePrefix, u32> =
    LpmTrie::with_max_entries(65_536, BPF_F_NO_PREALLOC);
#[map]
pub static SERVICE_RANGES: Array<ServiceRanges> = Array::with_max_entries(2, BPF_F_MMAPABLE);
#[map]
pub static DEVICES: HashMap<u32, Device> = HashMap::with_max_entries(1_024, BPF_F_NO_PREALLOC);
#[map]
pub static FLOWS4: LruHashMap<FlowKey<V4>, Flow<V4>> = LruHashMap::with_max_entries(262_144, 0);
#[map]
pub static FLOWS6: LruHashMap<FlowKey<V6>, Flow<V6>> = LruHashMap::with_max_entries(262_144, 0);
#[map]
pub static FRAGMENTS4: LruHashMap<FragmentKey<V4>, Ports> = LruHashMap::with_max_entries(8_192, 0);
#[map]
pub static FRAGMENTS6: LruHashMap<FragmentKey<V6>, Ports> = LruHashMap::with_max_entries(8_192, 0);
#[map]
pub static PEERS: LruHashMap<PeerKey, PeerValue> = LruHashMap::with_max_entries(65_536, 0);
#[map]
pub static REVERSE: LruHashMap<ReverseKey, ReverseValue> = LruHashMap::with_max_entries(131_072, 0);
#[map]
pub static DROPS: LruPerCpuHashMap<DropKey, u64> = LruPerCpuHashMap::with_max_entries(8_192, 0);
/// Made whole at once: elements that are made on demand aren't zero on every CPU when they are made
/// again (Linux 6.1, `pcpu_init_value`).
#[map]
pub static TRAFFIC: PerCpuHashMap<TrafficKey, Traffic> = PerCpuHashMap::with_max_entries(16_384, 0);
/// The programs that carry SCTP, as [`SCTP_PROGRAMS`] orders them.
#[map]
pub static CALLS: ProgramArray = ProgramArray::with_max_entries(SCTP_PROGRAMS.len() as u32, 0);
#[map]
pub static TAKEOVER: Array<u32> = Array::with_max_entries(1, BPF_F_MMAPABLE);
/// Room for three thousand events.
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(262_144, 0);
#[map]
pub static MONITOR: Array<Monitor> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
pub static WATCHED: HashMap<u32, u32> = HashMap::with_max_entries(65_536, BPF_F_NO_PREALLOC);
#[map]
pub static PACE: PerCpuArray<Pace> = PerCpuArray::with_max_entries(1, 0);
/// Where an event of a packet is put together.
#[map]
static EVENT: PerCpuArray<Event> = PerCpuArray::with_max_entries(1, 0);
#[map]
static WORK4: PerCpuArray<Work<V4>> = PerCpuArray::with_max_entries(1, 0);
#[map]
static WORK6: PerCpuArray<Work<V6>> = PerCpuArray::with_max_entries(1, 0);
/// The last route answer: where a forwarded packet goes. Per CPU, like the working memory.
#[map]
static FIB: PerCpuArray<Fib> = PerCpuArray::with_max_entries(1, 0);
/// Where a number goes to be forgotten by the verifier.
#[map]
pub static OPAQUE: PerCpuArray<u32> = PerCpuArray::with_max_entries(1, 0);

/// [`lb_common::abi::SourceRange`] without its length, as the type of the map wants it.
#[repr(C)]
pub struct SourcePrefix {
    set: SourceSet,
    address: Address,
}

const _: () = assert!(size_of::<Key<SourcePrefix>>() == size_of::<SourceRange>());

/// Set by the agent when it loads the object.
#[unsafe(no_mangle)]
static CONFIG: Config =
    Config { host_netns_cookie: 0, snat_port_min: 0, snat_port_max: 0, flags: 0 };

/// The agent's constants.
#[inline(always)]
pub fn config() -> Config {
    // SAFETY: a valid static; volatile, because the loader writes it after compilation.
    unsafe { core::ptr::read_volatile(&raw const CONFIG) }
}

/// This CPU's last route answer.
#[inline(always)]
pub fn fib() -> Option<&'static mut Fib> {
    // SAFETY: this CPU's element, and nobody else's while a hook runs; any bytes are a valid Fib.
    FIB.get_ptr_mut(0).map(|fib| unsafe { &mut *fib })
}

/// This CPU's event.
#[inline(always)]
pub fn event() -> Option<&'static mut Event> {
    // SAFETY: this CPU's element, and nobody else's while a packet hook runs; any bytes are a valid Event.
    EVENT.get_ptr_mut(0).map(|event| unsafe { &mut *event })
}

/// The maps of one family.
pub trait FamilyMaps: Family {
    /// FLOWS4 or FLOWS6.
    fn flows() -> &'static LruHashMap<FlowKey<Self>, Flow<Self>>;
    /// FRAGMENTS4 or FRAGMENTS6.
    fn fragments() -> &'static LruHashMap<FragmentKey<Self>, Ports>;
    /// This CPU's working memory: packet hooks run to their end before another starts on a CPU.
    fn work() -> Option<&'static mut Work<Self>>;
}

impl FamilyMaps for V4 {
    #[inline(always)]
    fn flows() -> &'static LruHashMap<FlowKey<Self>, Flow<Self>> {
        &FLOWS4
    }
    #[inline(always)]
    fn fragments() -> &'static LruHashMap<FragmentKey<Self>, Ports> {
        &FRAGMENTS4
    }
    #[inline(always)]
    fn work() -> Option<&'static mut Work<Self>> {
        // SAFETY: this CPU's element, and nobody else's while the hook runs.
        WORK4.get_ptr_mut(0).map(|work| unsafe { &mut *work })
    }
}

impl FamilyMaps for V6 {
    #[inline(always)]
    fn flows() -> &'static LruHashMap<FlowKey<Self>, Flow<Self>> {
        &FLOWS6
    }
    #[inline(always)]
    fn fragments() -> &'static LruHashMap<FragmentKey<Self>, Ports> {
        &FRAGMENTS6
    }
    #[inline(always)]
    fn work() -> Option<&'static mut Work<Self>> {
        // SAFETY: this CPU's element, and nobody else's while the hook runs.
        WORK6.get_ptr_mut(0).map(|work| unsafe { &mut *work })
    }
}
