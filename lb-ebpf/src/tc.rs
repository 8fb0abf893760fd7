//! tc hooks on external devices: everything that comes from outside, and replies of local backends.

use core::ffi::c_void;
use core::mem::MaybeUninit;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{
    __sk_buff, BPF_F_CURRENT_NETNS, BPF_F_INGRESS, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR,
    BPF_F_RECOMPUTE_CSUM, TC_ACT_SHOT, TC_ACT_UNSPEC, bpf_sock_tuple,
};
use aya_ebpf::helpers::generated::{
    bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_redirect, bpf_redirect_neigh, bpf_sk_lookup_udp,
    bpf_sk_release, bpf_skb_change_head, bpf_skb_load_bytes, bpf_skb_store_bytes,
    bpf_skc_lookup_tcp,
};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use bytemuck::{Pod, Zeroable};
use lb_common::abi::{DeviceFlags, EventHook, FlowKey, ServiceIndex};
use lb_common::bytes::Be16;
use lb_common::env::{Balance, ChangeOf, ChecksumRule, Route};
use lb_common::family::{Family, V4, V6};
use lb_common::lb::answer::AnswerFormat;
use lb_common::lb::fragment::Parking;
use lb_common::lb::monitor::{self, Subject};
use lb_common::lb::policy::Client;
use lb_common::lb::{self, DropReason, LOOPBACK, Verdict};
use lb_common::packet::{Packet, Work};
use lb_common::wire::checksum::Sum;
use lb_common::wire::{ethernet, ip};

use crate::answer;
use crate::env::{Kernel, PacketContext};
use crate::fib::Answer;
use crate::maps::{self, FamilyMaps};

/// `GSO_BY_FRAGS` (include/linux/skbuff.h).
const GSO_BY_FRAGMENTS: u32 = 0xffff;

/// Flags of `bpf_redirect` that send a packet out of a device.
pub const OUTWARDS: u64 = 0;

/// A socket buffer whose IP header starts at `IP_OFFSET`: 14 behind an Ethernet header, 0 on
/// devices without one (tun, wireguard, ipip). `POD`: on a pod's device, not an external one. `SCTP`:
/// as [`PacketContext::SCTP`]. `OUT`: about to leave, not coming in.
pub struct Skb<const IP_OFFSET: u32, const POD: bool, const SCTP: bool, const OUT: bool>(
    pub *mut __sk_buff,
);

/// Ingress of an Ethernet device.
#[classifier]
#[inline(always)]
pub fn tc_ingress(context: TcContext) -> i32 {
    ingress::<{ ethernet::HEADER_LEN }, false, false>(context.skb.skb)
}

/// Egress of an Ethernet device.
#[classifier]
#[inline(always)]
pub fn tc_egress(context: TcContext) -> i32 {
    egress::<{ ethernet::HEADER_LEN }, false, false>(context.skb.skb)
}

/// Ingress of a device whose packets start with the IP header.
#[classifier]
#[inline(always)]
pub fn tc_ingress_l3(context: TcContext) -> i32 {
    ingress::<0, false, false>(context.skb.skb)
}

/// Egress of a device whose packets start with the IP header.
#[classifier]
#[inline(always)]
pub fn tc_egress_l3(context: TcContext) -> i32 {
    egress::<0, false, false>(context.skb.skb)
}

/// Ingress of the node's end of a pod's device: what a pod sends.
#[classifier]
#[inline(always)]
pub fn pod_ingress(context: TcContext) -> i32 {
    ingress::<{ ethernet::HEADER_LEN }, true, false>(context.skb.skb)
}

/// Egress of the node's end of a pod's device: what a pod receives.
#[classifier]
#[inline(always)]
pub fn pod_egress(context: TcContext) -> i32 {
    egress::<{ ethernet::HEADER_LEN }, true, false>(context.skb.skb)
}

/// Egress of the loopback device: what this node's processes send to the node's own addresses. Only their
/// SCTP isn't led by its sockets; all the rest pays for one look at a byte.
#[classifier]
#[inline(always)]
pub fn own_egress(context: TcContext) -> i32 {
    let skb = Skb::<{ ethernet::HEADER_LEN }, false, false, true>(context.skb.skb);
    let at = match ether_type(context.skb.skb) {
        V4::ETHERTYPE => V4::PROTOCOL_OFFSET,
        V6::ETHERTYPE => V6::PROTOCOL_OFFSET,
        _ => return TC_ACT_UNSPEC,
    };
    match skb.load::<u8>(ethernet::HEADER_LEN + at) {
        Some(ip::SCTP) => hand_over(&skb),
        _ => TC_ACT_UNSPEC,
    }
}

