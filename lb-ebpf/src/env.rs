//! What decisions ask, answered by maps and helpers.

use core::ffi::c_void;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{__sk_buff, BPF_ANY, BPF_NOEXIST};
use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_ktime_get_coarse_ns};
use aya_ebpf::maps::lpm_trie::Key;
use bytemuck::Pod;
use lb_common::abi::{
    Address, AffinityKey, AffinityValue, Backend, BackendIndex, ConfigFlags, Device, DropKey,
    EventHook, Flow, FlowKey, Frontend, FrontendKey, ServiceIndex, ServicePointer, ServiceRanges,
    ServiceRecord, SourceRange, Traffic, TrafficKey,
};
use lb_common::env::{
    Balance, Carried, ChangeOf, ChecksumRule, Env, Frame, InsertError, Route, RouteQuery,
    TICK_SHIFT, Tables, Waiting,
};
use lb_common::lb::DropReason;
use lb_common::lb::fragment::{Parked, ParkedKey, Parking};
use lb_common::lb::monitor::Subject;
use lb_common::lb::policy::Client;
use lb_common::packet::{FragmentKey, Packet, Work};
use lb_common::wire::checksum::Sum;
use lb_common::wire::ip;
use lb_common::wire::transport::Ports;

use crate::fib::Answer;
use crate::maps::{self, FamilyMaps, SourcePrefix};
use crate::monitor;
use crate::parked;

/// Negative errno of a key that exists already.
pub const EEXIST: i32 = -17;

/// The environment of a program with context `C`.
pub struct Kernel<C> {
    /// The program's context.
    pub context: C,
}

impl<C> Kernel<C> {
    #[inline(always)]
    pub fn new(context: C) -> Self {
        Self { context }
    }
}

