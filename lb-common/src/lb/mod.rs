//! The datapath's decisions, one module per step:
//! `parse → flow? → frontend → policy → select → rewrite → deliver`.
//!
//! [`ingress`] and [`egress`] are the packet hooks' whole behaviour; [`socket`] is that of the
//! cgroup hooks. All are pure but for what they do through their environment.

pub mod affinity;
pub mod answer;
pub mod flow;
pub mod fragment;
pub mod frontend;
pub mod icmp;
pub mod monitor;
pub mod open;
pub mod policy;
mod range;
mod reason;
pub mod rewrite;
pub mod select;
pub mod snat;
pub mod socket;
pub mod source;
pub mod takeover;

pub use answer::Answer;
pub use reason::DropReason;

use crate::abi::{Flow, FlowFlags, FlowKey, ServiceIndex, TrafficKey};
use crate::env::{Carried, Env, Route, RouteQuery};
use crate::packet::{self, Kind, Packet, ReadHeader, Work};
use monitor::Subject;
use policy::Client;

/// The index of the loopback device in every network namespace (LOOPBACK_IFINDEX, include/net/flow.h).
pub const LOOPBACK: u32 = 1;

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
    /// Rewritten for a process of this node; enters the stack through [`Work::device`], as strict
    /// reverse path filters want it: that is where the last route answer leads to its source. From an
    /// address of this node the kernel takes nothing but through [`LOOPBACK`].
    Raise,
    /// The sender gets the ICMP error [`Work::answer`]; the packet itself is untouched so far.
    Answer,
    /// The sender gets a TCP reset; the packet itself is untouched so far.
    Reset,
    /// For the program that carries SCTP; untouched so far.
    HandOver,
    /// A copy waits for the first fragment of its datagram; the packet itself goes nowhere.
    Parked,
    /// Dropped and counted.
    Drop,
}

/// Which side of a device a packet hook sits on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Ingress,
    Egress,
}

/// A packet that arrived on an external device, or from a pod.
#[inline(always)]
pub fn ingress<F: ReadHeader, E: Env<F>>(env: &mut E, work: &mut Work<F>) -> Verdict {
    match packet::parse(env, work) {
        Kind::Transport => {
            if !env.serves(work.packet.protocol()) {
                Verdict::Pass
            } else if flow::find(env, work) {
                carry(env, work, Side::Ingress, 0)
            } else if E::FINAL {
                open::new_flow(env, work, Side::Ingress)
            } else {
                // The first packet of a flow is opened by the hook behind this one.
                Verdict::Pass
            }
        }
        Kind::Error => icmp::translate(env, work, Side::Ingress),
        Kind::Sctp => Verdict::HandOver,
        Kind::Parked => Verdict::Parked,
        Kind::Lost => drop_untold(env, ServiceIndex(0), DropReason::Rewrite),
        Kind::Unknown => Verdict::Pass,
    }
}

/// A packet that is about to leave through an external device, or to a pod: replies to those whose
/// packets were translated on their way in concern us, and packets that had better stay.
#[inline(always)]
pub fn egress<F: ReadHeader, E: Env<F>>(env: &mut E, work: &mut Work<F>) -> Verdict {
    match packet::parse(env, work) {
        Kind::Transport => {
            if env.serves(work.packet.protocol()) && flow::find(env, work) {
                return carry(env, work, Side::Egress, 0);
            }
            takeover::vacate(env, work);
            if opens_leaving::<F, E>() {
                let verdict = open::new_flow(env, work, Side::Egress);
                if verdict != Verdict::Pass {
                    return verdict;
                }
            }
            leave(env)
        }
        Kind::Error => icmp::translate(env, work, Side::Egress),
        Kind::Sctp => Verdict::HandOver,
        Kind::Parked => Verdict::Parked,
        Kind::Lost => drop_untold(env, ServiceIndex(0), DropReason::Rewrite),
        Kind::Unknown => leave(env),
    }
}

/// Whether what leaves here may be for a Service still: no socket hook sees SCTP, so what the node's own
/// processes send gets as far as the device that a route leads to.
#[inline(always)]
const fn opens_leaving<F: ReadHeader, E: Env<F>>() -> bool {
    E::SCTP && matches!(E::CLIENTS, Client::Outside)
}

