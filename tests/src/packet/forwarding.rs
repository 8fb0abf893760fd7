//! Local and remote backends, in every direction.

use super::Case;
use super::bench::{
    Bench, SNAT_PORTS, TC_DROP, TC_NEXT, TC_REDIRECT, XDP_PASS, XDP_REDIRECT, link,
};
use super::programs::Hook;
use anyhow::{Context, Result, ensure};
use lb_common::abi::{BackendFlags, FlowFlags, SERVICE_RANGES_MAX, SourceSet};
use lb_common::family::Family;
use lb_common::lb::answer::AnswerFormat;
use lb_common::model::frame::{Fragment, Segment, Transport, with_link};
use lb_common::model::scene::{self, Role, at, device, ip, port};
use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener, UdpSocket};

pub(super) const SYN: u8 = 0x02;
pub(super) const RST: u8 = 0x04;
pub(super) const ACK: u8 = 0x10;
pub(super) const OPENERS: [Transport; 3] =
    [Transport::Tcp(SYN), Transport::Udp, Transport::UdpWithoutChecksum];

pub(super) fn cases<F: AnswerFormat>() -> Vec<Case<F>> {
    vec![
        ("every kind of frontend reaches a local backend, and its reply comes back", local),
        ("options and extension headers are stepped over", extras),
        ("fragments of a local flow follow their first", local_fragments),
        ("two frontends of one backend keep apart a client that reuses its port", collision),
        ("a remote backend sees the node, the client sees the frontend", remote),
        ("behind the overlay, the source is the overlay device's address", overlay),
        ("an endpoint of unknown place is local when its route leads to a pod's device", unknown),
        ("fragments are forwarded behind the node too", remote_fragments),
        ("XDP forwards known flows and leaves the rest to tc", xdp),
        (
            "a port that a socket of the node uses is not taken, and running out is a reason",
            exhaustion,
        ),
        ("UDP chooses anew when its endpoint left, TCP is never cut", generations),
        ("a lost flow entry does not change a packet", repair),
        ("an answer finds its flow in a full table", full_table),
        ("source ranges admit who is in one, to the load balancer's address", source_ranges),
        ("nothing for an unowned address of a Service range leaves", ranges),
        ("a client with session affinity keeps its endpoint, through every frontend", affinity),
    ]
}

/// From the client to a frontend.
pub(super) fn sent<F: Family>(to: SocketAddr, transport: Transport) -> Segment {
    Segment::new(at::<F>(Role::Client, port::CLIENT), to, transport)
}

/// The external address of a Service port.
pub(super) fn external<F: Family>(service: u16) -> SocketAddr {
    at::<F>(Role::External, service)
}

/// A backend.
pub(super) fn pod<F: Family>(role: Role) -> SocketAddr {
    at::<F>(role, port::BACKEND)
}

fn local<F: AnswerFormat>(bench: &mut Bench<F>) -> Result<()> {
    let backend = pod::<F>(Role::LocalPod);
    for frontend in [
        at::<F>(Role::ClusterIp, port::LOCAL),
        external::<F>(port::LOCAL),
        at::<F>(Role::LoadBalancer, port::LOCAL),
        at::<F>(Role::Node, port::node_port(port::LOCAL)),
    ] {
        for opener in OPENERS {
            bench.reset()?;
            let request = sent::<F>(frontend, opener);
            let arrives = request.between(request.source, backend, 64);
            bench.expect(Hook::Xdp, &request.frame(), XDP_PASS, &request.frame())?;
            bench.expect(Hook::Ingress, &request.frame(), TC_NEXT, &arrives.frame())?;
            let reply = arrives.reply(SYN | ACK);
            let back = reply.between(frontend, request.source, 64);
            bench.expect(Hook::Egress, &reply.frame(), TC_NEXT, &back.frame())?;
        }
    }
    bench.same_counts()
}

fn extras<F: AnswerFormat>(bench: &mut Bench<F>) -> Result<()> {
    for extras in 1..=6 {
        for opener in OPENERS {
            let request = Segment { extras, ..sent::<F>(external::<F>(port::LOCAL), opener) };
            let arrives = request.between(request.source, pod::<F>(Role::LocalPod), 64);
            bench.expect(Hook::Ingress, &request.frame(), TC_NEXT, &arrives.frame())?;
            bench.untouched(Hook::Xdp, &request.frame())?;
        }
    }
    Ok(())
}

