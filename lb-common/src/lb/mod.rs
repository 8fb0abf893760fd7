//! The datapath's decisions, one module per step:
//! `parse → flow? → frontend → policy → select → rewrite → deliver`.
//!
//! [`ingress`] and [`egress`] are the packet hooks' whole behaviour; [`socket`] is that of the
//! cgroup hooks. All are pure but for what they do through their environment.

pub mod affinity;
pub mod answer;
pub mod flow;
pub mod frontend;
pub mod icmp;
pub mod open;
pub mod policy;
mod reason;
pub mod rewrite;
pub mod select;
pub mod snat;
pub mod socket;
pub mod source;

pub use answer::Answer;
pub use reason::DropReason;

use crate::abi::{Flow, FlowFlags, FlowKey, ServiceIndex};
use crate::env::{Env, Route, RouteQuery};
use crate::packet::{self, Kind, Packet, ReadHeader, Work};

/// What becomes of a packet. Rewriting has been done when a verdict asks to send it.
///
/// No variant carries a value: the compiler would pack it beside the tag with shifts of whatever
/// the register held on other paths, which the verifier rejects when that was a pointer. Values
/// are in [`Work`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Not ours, or not for this hook: untouched.
    Pass,
    /// Rewritten for a local backend (ingress) or back to the frontend (egress): goes its way.
    Deliver,
    /// Rewritten; leaves through [`Work::device`] to the next hop of the last route answer.
    Forward,
    /// The sender gets the ICMP error [`Work::answer`]; the packet itself is untouched so far.
    Answer,
    /// The sender gets a TCP reset; the packet itself is untouched so far.
    Reset,
    /// Dropped and counted.
    Drop,
}

/// Which side of a device a packet hook sits on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Ingress,
    Egress,
}

/// A packet that arrived on an external device.
#[inline(always)]
pub fn ingress<F: ReadHeader, E: Env<F>>(env: &mut E, work: &mut Work<F>) -> Verdict {
    match packet::parse(env, work) {
        Kind::Transport => {
            if flow::find(env, work) {
                carry(env, work, Side::Ingress)
            } else if E::FINAL {
                open::new_flow(env, work)
            } else {
                // The first packet of a flow is opened by the hook behind this one.
                Verdict::Pass
            }
        }
        Kind::Error => icmp::translate(env, work, Side::Ingress),
        Kind::Unknown => Verdict::Pass,
    }
}

/// A packet that is about to leave through an external device: only replies of local backends
/// concern us.
#[inline(always)]
pub fn egress<F: ReadHeader, E: Env<F>>(env: &mut E, work: &mut Work<F>) -> Verdict {
    match packet::parse(env, work) {
        Kind::Transport => {
            if flow::find(env, work) {
                carry(env, work, Side::Egress)
            } else {
                Verdict::Pass
            }
        }
        Kind::Error => icmp::translate(env, work, Side::Egress),
        Kind::Unknown => Verdict::Pass,
    }
}

/// Rewrites a packet of a known flow and sends it on.
#[inline(always)]
fn carry<F: ReadHeader, E: Env<F>>(env: &mut E, work: &mut Work<F>, side: Side) -> Verdict {
    let local = work.entry.flags & FlowFlags::LOCAL != 0;
    let reply = work.entry.flags & FlowFlags::REPLY != 0;
    match (side, local, reply) {
        // A local backend's packets pass the stack: in at ingress, replies out at egress.
        (Side::Ingress, true, false) | (Side::Egress, true, true) => {
            if !E::FINAL {
                return Verdict::Pass;
            }
            deliver(env, &work.packet, &work.entry)
        }
        // Everything else would be our own packet seen a second time.
        (Side::Ingress, true, true) | (Side::Egress, _, _) => Verdict::Pass,
        (Side::Ingress, false, _) => forward(env, work),
    }
}

#[inline(always)]
fn deliver<F: ReadHeader, E: Env<F>>(env: &mut E, packet: &Packet<F>, flow: &Flow<F>) -> Verdict {
    if rewrite::transport(env, packet, &flow.translated, rewrite::Hop::Keep) {
        Verdict::Deliver
    } else {
        drop_packet(env, flow.service, DropReason::Rewrite)
    }
}

/// Sends a packet of a forwarded flow to its next hop.
#[inline(always)]
fn forward<F: ReadHeader, E: Env<F>>(env: &mut E, work: &mut Work<F>) -> Verdict {
    let Work { packet, entry: flow, device, answer, .. } = work;
    *device = match route(env, packet, &flow.translated) {
        Route::Via { device } => device,
        // What may be fragmented leaves as it is; the output path of the device splits it.
        Route::TooBig { device, .. } if !packet.dont_fragment => device,
        Route::TooBig { mtu, .. } => {
            *answer = Answer::TooBig { mtu };
            return tell(env, packet, flow.service, DropReason::Answer);
        }
        Route::Elsewhere => return Verdict::Pass,
        // The far end moved onto this node, or the route is gone: not ours to deliver.
        Route::Stack | Route::None => return drop_packet(env, flow.service, DropReason::NoRoute),
    };
    if packet.hop_limit <= 1 {
        *answer = Answer::TimeExceeded;
        return tell(env, packet, flow.service, DropReason::HopLimit);
    }
    if !rewrite::transport(env, packet, &flow.translated, rewrite::Hop::Decrement) {
        return drop_packet(env, flow.service, DropReason::Rewrite);
    }
    Verdict::Forward
}

/// Which device leads to the destination of `to`.
#[inline(always)]
fn route<F: ReadHeader, E: Env<F>>(env: &mut E, packet: &Packet<F>, to: &FlowKey<F>) -> Route {
    let mut query = RouteQuery {
        source: to.source,
        destination: to.destination,
        protocol: packet.protocol(),
        length: env.wire_length(packet),
    };
    let answer = env.route(&query);
    if !packet.dont_fragment && matches!(answer, Route::TooBig { .. }) {
        // The answer about the length came before the one about the device.
        query.length = 0;
        return env.route(&query);
    }
    answer
}

/// Answers, unless the packet is a later fragment: where the receiver of the answer looks for the
/// ports of its socket, the quote would have payload (RFC 1122, 3.2.2).
#[inline(always)]
fn tell<F: ReadHeader, E: Env<F>>(
    env: &mut E,
    packet: &Packet<F>,
    service: ServiceIndex,
    otherwise: DropReason,
) -> Verdict {
    if packet.has_transport { Verdict::Answer } else { drop_packet(env, service, otherwise) }
}

/// Counts the reason and drops.
#[inline(always)]
fn drop_packet<F: ReadHeader, E: Env<F>>(
    env: &mut E,
    service: ServiceIndex,
    reason: DropReason,
) -> Verdict {
    env.count_drop(service, reason);
    Verdict::Drop
}