/// What isn't a flow's goes its way, unless it would leave the node and mustn't.
#[inline(always)]
fn leave<F: ReadHeader, E: Env<F>>(env: &mut E) -> Verdict {
    match E::CLIENTS {
        Client::Outside => range::leave(env),
        Client::OnNode => Verdict::Pass,
    }
}

/// Rewrites a packet of a known flow, sends it on and counts it. `opened` is 1 for the packet that
/// opened the flow, else 0.
#[inline(always)]
fn carry<F: ReadHeader, E: Env<F>>(
    env: &mut E,
    work: &mut Work<F>,
    side: Side,
    opened: u32,
) -> Verdict {
    let verdict = send_on(env, work, side);
    let carried = matches!(verdict, Verdict::Deliver | Verdict::Forward | Verdict::Raise);
    if carried || opened != 0 {
        let Work { packet, entry: flow, .. } = work;
        let key = TrafficKey {
            service: flow.service,
            backend: flow.backend,
            generation: flow.generation,
        };
        env.count_carried(
            &key,
            &Carried {
                flows: opened,
                reply: flow.flags & FlowFlags::REPLY != 0,
                packets: if carried { env.wire_packets() } else { 0 },
                bytes: if carried { packet.length } else { 0 },
            },
        );
    }
    if opened != 0 {
        monitor::opened(env, work);
    }
    verdict
}

/// Rewrites a packet of a known flow and sends it on.
#[inline(always)]
fn send_on<F: ReadHeader, E: Env<F>>(env: &mut E, work: &mut Work<F>, side: Side) -> Verdict {
    if work.entry.flags & FlowFlags::FOREIGN != 0 {
        return Verdict::Pass;
    }
    // Only SCTP's programs open such flows.
    if E::SCTP && work.entry.flags & FlowFlags::FROM_NODE != 0 {
        return send_for_node(env, work, side);
    }
    let local = work.entry.flags & FlowFlags::LOCAL != 0;
    let reply = work.entry.flags & FlowFlags::REPLY != 0;
    match (side, local, reply) {
        // What passes the stack: in at ingress, replies out at egress.
        (Side::Ingress, true, false) | (Side::Egress, true, true) => {
            if !E::FINAL {
                return Verdict::Pass;
            }
            if side == Side::Egress {
                answer_client(env, work)
            } else {
                deliver(env, &work.packet, &work.entry)
            }
        }
        // Everything else would be our own packet seen a second time.
        (Side::Ingress, true, true) | (Side::Egress, _, _) => Verdict::Pass,
        (Side::Ingress, false, _) => forward(env, work, rewrite::Hop::Decrement),
    }
}

/// From a process of this node on to its endpoint, and back.
#[inline(always)]
fn send_for_node<F: ReadHeader, E: Env<F>>(env: &mut E, work: &mut Work<F>, side: Side) -> Verdict {
    let reply = work.entry.flags & FlowFlags::REPLY != 0;
    match (side, reply) {
        (Side::Egress, false) => forward(env, work, rewrite::Hop::Keep),
        (Side::Ingress, true) => raise(env, work),
        // From an endpoint that has an address of this node: on its way through the loopback device.
        (Side::Egress, true) => deliver(env, &work.packet, &work.entry),
        // Our own packet seen a second time.
        (Side::Ingress, false) => Verdict::Pass,
    }
}

#[inline(always)]
fn deliver<F: ReadHeader, E: Env<F>>(env: &mut E, packet: &Packet<F>, flow: &Flow<F>) -> Verdict {
    if rewrite::transport(env, packet, &flow.translated, rewrite::Hop::Keep) {
        Verdict::Deliver
    } else {
        drop_untold(env, flow.service, DropReason::Rewrite)
    }
}

/// A reply of an endpoint here, on its way out of the stack.
#[inline(always)]
fn answer_client<F: ReadHeader, E: Env<F>>(env: &mut E, work: &mut Work<F>) -> Verdict {
    let Work { packet, entry: flow, device, .. } = work;
    let verdict = way_out(env, flow, packet.protocol(), device);
    match deliver(env, packet, flow) {
        Verdict::Deliver => verdict,
        lost => lost,
    }
}