fn local_fragments<F: AnswerFormat>(bench: &mut Bench<F>) -> Result<()> {
    let whole = sent::<F>(external::<F>(port::LOCAL), Transport::Udp);
    let backend = pod::<F>(Role::LocalPod);
    let piece = |offset, more| Some(Fragment { id: 7, offset, more });
    for fragment in [piece(0, true), piece(5, true), piece(9, false)] {
        let request = Segment { fragment, ..whole.clone() };
        let arrives = request.between(request.source, backend, 64);
        bench.expect(Hook::Ingress, &request.frame(), TC_NEXT, &arrives.frame())?;
    }
    for fragment in [piece(0, true), piece(5, false)] {
        let reply = Segment { fragment, ..whole.between(backend, whole.source, 64) };
        let back = reply.between(whole.destination, whole.source, 64);
        bench.expect(Hook::Egress, &reply.frame(), TC_NEXT, &back.frame())?;
    }
    Ok(())
}

fn collision<F: AnswerFormat>(bench: &mut Bench<F>) -> Result<()> {
    for opener in OPENERS {
        bench.reset()?;
        let first = sent::<F>(external::<F>(port::LOCAL), opener);
        let second = sent::<F>(external::<F>(port::LOCAL_TOO), opener);
        let backend = pod::<F>(Role::LocalPod);
        let arrives = first.between(first.source, backend, 64);
        bench.expect(Hook::Ingress, &first.frame(), TC_NEXT, &arrives.frame())?;
        let run = bench.run(Hook::Ingress, &second.frame())?;
        let header = 14 + F::HEADER_LEN as usize;
        let changed = run.bytes.get(header..header + 2).context("no ports")?;
        let changed = u16::from_be_bytes(changed.try_into()?);
        ensure!((SNAT_PORTS.0..=SNAT_PORTS.1).contains(&changed), "source port {changed}");
        let mut source = second.source;
        source.set_port(changed);
        let reply = second.between(source, backend, 64).reply(ACK);
        let back = reply.between(second.destination, second.source, 64);
        bench.expect(Hook::Egress, &reply.frame(), TC_NEXT, &back.frame())?;
    }
    Ok(())
}

fn remote<F: AnswerFormat>(bench: &mut Bench<F>) -> Result<()> {
    for (service, backend) in [(port::REMOTE, Role::RemotePod), (port::SITE, Role::Site)] {
        let node_port = at::<F>(Role::Node, port::node_port(service));
        for frontend in [external::<F>(service), node_port] {
            for opener in OPENERS {
                bench.reset()?;
                let request = sent::<F>(frontend, opener);
                let source = bench.open(&request.frame())?;
                let leaves = request.between(source, pod::<F>(backend), 63);
                bench.expect(Hook::Ingress, &request.frame(), TC_REDIRECT, &leaves.frame())?;
                bench.untouched(Hook::Egress, &leaves.frame())?;
                let reply = leaves.between(leaves.source, leaves.destination, 64).reply(ACK);
                let back = reply.between(frontend, request.source, 63);
                bench.expect(Hook::Ingress, &reply.frame(), TC_REDIRECT, &back.frame())?;
                bench.untouched(Hook::Egress, &back.frame())?;
            }
        }
    }
    bench.same_counts()
}

fn overlay<F: AnswerFormat>(bench: &mut Bench<F>) -> Result<()> {
    let request = sent::<F>(external::<F>(port::OVERLAY), Transport::Tcp(SYN));
    let source = bench.open(&request.frame())?;
    ensure!(source.ip() == at::<F>(Role::Overlay, 0).ip(), "the source is {source}");
    let leaves = request.between(source, pod::<F>(Role::OverlayPod), 63);
    bench.expect(Hook::Ingress, &request.frame(), TC_REDIRECT, &leaves.frame())
}

