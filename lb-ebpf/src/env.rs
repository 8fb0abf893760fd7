//! What decisions ask, answered by maps and helpers.

use core::ffi::c_void;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_ktime_get_coarse_ns};
use aya_ebpf::maps::lpm_trie::Key;
use bytemuck::Pod;
use lb_common::abi::{
    Address, AffinityKey, AffinityValue, Backend, BackendIndex, Device, DropKey, Flow, FlowKey,
    Frontend, FrontendKey, ServiceIndex, ServicePointer, ServiceRecord, SourceRange,
};
use lb_common::env::{
    Balance, ChangeOf, ChecksumRule, Env, Frame, InsertError, Route, RouteQuery, TICK_SHIFT, Tables,
};
use lb_common::lb::DropReason;
use lb_common::packet::{FragmentKey, Packet};
use lb_common::wire::checksum::Sum;
use lb_common::wire::transport::Ports;

use crate::fib::Answer;
use crate::maps::{self, FamilyMaps, SourcePrefix};

/// Negative errno of a key that exists already.
const EEXIST: i32 = -17;

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
}

/// What tc and XDP contexts differ in.
pub trait PacketContext: EbpfContext {
    /// As [`Frame::FIXED_HEADERS`].
    const FIXED_HEADERS: bool;
    /// As [`Env::FINAL`].
    const FINAL: bool;
    /// Where the IP header starts, bytes.
    const IP_OFFSET: u32;
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
    /// As [`Env::host_socket`].
    fn host_socket<F: FamilyMaps>(&self, reply: &FlowKey<F>) -> bool;
    /// As [`Env::wire_length`].
    fn wire_length<F: FamilyMaps>(&self, packet: &Packet<F>) -> u32;
}

impl<C: PacketContext> Frame for Kernel<C> {
    const FIXED_HEADERS: bool = C::FIXED_HEADERS;
    const IP_OFFSET: u32 = C::IP_OFFSET;

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

impl<F: FamilyMaps, C: PacketContext> Env<F> for Kernel<C> {
    const FINAL: bool = C::FINAL;

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
    fn device(&self, index: u32) -> Option<&Device> {
        // SAFETY: the agent replaces values whole.
        unsafe { maps::DEVICES.get(index) }
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
    fn fragment(&self, key: &FragmentKey<F>) -> Option<Ports> {
        // SAFETY: copied at once.
        unsafe { F::fragments().get(key) }.copied()
    }

    #[inline(always)]
    fn remember_fragment(&mut self, key: &FragmentKey<F>, ports: &Ports) {
        // Without it the later fragments are passed on untouched: nothing more to do about it.
        let _ = F::fragments().insert(key, ports, BPF_ANY.into());
    }
}
