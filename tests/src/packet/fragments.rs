//! Fragments that come before the first one of their datagram.

use super::Case;
use super::bench::{Bench, TC_DROP, TC_NEXT, TC_REDIRECT};
use super::forwarding::{external, pod, sent};
use super::programs::Hook;
use anyhow::{Result, bail, ensure};
use lb_common::env::TICK_NANOSECONDS;
use lb_common::lb::answer::AnswerFormat;
use lb_common::lb::fragment::{MAX_PARKED, PATIENCE_TICKS};
use lb_common::model::frame::{Fragment, Segment, Transport};
use lb_common::model::scene::{Role, at, port};
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

/// A frame of which a test run's page has room, bytes.
const LONGEST: usize = 3_200;
/// How often a case is tried that a slow machine can't do in time.
const ATTEMPTS: usize = 20;
/// Entries of PARKED.
const BOUND: usize = 512;

pub(super) fn cases<F: AnswerFormat>() -> Vec<Case<F>> {
    vec![
        ("early fragments wait for their first one, which passes as ever", early),
        ("replies of remote backends wait too", replies),
        ("fragments of every length wait, and come to no harm of each other", lengths),
        ("fragments from pods wait too", pods),
        ("fragments of a local endpoint's answers wait as they leave", answers),
        ("fragments for others pass untouched, and so do those that others send", others),
        ("one datagram has no more fragments than there can be", many),
        ("fragments whose first one never comes harm nobody", orphans),
        ("a first fragment sends none that waited for an earlier one", stale),
    ]
}

/// A later fragment, with as much payload.
fn later(to: SocketAddr, whole: &Segment, id: u16, offset: u16, payload: usize) -> Vec<u8> {
    let fragment = Some(Fragment { id, offset, more: true });
    let payload = vec![offset as u8; payload];
    Segment { fragment, payload, destination: to, ..whole.clone() }.frame()
}

fn first(whole: &Segment, id: u16) -> Segment {
    Segment { fragment: Some(Fragment { id, offset: 0, more: true }), ..whole.clone() }
}

fn waits<F: AnswerFormat>(bench: &mut Bench<F>, frame: &[u8]) -> Result<()> {
    bench.expect(Hook::Ingress, frame, TC_DROP, frame)
}

/// A pod asks an endpoint elsewhere, in another order.
fn pods<F: AnswerFormat>(bench: &mut Bench<F>) -> Result<()> {
    let frontend = at::<F>(Role::ClusterIp, port::REMOTE);
    let client = at::<F>(Role::UnknownPod, port::CLIENT);
    let request = Segment { source: client, ..sent::<F>(frontend, Transport::Udp) };
    let endpoint = pod::<F>(Role::RemotePod);
    let goes = request.between(client, endpoint, 64);
    for (count, offset) in [9, 5, 7].into_iter().enumerate() {
        let early = later(frontend, &request, 5, offset, 16);
        bench.expect(Hook::PodIngress, &early, TC_DROP, &early)?;
        parked(bench, count + 1)?;
    }
    let (comes, leaves) = (first(&request, 5).frame(), first(&goes, 5).frame());
    bench.expect(Hook::PodIngress, &comes, TC_NEXT, &leaves)?;
    parked(bench, 0)?;
    let (comes, leaves) =
        (later(frontend, &request, 5, 9, 16), later(endpoint, &request, 5, 9, 16));
    bench.expect(Hook::PodIngress, &comes, TC_NEXT, &leaves)?;
    bench.untouched(Hook::PodEgress, &later(client, &goes.reply(0), 6, 9, 16))?;
    bench.same_counts()
}

fn parked<F: AnswerFormat>(bench: &mut Bench<F>, expected: usize) -> Result<()> {
    let found = bench.programs.parked()?;
    ensure!(found == expected, "{found} fragments wait instead of {expected}");
    Ok(())
}