/// SCTP: ingress of an Ethernet device.
#[classifier]
#[inline(always)]
pub fn sctp_ingress(context: TcContext) -> i32 {
    ingress::<{ ethernet::HEADER_LEN }, false, true>(context.skb.skb)
}

/// SCTP: egress of an Ethernet device.
#[classifier]
#[inline(always)]
pub fn sctp_egress(context: TcContext) -> i32 {
    egress::<{ ethernet::HEADER_LEN }, false, true>(context.skb.skb)
}

/// SCTP: ingress of a device whose packets start with the IP header.
#[classifier]
#[inline(always)]
pub fn sctp_ingress_l3(context: TcContext) -> i32 {
    ingress::<0, false, true>(context.skb.skb)
}

/// SCTP: egress of a device whose packets start with the IP header.
#[classifier]
#[inline(always)]
pub fn sctp_egress_l3(context: TcContext) -> i32 {
    egress::<0, false, true>(context.skb.skb)
}

/// SCTP: ingress of the node's end of a pod's device.
#[classifier]
#[inline(always)]
pub fn sctp_pod_in(context: TcContext) -> i32 {
    ingress::<{ ethernet::HEADER_LEN }, true, true>(context.skb.skb)
}

/// SCTP: egress of the node's end of a pod's device.
#[classifier]
#[inline(always)]
pub fn sctp_pod_out(context: TcContext) -> i32 {
    egress::<{ ethernet::HEADER_LEN }, true, true>(context.skb.skb)
}

#[inline(always)]
fn ingress<const IP_OFFSET: u32, const POD: bool, const SCTP: bool>(skb: *mut __sk_buff) -> i32 {
    match ether_type(skb) {
        V4::ETHERTYPE => ingress_family::<V4, IP_OFFSET, POD, SCTP>(skb),
        V6::ETHERTYPE => ingress_family::<V6, IP_OFFSET, POD, SCTP>(skb),
        _ => TC_ACT_UNSPEC,
    }
}

#[inline(always)]
fn egress<const IP_OFFSET: u32, const POD: bool, const SCTP: bool>(skb: *mut __sk_buff) -> i32 {
    match ether_type(skb) {
        V4::ETHERTYPE => egress_family::<V4, IP_OFFSET, POD, SCTP>(skb),
        V6::ETHERTYPE => egress_family::<V6, IP_OFFSET, POD, SCTP>(skb),
        _ => TC_ACT_UNSPEC,
    }
}

/// Host byte order; 0 for a frame of a VLAN. That passes the hooks of the VLAN's own device before or after
/// these, and would take its tag along to wherever it was sent from here.
#[inline(always)]
fn ether_type(skb: *mut __sk_buff) -> u16 {
    /// `VLAN_VID_MASK` (include/linux/if_vlan.h); without a number the tag is a priority alone.
    const NUMBER: u32 = 0x0fff;
    // SAFETY: the context is valid; its fields are read at their own width.
    unsafe {
        // Linux 6.1 leaves the number where the tag is gone.
        let is_tagged = core::ptr::read_volatile(&raw const (*skb).vlan_present) != 0;
        if is_tagged && core::ptr::read_volatile(&raw const (*skb).vlan_tci) & NUMBER != 0 {
            return 0;
        }
        Be16::from_raw(core::ptr::read_volatile(&raw const (*skb).protocol) as u16).get()
    }
}

/// One function, and one stack frame, per family.
#[inline(always)]
fn ingress_family<
    F: AnswerFormat + FamilyMaps,
    const IP_OFFSET: u32,
    const POD: bool,
    const SCTP: bool,
>(
    skb: *mut __sk_buff,
) -> i32 {
    let mut env = Kernel::new(Skb::<IP_OFFSET, POD, SCTP, false>(skb));
    let Some(work) = F::work() else {
        return TC_ACT_UNSPEC;
    };
    match lb::ingress::<F, _>(&mut env, work) {
        // UNSPEC, not OK: filters behind ours still see the packet.
        Verdict::Pass | Verdict::Deliver => TC_ACT_UNSPEC,
        Verdict::Forward => redirect(&env.context, work.device),
        Verdict::Raise => raise(&mut env.context, work.device),
        Verdict::Answer => answer::error::<F, IP_OFFSET>(skb, work.answer, OUTWARDS)
            .unwrap_or_else(|| unanswered(&env, work)),
        Verdict::Reset => answer::reset::<F, IP_OFFSET>(skb, &work.packet)
            .unwrap_or_else(|| unanswered(&env, work)),
        Verdict::HandOver => hand_over(&env.context),
        Verdict::Parked | Verdict::Drop => TC_ACT_SHOT,
    }
}

