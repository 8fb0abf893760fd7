//! Frames of fragments that wait for the first one of their datagram.
//!
//! A program can't hold a packet back, nor make one. So it keeps the bytes, and when the first fragment
//! is there, that one's socket buffer is given their bytes in turn, and a clone of it sent to the hook
//! again each time.

use aya_ebpf::bindings::{
    __sk_buff, BPF_CSUM_LEVEL_RESET, BPF_F_INGRESS, BPF_F_RECOMPUTE_CSUM, BPF_NOEXIST,
};
use aya_ebpf::helpers::generated::{
    bpf_clone_redirect, bpf_csum_level, bpf_get_prandom_u32, bpf_skb_change_tail,
    bpf_skb_load_bytes, bpf_skb_pull_data, bpf_skb_store_bytes,
};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{LruHashMap, PerCpuArray};
use lb_common::family::{Family, V4};
use lb_common::lb::fragment::{self, MAX_FRAME, Parked, ParkedFrame, ParkedKey};
use lb_common::wire::ethernet;

use crate::env::{EEXIST, Kernel};
use crate::tc::{OUTWARDS, Skb};

/// 4.8 MB. In no pin directory: what it holds is worth nothing after a second.
#[map]
static PARKED: LruHashMap<ParkedKey, ParkedFrame> = LruHashMap::with_max_entries(512, 0);
/// Where a frame is put together to be parked, and where a first fragment's is while its socket buffer
/// is lent. What it sends may be parked anew before it has its own back.
#[map]
static ASIDE: PerCpuArray<ParkedFrame> = PerCpuArray::with_max_entries(2, 0);
const TO_PARK: u32 = 0;
const LENT: u32 = 1;
/// The key that is looked up: the stack of a packet hook is nearly full.
#[map]
static PLACE: PerCpuArray<ParkedKey> = PerCpuArray::with_max_entries(1, 0);

/// As [`lb_common::lb::fragment::park_somewhere`].
#[inline(always)]
pub fn park_somewhere(skb: *mut __sk_buff, first: &ParkedKey) -> bool {
    let Some(place) = PLACE.get_ptr_mut(0) else {
        return false;
    };
    // SAFETY: this CPU's element, and nobody else's until the call.
    unsafe {
        *place = *first;
        park_frame(skb) != 0
    }
}

/// As [`lb_common::lb::fragment::resend_all`].
#[inline(always)]
pub fn resend_all(skb: *mut __sk_buff, first: &ParkedKey, ip_offset: u32) -> bool {
    let Some(place) = PLACE.get_ptr_mut(0) else {
        return true;
    };
    // SAFETY: as above.
    unsafe {
        *place = *first;
        resend_frames(skb, ip_offset) != 0
    }
}

/// A hook on such a device; of the rest only its socket buffer counts here.
type Hook<const IP_OFFSET: u32> = Kernel<Skb<IP_OFFSET, false, false, false>>;

/// Global, so that the verifier judges it once and not again with all that may come before and behind: Linux 6.1
/// gives up on that.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn park_frame(skb: *mut __sk_buff) -> u32 {
    PLACE.get_ptr_mut(0).is_some_and(|place| {
        // SAFETY: this CPU's element.
        let place = unsafe { &mut *place };
        fragment::park_somewhere(&mut Hook::<0>::new(Skb(skb)), place)
    }) as u32
}

/// Likewise.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn resend_frames(skb: *mut __sk_buff, ip_offset: u32) -> u32 {
    PLACE.get_ptr_mut(0).is_none_or(|place| {
        // SAFETY: this CPU's element. Where a frame passes the hook before its call returns, it may have
        // another number then, which is written anew each time.
        let place = unsafe { &mut *place };
        if ip_offset == 0 {
            fragment::resend_all(&mut Hook::<0>::new(Skb(skb)), place)
        } else {
            fragment::resend_all(&mut Hook::<{ ethernet::HEADER_LEN }>::new(Skb(skb)), place)
        }
    }) as u32
}

/// As [`lb_common::env::Waiting::parked`].
#[inline(always)]
pub fn since(key: &ParkedKey) -> Option<u32> {
    let parked = PARKED.get_ptr(key)?;
    // SAFETY: an element of the map, which is plain data.
    Some(unsafe { core::ptr::read_volatile(&raw const (*parked).since) })
}

/// As [`lb_common::env::Waiting::park`].
#[inline(always)]
pub fn park(skb: *mut __sk_buff, key: &ParkedKey, now: u32) -> Parked {
    let Some(parked) = ASIDE.get_ptr_mut(TO_PARK) else {
        return Parked::Refused;
    };
    if !load(skb, parked) {
        return Parked::Refused;
    }
    // SAFETY: this CPU's element, and nobody else's while the hook runs; the context is valid.
    unsafe {
        (*parked).since = now;
        (*parked).device = core::ptr::read_volatile(&raw const (*skb).ifindex);
        (*parked).stamp = bpf_get_prandom_u32();
        let frame: &ParkedFrame = &*parked;
        match PARKED.insert(key, frame, BPF_NOEXIST.into()) {
            Ok(()) => Parked::Kept,
            Err(EEXIST) => Parked::Taken,
            Err(_) => Parked::Refused,
        }
    }
}