fn unknown<F: AnswerFormat>(bench: &mut Bench<F>) -> Result<()> {
    let request = sent::<F>(external::<F>(port::UNKNOWN), Transport::Udp);
    let arrives = request.between(request.source, pod::<F>(Role::UnknownPod), 64);
    bench.expect(Hook::Ingress, &request.frame(), TC_NEXT, &arrives.frame())
}

fn remote_fragments<F: AnswerFormat>(bench: &mut Bench<F>) -> Result<()> {
    let piece = |offset, more| Some(Fragment { id: 9, offset, more });
    let whole = sent::<F>(external::<F>(port::REMOTE), Transport::Udp);
    let source = bench.open(&whole.frame())?;
    for fragment in [piece(0, true), piece(5, true), piece(9, false)] {
        let request = Segment { fragment, ..whole.clone() };
        let leaves = request.between(source, pod::<F>(Role::RemotePod), 63);
        bench.expect(Hook::Ingress, &request.frame(), TC_REDIRECT, &leaves.frame())?;
        bench.untouched(Hook::Xdp, &request.frame())?;
    }
    Ok(())
}

fn xdp<F: AnswerFormat>(bench: &mut Bench<F>) -> Result<()> {
    for opener in OPENERS {
        bench.reset()?;
        let request = sent::<F>(external::<F>(port::REMOTE), opener);
        bench.untouched(Hook::Xdp, &request.frame())?;
        let source = bench.open(&request.frame())?;
        let leaves = request.between(source, pod::<F>(Role::RemotePod), 63);
        let mut bytes = leaves.frame();
        link(&mut bytes);
        bench.expect(Hook::Xdp, &request.frame(), XDP_REDIRECT, &bytes)?;
        let reply = leaves.between(leaves.source, leaves.destination, 64).reply(ACK);
        let mut bytes = reply.between(request.destination, request.source, 63).frame();
        link(&mut bytes);
        bench.expect(Hook::Xdp, &reply.frame(), XDP_REDIRECT, &bytes)?;
        // A device that isn't prepared for frames from XDP.
        let other = sent::<F>(external::<F>(port::OVERLAY), opener);
        bench.open(&other.frame())?;
        bench.untouched(Hook::Xdp, &other.frame())?;
    }
    bench.same_counts()
}

fn exhaustion<F: AnswerFormat>(_: &mut Bench<F>) -> Result<()> {
    let mut bench = Bench::<F>::with_snat_ports((20_000, 20_003))?;
    let any = if F::HAS_HEADER_CHECKSUM { "0.0.0.0" } else { "::" };
    let mut sockets = Vec::new();
    let mut listeners = Vec::new();
    for taken in [20_000, 20_002] {
        sockets.push(UdpSocket::bind((any, taken)).context("bind UDP")?);
        listeners.push(TcpListener::bind((any, taken)).context("bind TCP")?);
    }
    for opener in OPENERS {
        bench.reset()?;
        bench.model.bound_ports = [20_000, 20_002].into();
        let mut ports = Vec::new();
        for client in 0..2 {
            let mut request = sent::<F>(external::<F>(port::REMOTE), opener);
            request.source.set_port(port::CLIENT + client);
            ports.push(bench.open(&request.frame())?.port());
        }
        ports.sort_unstable();
        ensure!(ports == [20_001, 20_003], "{opener:?} took the ports {ports:?}");
        let mut request = sent::<F>(external::<F>(port::REMOTE), opener);
        request.source.set_port(port::CLIENT + 2);
        let run = bench.run(Hook::Ingress, &request.frame())?;
        ensure!(run.action == TC_DROP, "action {}", run.action);
        bench.same_counts()?;
    }
    Ok(())
}

