//! ICMP errors inside flows.

use super::Case;
use super::bench::{Bench, TC_DROP, TC_NEXT, TC_REDIRECT};
use super::forwarding::{ACK, OPENERS, external, pod, sent};
use super::programs::Hook;
use anyhow::{Result, ensure};
use lb_common::family::Family;
use lb_common::lb::answer::AnswerFormat;
use lb_common::model::frame::{IcmpError, Problem, Segment, Transport};
use lb_common::model::scene::{Role, ip, port};
use std::net::SocketAddr;

const PROBLEMS: [Problem; 3] =
    [Problem::PortUnreachable, Problem::TooBig(1400), Problem::TimeExceeded];

pub(super) fn cases<F: AnswerFormat>() -> Vec<Case<F>> {
    vec![
        ("an error about a local backend's reply reaches the backend", to_local),
        ("a local backend's error reaches the client from the frontend", from_local),
        ("an error from the path to a remote backend reaches the client", to_client),
        ("an error from the path to the client reaches the remote backend", to_remote),
        ("errors about what is not ours pass untouched", strangers),
        ("an error on its last hop is dropped with its reason", last_hop),
    ]
}

/// The least that routers quote, and everything.
fn quotes<F: Family>() -> [usize; 2] {
    [F::HEADER_LEN as usize + 8, 576]
}

fn every<F: AnswerFormat>(
    bench: &mut Bench<F>,
    service: u16,
    mut case: impl FnMut(&mut Bench<F>, &Segment, Problem, usize) -> Result<()>,
) -> Result<()> {
    for opener in OPENERS {
        for problem in PROBLEMS {
            for len in quotes::<F>() {
                bench.reset()?;
                case(bench, &sent::<F>(external::<F>(service), opener), problem, len)?;
            }
        }
    }
    bench.same_counts()
}

fn to_local<F: AnswerFormat>(bench: &mut Bench<F>) -> Result<()> {
    every(bench, port::LOCAL, |bench, request, problem, len| {
        bench.run(Hook::Ingress, &request.frame())?;
        let reply = request.reply(ACK);
        let error = |to: SocketAddr| IcmpError {
            source: ip::<F>(Role::Router),
            destination: to.ip(),
            problem,
            quote: reply.quote(to, request.source, len),
            hop_limit: 60,
            own: false,
        };
        let arrives = error(pod::<F>(Role::LocalPod)).frame();
        bench.expect(Hook::Ingress, &error(request.destination).frame(), TC_NEXT, &arrives)
    })
}

fn from_local<F: AnswerFormat>(bench: &mut Bench<F>) -> Result<()> {
    every(bench, port::LOCAL, |bench, request, problem, len| {
        bench.run(Hook::Ingress, &request.frame())?;
        let error = |from: SocketAddr| IcmpError {
            source: from.ip(),
            destination: request.source.ip(),
            problem,
            quote: request.between(request.source, pod::<F>(Role::LocalPod), 64).quote(
                request.source,
                from,
                len,
            ),
            hop_limit: 64,
            own: false,
        };
        let leaves = error(request.destination).frame();
        bench.expect(Hook::Egress, &error(pod::<F>(Role::LocalPod)).frame(), TC_NEXT, &leaves)
    })
}

fn to_client<F: AnswerFormat>(bench: &mut Bench<F>) -> Result<()> {
    every(bench, port::REMOTE, |bench, request, problem, len| {
        let source = bench.open(&request.frame())?;
        let backend = pod::<F>(Role::RemotePod);
        let left = request.between(source, backend, 63);
        let error = IcmpError {
            source: ip::<F>(Role::Router),
            destination: source.ip(),
            problem,
            quote: left.quote(source, backend, len),
            hop_limit: 60,
            own: false,
        };
        let back = IcmpError {
            source: request.destination.ip(),
            destination: request.source.ip(),
            quote: left.quote(request.source, request.destination, len),
            hop_limit: 59,
            ..error.clone()
        };
        bench.expect(Hook::Ingress, &error.frame(), TC_REDIRECT, &back.frame())?;
        bench.untouched(Hook::Xdp, &error.frame())
    })
}

fn to_remote<F: AnswerFormat>(bench: &mut Bench<F>) -> Result<()> {
    every(bench, port::REMOTE, |bench, request, problem, len| {
        let source = bench.open(&request.frame())?;
        let backend = pod::<F>(Role::RemotePod);
        let reply = request.reply(ACK);
        let error = IcmpError {
            source: ip::<F>(Role::Router),
            destination: request.destination.ip(),
            problem,
            quote: reply.quote(reply.source, reply.destination, len),
            hop_limit: 60,
            own: false,
        };
        let on = IcmpError {
            source: source.ip(),
            destination: backend.ip(),
            quote: reply.quote(backend, source, len),
            hop_limit: 59,
            ..error.clone()
        };
        bench.expect(Hook::Ingress, &error.frame(), TC_REDIRECT, &on.frame())
    })
}

fn strangers<F: AnswerFormat>(bench: &mut Bench<F>) -> Result<()> {
    let request = sent::<F>(external::<F>(port::LOCAL), Transport::Udp);
    bench.run(Hook::Ingress, &request.frame())?;
    let stranger = sent::<F>(external::<F>(7), Transport::Udp).packet();
    let mut cut = request.reply(ACK).packet();
    cut.truncate(F::HEADER_LEN as usize + 3);
    for quote in [stranger, cut, Vec::new()] {
        let error = IcmpError {
            source: ip::<F>(Role::Router),
            destination: request.destination.ip(),
            problem: Problem::PortUnreachable,
            quote,
            hop_limit: 60,
            own: false,
        };
        for hook in [Hook::Ingress, Hook::Egress, Hook::Xdp] {
            bench.untouched(hook, &error.frame())?;
        }
    }
    Ok(())
}

fn last_hop<F: AnswerFormat>(bench: &mut Bench<F>) -> Result<()> {
    let request = sent::<F>(external::<F>(port::REMOTE), Transport::Udp);
    let source = bench.open(&request.frame())?;
    let error = IcmpError {
        source: ip::<F>(Role::Router),
        destination: source.ip(),
        problem: Problem::PortUnreachable,
        quote: request.between(source, pod::<F>(Role::RemotePod), 63).packet(),
        hop_limit: 1,
        own: false,
    };
    let run = bench.run(Hook::Ingress, &error.frame())?;
    ensure!(run.action == TC_DROP, "action {}", run.action);
    bench.same_counts()
}