fn early<F: AnswerFormat>(bench: &mut Bench<F>) -> Result<()> {
    let frontends = [
        at::<F>(Role::ClusterIp, port::LOCAL),
        external::<F>(port::LOCAL),
        at::<F>(Role::LoadBalancer, port::LOCAL),
        at::<F>(Role::Node, port::node_port(port::LOCAL)),
    ];
    for (id, frontend) in (1..).zip(frontends) {
        for transport in [Transport::Udp, Transport::UdpWithoutChecksum] {
            bench.reset()?;
            let whole = sent::<F>(frontend, transport);
            for (count, offset) in [9, 5, 7].into_iter().enumerate() {
                waits(bench, &later(frontend, &whole, id, offset, 16))?;
                parked(bench, count + 1)?;
            }
            let first = first(&whole, id);
            let arrives = first.between(first.source, pod::<F>(Role::LocalPod), 64);
            bench.expect(Hook::Ingress, &first.frame(), TC_NEXT, &arrives.frame())?;
            parked(bench, 0)?;
            let again = later(frontend, &whole, id, 9, 16);
            ensure!(bench.run(Hook::Ingress, &again)?.action == TC_NEXT, "its ports are known");
            parked(bench, 0)?;
        }
    }
    bench.same_counts()
}

fn replies<F: AnswerFormat>(bench: &mut Bench<F>) -> Result<()> {
    let request = sent::<F>(external::<F>(port::REMOTE), Transport::Udp);
    let source = bench.open(&request.frame())?;
    let reply = request.between(pod::<F>(Role::RemotePod), source, 64);
    waits(bench, &later(source, &reply, 3, 5, 16))?;
    let first = first(&reply, 3);
    let back = first.between(request.destination, request.source, 63);
    bench.expect(Hook::Ingress, &first.frame(), TC_REDIRECT, &back.frame())?;
    parked(bench, 0)
}

fn answers<F: AnswerFormat>(bench: &mut Bench<F>) -> Result<()> {
    let request = sent::<F>(external::<F>(port::LOCAL), Transport::Udp);
    let endpoint = pod::<F>(Role::LocalPod);
    bench.expect(
        Hook::Ingress,
        &request.frame(),
        TC_NEXT,
        &request.between(request.source, endpoint, 64).frame(),
    )?;
    let reply = request.between(endpoint, request.source, 64);
    for (count, offset) in [9, 5, 7].into_iter().enumerate() {
        let early = later(request.source, &reply, 3, offset, 16);
        bench.expect(Hook::Egress, &early, TC_DROP, &early)?;
        parked(bench, count + 1)?;
    }
    let first = first(&reply, 3);
    // It has yet to leave.
    bench.untouched(Hook::PodIngress, &first.frame())?;
    parked(bench, 3)?;
    let leaves = first.between(request.destination, request.source, 64);
    bench.expect(Hook::Egress, &first.frame(), TC_NEXT, &leaves.frame())?;
    parked(bench, 0)?;
    let (early, late) = (
        later(request.source, &reply, 3, 9, 16),
        later(request.source, &request.between(request.destination, request.source, 64), 3, 9, 16),
    );
    bench.expect(Hook::Egress, &early, TC_NEXT, &late)
}

fn lengths<F: AnswerFormat>(bench: &mut Bench<F>) -> Result<()> {
    let frontend = external::<F>(port::LOCAL);
    let whole = sent::<F>(frontend, Transport::Udp);
    let headers = later(frontend, &whole, 4, 5, 0).len();
    let longest = LONGEST - headers;
    for own in [0, 1, 1400, longest - 8] {
        for payloads in [[1, longest], [longest, 1], [1400, 1400]] {
            bench.reset()?;
            for payload in payloads {
                waits(bench, &later(frontend, &whole, 4, 200, payload))?;
            }
            let payload = vec![7; own];
            let first = Segment { payload, ..first(&whole, 4) };
            let arrives = first.between(first.source, pod::<F>(Role::LocalPod), 64);
            bench.expect(Hook::Ingress, &first.frame(), TC_NEXT, &arrives.frame())?;
            parked(bench, 0)?;
        }
    }
    Ok(())
}

