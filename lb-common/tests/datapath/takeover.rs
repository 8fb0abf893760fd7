//! Beside another service proxy: its flows stay its until they end, and on the way back ours do.

use super::{ACK, FIN, RST, SYN, external, from_client};
use lb_common::abi::{Address, BackendIndex, ClientAddresses, FlowFlags, FlowKey, TakeoverFlags};
use lb_common::bytes::Be16;
use lb_common::env::RENEWAL_TICKS;
use lb_common::family::{Family, V4, V6};
use lb_common::lb::Verdict;
use lb_common::lb::answer::AnswerFormat;
use lb_common::lb::frontend::Destination;
use lb_common::lb::socket::{self, SocketVerdict};
use lb_common::lb::takeover::{REMEMBERED_TICKS, foreign, foreign_reply, socket_key};
use lb_common::model::frame::{Segment, Transport};
use lb_common::model::node::{Node, PodTc, Tc, Xdp};
use lb_common::model::scene::{self, Role, at, port};
use lb_common::model::sockets::{POD, Sockets};
use lb_common::model::world::World;
use std::net::SocketAddr;

const BESIDE: u32 = TakeoverFlags::BESIDE;
const YIELDS: u32 = TakeoverFlags::YIELDS;

fn node<F: AnswerFormat>(takeover: u32) -> Node<F> {
    Node { world: World { takeover, ..scene::world::<F>() }, ..scene::node::<F>() }
}

/// The key of packets like this one.
fn key<F: Family>(segment: &Segment) -> FlowKey<F> {
    let protocol = match segment.transport {
        Transport::Tcp(_) => 6,
        _ => 17,
    };
    let half = |address: SocketAddr| (F::narrow(address.ip().into()), Be16::new(address.port()));
    let ((source, source_port), (destination, destination_port)) =
        (half(segment.source), half(segment.destination));
    FlowKey { source, destination, source_port, destination_port, protocol }
}