impl<C> Tables for Kernel<C> {
    #[inline(always)]
    fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
        // SAFETY: copied at once; the agent replaces values whole.
        unsafe { maps::FRONTENDS.get(key) }.copied()
    }

    #[inline(always)]
    fn record(&self, service: ServiceIndex) -> Option<&ServiceRecord> {
        let pointer = maps::SERVICES.get_ptr(service.0)?;
        // SAFETY: a valid element. Volatile and 64 bits wide: one load, so that a record that the
        // agent publishes meanwhile is seen whole or not at all.
        let word = unsafe { core::ptr::read_volatile(pointer.cast::<u64>()) };
        let current: ServicePointer = bytemuck::cast(word);
        if current.record == 0 {
            return None;
        }
        maps::RECORDS.get(current.record)
    }

    #[inline(always)]
    fn slot(&self, index: u32) -> Option<BackendIndex> {
        maps::SLOTS.get(index).map(|slot| BackendIndex(*slot))
    }

    #[inline(always)]
    fn backend(&self, index: BackendIndex) -> Option<&Backend> {
        maps::BACKENDS.get(index.0)
    }

    #[inline(always)]
    fn address_flags(&self, address: &Address) -> u32 {
        // SAFETY: copied at once.
        unsafe { maps::ADDRESSES.get(address) }.copied().unwrap_or(0)
    }

    #[inline(always)]
    fn service_ranges(&self, address: Address) -> Option<&ServiceRanges> {
        let family = if address.is_v4() { ServiceRanges::V4 } else { ServiceRanges::V6 };
        maps::SERVICE_RANGES.get(family)
    }

    #[inline(always)]
    fn takeover(&self) -> u32 {
        // SAFETY: a valid element. Volatile: the agent writes it while programs run.
        maps::TAKEOVER.get_ptr(0).map_or(0, |flags| unsafe { core::ptr::read_volatile(flags) })
    }

    #[inline(always)]
    fn source_range(&self, key: &SourceRange) -> bool {
        // SAFETY: the same bytes (the sizes are compared where the map is declared); the type of the
        // map's key asks for no alignment.
        let key = unsafe { &*core::ptr::from_ref(key).cast::<Key<SourcePrefix>>() };
        maps::SOURCE_RANGES.get(key).is_some()
    }

    #[inline(always)]
    fn affinity(&mut self, key: &AffinityKey) -> Option<&mut AffinityValue> {
        // SAFETY: an element of an LRU map may be reused for another client while we hold it; every
        // field is plain data, so the worst is one flow that goes where another client's went.
        maps::AFFINITY.get_ptr_mut(key).map(|value| unsafe { &mut *value })
    }

    #[inline(always)]
    fn set_affinity(&mut self, key: &AffinityKey, value: &AffinityValue) {
        // Without it the client's next flow chooses anew.
        let _ = maps::AFFINITY.insert(key, value, BPF_ANY.into());
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: no arguments, no state.
        unsafe { bpf_get_prandom_u32() }
    }

    #[inline(always)]
    fn now(&self) -> u32 {
        // SAFETY: no arguments, no state.
        (unsafe { bpf_ktime_get_coarse_ns() } >> TICK_SHIFT) as u32
    }

    #[inline(always)]
    fn count_drop(&self, service: ServiceIndex, reason: DropReason) {
        let key = DropKey { service, reason: reason as u32 };
        if let Some(counter) = maps::DROPS.get_ptr_mut(key) {
            // SAFETY: this CPU's own value.
            unsafe { *counter += 1 };
        } else {
            // A counter that can't be created must not change the verdict.
            let _ = maps::DROPS.insert(key, 1_u64, BPF_ANY.into());
        }
    }

    #[inline(always)]
    fn watched(&self) -> u32 {
        let Some(monitor) = maps::MONITOR.get_ptr(0) else {
            return 0;
        };
        // SAFETY: a valid element. Volatile: `lb-agent monitor` writes it while programs run.
        unsafe { core::ptr::read_volatile(&raw const (*monitor).kinds) }
    }

    #[inline(always)]
    fn count_socket(&self, key: &TrafficKey) {
        let Some(counters) = traffic(key) else {
            return;
        };
        // Atomic: a task inside a socket hook may be preempted by another on the same CPU.
        // SAFETY: this CPU's own value.
        unsafe {
            core::arch::asm!(
                "lock *(u64 *)({counter} + 0) += {one}",
                counter = in(reg) &raw mut (*counters).sockets,
                one = in(reg) 1_u64,
                options(nostack),
            );
        }
    }

    #[inline(always)]
    fn count_carried(&self, key: &TrafficKey, carried: &Carried) {
        let Some(counters) = traffic(key) else {
            return;
        };
        let Carried { flows, reply, packets, bytes } = *carried;
        // SAFETY: this CPU's own value; packet hooks run to their end before another starts on a CPU.
        unsafe {
            (*counters).flows += flows as u64;
            if reply {
                (*counters).packets_from += packets as u64;
                (*counters).bytes_from += bytes as u64;
            } else {
                (*counters).packets_to += packets as u64;
                (*counters).bytes_to += bytes as u64;
            }
        }
    }
}

/// This CPU's counters of an endpoint. Those of one that has left aren't made again: the agent has
/// added them up, and its Service's index may be another's by now.
#[inline(always)]
fn traffic(key: &TrafficKey) -> Option<*mut Traffic> {
    if maps::config().flags & ConfigFlags::TRAFFIC == 0 {
        return None;
    }
    if let Some(counters) = maps::TRAFFIC.get_ptr_mut(key) {
        return Some(counters);
    }
    if maps::BACKENDS.get(key.backend.0)?.generation != key.generation {
        return None;
    }
    // Another CPU may have been faster. In a full map it isn't counted.
    let _ = maps::TRAFFIC.insert(key, Traffic::default(), BPF_NOEXIST.into());
    maps::TRAFFIC.get_ptr_mut(key)
}