/// An answer was due and could not be built.
#[inline(always)]
fn unanswered<F: FamilyMaps, C: PacketContext>(env: &Kernel<C>, work: &Work<F>) -> i32 {
    monitor::not_served(env, work, Subject::packet(ServiceIndex(0)), DropReason::Answer);
    TC_ACT_SHOT
}

#[inline(always)]
fn egress_family<
    F: AnswerFormat + FamilyMaps,
    const IP_OFFSET: u32,
    const POD: bool,
    const SCTP: bool,
>(
    skb: *mut __sk_buff,
) -> i32 {
    let mut env = Kernel::new(Skb::<IP_OFFSET, POD, SCTP, true>(skb));
    let Some(work) = F::work() else {
        return TC_ACT_UNSPEC;
    };
    match lb::egress::<F, _>(&mut env, work) {
        Verdict::Parked | Verdict::Drop => TC_ACT_SHOT,
        Verdict::HandOver => hand_over(&env.context),
        // For clients whose replies the stack leads elsewhere, and for the node's own processes, whose SCTP
        // nothing else sees.
        Verdict::Forward if !POD => redirect(&env.context, work.device),
        Verdict::Raise if SCTP && !POD => raise(&mut env.context, work.device),
        Verdict::Answer if SCTP && !POD => {
            answer::error::<F, IP_OFFSET>(skb, work.answer, BPF_F_INGRESS as u64)
                .unwrap_or_else(|| unanswered(&env, work))
        }
        // For all others egress forwards and answers nothing: those verdicts belong to ingress.
        Verdict::Pass
        | Verdict::Deliver
        | Verdict::Forward
        | Verdict::Raise
        | Verdict::Answer
        | Verdict::Reset => TC_ACT_UNSPEC,
    }
}

/// Goes on in the program for SCTP; where there is none, the packet isn't ours.
#[inline(always)]
fn hand_over<const IP_OFFSET: u32, const POD: bool, const SCTP: bool, const OUT: bool>(
    skb: &Skb<IP_OFFSET, POD, SCTP, OUT>,
) -> i32 {
    // The order of `lb_common::abi::SCTP_PROGRAMS`.
    let device = if POD {
        4
    } else if IP_OFFSET == 0 {
        2
    } else {
        0
    };
    // SAFETY: the context is valid; nothing is held that would have to be dropped.
    unsafe { maps::CALLS.tail_call(skb, device + OUT as u32) };
    TC_ACT_UNSPEC
}

/// Has the packet come in through another device. It passes that one's hook once more, where it is nobody's:
/// neither end of a flow has its source. Through the loopback device it goes out as the node's own, with a
/// route that leads to this node: nobody asks where it came from.
#[inline(always)]
fn raise<const IP_OFFSET: u32, const POD: bool, const SCTP: bool, const OUT: bool>(
    skb: &mut Skb<IP_OFFSET, POD, SCTP, OUT>,
    device: u32,
) -> i32 {
    if device == LOOPBACK {
        if skb.device() == LOOPBACK {
            return TC_ACT_UNSPEC;
        }
        return redirect_by_route(skb, LOOPBACK);
    }
    let Some(fib) = maps::fib() else {
        return TC_ACT_UNSPEC;
    };
    // Without a link header it can't enter a device that has them. Without an address of the device (the
    // next hop has gone) it would be a stranger's there. So it enters here.
    let is_known = IP_OFFSET == ethernet::HEADER_LEN && fib.source_mac != [0; 6];
    if device == skb.device() || !is_known || !skb.store(0, &fib.source_mac, Balance::Balanced) {
        return TC_ACT_UNSPEC;
    }
    // SAFETY: plain numbers.
    unsafe { bpf_redirect(device, BPF_F_INGRESS as u64) as i32 }
}

/// `struct bpf_redir_neigh`.
#[repr(C)]
struct NextHop {
    family: u32,
    address: [u32; 4],
}

/// Sends the packet to the next hop that the route named; the neighbour is resolved on the way.
#[inline(always)]
fn redirect<const IP_OFFSET: u32, const POD: bool, const SCTP: bool, const OUT: bool>(
    skb: &Skb<IP_OFFSET, POD, SCTP, OUT>,
    device: u32,
) -> i32 {
    // SAFETY: read at once; the agent replaces values whole.
    let known = unsafe { maps::DEVICES.get(device) };
    if known.is_none_or(|known| known.flags & DeviceFlags::ETHERNET == 0) {
        return redirect_by_route(skb, device);
    }
    let Some(fib) = maps::fib() else {
        return TC_ACT_SHOT;
    };
    if !link_header(skb) {
        return TC_ACT_SHOT;
    }
    let mut hop = NextHop { family: fib.family as u32, address: fib.destination };
    // SAFETY: `hop` is what the helper expects, and initialised.
    unsafe {
        bpf_redirect_neigh(device, (&raw mut hop).cast(), size_of::<NextHop>() as i32, 0) as i32
    }
}