fn others<F: AnswerFormat>(bench: &mut Bench<F>) -> Result<()> {
    for role in [Role::Client, Role::LocalPod, Role::RemotePod, Role::Site] {
        let to = at::<F>(role, port::LOCAL);
        let frame = later(to, &sent::<F>(to, Transport::Udp), 6, 5, 16);
        for hook in [Hook::Ingress, Hook::Egress, Hook::Xdp] {
            bench.untouched(hook, &frame)?;
        }
    }
    let ours = external::<F>(port::LOCAL);
    let frame = later(ours, &sent::<F>(ours, Transport::Udp), 6, 5, 16);
    bench.untouched(Hook::Egress, &frame)?;
    bench.untouched(Hook::Xdp, &frame)?;
    parked(bench, 0)
}

/// Fragments that have waited for over a second are given up, rightly: where so many take longer than
/// that, it is tried again.
fn many<F: AnswerFormat>(bench: &mut Bench<F>) -> Result<()> {
    let patience = Duration::from_nanos(TICK_NANOSECONDS * u64::from(PATIENCE_TICKS - 1));
    for _ in 0..ATTEMPTS {
        bench.reset()?;
        let started = Instant::now();
        let result = most(bench);
        if result.is_ok() || started.elapsed() < patience {
            return result;
        }
    }
    bail!("no {MAX_PARKED} fragments pass within {patience:?} here")
}

fn most<F: AnswerFormat>(bench: &mut Bench<F>) -> Result<()> {
    let frontend = external::<F>(port::LOCAL);
    let whole = sent::<F>(frontend, Transport::Udp);
    let most = MAX_PARKED as u16;
    for number in 1..=most {
        waits(bench, &later(frontend, &whole, 7, number, 8))?;
    }
    bench.untouched(Hook::Ingress, &later(frontend, &whole, 7, most + 1, 8))?;
    parked(bench, MAX_PARKED as usize)?;
    let first = first(&whole, 7);
    let arrives = first.between(first.source, pod::<F>(Role::LocalPod), 64);
    bench.expect(Hook::Ingress, &first.frame(), TC_NEXT, &arrives.frame())?;
    parked(bench, 0)
}

fn orphans<F: AnswerFormat>(bench: &mut Bench<F>) -> Result<()> {
    let frontend = external::<F>(port::LOCAL);
    let whole = sent::<F>(frontend, Transport::Udp);
    for id in 0..BOUND as u16 * 4 {
        waits(bench, &later(frontend, &whole, 1_000 + id, 5, 16))?;
    }
    let waiting = bench.programs.parked()?;
    ensure!((1..=BOUND).contains(&waiting), "{waiting} fragments wait, of at most {BOUND}");
    let complete = whole.between(whole.source, pod::<F>(Role::LocalPod), 64);
    bench.expect(Hook::Ingress, &whole.frame(), TC_NEXT, &complete.frame())?;
    waits(bench, &later(frontend, &whole, 8, 5, 16))?;
    let before = bench.programs.parked()?;
    let first = first(&whole, 8);
    let arrives = first.between(first.source, pod::<F>(Role::LocalPod), 64);
    bench.expect(Hook::Ingress, &first.frame(), TC_NEXT, &arrives.frame())?;
    parked(bench, before - 1)
}

fn stale<F: AnswerFormat>(bench: &mut Bench<F>) -> Result<()> {
    let frontend = external::<F>(port::LOCAL);
    let whole = sent::<F>(frontend, Transport::Udp);
    waits(bench, &later(frontend, &whole, 9, 5, 16))?;
    waits(bench, &later(frontend, &whole, 9, 7, 16))?;
    thread::sleep(Duration::from_nanos(TICK_NANOSECONDS * u64::from(PATIENCE_TICKS + 1)));
    bench.model.world.now.set(bench.model.world.now.get() + PATIENCE_TICKS + 1);
    // The next one takes the place of the oldest.
    waits(bench, &later(frontend, &whole, 9, 9, 16))?;
    parked(bench, 2)?;
    let first = first(&whole, 9);
    let arrives = first.between(first.source, pod::<F>(Role::LocalPod), 64);
    bench.expect(Hook::Ingress, &first.frame(), TC_NEXT, &arrives.frame())?;
    parked(bench, 0)?;
    ensure!(bench.model.resent.len() == 1, "the model sent {:?}", bench.model.resent);
    Ok(())
}
