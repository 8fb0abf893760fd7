//! SCTP of the node's own processes, which no socket hook sees: translated where it would leave.

use super::{drops, external, pod, source_of};
use lb_common::abi::FlowFlags;
use lb_common::family::{Family, V4, V6};
use lb_common::lb::answer::AnswerFormat;
use lb_common::lb::{DropReason, LOOPBACK, Verdict};
use lb_common::model::frame::{IcmpError, Problem, Segment, Transport};
use lb_common::model::node::{NextHop, Node, Outcome, PodTc, Tc, TcL3};
use lb_common::model::scene::{self, Role, at, device, ip, port};
use std::net::SocketAddr;

/// Chunk types.
const DATA: u8 = 0;
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;

/// From a process of the node, whose address is the one on the way to the Service.
fn from_node<F: Family>(to: SocketAddr, chunk: u8) -> Segment {
    Segment::new(at::<F>(Role::Node, port::CLIENT), to, Transport::Sctp(chunk))
}

fn frontends<F: Family>(service: u16) -> [SocketAddr; 3] {
    [
        at::<F>(Role::ClusterIp, service),
        external::<F>(service),
        at::<F>(Role::LoadBalancer, service),
    ]
}

/// A packet of a pod here.
fn from_pod<F: AnswerFormat>(node: &mut Node<F>, sent: &Segment) -> Outcome {
    node.input = device::POD;
    let outcome = node.ingress::<PodTc>(&sent.frame());
    node.input = device::UPLINK;
    outcome
}

