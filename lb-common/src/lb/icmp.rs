//! ICMP errors inside known flows: translated like the flow, so that path-MTU discovery and
//! "port unreachable" work through us.

use super::monitor::{Subject, Tuple};
use super::rewrite::{self, Hop};
use super::{DropReason, Side, Verdict, drop_packet, drop_untold, way_out};
use crate::abi::{Flow, FlowFlags, FlowKey};
use crate::env::{Env, Route, RouteQuery};
use crate::packet::{IcmpError, ReadHeader, Work};

/// Translates an error like the flow that it is about, if it is about one of ours.
#[inline(always)]
pub(super) fn translate<F: ReadHeader, E: Env<F>>(
    env: &mut E,
    work: &mut Work<F>,
    side: Side,
) -> Verdict {
    let Work { error, entry, key, device: output, .. } = work;
    // The error travels against the packet that it quotes: with the answers to it.
    *key = error.quoted.inverse();
    match env.flow(key) {
        Some(known) => entry.copy_from(known),
        None => return Verdict::Pass,
    }
    if entry.flags & FlowFlags::FOREIGN != 0 {
        return Verdict::Pass;
    }
    let local = entry.flags & FlowFlags::LOCAL != 0;
    let reply = entry.flags & FlowFlags::REPLY != 0;
    const BACK_TO_NODE: u32 = FlowFlags::FROM_NODE | FlowFlags::REPLY;
    let to_node = matches!(side, Side::Ingress) && entry.flags & BACK_TO_NODE == BACK_TO_NODE;
    // Where the flow's own source is translated, everything on that side hides behind the same
    // address; else the router keeps its own.
    let source =
        if entry.translated.source == key.source { error.source } else { entry.translated.source };
    match (side, local, reply) {
        _ if to_node => rewritten(env, error, entry, key, source, Hop::Keep, Verdict::Deliver),
        (Side::Ingress, true, false) => {
            rewritten(env, error, entry, key, source, Hop::Keep, Verdict::Deliver)
        }
        (Side::Egress, true, true) => {
            let verdict = way_out(env, entry, F::ICMP, output);
            rewritten(env, error, entry, key, source, Hop::Keep, verdict)
        }
        (Side::Ingress, true, true) | (Side::Egress, _, _) => Verdict::Pass,
        (Side::Ingress, false, _) => {
            let query = RouteQuery {
                source,
                destination: entry.translated.destination,
                protocol: F::ICMP,
                length: 0,
            };
            *output = match env.route(&query) {
                Route::Via { device } | Route::TooBig { device, .. } => device,
                Route::Elsewhere => return Verdict::Pass,
                Route::Stack | Route::None => {
                    return drop_packet(env, work, subject(&work.entry), DropReason::NoRoute);
                }
            };
            if error.hop_limit <= 1 {
                return drop_packet(env, work, subject(&work.entry), DropReason::HopLimit);
            }
            rewritten(env, error, entry, key, source, Hop::Decrement, Verdict::Forward)
        }
    }
}

/// The error, as the flow's packet that it travels with.
#[inline(always)]
fn subject<F: ReadHeader>(flow: &Flow<F>) -> Subject {
    Subject { tuple: Tuple::Error, ..Subject::flow(flow) }
}

#[inline(always)]
fn rewritten<F: ReadHeader, E: Env<F>>(
    env: &mut E,
    error: &IcmpError<F>,
    flow: &Flow<F>,
    quoted: &mut FlowKey<F>,
    source: F::Addr,
    hop: Hop,
    verdict: Verdict,
) -> Verdict {
    *quoted = flow.translated.inverse();
    if rewrite::icmp_error(env, error, source, flow.translated.destination, quoted, hop) {
        verdict
    } else {
        drop_untold(env, flow.service, DropReason::Rewrite)
    }
}