/// Sends the packet out of a device that isn't known to have link addresses. The kernel looks for the route (once
/// more): a tunnel to many nodes finds the one that it sends to by the packet's route, and drops what has none
/// (`ip_tunnel_xmit`, net/ipv4/ip_tunnel.c).
#[inline(always)]
pub fn redirect_by_route<
    const IP_OFFSET: u32,
    const POD: bool,
    const SCTP: bool,
    const OUT: bool,
>(
    skb: &Skb<IP_OFFSET, POD, SCTP, OUT>,
    device: u32,
) -> i32 {
    if !link_header(skb) {
        return TC_ACT_SHOT;
    }
    // SAFETY: plain numbers.
    unsafe { bpf_redirect_neigh(device, core::ptr::null_mut(), 0, 0) as i32 }
}

/// Puts an empty one in front of a packet that came without: what goes to a neighbour loses it again, and the
/// kernel drops a packet that has none to lose (`__bpf_redirect_neigh`, net/core/filter.c).
#[inline(always)]
fn link_header<const IP_OFFSET: u32, const POD: bool, const SCTP: bool, const OUT: bool>(
    skb: &Skb<IP_OFFSET, POD, SCTP, OUT>,
) -> bool {
    // SAFETY: the context is valid.
    IP_OFFSET != 0 || unsafe { bpf_skb_change_head(skb.0, ethernet::HEADER_LEN, 0) } == 0
}

impl<const IP_OFFSET: u32, const POD: bool, const SCTP: bool, const OUT: bool> EbpfContext
    for Skb<IP_OFFSET, POD, SCTP, OUT>
{
    #[inline(always)]
    fn as_ptr(&self) -> *mut c_void {
        self.0.cast()
    }
}