fn generations<F: AnswerFormat>(bench: &mut Bench<F>) -> Result<()> {
    let udp = sent::<F>(external::<F>(port::LOCAL), Transport::Udp);
    let syn = sent::<F>(external::<F>(port::LOCAL), Transport::Tcp(SYN));
    let data = Segment { transport: Transport::Tcp(ACK), ..syn.clone() };
    for request in [&udp, &syn] {
        bench.run(Hook::Ingress, &request.frame())?;
    }
    // The endpoint leaves, and another one takes its slot.
    bench.change(|world| {
        world.leave(pod::<F>(Role::LocalPod));
        for backend in &mut world.backends {
            if backend.address == pod::<F>(Role::LocalPod).ip().into() {
                backend.address = pod::<F>(Role::UnknownPod).ip().into();
            }
        }
    })?;
    let elsewhere =
        |request: &Segment| request.between(request.source, pod::<F>(Role::UnknownPod), 64).frame();
    bench.expect(Hook::Ingress, &udp.frame(), TC_NEXT, &elsewhere(&udp))?;
    let stays = data.between(data.source, pod::<F>(Role::LocalPod), 64);
    bench.expect(Hook::Ingress, &data.frame(), TC_NEXT, &stays.frame())?;
    bench.expect(Hook::Ingress, &syn.frame(), TC_NEXT, &elsewhere(&syn))
}

fn repair<F: AnswerFormat>(bench: &mut Bench<F>) -> Result<()> {
    for (reply, service) in [(0, port::REMOTE), (0, port::LOCAL), (FlowFlags::REPLY, port::LOCAL)] {
        bench.reset()?;
        let request = sent::<F>(external::<F>(service), Transport::Tcp(ACK));
        let before = bench.run(Hook::Ingress, &request.frame())?;
        bench.lose(reply)?;
        let after = bench.run(Hook::Ingress, &request.frame())?;
        ensure!(before == after, "{before:?} became {after:?}");
    }
    Ok(())
}

fn affinity<F: AnswerFormat>(bench: &mut Bench<F>) -> Result<()> {
    let to = F::DESTINATION_OFFSET as usize + 14;
    let width = size_of::<F::Addr>();
    for opener in OPENERS {
        bench.reset()?;
        let endpoint = |bench: &mut Bench<F>, client: u16, frontend| -> Result<Vec<u8>> {
            let mut request = sent::<F>(frontend, opener);
            request.source.set_port(port::CLIENT + client);
            let run = bench.run(Hook::Ingress, &request.frame())?;
            Ok(run.bytes.get(to..to + width).context("no address")?.to_vec())
        };
        let mut reached = BTreeSet::new();
        for (client, frontend) in (0..).zip(
            [
                external::<F>(port::STICKY),
                at::<F>(Role::ClusterIp, port::STICKY),
                at::<F>(Role::LoadBalancer, port::STICKY),
                at::<F>(Role::Node, port::node_port(port::STICKY)),
            ]
            .repeat(4),
        ) {
            reached.insert(endpoint(bench, client, frontend)?);
        }
        ensure!(reached.len() == 1, "{opener:?} reached {reached:?}");
        let clients = bench.programs.remembered_clients()?;
        ensure!(clients == [at::<F>(Role::Client, 0).ip().into()].into(), "AFFINITY: {clients:?}");
        // The endpoint leaves: another one, and from then on that.
        let mut left = None;
        bench.change(|world| {
            let first = reached.first().map(|bytes| F::widen(bytemuck::pod_read_unaligned(bytes)));
            for backend in world.backends.iter_mut().filter(|b| Some(b.address) == first) {
                backend.flags &= !BackendFlags::IN_CLUSTER;
                left = first;
            }
        })?;
        ensure!(left.is_some(), "the endpoint is nobody's");
        for client in 100..110 {
            reached.insert(endpoint(bench, client, external::<F>(port::STICKY))?);
        }
        // The Maglev table still names the endpoint that left; only what is remembered changed.
        ensure!(reached.len() > 1, "{opener:?} reached {reached:?} alone");
    }
    Ok(())
}