#[test]
fn only_packets_that_open_a_connection_open_a_flow_beside_another_proxy() {
    fn of<F: AnswerFormat>() {
        for (service, opened) in [(port::LOCAL, Verdict::Deliver), (port::REMOTE, Verdict::Forward)]
        {
            for flags in [ACK, ACK | FIN, RST, ACK | SYN] {
                let sent = from_client::<F>(external::<F>(service), Transport::Tcp(flags));
                let mut beside = node::<F>(BESIDE);
                let outcome = beside.ingress::<Tc>(&sent.frame());
                assert_eq!(outcome.verdict, Verdict::Pass, "{service} {flags:#x}");
                assert_eq!(outcome.bytes, sent.frame(), "{service} {flags:#x}");
                assert!(beside.flows.is_empty(), "{service} {flags:#x}");
                assert_eq!(node::<F>(0).ingress::<Tc>(&sent.frame()).verdict, opened);
            }
            for opener in [Transport::Tcp(SYN), Transport::Udp] {
                let sent = from_client::<F>(external::<F>(service), opener);
                let mut beside = node::<F>(BESIDE);
                assert_eq!(beside.ingress::<Tc>(&sent.frame()).verdict, opened);
                let data = Segment {
                    transport: match opener {
                        Transport::Tcp(_) => Transport::Tcp(ACK),
                        other => other,
                    },
                    ..sent
                };
                assert_eq!(beside.ingress::<Tc>(&data.frame()).verdict, opened, "it is ours");
            }
        }
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn refusals_wait_for_a_connection_to_be_opened_too() {
    fn of<F: AnswerFormat>() {
        let nowhere = at::<F>(Role::ClusterIp, 9_999);
        for (flags, beside, alone) in
            [(ACK, Verdict::Pass, Verdict::Reset), (SYN, Verdict::Reset, Verdict::Reset)]
        {
            let sent = from_client::<F>(nowhere, Transport::Tcp(flags));
            assert_eq!(node::<F>(BESIDE).ingress::<Tc>(&sent.frame()).verdict, beside);
            assert_eq!(node::<F>(0).ingress::<Tc>(&sent.frame()).verdict, alone);
        }
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn a_flow_of_another_proxy_passes_every_hook_untouched() {
    fn of<F: AnswerFormat>() {
        for transport in [Transport::Tcp(ACK), Transport::Udp] {
            let sent = from_client::<F>(external::<F>(port::REMOTE), transport);
            let mut node = node::<F>(BESIDE);
            let key = key::<F>(&sent);
            node.flows.insert(key, foreign(&key, node.world.now.get() + 1));
            for _ in 0..2 {
                for outcome in [
                    node.ingress::<Tc>(&sent.frame()),
                    node.ingress::<Xdp>(&sent.frame()),
                    node.ingress::<PodTc>(&sent.frame()),
                    node.egress::<Tc>(&sent.frame()),
                ] {
                    assert_eq!(outcome.verdict, Verdict::Pass, "{transport:?}");
                    assert_eq!(outcome.bytes, sent.frame(), "{transport:?}");
                }
                // Renewal must not make a second entry of one that is its own other direction.
                node.world.now.set(node.world.now.get() + 1_000);
            }
            assert_eq!(node.flows.len(), 1, "{transport:?}");
            assert_eq!(node.flows[&key].translated, key.inverse());
            let last = node.world.now.get() - 1_000;
            assert_eq!(node.flows[&key].last_seen, last + REMEMBERED_TICKS, "{transport:?}");
        }
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn datagrams_are_ours_once_the_other_proxy_has_forgotten_their_flow() {
    fn of<F: AnswerFormat>() {
        let sent = from_client::<F>(external::<F>(port::REMOTE), Transport::Udp);
        for (until, renewed) in [(5_000, None), (101, Some(100 + REMEMBERED_TICKS))] {
            let mut node = node::<F>(BESIDE);
            let key = key::<F>(&sent);
            node.flows.insert(key, foreign(&key, until));
            node.world.now.set(100);
            assert_eq!(node.ingress::<Tc>(&sent.frame()).verdict, Verdict::Pass);
            let until = renewed.unwrap_or(until);
            assert_eq!(node.flows[&key].last_seen, until, "a datagram never shortens it");
            node.world.now.set(until);
            assert_eq!(node.ingress::<Tc>(&sent.frame()).verdict, Verdict::Forward);
            assert_eq!(node.flows[&key].flags & FlowFlags::FOREIGN, 0);
        }
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn a_port_that_is_used_again_after_the_other_proxys_connection_is_ours() {
    fn of<F: AnswerFormat>() {
        let to = external::<F>(port::REMOTE);
        let syn = from_client::<F>(to, Transport::Tcp(SYN));
        let mut node = node::<F>(BESIDE);
        let key = key::<F>(&syn);
        node.flows.insert(key, foreign(&key, 1));
        // Its retransmission still belongs to the connection that it opens there.
        assert_eq!(node.ingress::<Tc>(&syn.frame()).verdict, Verdict::Pass);
        let fin = from_client::<F>(to, Transport::Tcp(ACK | FIN));
        assert_eq!(node.ingress::<Tc>(&fin.frame()).verdict, Verdict::Pass);
        assert_eq!(node.ingress::<Tc>(&syn.frame()).verdict, Verdict::Forward);
        assert_eq!(node.flows[&key].flags & FlowFlags::FOREIGN, 0);
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn datagrams_leave_another_proxys_flow_when_its_endpoint_leaves() {
    fn of<F: AnswerFormat>() {
        let sent = from_client::<F>(external::<F>(port::REMOTE), Transport::Udp);
        let mut node = node::<F>(BESIDE);
        let key = key::<F>(&sent);
        let backend = BackendIndex(1);
        let generation = node.world.backends[1].generation;
        node.flows.insert(key, lb_common::abi::Flow { backend, generation, ..foreign(&key, 1) });
        assert_eq!(node.ingress::<Tc>(&sent.frame()).verdict, Verdict::Pass);
        node.world.backends[1].generation += 1;
        assert_eq!(node.ingress::<Tc>(&sent.frame()).verdict, Verdict::Forward);
        assert_eq!(node.flows[&key].flags & FlowFlags::FOREIGN, 0);
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn while_we_yield_known_flows_go_on_and_new_ones_are_the_other_proxys_for_good() {
    fn of<F: AnswerFormat>() {
        for (service, carried) in
            [(port::LOCAL, Verdict::Deliver), (port::REMOTE, Verdict::Forward)]
        {
            for opener in [Transport::Tcp(SYN), Transport::Udp] {
                let to = external::<F>(service);
                let ours = from_client::<F>(to, opener);
                let mut node = node::<F>(BESIDE);
                assert_eq!(node.ingress::<Tc>(&ours.frame()).verdict, carried);
                node.world.takeover = BESIDE | YIELDS;
                let data = Segment {
                    transport: match opener {
                        Transport::Tcp(_) => Transport::Tcp(ACK),
                        other => other,
                    },
                    ..ours.clone()
                };
                assert_eq!(node.ingress::<Tc>(&data.frame()).verdict, carried);
                let source = SocketAddr::new(ours.source.ip(), ours.source.port() + 1);
                let theirs = Segment { source, ..ours };
                assert_eq!(node.ingress::<Tc>(&theirs.frame()).verdict, Verdict::Pass);
                node.world.takeover = BESIDE;
                assert_eq!(node.ingress::<Tc>(&theirs.frame()).verdict, Verdict::Pass);
                assert!(node.world.drops.borrow().is_empty());
            }
        }
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn a_socket_whose_datagrams_another_proxy_leads_is_left_to_it() {
    fn of<F: Family>() {
        let service = at::<F>(Role::ClusterIp, port::LOCAL);
        let destination = Destination {
            address: service.ip().into(),
            port: Be16::new(service.port()),
            protocol: 17,
        };
        let own: Address = at::<F>(Role::LocalPod, 0).ip().into();
        let world = World { takeover: BESIDE, ..scene::world::<F>() };
        let mut sockets = Sockets { world, ..Sockets::default() };
        let (address4, address6) = if own.is_v4() {
            (own, Address::UNSPECIFIED_V6)
        } else {
            (Address::UNSPECIFIED_V6, own)
        };
        sockets.world.clients.insert(POD, ClientAddresses { address4, address6 });
        let key = socket_key::<V6>((own, Be16::new(4_000)), &destination);
        let from = (own, Be16::new(4_000), destination);
        sockets.foreign.insert(from, foreign(&key, REMEMBERED_TICKS / 2));
        for (port, now, theirs) in [
            (4_000, 0, true),
            (4_001, 0, false),
            (0, 0, false),
            (4_000, REMEMBERED_TICKS - 1, true),
            (4_000, 2 * REMEMBERED_TICKS - 1, false),
        ] {
            sockets.world.now.set(now);
            let mut socket = sockets.socket(u64::from(port) + u64::from(now), false);
            socket.port = Be16::new(port);
            let verdict = socket::sendmsg(&mut socket, &destination);
            assert_eq!(verdict == SocketVerdict::Pass, theirs, "{port} at {now}");
        }
        // Where its endpoint has left, too.
        let gone = lb_common::abi::Flow { generation: 7, ..foreign(&key, u32::MAX / 4) };
        sockets.foreign.insert(from, gone);
        let mut socket = sockets.socket(1, false);
        socket.port = Be16::new(4_000);
        assert_ne!(socket::sendmsg(&mut socket, &destination), SocketVerdict::Pass);
        sockets.foreign.insert(from, foreign(&key, u32::MAX / 4));
        // Once nothing of the other proxy is left, nobody looks.
        sockets.world.takeover = 0;
        let mut socket = sockets.socket(4_000, false);
        socket.port = Be16::new(4_000);
        assert_ne!(socket::sendmsg(&mut socket, &destination), SocketVerdict::Pass);
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn while_we_yield_sockets_keep_the_endpoint_that_they_have_and_new_ones_get_none() {
    fn of<F: Family>() {
        let service = at::<F>(Role::ClusterIp, port::LOCAL);
        let to = |protocol| Destination {
            address: service.ip().into(),
            port: Be16::new(service.port()),
            protocol,
        };
        let mut sockets = Sockets { world: scene::world::<F>(), ..Sockets::default() };
        let before = socket::sendmsg(&mut sockets.socket(1, false), &to(17));
        assert!(matches!(before, SocketVerdict::Translate(..)));
        sockets.world.takeover = BESIDE | YIELDS;
        assert_eq!(socket::sendmsg(&mut sockets.socket(1, false), &to(17)), before);
        assert_eq!(socket::sendmsg(&mut sockets.socket(2, false), &to(17)), SocketVerdict::Pass);
        for protocol in [6, 17] {
            let verdict = socket::connect(&mut sockets.socket(3, false), &to(protocol));
            assert_eq!(verdict, SocketVerdict::Pass);
        }
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn a_port_that_masquerades_another_proxys_flow_is_not_taken() {
    fn of<F: AnswerFormat>() {
        for opener in [Transport::Tcp(SYN), Transport::Udp] {
            let sent = from_client::<F>(external::<F>(port::REMOTE), opener);
            let mut alone = node::<F>(BESIDE);
            assert_eq!(alone.ingress::<Tc>(&sent.frame()).verdict, Verdict::Forward);
            let taken = alone.flows[&key::<F>(&sent)].translated.inverse();
            let mut beside = node::<F>(BESIDE);
            beside.flows.insert(taken, foreign_reply(&taken, 1));
            assert_eq!(beside.ingress::<Tc>(&sent.frame()).verdict, Verdict::Forward);
            let chosen = beside.flows[&key::<F>(&sent)].translated.inverse();
            assert_ne!(chosen.destination_port, taken.destination_port);
            assert_ne!(beside.flows[&taken].flags & FlowFlags::FOREIGN, 0);
        }
    }
    of::<V4>();
    of::<V6>();
}

/// The masqueraded packet of another proxy that has the tuple of our flow `sent` to its endpoint.
fn with_our_port<F: AnswerFormat>(node: &Node<F>, sent: &Segment, transport: Transport) -> Segment {
    let FlowKey { source, destination, source_port, destination_port, .. } =
        node.flows[&key::<F>(sent)].translated;
    let half = |address, port: Be16| SocketAddr::new(F::widen(address).into(), port.get());
    let (source, destination) = (half(source, source_port), half(destination, destination_port));
    Segment { source, destination, transport, ..sent.clone() }
}

#[test]
fn while_we_yield_an_ended_flows_port_is_left_to_the_other_proxy() {
    fn of<F: AnswerFormat>() {
        let to = external::<F>(port::REMOTE);
        for (yields, ends, vacated) in [
            (BESIDE | YIELDS, Some(ACK | FIN), true),
            (BESIDE | YIELDS, Some(RST), true),
            (BESIDE | YIELDS, None, false),
            (BESIDE, Some(RST), false),
        ] {
            let syn = from_client::<F>(to, Transport::Tcp(SYN));
            let mut node = node::<F>(0);
            assert_eq!(node.ingress::<Tc>(&syn.frame()).verdict, Verdict::Forward);
            let theirs = with_our_port::<F>(&node, &syn, Transport::Tcp(SYN));
            let answer = theirs.between(theirs.destination, theirs.source, 63);
            if let Some(flags) = ends {
                let end = Segment { transport: Transport::Tcp(flags), ..answer.clone() };
                assert_eq!(node.ingress::<Tc>(&end.frame()).verdict, Verdict::Forward);
            }
            node.world.takeover = yields;
            assert_eq!(node.egress::<Tc>(&theirs.frame()).verdict, Verdict::Pass);
            let answer = Segment { transport: Transport::Tcp(SYN | ACK), ..answer };
            let expected = if vacated { Verdict::Pass } else { Verdict::Forward };
            let verdict = node.ingress::<Tc>(&answer.frame()).verdict;
            assert_eq!(verdict, expected, "{yields} {ends:?}");
        }
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn while_we_yield_silent_datagrams_leave_their_port_and_others_keep_it() {
    fn of<F: AnswerFormat>() {
        let sent = from_client::<F>(external::<F>(port::REMOTE), Transport::Udp);
        for (silence, vacated) in [(1, false), (RENEWAL_TICKS, false), (RENEWAL_TICKS + 1, true)] {
            let mut node = node::<F>(0);
            assert_eq!(node.ingress::<Tc>(&sent.frame()).verdict, Verdict::Forward);
            let theirs = with_our_port::<F>(&node, &sent, Transport::Udp);
            node.world.takeover = BESIDE | YIELDS;
            node.world.now.set(node.world.now.get() + silence);
            assert_eq!(node.egress::<Tc>(&theirs.frame()).verdict, Verdict::Pass);
            let answer = theirs.between(theirs.destination, theirs.source, 63);
            let expected = if vacated { Verdict::Pass } else { Verdict::Forward };
            let verdict = node.ingress::<Tc>(&answer.frame()).verdict;
            assert_eq!(verdict, expected, "{silence}");
        }
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn a_socket_of_the_node_gets_the_port_of_a_flow_that_is_over_and_for_datagrams_of_any() {
    fn of<F: AnswerFormat>() {
        let to = external::<F>(port::REMOTE);
        for (transport, ends, from_socket, receives, vacated) in [
            (Transport::Tcp(SYN), Some(ACK | FIN), true, true, true),
            (Transport::Tcp(SYN), None, true, true, false),
            (Transport::Tcp(SYN), Some(RST), false, false, false),
            (Transport::Udp, None, true, true, true),
            // A pod's, with our port in place of its own.
            (Transport::Udp, None, true, false, false),
            (Transport::Udp, None, false, true, false),
        ] {
            let first = from_client::<F>(to, transport);
            let mut node = node::<F>(0);
            assert_eq!(node.ingress::<Tc>(&first.frame()).verdict, Verdict::Forward);
            let own = with_our_port::<F>(&node, &first, transport);
            let answer = own.between(own.destination, own.source, 63);
            if let Some(flags) = ends {
                let end = Segment { transport: Transport::Tcp(flags), ..answer.clone() };
                assert_eq!(node.ingress::<Tc>(&end.frame()).verdict, Verdict::Forward);
            }
            node.from_sockets = from_socket;
            if receives {
                node.host_sockets.insert(key::<F>(&answer));
            }
            assert_eq!(node.egress::<Tc>(&own.frame()).verdict, Verdict::Pass);
            let expected = if vacated { Verdict::Pass } else { Verdict::Forward };
            let verdict = node.ingress::<Tc>(&answer.frame()).verdict;
            assert_eq!(verdict, expected, "{transport:?} {ends:?} {from_socket} {receives}");
            // Whose packet went on finds a port of its own.
            let again = node.ingress::<Tc>(&first.frame());
            assert_eq!(again.verdict, Verdict::Forward);
        }
    }
    of::<V4>();
    of::<V6>();
}