/// How what an endpoint here sends to a client outside leaves. The stack has routed it by the endpoint's address, and
/// rules may lead that out of another device than the Service's, which the client's packets came in through: a
/// network that looks at sources takes it there alone. So it is sent ([`Verdict::Forward`]) through `device`.
#[inline(always)]
fn way_out<F: ReadHeader, E: Env<F>>(
    env: &mut E,
    flow: &Flow<F>,
    protocol: u8,
    device: &mut u32,
) -> Verdict {
    let here = env.here();
    if E::CLIENTS == Client::OnNode || flow.device == 0 || flow.device == here {
        return Verdict::Deliver;
    }
    let query = RouteQuery {
        source: flow.translated.source,
        destination: flow.translated.destination,
        protocol,
        length: 0,
    };
    match env.route(&query) {
        Route::Via { device: way } | Route::TooBig { device: way, .. } if way != here => {
            *device = way;
            Verdict::Forward
        }
        _ => Verdict::Deliver,
    }
}

/// Hands a reply to a process of this node up the stack, at the device that the request left through: a
/// strict reverse path filter drops it elsewhere.
#[inline(always)]
fn raise<F: ReadHeader, E: Env<F>>(env: &mut E, work: &mut Work<F>) -> Verdict {
    let verdict = deliver(env, &work.packet, &work.entry);
    if verdict != Verdict::Deliver {
        return verdict;
    }
    let query = RouteQuery {
        source: F::Addr::default(),
        destination: work.entry.translated.source,
        protocol: work.packet.protocol(),
        length: 0,
    };
    match env.route(&query) {
        Route::Via { device } | Route::TooBig { device, .. } => {
            work.device = device;
            Verdict::Raise
        }
        Route::Stack => {
            work.device = LOOPBACK;
            Verdict::Raise
        }
        Route::Elsewhere | Route::None => Verdict::Deliver,
    }
}

/// Sends a packet of a forwarded flow to its next hop.
#[inline(always)]
fn forward<F: ReadHeader, E: Env<F>>(
    env: &mut E,
    work: &mut Work<F>,
    hop: rewrite::Hop,
) -> Verdict {
    let Work { packet, entry: flow, device, answer, .. } = work;
    let subject = Subject::flow(flow);
    *device = match route(env, packet, &flow.translated) {
        Route::Via { device } => device,
        // What may be fragmented leaves as it is; the output path of the device splits it.
        Route::TooBig { device, .. } if !packet.dont_fragment => device,
        Route::TooBig { mtu, .. } => {
            *answer = Answer::TooBig { mtu };
            return tell(env, work, subject, DropReason::Answer);
        }
        Route::Elsewhere => return Verdict::Pass,
        Route::Stack if E::SCTP && hop == rewrite::Hop::Keep => LOOPBACK,
        // The far end moved onto this node, or the route is gone: not ours to deliver.
        Route::Stack | Route::None => return drop_packet(env, work, subject, DropReason::NoRoute),
    };
    if hop == rewrite::Hop::Decrement && packet.hop_limit <= 1 {
        *answer = Answer::TimeExceeded;
        return tell(env, work, subject, DropReason::HopLimit);
    }
    if !rewrite::transport(env, packet, &flow.translated, hop) {
        return drop_untold(env, flow.service, DropReason::Rewrite);
    }
    if *device == LOOPBACK { Verdict::Raise } else { Verdict::Forward }
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
    work: &Work<F>,
    subject: Subject,
    otherwise: DropReason,
) -> Verdict {
    if work.packet.has_transport {
        Verdict::Answer
    } else {
        drop_packet(env, work, subject, otherwise)
    }
}

/// Counts the reason and drops, and tells nobody who watches: what would leave for nobody may have no
/// ports, and the rest doesn't happen.
#[inline(always)]
fn drop_untold<F: ReadHeader, E: Env<F>>(
    env: &mut E,
    service: ServiceIndex,
    reason: DropReason,
) -> Verdict {
    env.count_drop(service, reason);
    Verdict::Drop
}

/// Counts the reason, tells who watches, and drops.
#[inline(always)]
fn drop_packet<F: ReadHeader, E: Env<F>>(
    env: &mut E,
    work: &Work<F>,
    subject: Subject,
    reason: DropReason,
) -> Verdict {
    monitor::not_served(env, work, subject, reason);
    Verdict::Drop
}
