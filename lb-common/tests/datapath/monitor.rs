//! What whoever watches is told.

use super::{ACK, OPENERS, SYN, drops, external, from_client, pod, source_of};
use lb_common::abi::{Address, Event, EventHook, EventKinds, FlowFlags, Monitor, ServiceIndex};
use lb_common::bytes::Be16;
use lb_common::family::{Family, V4, V6};
use lb_common::lb::DropReason;
use lb_common::lb::answer::AnswerFormat;
use lb_common::lb::frontend::Destination;
use lb_common::lb::socket::{self, SocketVerdict};
use lb_common::model::frame::{IcmpError, Problem, Segment, Transport};
use lb_common::model::node::{NextHop, Node, PodTc, Tc};
use lb_common::model::scene::{self, Role, at, device, ip, port};
use lb_common::model::sockets::Sockets;
use lb_common::model::world::{EVERYTHING, World};
use std::net::SocketAddr;

const UDP: u8 = 17;

fn node<F: AnswerFormat>() -> Node<F> {
    let mut node = scene::node::<F>();
    node.world.monitor = EVERYTHING;
    node
}

/// What was seen of one event: its reason, client, frontend, backend and hook.
type Seen = (u8, Option<SocketAddr>, Option<SocketAddr>, Option<SocketAddr>, u8);

fn seen(world: &World) -> Vec<Seen> {
    let end = |address: Address, port: Be16| {
        let end = SocketAddr::new(address.into(), port.get());
        Some(end).filter(|_| !address.is_unspecified())
    };
    let seen = |event: Event| {
        (
            event.reason,
            end(event.client, event.client_port),
            end(event.frontend, event.frontend_port),
            end(event.backend, event.backend_port),
            event.hook,
        )
    };
    world.events.take().into_iter().map(seen).collect()
}

#[test]
fn a_connection_is_told_once_with_all_its_ends() {
    fn of<F: AnswerFormat>() {
        for (service, role) in [(port::LOCAL, Role::LocalPod), (port::REMOTE, Role::RemotePod)] {
            for opener in OPENERS {
                let mut node = node::<F>();
                let frontend = external::<F>(service);
                let sent = from_client::<F>(frontend, opener);
                node.ingress::<Tc>(&sent.frame());
                let (client, backend) = (Some(sent.source), Some(pod::<F>(role)));
                let index = scene::service::<F>(&node.world, service, protocol(opener));
                assert_eq!(node.world.events.borrow()[0].service, index);
                assert_eq!(node.world.events.borrow()[0].protocol, protocol(opener));
                assert_eq!(node.world.events.borrow()[0].device, node.input);
                let expected = (0, client, Some(frontend), backend, EventHook::Ingress as u8);
                assert_eq!(seen(&node.world), [expected]);
                node.ingress::<Tc>(&sent.frame());
                assert_eq!(seen(&node.world), [], "a packet of a known flow");
            }
        }
    }
    of::<V4>();
    of::<V6>();
}

fn protocol(transport: Transport) -> u8 {
    match transport {
        Transport::Tcp(_) => 6,
        Transport::Udp | Transport::UdpWithoutChecksum => UDP,
        Transport::Sctp(_) | Transport::SctpWithoutChecksum(_) => 132,
    }
}

