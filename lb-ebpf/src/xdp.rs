//! XDP on external devices: forwarded flows, before the kernel has built a socket buffer.

use core::ffi::c_void;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{__sk_buff, xdp_action, xdp_md};
use aya_ebpf::helpers::generated::bpf_redirect;
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use bytemuck::Pod;
use lb_common::abi::{DeviceFlags, EventHook, FlowKey};
use lb_common::bytes::Be16;
use lb_common::env::{Balance, ChangeOf, ChecksumRule, Route};
use lb_common::family::{Family, V4, V6};
use lb_common::lb::fragment::Parking;
use lb_common::lb::policy::Client;
use lb_common::lb::{self, Verdict};
use lb_common::packet::{Packet, ReadHeader};
use lb_common::wire::checksum::{self, Sum};
use lb_common::wire::ethernet;

use crate::env::{Kernel, PacketContext};
use crate::fib::Answer;
use crate::maps::{self, FamilyMaps};
use crate::tc;

/// A frame in a driver's buffer.
pub struct XdpFrame(*mut xdp_md);

/// Ingress of an Ethernet device.
#[xdp]
#[inline(always)]
pub fn xdp_ingress(context: XdpContext) -> u32 {
    let frame = XdpFrame(context.ctx);
    match frame.load::<Be16>(ethernet::TYPE_OFFSET).map(Be16::get) {
        Some(V4::ETHERTYPE) => ingress_family::<V4>(context.ctx),
        Some(V6::ETHERTYPE) => ingress_family::<V6>(context.ctx),
        _ => xdp_action::XDP_PASS,
    }
}

/// One function, and one stack frame, per family.
#[inline(always)]
fn ingress_family<F: ReadHeader + FamilyMaps>(context: *mut xdp_md) -> u32 {
    let mut env = Kernel::new(XdpFrame(context));
    let Some(work) = F::work() else {
        return xdp_action::XDP_PASS;
    };
    match lb::ingress::<F, _>(&mut env, work) {
        Verdict::Forward => send(&mut env.context, work.device),
        Verdict::Drop => xdp_action::XDP_DROP,
        // Local backends, fragments and answers are tc's; so is what isn't ours.
        Verdict::Pass
        | Verdict::Deliver
        | Verdict::Raise
        | Verdict::Answer
        | Verdict::Reset
        | Verdict::HandOver
        | Verdict::Parked => xdp_action::XDP_PASS,
    }
}

#[inline(always)]
fn send(frame: &mut XdpFrame, device: u32) -> u32 {
    let Some(fib) = maps::fib() else {
        return xdp_action::XDP_ABORTED;
    };
    let addresses = [fib.destination_mac, fib.source_mac];
    if !frame.store(0, &addresses, Balance::Balanced) {
        return xdp_action::XDP_ABORTED;
    }
    if device == frame.device() {
        return xdp_action::XDP_TX;
    }
    // SAFETY: plain numbers.
    unsafe { bpf_redirect(device, 0) as u32 }
}

impl XdpFrame {
    /// A pointer to `T` at `offset`, if the frame reaches that far.
    #[inline(always)]
    fn at<T: Pod>(&self, offset: u32) -> Option<*mut T> {
        let (start, end): (usize, usize);
        // Read as 64-bit registers: from 32-bit values, the compiler would widen what the verifier
        // knows as pointers.
        // SAFETY: the context is valid; `data` and `data_end` are its first two members.
        unsafe {
            core::arch::asm!(
                "{start} = *(u32 *)({context} + 0)",
                "{end} = *(u32 *)({context} + 4)",
                context = in(reg) self.0,
                start = out(reg) start,
                end = lateout(reg) end,
                options(pure, readonly, nostack),
            );
        }
        let start = start + offset as usize;
        (start + size_of::<T>() <= end).then_some(start as *mut T)
    }
}

impl EbpfContext for XdpFrame {
    #[inline(always)]
    fn as_ptr(&self) -> *mut c_void {
        self.0.cast()
    }
}

impl PacketContext for XdpFrame {
    const FIXED_HEADERS: bool = true;
    const FINAL: bool = false;
    const CLIENTS: Client = Client::Outside;
    const IP_OFFSET: u32 = ethernet::HEADER_LEN;
    const HOOK: EventHook = EventHook::Xdp;
    const SCTP: bool = false;
    const PARKING: Parking = Parking::Never;

    #[inline(always)]
    fn buffer(&self) -> Option<*mut __sk_buff> {
        None
    }

    #[inline(always)]
    fn device(&self) -> u32 {
        // SAFETY: the context is valid.
        unsafe { (*self.0).ingress_ifindex }
    }

    #[inline(always)]
    fn load<T: Pod>(&self, offset: u32) -> Option<T> {
        // SAFETY: within the frame; any bytes are a valid T (Pod). The BPF machine's loads need no
        // alignment on the architectures that have XDP.
        self.at::<T>(offset).map(|pointer| unsafe { *pointer })
    }

    #[inline(always)]
    fn store<T: Pod>(&mut self, offset: u32, value: &T, _balance: Balance) -> bool {
        match self.at::<T>(offset) {
            Some(pointer) => {
                // SAFETY: within the frame.
                unsafe { *pointer = *value };
                true
            }
            None => false,
        }
    }

    #[inline(always)]
    fn change_header_checksum(&mut self, offset: u32, change: Sum) -> bool {
        let Some(field) = self.load::<Be16>(offset) else {
            return false;
        };
        self.store(offset, &checksum::update(field, change), Balance::Balanced)
    }

    #[inline(always)]
    fn change_transport_checksum(
        &mut self,
        offset: u32,
        change: Sum,
        _of: ChangeOf,
        rule: ChecksumRule,
    ) -> bool {
        let Some(field) = self.load::<Be16>(offset) else {
            return false;
        };
        self.store(offset, &rule.update(field, change), Balance::Balanced)
    }

    #[inline(always)]
    fn route(&self, answer: Answer) -> Route {
        let device = match answer {
            Answer::Resolved { device } => device,
            Answer::Unresolved { .. } => return Route::Elsewhere,
            Answer::Final(Route::Via { .. }) => return Route::Elsewhere,
            Answer::Final(
                route @ (Route::TooBig { .. } | Route::Stack | Route::Elsewhere | Route::None),
            ) => return route,
        };
        // SAFETY: copied at once.
        let sendable = device == self.device()
            || unsafe { maps::DEVICES.get(device) }
                .is_some_and(|target| target.flags & DeviceFlags::XDP != 0);
        if sendable { Route::Via { device } } else { Route::Elsewhere }
    }

    #[inline(always)]
    fn has_socket(&self) -> bool {
        false
    }

    #[inline(always)]
    fn host_socket<F: FamilyMaps>(&self, reply: &FlowKey<F>) -> bool {
        tc::host_socket(self.as_ptr(), reply)
    }

    #[inline(always)]
    fn wire_length<F: FamilyMaps>(&self, packet: &Packet<F>) -> u32 {
        packet.length
    }

    #[inline(always)]
    fn wire_packets(&self) -> u32 {
        1
    }
}