/// What tc and XDP contexts differ in.
pub trait PacketContext: EbpfContext {
    /// As [`Frame::FIXED_HEADERS`].
    const FIXED_HEADERS: bool;
    /// As [`Env::FINAL`].
    const FINAL: bool;
    /// As [`Env::CLIENTS`].
    const CLIENTS: Client;
    /// Where the IP header starts, bytes.
    const IP_OFFSET: u32;
    /// What it is called in events.
    const HOOK: EventHook;
    /// As [`Frame::SCTP`].
    const SCTP: bool;
    /// As [`Waiting::PARKING`].
    const PARKING: Parking;
    /// The socket buffer, where there is one already.
    fn buffer(&self) -> Option<*mut __sk_buff>;
    /// The device that the packet came in through, or is about to leave through.
    fn device(&self) -> u32;
    /// As [`Frame::load`].
    fn load<T: Pod>(&self, offset: u32) -> Option<T>;
    /// As [`Frame::store`].
    fn store<T: Pod>(&mut self, offset: u32, value: &T, balance: Balance) -> bool;
    /// As [`Frame::change_header_checksum`].
    fn change_header_checksum(&mut self, offset: u32, change: Sum) -> bool;
    /// As [`Frame::change_transport_checksum`].
    fn change_transport_checksum(
        &mut self,
        offset: u32,
        change: Sum,
        of: ChangeOf,
        rule: ChecksumRule,
    ) -> bool;
    /// Judges a route answer: can this hook send there?
    fn route(&self, answer: Answer) -> Route;
    /// As [`Env::has_socket`].
    fn has_socket(&self) -> bool;
    /// As [`Env::host_socket`].
    fn host_socket<F: FamilyMaps>(&self, reply: &FlowKey<F>) -> bool;
    /// As [`Env::wire_length`].
    fn wire_length<F: FamilyMaps>(&self, packet: &Packet<F>) -> u32;
    /// As [`Env::wire_packets`].
    fn wire_packets(&self) -> u32;
}

impl<C: PacketContext> Frame for Kernel<C> {
    const FIXED_HEADERS: bool = C::FIXED_HEADERS;
    const IP_OFFSET: u32 = C::IP_OFFSET;
    const SCTP: bool = C::SCTP;

    #[inline(always)]
    fn opaque(&self, value: u32) -> Option<u32> {
        let cell = maps::OPAQUE.get_ptr_mut(0)?;
        // SAFETY: this CPU's element. Volatile: the point is that it is read again.
        unsafe {
            core::ptr::write_volatile(cell, value);
            Some(core::ptr::read_volatile(cell))
        }
    }

    #[inline(always)]
    fn load<T: Pod>(&self, offset: u32) -> Option<T> {
        self.context.load(offset)
    }

    #[inline(always)]
    fn store<T: Pod>(&mut self, offset: u32, value: &T, balance: Balance) -> bool {
        self.context.store(offset, value, balance)
    }

    #[inline(always)]
    fn change_header_checksum(&mut self, offset: u32, change: Sum) -> bool {
        self.context.change_header_checksum(offset, change)
    }

    #[inline(always)]
    fn change_transport_checksum(
        &mut self,
        offset: u32,
        change: Sum,
        of: ChangeOf,
        rule: ChecksumRule,
    ) -> bool {
        self.context.change_transport_checksum(offset, change, of, rule)
    }
}

impl<C: PacketContext> Waiting for Kernel<C> {
    const PARKING: Parking = C::PARKING;

    #[inline(always)]
    fn parked(&self, key: &ParkedKey) -> Option<u32> {
        parked::since(key)
    }

    #[inline(always)]
    fn park(&mut self, key: &ParkedKey) -> Parked {
        let now = self.now();
        self.context.buffer().map_or(Parked::Refused, |skb| parked::park(skb, key, now))
    }

    #[inline(always)]
    fn forget_parked(&mut self, key: &ParkedKey) {
        parked::forget(key);
    }

    #[inline(always)]
    fn set_aside(&mut self) -> bool {
        self.context.buffer().is_some_and(parked::set_aside)
    }

    #[inline(always)]
    fn resend_parked(&mut self, key: &ParkedKey) {
        if let Some(skb) = self.context.buffer() {
            parked::resend(skb, key, C::IP_OFFSET);
        }
    }

    #[inline(always)]
    fn take_back(&mut self) -> bool {
        self.context.buffer().is_some_and(|skb| parked::take_back(skb, C::IP_OFFSET))
    }

    #[inline(always)]
    fn next(&self, number: u32) -> u32 {
        parked::next(number)
    }

    #[inline(always)]
    fn park_somewhere(&mut self, first: &ParkedKey) -> bool {
        self.context.buffer().is_some_and(|skb| parked::park_somewhere(skb, first))
    }