fn source_ranges<F: AnswerFormat>(bench: &mut Bench<F>) -> Result<()> {
    let (client, other) = (ip::<F>(Role::Client), ip::<F>(Role::OtherClient));
    let bits = if F::HAS_HEADER_CHECKSUM { 32 } else { 128 };
    // Prefixes of the client's address: the last bit of the two clients differs.
    for (ranges, client_in, other_in) in [
        (vec![], false, false),
        (vec![(client, bits)], true, false),
        (vec![(other, bits)], false, true),
        (vec![(client, bits - 1)], true, true),
        (vec![(client, bits - 8), (other, bits)], true, true),
        (vec![(client, 1)], true, true),
        (vec![(ip::<F>(Role::ThirdRemotePod), bits - 2)], false, false),
    ] {
        for opener in OPENERS {
            bench.reset()?;
            let service = scene::service::<F>(&bench.model.world, port::RANGES, opener.protocol());
            bench.change(|world| {
                let set = SourceSet(service.0);
                world.source_ranges.retain(|range| range.set != set);
                world.admit(set, &ranges);
            })?;
            for (source, admitted) in [(client, client_in), (other, other_in)] {
                let mut request = sent::<F>(at::<F>(Role::LoadBalancer, port::RANGES), opener);
                request.source.set_ip(source);
                let run = bench.run(Hook::Ingress, &request.frame())?;
                let action = if admitted { TC_NEXT } else { TC_DROP };
                ensure!(run.action == action, "{source} in {ranges:?}: action {}", run.action);
                // Another address of the same Service.
                request.destination = external::<F>(port::RANGES);
                request.source.set_port(port::CLIENT + 1);
                let arrives = request.between(request.source, pod::<F>(Role::LocalPod), 64);
                bench.expect(Hook::Ingress, &request.frame(), TC_NEXT, &arrives.frame())?;
            }
            bench.same_counts()?;
        }
    }
    Ok(())
}

fn ranges<F: AnswerFormat>(bench: &mut Bench<F>) -> Result<()> {
    let from = at::<F>(Role::LocalPod, port::CLIENT);
    let (network, len) = scene::service_range::<F>();
    let unowned = at::<F>(Role::Unowned, port::LOCAL);
    for opener in OPENERS {
        let stray = Segment::new(from, unowned, opener);
        bench.expect(Hook::Egress, &stray.frame(), TC_DROP, &stray.frame())?;
        bench.untouched(Hook::Ingress, &stray.frame())?;
        let live = Segment::new(from, at::<F>(Role::ClusterIp, port::LOCAL), opener);
        bench.expect(Hook::Egress, &live.frame(), TC_DROP, &live.frame())?;
        let direct = Segment::new(from, at::<F>(Role::Site, port::LOCAL), opener);
        bench.untouched(Hook::Egress, &direct.frame())?;
    }
    let piece = Some(Fragment { id: 9, offset: 4, more: false });
    let later = Segment { fragment: piece, ..Segment::new(from, unowned, Transport::Udp) };
    bench.expect(Hook::Egress, &later.frame(), TC_DROP, &later.frame())?;
    let mut packet = Segment::new(from, unowned, Transport::Udp).packet();
    for protocol in [1, 47, 58, 132] {
        packet[if from.is_ipv4() { 9 } else { 6 }] = protocol;
        let frame = with_link(from.is_ipv4(), &packet);
        bench.expect(Hook::Egress, &frame, TC_DROP, &frame)?;
    }
    bench.same_counts()?;
    // The last of as many as fit.
    bench.change(|world| {
        world.service_ranges = Default::default();
        (1..SERVICE_RANGES_MAX).for_each(|_| world.reserve(ip::<F>(Role::Management), 32));
        world.reserve(network, len);
    })?;
    let stray = Segment::new(from, unowned, Transport::Udp);
    bench.expect(Hook::Egress, &stray.frame(), TC_DROP, &stray.frame())?;
    bench.change(|world| world.service_ranges = Default::default())?;
    bench.untouched(Hook::Egress, &stray.frame())?;
    bench.same_counts()
}

fn full_table<F: AnswerFormat>(_: &mut Bench<F>) -> Result<()> {
    // The kernel's list falls into step with its user after a dozen times its length.
    const ENTRIES: u32 = 768;
    let mut bench = Bench::<F>::with_flows(ENTRIES)?;
    for client in 1..=16 * ENTRIES as u16 {
        let mut request = sent::<F>(external::<F>(port::REMOTE), Transport::Udp);
        request.source.set_port(client);
        let source = bench.open_unseen(&request.frame())?;
        let reply = request.between(source, pod::<F>(Role::RemotePod), 63).reply(0);
        let run = bench.programs.run(Hook::Ingress, device::UPLINK, 0, &reply.frame())?;
        ensure!(run.action == TC_REDIRECT, "the answer to client {client} found nobody");
    }
    Ok(())
}
