//! What we say ourselves, and what we drop with a reason.

use super::Case;
use super::bench::{Bench, TC_DROP, TC_NEXT, TC_REDIRECT, XDP_PASS};
use super::forwarding::{ACK, OPENERS, RST, SYN, external, pod, sent};
use super::programs::Hook;
use anyhow::{Result, ensure};
use lb_common::lb::answer::AnswerFormat;
use lb_common::model::frame::{
    Fragment, IcmpError, Problem, Segment, Transport, returned, with_link,
};
use lb_common::model::scene::{Role, at, port};

pub(super) fn cases<F: AnswerFormat>() -> Vec<Case<F>> {
    vec![
        ("a Service without endpoints refuses every protocol", refused),
        ("policy Local without a local endpoint drops in silence", silence),
        ("the last hop is answered with time exceeded in both directions", last_hop),
        ("what is too long for the path is answered with its MTU", too_big),
        ("merged segments are judged by the length of one", merged),
        ("a later fragment is never answered", later_fragments),
        ("a backend that a route forbids is a drop with its reason", forbidden),
    ]
}

/// What refuses a packet, as it goes back: a reset for TCP, port unreachable for others.
fn refusal<F: AnswerFormat>(to: &Segment) -> Vec<u8> {
    match to.transport {
        Transport::Tcp(_) => returned(with_link(F::HAS_HEADER_CHECKSUM, &to.reset())),
        Transport::Udp
        | Transport::UdpWithoutChecksum
        | Transport::Sctp(_)
        | Transport::SctpWithoutChecksum(_) => answer::<F>(to, Problem::PortUnreachable),
    }
}

/// The answer to a packet, as it goes back.
fn answer<F: AnswerFormat>(to: &Segment, problem: Problem) -> Vec<u8> {
    let mut quote = to.packet();
    quote.truncate(size_of::<F::Quote>());
    let error = IcmpError {
        source: to.destination.ip(),
        destination: to.source.ip(),
        problem,
        quote,
        hop_limit: 64,
        own: true,
    };
    returned(error.frame())
}

fn refused<F: AnswerFormat>(bench: &mut Bench<F>) -> Result<()> {
    // At egress only what is for a Service range is our business.
    let empty = (external::<F>(port::EMPTY), TC_NEXT);
    let unknown_port = (at::<F>(Role::ClusterIp, 7), TC_DROP);
    for (to, leaving) in [empty, unknown_port] {
        for transport in OPENERS.into_iter().chain([Transport::Tcp(ACK)]) {
            for payload in [0, 1, 700] {
                let mut request = sent::<F>(to, transport);
                request.payload.resize(payload, 5);
                let refusal = refusal::<F>(&request);
                bench.expect(Hook::Ingress, &request.frame(), TC_REDIRECT, &refusal)?;
                bench.untouched(Hook::Xdp, &request.frame())?;
                bench.expect(Hook::Egress, &request.frame(), leaving, &request.frame())?;
                request.extras = 1;
                let refusal = self::refusal::<F>(&request);
                bench.expect(Hook::Ingress, &request.frame(), TC_REDIRECT, &refusal)?;
            }
        }
        let reset = sent::<F>(to, Transport::Tcp(RST));
        let run = bench.run(Hook::Ingress, &reset.frame())?;
        ensure!(run.action == TC_DROP, "a reset: action {}", run.action);
    }
    bench.same_counts()
}

fn silence<F: AnswerFormat>(bench: &mut Bench<F>) -> Result<()> {
    for to in [
        external::<F>(port::ELSEWHERE),
        at::<F>(Role::LoadBalancer, port::ELSEWHERE),
        at::<F>(Role::Node, port::node_port(port::ELSEWHERE)),
        at::<F>(Role::ClusterIp, port::INTERNAL_ELSEWHERE),
    ] {
        let run = bench.run(Hook::Ingress, &sent::<F>(to, Transport::Udp).frame())?;
        ensure!(run.action == TC_DROP, "{to}: action {}", run.action);
    }
    bench.same_counts()
}

fn last_hop<F: AnswerFormat>(bench: &mut Bench<F>) -> Result<()> {
    let request = sent::<F>(external::<F>(port::REMOTE), Transport::Tcp(SYN));
    let source = bench.open(&request.frame())?;
    let leaves = request.between(source, pod::<F>(Role::RemotePod), 63);
    for dying in [
        request.between(request.source, request.destination, 1),
        leaves.reply(ACK).between(leaves.destination, leaves.source, 1),
    ] {
        let told = answer::<F>(&dying, Problem::TimeExceeded);
        bench.expect(Hook::Ingress, &dying.frame(), TC_REDIRECT, &told)?;
        bench.expect(Hook::Xdp, &dying.frame(), XDP_PASS, &dying.frame())?;
    }
    bench.same_counts()
}

fn too_big<F: AnswerFormat>(bench: &mut Bench<F>) -> Result<()> {
    let mut request = sent::<F>(external::<F>(port::OVERLAY), Transport::Udp);
    let room = |mtu: usize| mtu - F::HEADER_LEN as usize - 8;
    request.payload = vec![7; room(1450)];
    let source = bench.open(&request.frame())?;
    for size in [1451, 1500] {
        request.payload.resize(room(size), 7);
        let told = answer::<F>(&request, Problem::TooBig(1450));
        bench.expect(Hook::Ingress, &request.frame(), TC_REDIRECT, &told)?;
    }
    if F::HAS_HEADER_CHECKSUM {
        request.dont_fragment = false;
        let leaves = request.between(source, pod::<F>(Role::OverlayPod), 63);
        bench.expect(Hook::Ingress, &request.frame(), TC_REDIRECT, &leaves.frame())?;
    }
    bench.same_counts()
}

fn merged<F: AnswerFormat>(bench: &mut Bench<F>) -> Result<()> {
    let mut request = sent::<F>(external::<F>(port::OVERLAY), Transport::Tcp(ACK));
    // As much as a test run takes.
    request.payload = vec![7; 3000];
    bench.model.segment = 1430 - F::HEADER_LEN;
    let source = bench.open(&request.frame())?;
    let leaves = request.between(source, pod::<F>(Role::OverlayPod), 63);
    bench.expect(Hook::Ingress, &request.frame(), TC_REDIRECT, &leaves.frame())?;
    bench.model.segment = 1431 - F::HEADER_LEN;
    let told = answer::<F>(&request, Problem::TooBig(1450));
    bench.expect(Hook::Ingress, &request.frame(), TC_REDIRECT, &told)
}

fn later_fragments<F: AnswerFormat>(bench: &mut Bench<F>) -> Result<()> {
    let piece = |offset, more| Some(Fragment { id: 11, offset, more });
    let whole = sent::<F>(external::<F>(port::EMPTY), Transport::Udp);
    let first = Segment { fragment: piece(0, true), ..whole.clone() };
    let told = answer::<F>(&first, Problem::PortUnreachable);
    bench.expect(Hook::Ingress, &first.frame(), TC_REDIRECT, &told)?;
    let later = Segment { fragment: piece(5, false), ..whole };
    let run = bench.run(Hook::Ingress, &later.frame())?;
    ensure!(run.action == TC_DROP, "action {}", run.action);
    bench.same_counts()
}

fn forbidden<F: AnswerFormat>(bench: &mut Bench<F>) -> Result<()> {
    let request = sent::<F>(external::<F>(port::LOST), Transport::Udp);
    let run = bench.run(Hook::Ingress, &request.frame())?;
    ensure!(run.action == TC_DROP, "action {}", run.action);
    bench.same_counts()
}