#[test]
fn a_pod_here_sees_the_nodes_own_address_and_its_answer_enters_where_the_request_left() {
    fn of<F: AnswerFormat>() {
        for frontend in frontends::<F>(port::LOCAL) {
            let mut node = scene::node::<F>();
            let sent = from_node::<F>(frontend, INIT);
            let arrives = sent.between(sent.source, pod::<F>(Role::LocalPod), 64);
            for chunk in [INIT, DATA] {
                let sent = Segment { transport: Transport::Sctp(chunk), ..sent.clone() };
                let outcome = node.egress::<Tc>(&sent.frame());
                assert_eq!((outcome.verdict, outcome.device), (Verdict::Forward, device::POD));
                let arrives = Segment { transport: sent.transport, ..arrives.clone() };
                assert_eq!(outcome.bytes, arrives.frame());
                // Seen once more, where it leaves to the pod.
                assert_eq!(node.egress::<PodTc>(&outcome.bytes).verdict, Verdict::Pass);
                assert_eq!(node.flows.len(), 2);
            }
            let reply = Segment { transport: Transport::Sctp(INIT_ACK), ..arrives.reply(0) };
            let outcome = from_pod(&mut node, &reply);
            let back = reply.between(frontend, sent.source, 64);
            assert_eq!((outcome.verdict, outcome.device), (Verdict::Raise, device::UPLINK));
            assert_eq!(outcome.bytes, back.frame());
            // And seen once more, where it enters.
            assert_eq!(node.ingress::<Tc>(&outcome.bytes).verdict, Verdict::Pass);
            assert!(node.flows.values().all(|flow| flow.flags & FlowFlags::ANSWERED != 0));
        }
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn an_endpoint_elsewhere_sees_the_address_of_the_device_that_leads_there() {
    fn of<F: AnswerFormat>() {
        for (service, role, through, own) in [
            (port::REMOTE, Role::RemotePod, device::UPLINK, Role::Node),
            (port::OVERLAY, Role::OverlayPod, device::OVERLAY, Role::Overlay),
            (port::SITE, Role::Site, device::UPLINK, Role::Node),
        ] {
            for frontend in frontends::<F>(service) {
                let mut node = scene::node::<F>();
                let sent = from_node::<F>(frontend, INIT);
                let outcome = node.egress::<Tc>(&sent.frame());
                let source = source_of::<F>(&outcome);
                assert_eq!((source.ip(), outcome.device), (ip::<F>(own), through));
                let leaves = sent.between(source, pod::<F>(role), 64);
                assert_eq!(outcome.bytes, leaves.frame());
                assert_eq!(node.egress::<Tc>(&outcome.bytes).verdict, Verdict::Pass);
                let reply = Segment { transport: Transport::Sctp(INIT_ACK), ..leaves.reply(0) };
                node.input = through;
                let outcome = node.ingress::<Tc>(&reply.frame());
                let back = reply.between(frontend, sent.source, 64);
                assert_eq!((outcome.verdict, outcome.device), (Verdict::Raise, device::UPLINK));
                assert_eq!(outcome.bytes, back.frame());
            }
        }
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn without_a_way_back_to_the_service_an_answer_enters_where_it_came() {
    fn of<F: AnswerFormat>() {
        let mut node = scene::node::<F>();
        let frontend = at::<F>(Role::ClusterIp, port::LOCAL);
        let sent = from_node::<F>(frontend, INIT);
        node.egress::<Tc>(&sent.frame());
        node.routes.insert(frontend.ip().into(), NextHop::Forbidden);
        let reply = sent.between(sent.source, pod::<F>(Role::LocalPod), 64).reply(0);
        let outcome = from_pod(&mut node, &reply);
        assert_eq!(outcome.verdict, Verdict::Deliver);
        assert_eq!(outcome.bytes, reply.between(frontend, sent.source, 64).frame());
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn a_device_without_link_header_translates_the_same() {
    fn of<F: AnswerFormat>() {
        let mut node = scene::node::<F>();
        let sent = from_node::<F>(at::<F>(Role::ClusterIp, port::LOCAL), INIT);
        let outcome = node.egress::<TcL3>(&sent.packet());
        let arrives = sent.between(sent.source, pod::<F>(Role::LocalPod), 64);
        assert_eq!((outcome.verdict, outcome.bytes), (Verdict::Forward, arrives.packet()));
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn policies_bind_as_they_do_clients_on_the_node() {
    fn of<F: AnswerFormat>() {
        use DropReason::{NoEndpoints, NoLocalEndpoint, NoRoute, SourceRange, UnknownPort};
        let balancer = |service| at::<F>(Role::LoadBalancer, service);
        for (to, verdict, reason) in [
            // External policies are for clients outside.
            (balancer(port::ELSEWHERE), Verdict::Forward, None),
            (balancer(port::RANGES), Verdict::Forward, None),
            (balancer(port::EMPTY), Verdict::Answer, Some(NoEndpoints)),
            (at::<F>(Role::ClusterIp, 9), Verdict::Answer, Some(UnknownPort)),
            (
                at::<F>(Role::ClusterIp, port::INTERNAL_ELSEWHERE),
                Verdict::Drop,
                Some(NoLocalEndpoint),
            ),
            (at::<F>(Role::ClusterIp, port::LOST), Verdict::Drop, Some(NoRoute)),
            (at::<F>(Role::Unowned, 9), Verdict::Drop, Some(DropReason::UnownedAddress)),
            (at::<F>(Role::RemotePod, port::BACKEND), Verdict::Pass, None),
        ] {
            let mut node = scene::node::<F>();
            let outcome = node.egress::<Tc>(&from_node::<F>(to, INIT).frame());
            assert_eq!(outcome.verdict, verdict, "{to}");
            let counted: Vec<_> = reason.into_iter().map(|reason| (reason, 1)).collect();
            assert_eq!(drops(&node), counted, "{to}");
        }
        let mut node = scene::node::<F>();
        let sent = from_node::<F>(balancer(port::RANGES), INIT);
        let other = at::<F>(Role::Management, port::CLIENT);
        let sent = sent.between(other, sent.destination, 64);
        assert_eq!(node.egress::<Tc>(&sent.frame()).verdict, Verdict::Drop);
        assert_eq!(drops(&node), [(SourceRange, 1)]);
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn only_sctp_and_only_what_leaves_the_node_is_opened_there() {
    fn of<F: AnswerFormat>() {
        let frontend = external::<F>(port::LOCAL);
        for transport in super::OPENERS {
            let mut node = scene::node::<F>();
            let sent = Segment { transport, ..from_node::<F>(frontend, INIT) };
            assert_eq!(node.egress::<Tc>(&sent.frame()).verdict, Verdict::Pass);
            assert!(node.flows.is_empty());
        }
        let mut node = scene::node::<F>();
        let sent = from_node::<F>(frontend, INIT);
        assert_eq!(node.egress::<PodTc>(&sent.frame()).verdict, Verdict::Pass);
        assert!(node.flows.is_empty());
    }
    of::<V4>();
    of::<V6>();
}

/// What a process sends to an address of this node leaves through the loopback device.
fn through_loopback<F: AnswerFormat>(node: &mut Node<F>, sent: &Segment) -> Outcome {
    node.input = LOOPBACK;
    let outcome = node.egress::<Tc>(&sent.frame());
    node.input = device::UPLINK;
    outcome
}

#[test]
fn a_node_port_of_the_nodes_own_answers_through_the_loopback_device() {
    fn of<F: AnswerFormat>() {
        for (service, role, through) in [
            (port::LOCAL, Role::LocalPod, device::POD),
            (port::REMOTE, Role::RemotePod, device::UPLINK),
        ] {
            let mut node = scene::node::<F>();
            let frontend = at::<F>(Role::Node, port::node_port(service));
            let sent = from_node::<F>(frontend, INIT);
            let outcome = through_loopback(&mut node, &sent);
            assert_eq!((outcome.verdict, outcome.device), (Verdict::Forward, through));
            let source = match role {
                Role::LocalPod => sent.source,
                _ => source_of::<F>(&outcome),
            };
            let arrives = sent.between(source, pod::<F>(role), 64);
            assert_eq!(outcome.bytes, arrives.frame());
            let reply = Segment { transport: Transport::Sctp(INIT_ACK), ..arrives.reply(0) };
            let outcome = match role {
                Role::LocalPod => from_pod(&mut node, &reply),
                _ => node.ingress::<Tc>(&reply.frame()),
            };
            assert_eq!((outcome.verdict, outcome.device), (Verdict::Raise, LOOPBACK));
            let back = reply.between(frontend, sent.source, 64);
            assert_eq!(outcome.bytes, back.frame());
            // And seen once more, where it enters.
            assert_eq!(through_loopback(&mut node, &back).verdict, Verdict::Pass);
        }
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn an_endpoint_on_the_nodes_own_address_is_reached_through_the_loopback_device() {
    fn of<F: AnswerFormat>() {
        for frontend in
            [external::<F>(port::LOCAL), at::<F>(Role::Node, port::node_port(port::LOCAL))]
        {
            let mut node = scene::node::<F>();
            // Where the address is: the stack's business.
            node.routes.remove(&ip::<F>(Role::LocalPod).into());
            let sent = from_node::<F>(frontend, INIT);
            let outcome = if frontend.ip() == ip::<F>(Role::Node) {
                through_loopback(&mut node, &sent)
            } else {
                node.egress::<Tc>(&sent.frame())
            };
            assert_eq!((outcome.verdict, outcome.device), (Verdict::Raise, LOOPBACK));
            let arrives = sent.between(sent.source, pod::<F>(Role::LocalPod), 64);
            assert_eq!(outcome.bytes, arrives.frame());
            assert_eq!(through_loopback(&mut node, &arrives).verdict, Verdict::Pass);
            let reply = Segment { transport: Transport::Sctp(INIT_ACK), ..arrives.reply(0) };
            let outcome = through_loopback(&mut node, &reply);
            let back = reply.between(frontend, sent.source, 64);
            assert_eq!((outcome.verdict, outcome.bytes), (Verdict::Deliver, back.frame()));
            assert!(node.flows.values().all(|flow| flow.flags & FlowFlags::ANSWERED != 0));
        }
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn what_is_too_long_for_the_way_to_the_endpoint_is_answered() {
    fn of<F: AnswerFormat>() {
        let mut node = scene::node::<F>();
        let mut sent = from_node::<F>(external::<F>(port::OVERLAY), INIT);
        node.egress::<Tc>(&sent.frame());
        sent.payload = vec![7; 1460 - F::HEADER_LEN as usize - 16];
        let outcome = node.egress::<Tc>(&sent.frame());
        assert_eq!(outcome.verdict, Verdict::Answer);
        let mut quote = sent.packet();
        quote.truncate(size_of::<F::Quote>());
        let told = IcmpError {
            source: sent.destination.ip(),
            destination: sent.source.ip(),
            problem: Problem::TooBig(1450),
            quote,
            hop_limit: 64,
            own: true,
        };
        assert_eq!(outcome.bytes, lb_common::model::frame::returned(told.frame()));
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn an_icmp_error_about_an_association_reaches_its_process() {
    fn of<F: AnswerFormat>() {
        let mut node = scene::node::<F>();
        let sent = from_node::<F>(external::<F>(port::REMOTE), INIT);
        let outcome = node.egress::<Tc>(&sent.frame());
        let leaves = sent.between(source_of::<F>(&outcome), pod::<F>(Role::RemotePod), 64);
        let error = |source, destination, quote| IcmpError {
            source,
            destination,
            problem: Problem::TooBig(1400),
            quote,
            hop_limit: 64,
            own: false,
        };
        let told = error(ip::<F>(Role::Router), leaves.source.ip(), leaves.packet());
        let quote = leaves.quote(sent.source, sent.destination, usize::MAX);
        let outcome = node.ingress::<Tc>(&told.frame());
        let arrives = error(sent.destination.ip(), sent.source.ip(), quote);
        assert_eq!((outcome.verdict, outcome.bytes), (Verdict::Deliver, arrives.frame()));
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn only_a_new_association_moves_when_its_endpoint_has_left() {
    fn of<F: AnswerFormat>() {
        let mut node = scene::node::<F>();
        let send = |node: &mut Node<F>, chunk| {
            let sent = from_node::<F>(external::<F>(port::SPREAD), chunk);
            assert_eq!(node.egress::<Tc>(&sent.frame()).verdict, Verdict::Forward);
            node.flows.values().map(|flow| flow.generation).max()
        };
        let first = send(&mut node, INIT);
        for role in [Role::RemotePod, Role::SecondRemotePod, Role::ThirdRemotePod] {
            node.world.leave(pod::<F>(role));
        }
        assert_eq!(send(&mut node, DATA), first);
        assert!(send(&mut node, INIT) > first);
    }
    of::<V4>();
    of::<V6>();
}
