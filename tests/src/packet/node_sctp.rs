//! SCTP of the node's own processes: translated where it would leave, answered where it comes in.

use super::bench::{Bench, TC_DROP, TC_NEXT, TC_REDIRECT};
use super::forwarding::{external, pod};
use super::programs::Hook;
use super::{Case, network};
use anyhow::{Result, ensure};
use lb_common::family::Family;
use lb_common::lb::answer::AnswerFormat;
use lb_common::model::frame::{Segment, Transport};
use lb_common::model::scene::{Role, at, ip, port};
use std::net::SocketAddr;

/// Chunk type INIT.
const INIT: u8 = 1;
/// With its checksum, and as a kernel hands it to a device that is to fill it in.
const OPENERS: [Transport; 2] = [Transport::Sctp(INIT), Transport::SctpWithoutChecksum(INIT)];

pub(super) fn cases<F: AnswerFormat>() -> Vec<Case<F>> {
    vec![
        ("SCTP of the node's processes reaches a pod here, and its answer them", here),
        (
            "SCTP of the node's processes reaches an endpoint elsewhere, and its answer them",
            elsewhere,
        ),
        ("SCTP of the node's processes is judged like that of other clients here", verdicts),
    ]
}

fn frontends<F: Family>(service: u16) -> [SocketAddr; 3] {
    [
        at::<F>(Role::ClusterIp, service),
        external::<F>(service),
        at::<F>(Role::LoadBalancer, service),
    ]
}

fn from_node<F: Family>(to: SocketAddr, transport: Transport) -> Segment {
    Segment::new(at::<F>(Role::Node, port::CLIENT), to, transport)
}

fn here<F: AnswerFormat>(bench: &mut Bench<F>) -> Result<()> {
    for frontend in frontends::<F>(port::LOCAL) {
        for opener in OPENERS {
            bench.reset()?;
            let request = from_node::<F>(frontend, opener);
            let arrives = request.between(request.source, pod::<F>(Role::LocalPod), 64);
            for _ in 0..2 {
                bench.expect(Hook::Egress, &request.frame(), TC_REDIRECT, &arrives.frame())?;
            }
            bench.untouched(Hook::PodEgress, &arrives.frame())?;
            let reply = arrives.reply(0);
            let mut back = reply.between(frontend, request.source, 64).frame();
            back.splice(..6, network::OWN);
            bench.expect(Hook::PodIngress, &reply.frame(), TC_REDIRECT, &back)?;
            bench.untouched(Hook::Ingress, &back)?;
        }
    }
    bench.same_counts()
}

fn elsewhere<F: AnswerFormat>(bench: &mut Bench<F>) -> Result<()> {
    for (service, role, own) in [
        (port::REMOTE, Role::RemotePod, Role::Node),
        (port::OVERLAY, Role::OverlayPod, Role::Overlay),
    ] {
        for frontend in frontends::<F>(service) {
            for opener in OPENERS {
                bench.reset()?;
                let request = from_node::<F>(frontend, opener);
                let run = bench.run(Hook::Egress, &request.frame())?;
                let ports = 14 + F::HEADER_LEN as usize;
                let seen = u16::from_be_bytes([run.bytes[ports], run.bytes[ports + 1]]);
                let source = SocketAddr::new(ip::<F>(own), seen);
                let leaves = request.between(source, pod::<F>(role), 64);
                bench.expect(Hook::Egress, &request.frame(), TC_REDIRECT, &leaves.frame())?;
                bench.untouched(Hook::Egress, &leaves.frame())?;
                bench.untouched(Hook::Xdp, &leaves.reply(0).frame())?;
                // The bench's packets come in through the uplink, over which the Service is, too.
                let reply = leaves.reply(0);
                let back = reply.between(frontend, request.source, 64);
                bench.expect(Hook::Ingress, &reply.frame(), TC_NEXT, &back.frame())?;
            }
        }
    }
    bench.same_counts()
}

fn verdicts<F: AnswerFormat>(bench: &mut Bench<F>) -> Result<()> {
    for opener in OPENERS {
        for (to, action) in [
            (at::<F>(Role::LoadBalancer, port::ELSEWHERE), TC_REDIRECT),
            (at::<F>(Role::LoadBalancer, port::RANGES), TC_REDIRECT),
            (at::<F>(Role::ClusterIp, port::EMPTY), TC_REDIRECT),
            (at::<F>(Role::ClusterIp, 9), TC_REDIRECT),
            (at::<F>(Role::ClusterIp, port::INTERNAL_ELSEWHERE), TC_DROP),
            (at::<F>(Role::ClusterIp, port::LOST), TC_DROP),
            (at::<F>(Role::Unowned, 9), TC_DROP),
            (at::<F>(Role::RemotePod, port::BACKEND), TC_NEXT),
        ] {
            bench.reset()?;
            let run = bench.run(Hook::Egress, &from_node::<F>(to, opener).frame())?;
            ensure!(run.action == action, "{to} {opener:?}: action {}", run.action);
            bench.same_counts()?;
        }
    }
    Ok(())
}