/// As [`lb_common::env::Waiting::forget_parked`].
#[inline(always)]
pub fn forget(key: &ParkedKey) {
    // Gone already is as good.
    let _ = PARKED.remove(key);
}

/// As [`lb_common::env::Waiting::set_aside`].
#[inline(always)]
pub fn set_aside(skb: *mut __sk_buff) -> bool {
    let Some(aside) = ASIDE.get_ptr_mut(LENT) else {
        return false;
    };
    if !load(skb, aside) {
        return false;
    }
    // SAFETY: plain numbers. All of it in one piece, so that it can grow; and what a device has verified
    // of this frame says nothing of the others.
    unsafe {
        bpf_csum_level(skb, BPF_CSUM_LEVEL_RESET as u64);
        bpf_skb_pull_data(skb, core::ptr::read_volatile(&raw const (*skb).len)) == 0
    }
}

/// As [`lb_common::env::Waiting::take_back`].
#[inline(always)]
pub fn take_back(skb: *mut __sk_buff, ip_offset: u32) -> bool {
    ASIDE.get_ptr(LENT).is_some_and(|aside| store(skb, aside, ip_offset))
}

/// As [`lb_common::env::Waiting::resend_parked`].
#[inline(always)]
pub fn resend(skb: *mut __sk_buff, key: &ParkedKey, ip_offset: u32) {
    let Some(parked) = PARKED.get_ptr(key) else {
        return;
    };
    // SAFETY: an element of the map, which is plain data.
    let (device, stamp) = unsafe {
        let device = core::ptr::read_volatile(&raw const (*parked).device);
        (device, core::ptr::read_volatile(&raw const (*parked).stamp))
    };
    let is_stored = store(skb, parked, ip_offset);
    // An element of an LRU map may be used for another frame while we read it.
    let is_whole = PARKED.get_ptr(key).is_some_and(|parked| {
        // SAFETY: as above.
        stamp == unsafe { core::ptr::read_volatile(&raw const (*parked).stamp) }
    });
    // Before it is sent: it may come by here before the call returns.
    forget(key);
    if is_stored && is_whole {
        let direction = if key.leaves == 0 { BPF_F_INGRESS as u64 } else { OUTWARDS };
        // SAFETY: the context is valid. What can't be sent is lost, as on any device.
        unsafe { bpf_clone_redirect(skb, device, direction) };
    }
}

/// As [`lb_common::env::Waiting::next`]. Linux 6.1 lets no addition fall into the head of a loop (check_cfg, kernel/bpf/verifier.c), and
/// that is where the compiler puts one that it knows.
#[inline(always)]
pub fn next(number: u32) -> u32 {
    let mut number = number as u64;
    // SAFETY: changes this register alone.
    unsafe { core::arch::asm!("{number} += 1", number = inout(reg) number) };
    number as u32
}

/// `length`, which is an IPv4 header's at least and `most` at most, so that every verifier sees it. Not in
/// Rust: the compiler compares a difference, in another register, and from that Linux 6.1 learns nothing
/// about this one.
#[inline(always)]
fn bounded(length: u32, most: u32) -> u32 {
    let mut length = length as u64;
    // SAFETY: changes this register alone.
    unsafe {
        // The way of every packet first; the verifier finds the other's state in it.
        core::arch::asm!(
            "if {length} < {least} goto +2",
            "if {length} > {most} goto +1",
            "goto +1",
            "{length} = {least}",
            length = inout(reg) length,
            least = const V4::HEADER_LEN,
            most = in(reg) most as u64,
        );
    }
    length as u32
}

/// Copies the frame out of its socket buffer; `false` when it is too long.
#[inline(always)]
fn load(skb: *mut __sk_buff, to: *mut ParkedFrame) -> bool {
    // SAFETY: the context is valid; `to` has room for as much as is asked for.
    unsafe {
        let length = core::ptr::read_volatile(&raw const (*skb).len);
        if length > MAX_FRAME {
            return false;
        }
        (*to).length = length;
        let length = bounded(length, MAX_FRAME);
        bpf_skb_load_bytes(skb.cast(), 0, (&raw mut (*to).bytes).cast(), length) == 0
    }
}

/// Gives a socket buffer the bytes of a frame.
#[inline(always)]
fn store(skb: *mut __sk_buff, from: *const ParkedFrame, ip_offset: u32) -> bool {
    // SAFETY: the context is valid; `from` has as much as is read.
    unsafe {
        let length = core::ptr::read_volatile(&raw const (*from).length);
        if bpf_skb_change_tail(skb, length, 0) != 0 {
            return false;
        }
        let bytes: *const u8 = (&raw const (*from).bytes).cast();
        // A checksum over the packet begins behind the link header.
        if ip_offset != 0 && bpf_skb_store_bytes(skb.cast(), 0, bytes.cast(), ip_offset, 0) != 0 {
            return false;
        }
        let packet = bytes.add(ip_offset as usize).cast();
        let length = bounded(length - ip_offset, MAX_FRAME - ip_offset);
        let flags = BPF_F_RECOMPUTE_CSUM as u64;
        bpf_skb_store_bytes(skb.cast(), ip_offset, packet, length, flags) == 0
    }
}