impl<const IP_OFFSET: u32, const POD: bool, const SCTP: bool, const OUT: bool> PacketContext
    for Skb<IP_OFFSET, POD, SCTP, OUT>
{
    const FIXED_HEADERS: bool = false;
    const FINAL: bool = true;
    const CLIENTS: Client = if POD { Client::OnNode } else { Client::Outside };
    const IP_OFFSET: u32 = IP_OFFSET;
    const HOOK: EventHook = match (POD, OUT) {
        (false, false) => EventHook::Ingress,
        (false, true) => EventHook::Egress,
        (true, false) => EventHook::PodIngress,
        (true, true) => EventHook::PodEgress,
    };
    const SCTP: bool = SCTP;
    // What gets to a pod is in order already: the hook where it came in saw to that. Of SCTP, whose
    // checksum is over all of a packet, fragments can't be translated.
    const PARKING: Parking = match (SCTP, POD, OUT) {
        (true, _, _) | (_, true, true) => Parking::Never,
        (false, _, false) => Parking::OwnAddresses,
        (false, false, true) => Parking::LocalEndpoints,
    };

    #[inline(always)]
    fn buffer(&self) -> Option<*mut __sk_buff> {
        Some(self.0)
    }

    #[inline(always)]
    fn device(&self) -> u32 {
        // SAFETY: the context is valid.
        unsafe { core::ptr::read_volatile(&raw const (*self.0).ifindex) }
    }

    #[inline(always)]
    fn load<T: Pod>(&self, offset: u32) -> Option<T> {
        let mut value = MaybeUninit::<T>::uninit();
        // SAFETY: the helper writes all of `value` or fails; any bytes are a valid T (Pod).
        unsafe {
            let result = bpf_skb_load_bytes(
                self.0.cast(),
                offset,
                value.as_mut_ptr().cast(),
                size_of::<T>() as u32,
            );
            (result == 0).then(|| value.assume_init())
        }
    }

    #[inline(always)]
    fn store<T: Pod>(&mut self, offset: u32, value: &T, balance: Balance) -> bool {
        let flags = match balance {
            Balance::Balanced => 0,
            Balance::Unbalanced => BPF_F_RECOMPUTE_CSUM as u64,
        };
        // SAFETY: `value` is initialised and as long as said.
        unsafe {
            bpf_skb_store_bytes(
                self.0.cast(),
                offset,
                (value as *const T).cast(),
                size_of::<T>() as u32,
                flags,
            ) == 0
        }
    }

    #[inline(always)]
    fn change_header_checksum(&mut self, offset: u32, change: Sum) -> bool {
        // SAFETY: plain numbers. Width 0: `to` is a difference.
        unsafe { bpf_l3_csum_replace(self.0.cast(), offset, 0, change.fold() as u64, 0) == 0 }
    }

    #[inline(always)]
    fn change_transport_checksum(
        &mut self,
        offset: u32,
        change: Sum,
        of: ChangeOf,
        rule: ChecksumRule,
    ) -> bool {
        let pseudo = match of {
            ChangeOf::PseudoHeader => BPF_F_PSEUDO_HDR as u64,
            ChangeOf::Payload => 0,
        };
        let mangled = match rule {
            ChecksumRule::Plain => 0,
            ChecksumRule::Udp => BPF_F_MARK_MANGLED_0 as u64,
        };
        // SAFETY: plain numbers. Width 0: `to` is a difference.
        unsafe {
            bpf_l4_csum_replace(self.0.cast(), offset, 0, change.fold() as u64, pseudo | mangled)
                == 0
        }
    }

    #[inline(always)]
    fn route(&self, answer: Answer) -> Route {
        match answer {
            // The neighbour is resolved by the redirect.
            Answer::Resolved { device } | Answer::Unresolved { device } => Route::Via { device },
            Answer::Final(route) => route,
        }
    }

    #[inline(always)]
    fn has_socket(&self) -> bool {
        // SAFETY: the context is valid; the pointer isn't followed.
        unsafe { !core::ptr::read_volatile(&raw const (*self.0).__bindgen_anon_2.sk).is_null() }
    }

    #[inline(always)]
    fn host_socket<F: FamilyMaps>(&self, reply: &FlowKey<F>) -> bool {
        host_socket(self.as_ptr(), reply)
    }

    #[inline(always)]
    fn wire_length<F: FamilyMaps>(&self, packet: &Packet<F>) -> u32 {
        // SAFETY: the context is valid.
        let segment = unsafe { core::ptr::read_volatile(&raw const (*self.0).gso_size) };
        if segment == 0 {
            return packet.length;
        }
        if segment == GSO_BY_FRAGMENTS {
            // SCTP chunks that are merged as they came: each is of its own length.
            return 0;
        }
        let l4 = packet.transport_offset::<Kernel<Self>>();
        let transport = if packet.protocol() == ip::TCP {
            // Data offset, in words, is the high half of byte 12.
            self.load::<u8>(l4 + 12).map_or(20, |byte| (byte >> 4) as u32 * 4)
        } else {
            8
        };
        l4 - IP_OFFSET + transport + segment
    }

    #[inline(always)]
    fn wire_packets(&self) -> u32 {
        // SAFETY: the context is valid.
        let segments = unsafe { core::ptr::read_volatile(&raw const (*self.0).gso_segs) };
        // Some drivers leave the count of merged segments to others.
        if segments == 0 { 1 } else { segments }
    }
}

/// `struct bpf_sock_tuple`, either half of its union.
#[derive(Clone, Copy)]
#[repr(C)]
struct SocketTuple<F: Family> {
    source: F::Addr,
    destination: F::Addr,
    source_port: Be16,
    destination_port: Be16,
}

// SAFETY: addresses and ports are plain numbers. Not derived: that would bound `F` a second time, which
// clippy rejects.
unsafe impl<F: Family> Zeroable for SocketTuple<F> {}

/// Whether a socket of this network namespace would receive a packet with this tuple.
#[inline(always)]
pub fn host_socket<F: Family>(context: *mut c_void, reply: &FlowKey<F>) -> bool {
    let mut tuple = SocketTuple::<F> {
        source: reply.source,
        destination: reply.destination,
        source_port: reply.source_port,
        destination_port: reply.destination_port,
    };
    let pointer: *mut bpf_sock_tuple = (&raw mut tuple).cast();
    let len = size_of::<SocketTuple<F>>() as u32;
    let netns = BPF_F_CURRENT_NETNS as i64 as u64;
    // SAFETY: `tuple` is initialised and as long as said; a socket found is released at once.
    unsafe {
        let socket = match reply.protocol as u8 {
            ip::TCP => bpf_skc_lookup_tcp(context, pointer, len, netns, 0),
            ip::UDP => bpf_sk_lookup_udp(context, pointer, len, netns, 0),
            // The kernel has no such question for SCTP.
            _ => return false,
        };
        if socket.is_null() {
            return false;
        }
        bpf_sk_release(socket.cast());
    }
    true
}
