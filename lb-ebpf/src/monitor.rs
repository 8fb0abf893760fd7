//! EVENTS: tells whoever watches. Reached only while somebody does ([`crate::maps::MONITOR`]).

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use lb_common::abi::{BackendIndex, Event, EventHook, ServiceIndex};
use lb_common::family::{V4, V6};
use lb_common::lb::monitor::{self, Subject, Tuple};

use crate::env::Kernel;
use crate::maps::{self, FamilyMaps};

/// A packet, which is in this CPU's working memory.
#[inline(always)]
pub fn packet<F: FamilyMaps>(subject: Subject, device: u32, hook: EventHook, reason: u8) {
    let what = subject.tuple as u32 | (reason as u32) << 8 | (hook as u32) << 16;
    let Subject { service, backend, .. } = subject;
    if F::HAS_HEADER_CHECKSUM {
        packet_event4(what, device, service.0, backend.0);
    } else {
        packet_event6(what, device, service.0, backend.0);
    }
}

/// Out of line, as a dozen places end here, and global, so that the verifier judges it once and not again from
/// each of them. The result is nobody's; a global function has to have one.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn packet_event4(what: u32, device: u32, service: u32, backend: u32) -> u32 {
    packet_event::<V4>(what, device, service, backend)
}

/// Likewise.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn packet_event6(what: u32, device: u32, service: u32, backend: u32) -> u32 {
    packet_event::<V6>(what, device, service, backend)
}

/// The event is put together in memory of this CPU, as the stack of a packet hook is nearly full.
#[inline(always)]
fn packet_event<F: FamilyMaps>(what: u32, device: u32, service: u32, backend: u32) -> u32 {
    let (Some(work), Some(event)) = (F::work(), maps::event()) else {
        return 0;
    };
    let tuple = match what & 0xff {
        0 => Tuple::Packet,
        1 => Tuple::Flow,
        _ => Tuple::Error,
    };
    let subject = Subject { tuple, service: ServiceIndex(service), backend: BackendIndex(backend) };
    event.device = device;
    event.hook = (what >> 16) as u8;
    subject.describe(work, &Kernel::new(()), (what >> 8) as u8, event);
    tell(event);
    0
}

/// A socket's call. Tasks inside of socket hooks preempt each other, so the event is on the stack.
#[inline(never)]
pub fn socket_event(event: &mut Event) {
    tell(event);
}

#[inline(always)]
fn tell(event: &mut Event) {
    let Some(monitor) = maps::MONITOR.get(0) else {
        return;
    };
    // SAFETY: no arguments, no state.
    event.time = unsafe { bpf_ktime_get_ns() };
    let is_watched = |service: ServiceIndex| maps::WATCHED.get_ptr(service.0).is_some();
    if !monitor::wants(monitor, event, is_watched) {
        return;
    }
    let Some(pace) = maps::PACE.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: this CPU's element. A task that preempts another inside of a socket hook may count one
    // event for two.
    let pace = unsafe { &mut *pace };
    if monitor::admits(pace, event.time, monitor.rate)
        && maps::EVENTS.output::<Event>(&*event, 0).is_err()
    {
        pace.lost += 1;
    }
}