#[test]
fn what_is_not_served_is_told_with_its_reason_and_the_endpoint_that_it_was_meant_for() {
    fn of<F: AnswerFormat>() {
        let cluster_ip = at::<F>(Role::ClusterIp, 7);
        for (frontend, reason, backend) in [
            (external::<F>(port::EMPTY), DropReason::NoEndpoints, None),
            (cluster_ip, DropReason::UnknownPort, None),
            (external::<F>(port::ELSEWHERE), DropReason::NoLocalEndpoint, None),
            (external::<F>(port::LOST), DropReason::NoRoute, Some(pod::<F>(Role::LostPod))),
        ] {
            for opener in OPENERS {
                let mut node = node::<F>();
                let sent = from_client::<F>(frontend, opener);
                node.ingress::<Tc>(&sent.frame());
                let client = Some(sent.source);
                let hook = EventHook::Ingress as u8;
                let expected = [(reason as u8, client, Some(frontend), backend, hook)];
                assert_eq!(seen(&node.world), expected, "{reason:?}");
            }
        }
        let mut node = node::<F>();
        node.input = device::POD;
        let sent = from_client::<F>(external::<F>(port::EMPTY), Transport::Udp);
        node.ingress::<PodTc>(&sent.frame());
        assert_eq!(seen(&node.world)[0].4, EventHook::PodIngress as u8);
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn a_flows_ends_are_told_the_same_from_both_of_its_directions() {
    fn of<F: AnswerFormat>() {
        let mut node = node::<F>();
        let frontend = external::<F>(port::REMOTE);
        let sent = from_client::<F>(frontend, Transport::Tcp(SYN));
        let source = source_of::<F>(&node.ingress::<Tc>(&sent.frame()));
        let forwarded = sent.between(source, pod::<F>(Role::RemotePod), 64);
        node.world.events.take();
        // Nobody forwards any more, in either direction.
        for role in [Role::RemotePod, Role::Client, Role::Router] {
            node.routes.insert(ip::<F>(role).into(), NextHop::Forbidden);
        }
        let reply = forwarded.reply(SYN | ACK);
        let quote = forwarded.quote(forwarded.source, forwarded.destination, size_of::<F::Quote>());
        let error = IcmpError {
            source: ip::<F>(Role::RemotePod),
            destination: source.ip(),
            problem: Problem::PortUnreachable,
            quote,
            hop_limit: 64,
            own: false,
        };
        let flow = node.flows.values().find(|flow| flow.flags & FlowFlags::REPLY == 0).unwrap();
        assert_ne!(flow.service, ServiceIndex(0));
        for frame in [sent.frame(), reply.frame(), error.frame()] {
            node.ingress::<Tc>(&frame);
            let backend = Some(pod::<F>(Role::RemotePod));
            let hook = EventHook::Ingress as u8;
            let reason = DropReason::NoRoute as u8;
            let expected = (reason, Some(sent.source), Some(frontend), backend, hook);
            assert_eq!(seen(&node.world), [expected]);
        }
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn what_may_not_leave_is_counted_and_not_told() {
    fn of<F: AnswerFormat>() {
        let mut node = node::<F>();
        let (from, to) = (at::<F>(Role::LocalPod, port::CLIENT), at::<F>(Role::Unowned, 1));
        node.egress::<Tc>(&Segment::new(from, to, Transport::Udp).frame());
        assert_eq!(drops(&node), [(DropReason::UnownedAddress, 1)]);
        assert!(seen(&node.world).is_empty());
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn a_socket_is_told_when_it_is_led_somewhere_and_when_it_is_not() {
    fn of<F: Family>() {
        let mut node = Sockets { world: scene::world::<F>(), ..Sockets::default() };
        node.world.monitor = EVERYTHING;
        let own = node.world.clients.get(&1).unwrap().towards(ip::<F>(Role::ClusterIp).into());
        for (service, reason) in [
            (port::LOCAL, 0),
            (port::EMPTY, DropReason::NoEndpoints as u8),
            (port::INTERNAL_ELSEWHERE, DropReason::NoLocalEndpoint as u8),
            (7, DropReason::UnknownPort as u8),
        ] {
            let frontend = at::<F>(Role::ClusterIp, service);
            let destination = Destination {
                address: frontend.ip().into(),
                port: Be16::new(frontend.port()),
                protocol: UDP,
            };
            let backend = (reason == 0).then(|| pod::<F>(Role::LocalPod));
            let mut socket = node.socket(9, true);
            socket.port = Be16::new(5_000);
            let client = Some(SocketAddr::new(own.into(), 5_000));
            let expected = [(reason, client, Some(frontend), backend, EventHook::Connect as u8)];
            socket.connect(&destination);
            assert_eq!(seen(&socket.node.world), expected);
            let first = socket::sendmsg(&mut socket, &destination);
            assert_eq!(seen(&socket.node.world), expected);
            socket::sendmsg(&mut socket, &destination);
            // A socket stays with its endpoint; what isn't served is judged anew.
            let again = !matches!(first, SocketVerdict::Translate(..));
            assert_eq!(seen(&socket.node.world).len(), usize::from(again));
        }
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn nobody_is_told_what_nobody_asked_for() {
    let mut node = node::<V4>();
    let frame = from_client::<V4>(external::<V4>(port::LOCAL), Transport::Udp).frame();
    let refused = from_client::<V4>(external::<V4>(port::EMPTY), Transport::Udp).frame();
    for kinds in [0, EventKinds::DROPS] {
        node.world.monitor = Monitor { kinds, ..EVERYTHING };
        node.flows.clear();
        node.ingress::<Tc>(&frame);
        node.ingress::<Tc>(&refused);
        assert_eq!(seen(&node.world), [], "{kinds}");
    }
    node.world.monitor = Monitor { rate: 2, ..EVERYTHING };
    for _ in 0..5 {
        node.ingress::<Tc>(&refused);
    }
    assert_eq!((seen(&node.world).len(), node.world.pace.borrow().suppressed), (2, 3));
}