    #[inline(always)]
    fn resend_all(&mut self, first: &ParkedKey) -> bool {
        self.context.buffer().is_some_and(|skb| parked::resend_all(skb, first, C::IP_OFFSET))
    }
}

impl<F: FamilyMaps, C: PacketContext> Env<F> for Kernel<C> {
    const FINAL: bool = C::FINAL;
    const CLIENTS: Client = C::CLIENTS;

    #[inline(always)]
    fn serves(&self, protocol: u8) -> bool {
        match C::CLIENTS {
            Client::Outside => true,
            Client::OnNode => {
                protocol == ip::SCTP || maps::config().flags & ConfigFlags::POD_PACKETS != 0
            }
        }
    }

    #[inline(always)]
    fn masquerades_all(&self) -> bool {
        maps::config().flags & ConfigFlags::MASQUERADE_ALL != 0
    }

    #[inline(always)]
    fn flow(&mut self, key: &FlowKey<F>) -> Option<&mut Flow<F>> {
        // SAFETY: an element of an LRU map may be reused for another flow while we hold it; every
        // field is plain data, so the worst is one packet that follows a flow just evicted.
        F::flows().get_ptr_mut(key).map(|flow| unsafe { &mut *flow })
    }

    #[inline(always)]
    fn insert_flow(&mut self, key: &FlowKey<F>, flow: &Flow<F>) -> Result<(), InsertError> {
        F::flows().insert(key, flow, BPF_NOEXIST.into()).map_err(|errno| {
            if errno == EEXIST { InsertError::Exists } else { InsertError::Refused }
        })
    }

    #[inline(always)]
    fn delete_flow(&mut self, key: &FlowKey<F>) {
        // Gone already is as good.
        let _ = F::flows().remove(key);
    }

    #[inline(always)]
    fn here(&self) -> u32 {
        self.context.device()
    }

    #[inline(always)]
    fn device(&self, index: u32) -> Option<&Device> {
        // SAFETY: the agent replaces values whole.
        unsafe { maps::DEVICES.get(index) }
    }

    #[inline(always)]
    fn own_address(&self) -> F::Addr {
        // SAFETY: copied at once; the agent replaces values whole.
        match unsafe { maps::CLIENTS.get(maps::config().host_netns_cookie) } {
            Some(own) if F::HAS_HEADER_CHECKSUM => F::narrow(own.address4),
            Some(own) => F::narrow(own.address6),
            None => F::Addr::default(),
        }
    }

    #[inline(always)]
    fn route(&mut self, query: &RouteQuery<F>) -> Route {
        let Some(fib) = maps::fib() else {
            return Route::Elsewhere;
        };
        let context: *mut c_void = self.context.as_ptr();
        let answer = fib.lookup(context, self.context.device(), query);
        self.context.route(answer)
    }

    #[inline(always)]
    fn has_socket(&self) -> bool {
        self.context.has_socket()
    }

    #[inline(always)]
    fn host_socket(&self, reply: &FlowKey<F>) -> bool {
        self.context.host_socket(reply)
    }

    #[inline(always)]
    fn snat_ports(&self) -> (u16, u16) {
        let config = maps::config();
        (config.snat_port_min, config.snat_port_max)
    }

    #[inline(always)]
    fn wire_length(&self, packet: &Packet<F>) -> u32 {
        self.context.wire_length(packet)
    }

    #[inline(always)]
    fn wire_packets(&self) -> u32 {
        self.context.wire_packets()
    }

    #[inline(always)]
    fn fragment(&self, key: &FragmentKey<F>) -> Option<Ports> {
        // SAFETY: copied at once.
        unsafe { F::fragments().get(key) }.copied()
    }

    #[inline(always)]
    fn remember_fragment(&mut self, key: &FragmentKey<F>, ports: &Ports) {
        // Without it the later fragments stay where they are: nothing more to do about it.
        let _ = F::fragments().insert(key, ports, BPF_ANY.into());
    }

    #[inline(always)]
    fn report(&self, _: &Work<F>, subject: Subject, reason: u8) {
        monitor::packet::<F>(subject, self.context.device(), C::HOOK, reason);
    }
}
