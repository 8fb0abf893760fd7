//! What pods send and receive, and SCTP, which programs of its own carry.

use super::Case;
use super::bench::{Bench, TC_DROP, TC_NEXT, TC_REDIRECT};
use super::forwarding::{ACK, OPENERS, SYN, external, pod, sent};
use super::programs::Hook;
use anyhow::{Context, Result, ensure};
use lb_common::family::Family;
use lb_common::lb::answer::AnswerFormat;
use lb_common::model::frame::{Segment, Transport};
use lb_common::model::scene::{Role, at, ip, port};
use std::net::SocketAddr;

/// Chunk type INIT.
const INIT: u8 = 1;

pub(super) fn cases<F: AnswerFormat>() -> Vec<Case<F>> {
    vec![
        ("a pod reaches endpoints here and elsewhere under its own address", pods),
        ("a pod that reaches itself sees the node", hairpin),
        ("policies and refusals for pods are those of clients on the node", verdicts),
        ("SCTP reaches a local and a remote backend, and its checksum stays right", sctp),
        ("SCTP of every length has the right checksum afterwards", sctp_lengths),
    ]
}

/// Pods' transports: TCP, UDP, SCTP.
fn openers() -> impl Iterator<Item = Transport> {
    let sctp = [Transport::Sctp(INIT), Transport::SctpWithoutChecksum(INIT)];
    OPENERS.into_iter().chain(sctp)
}

fn frontends<F: Family>(service: u16) -> [SocketAddr; 4] {
    [
        at::<F>(Role::ClusterIp, service),
        external::<F>(service),
        at::<F>(Role::LoadBalancer, service),
        at::<F>(Role::Node, port::node_port(service)),
    ]
}

fn pods<F: AnswerFormat>(bench: &mut Bench<F>) -> Result<()> {
    for (service, role) in [(port::LOCAL, Role::LocalPod), (port::OVERLAY, Role::OverlayPod)] {
        for frontend in frontends::<F>(service) {
            for opener in openers() {
                bench.reset()?;
                let client = at::<F>(Role::UnknownPod, port::CLIENT);
                let request = Segment::new(client, frontend, opener);
                let goes = request.between(client, pod::<F>(role), 64);
                bench.expect(Hook::PodIngress, &request.frame(), TC_NEXT, &goes.frame())?;
                let reply = goes.reply(SYN | ACK);
                bench.untouched(Hook::Ingress, &reply.frame())?;
                let back = reply.between(frontend, client, 64);
                bench.expect(Hook::PodEgress, &reply.frame(), TC_NEXT, &back.frame())?;
            }
        }
    }
    bench.same_counts()
}

fn hairpin<F: AnswerFormat>(bench: &mut Bench<F>) -> Result<()> {
    for opener in openers() {
        bench.reset()?;
        let frontend = at::<F>(Role::ClusterIp, port::LOCAL);
        let client = at::<F>(Role::LocalPod, port::CLIENT);
        let request = Segment::new(client, frontend, opener);
        let run = bench.run(Hook::PodIngress, &request.frame());
        let drops = bench.programs.drops()?;
        let run = run.with_context(|| format!("DROPS: {drops:?}"))?;
        ensure!(run.action == TC_REDIRECT, "action {}", run.action);
        let at_ports = 14 + F::HEADER_LEN as usize;
        let seen = u16::from_be_bytes([run.bytes[at_ports], run.bytes[at_ports + 1]]);
        let node = SocketAddr::new(ip::<F>(Role::Node), seen);
        let arrives = request.between(node, pod::<F>(Role::LocalPod), 63);
        ensure!(run.bytes == arrives.frame(), "{opener:?}: another frame arrives");
        bench.untouched(Hook::PodEgress, &arrives.frame())?;
        let reply = Segment { hop_limit: 64, ..arrives.reply(SYN | ACK) };
        let back = reply.between(frontend, client, 63);
        bench.expect(Hook::PodIngress, &reply.frame(), TC_REDIRECT, &back.frame())?;
    }
    Ok(())
}

fn verdicts<F: AnswerFormat>(bench: &mut Bench<F>) -> Result<()> {
    let from_pod = |to, transport| {
        Segment::new(at::<F>(Role::UnknownPod, port::CLIENT), to, transport).frame()
    };
    for opener in openers() {
        for (to, action) in [
            (at::<F>(Role::ClusterIp, port::EMPTY), TC_REDIRECT),
            (at::<F>(Role::ClusterIp, 9), TC_REDIRECT),
            (at::<F>(Role::ClusterIp, port::INTERNAL_ELSEWHERE), TC_DROP),
            (at::<F>(Role::LoadBalancer, port::RANGES), TC_DROP),
            (at::<F>(Role::LoadBalancer, port::ELSEWHERE), TC_NEXT),
            (at::<F>(Role::RemotePod, port::BACKEND), TC_NEXT),
        ] {
            bench.reset()?;
            let run = bench.run(Hook::PodIngress, &from_pod(to, opener))?;
            ensure!(run.action == action, "{to} {opener:?}: action {}", run.action);
            bench.same_counts()?;
        }
    }
    Ok(())
}

fn sctp<F: AnswerFormat>(bench: &mut Bench<F>) -> Result<()> {
    for transport in [Transport::Sctp(INIT), Transport::SctpWithoutChecksum(INIT)] {
        bench.reset()?;
        let request = sent::<F>(at::<F>(Role::Node, port::node_port(port::LOCAL)), transport);
        let arrives = request.between(request.source, pod::<F>(Role::LocalPod), 64);
        bench.untouched(Hook::Xdp, &request.frame())?;
        bench.expect(Hook::Ingress, &request.frame(), TC_NEXT, &arrives.frame())?;
        let reply = arrives.reply(0);
        let back = reply.between(request.destination, request.source, 64);
        bench.expect(Hook::Egress, &reply.frame(), TC_NEXT, &back.frame())?;

        let request = sent::<F>(external::<F>(port::REMOTE), transport);
        let source = bench.open(&request.frame())?;
        let leaves = request.between(source, pod::<F>(Role::RemotePod), 63);
        bench.expect(Hook::Ingress, &request.frame(), TC_REDIRECT, &leaves.frame())?;
        bench.untouched(Hook::Xdp, &request.frame())?;
        let reply = Segment { hop_limit: 64, ..leaves.reply(0) };
        let back = reply.between(request.destination, request.source, 63);
        bench.expect(Hook::Ingress, &reply.frame(), TC_REDIRECT, &back.frame())?;
    }
    Ok(())
}

fn sctp_lengths<F: AnswerFormat>(bench: &mut Bench<F>) -> Result<()> {
    for words in (0..360).step_by(7) {
        bench.reset()?;
        let mut request = sent::<F>(external::<F>(port::LOCAL), Transport::Sctp(INIT));
        request.payload = (0..words * 4).map(|at| at as u8).collect();
        let arrives = request.between(request.source, pod::<F>(Role::LocalPod), 64);
        bench.expect(Hook::Ingress, &request.frame(), TC_NEXT, &arrives.frame())?;
    }
    Ok(())
}
