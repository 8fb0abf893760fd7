//! What pods send, translated packet by packet on their devices (`--pod-path`).

use super::{ACK, OPENERS, SYN, drops, pod};
use lb_common::family::{Family, V4, V6};
use lb_common::lb::answer::AnswerFormat;
use lb_common::lb::{DropReason, Verdict};
use lb_common::model::frame::{Segment, Transport};
use lb_common::model::node::{Node, PodTc, Tc};
use lb_common::model::scene::{self, Role, at, device, ip, port};
use std::net::SocketAddr;

/// Sent from a pod on this node that is no endpoint of most Services.
fn from_pod<F: Family>(to: SocketAddr, transport: Transport) -> Segment {
    Segment::new(at::<F>(Role::UnknownPod, port::CLIENT), to, transport)
}

fn node<F: AnswerFormat>() -> Node<F> {
    let mut node = scene::node::<F>();
    node.input = device::POD;
    node
}

/// Every kind of frontend of a Service port; ports of each protocol.
fn frontends<F: Family>(service: u16) -> [SocketAddr; 4] {
    [
        at::<F>(Role::ClusterIp, service),
        at::<F>(Role::External, service),
        at::<F>(Role::LoadBalancer, service),
        at::<F>(Role::Node, port::node_port(service)),
    ]
}

#[test]
fn a_pod_reaches_endpoints_here_and_elsewhere_under_its_own_address() {
    fn of<F: AnswerFormat>() {
        let openers = OPENERS.into_iter().chain([Transport::Sctp(1)]);
        for opener in openers {
            for (service, role) in [
                (port::LOCAL, Role::LocalPod),
                (port::REMOTE, Role::RemotePod),
                (port::OVERLAY, Role::OverlayPod),
                (port::SITE, Role::Site),
            ] {
                for frontend in frontends::<F>(service) {
                    let mut node = node::<F>();
                    let sent = from_pod::<F>(frontend, opener);
                    let goes = sent.between(sent.source, pod::<F>(role), 64);
                    let outcome = node.ingress::<PodTc>(&sent.frame());
                    assert_eq!(outcome.verdict, Verdict::Deliver, "{frontend} {opener:?}");
                    assert_eq!(outcome.bytes, goes.frame(), "{frontend} {opener:?}");
                    // The reply: in by the uplink or from the other pod, out to the pod.
                    let reply = goes.reply(SYN | ACK);
                    assert_eq!(node.ingress::<Tc>(&reply.frame()).bytes, reply.frame());
                    assert_eq!(node.ingress::<PodTc>(&reply.frame()).bytes, reply.frame());
                    let outcome = node.egress::<PodTc>(&reply.frame());
                    assert_eq!(outcome.verdict, Verdict::Deliver, "{frontend} {opener:?}");
                    assert_eq!(outcome.bytes, reply.between(frontend, sent.source, 64).frame());
                }
            }
        }
    }
    of::<V4>();
    of::<V6>();
}

/// The external policy binds clients outside; the internal one binds pods.
#[test]
fn the_policies_are_those_of_a_client_on_the_node() {
    fn of<F: AnswerFormat>() {
        for frontend in frontends::<F>(port::ELSEWHERE) {
            let sent = from_pod::<F>(frontend, Transport::Tcp(SYN));
            let mut node = node::<F>();
            assert_eq!(node.ingress::<PodTc>(&sent.frame()).verdict, Verdict::Deliver);
        }
        let mut node = node::<F>();
        let cluster_ip = at::<F>(Role::ClusterIp, port::INTERNAL_ELSEWHERE);
        let sent = from_pod::<F>(cluster_ip, Transport::Tcp(SYN));
        assert_eq!(node.ingress::<PodTc>(&sent.frame()).verdict, Verdict::Drop);
        assert_eq!(drops(&node), [(DropReason::NoLocalEndpoint, 1)]);
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn refusals_unknown_ports_and_source_ranges_hold_for_pods() {
    fn of<F: AnswerFormat>() {
        let verdict = |to: SocketAddr, transport| {
            node::<F>().ingress::<PodTc>(&from_pod::<F>(to, transport).frame()).verdict
        };
        let tcp = Transport::Tcp(SYN);
        for to in [at::<F>(Role::ClusterIp, port::EMPTY), at::<F>(Role::ClusterIp, 9)] {
            assert_eq!(verdict(to, tcp), Verdict::Reset);
            assert_eq!(verdict(to, Transport::Udp), Verdict::Answer);
        }
        assert_eq!(verdict(at::<F>(Role::LoadBalancer, port::RANGES), tcp), Verdict::Drop);
        assert_eq!(verdict(at::<F>(Role::ClusterIp, port::RANGES), tcp), Verdict::Deliver);
        // A node that isn't this one, a pod: not ours.
        assert_eq!(verdict(at::<F>(Role::RemotePod, port::BACKEND), tcp), Verdict::Pass);
        assert_eq!(
            verdict(at::<F>(Role::Management, port::node_port(port::LOCAL)), tcp),
            Verdict::Pass
        );
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn a_pod_that_reaches_itself_sees_the_node_and_the_service() {
    fn of<F: AnswerFormat>() {
        for frontend in frontends::<F>(port::LOCAL) {
            for opener in OPENERS.into_iter().chain([Transport::Sctp(1)]) {
                let mut node = node::<F>();
                let client = at::<F>(Role::LocalPod, port::CLIENT);
                let sent = Segment::new(client, frontend, opener);
                let outcome = node.ingress::<PodTc>(&sent.frame());
                let source = super::source_of::<F>(&outcome);
                assert_eq!(source.ip(), ip::<F>(Role::Node));
                assert_eq!(outcome.device, device::POD);
                let arrives = sent.between(source, pod::<F>(Role::LocalPod), 63);
                assert_eq!(outcome.bytes, arrives.frame(), "{frontend} {opener:?}");
                // Seen again on its way to the pod, it stays as it is.
                let seen = node.egress::<PodTc>(&outcome.bytes);
                assert_eq!((seen.verdict, &seen.bytes), (Verdict::Pass, &outcome.bytes));
                let reply = Segment { hop_limit: 64, ..arrives.reply(SYN | ACK) };
                let outcome = node.ingress::<PodTc>(&reply.frame());
                assert_eq!(outcome.verdict, Verdict::Forward);
                let back = reply.between(frontend, client, 63);
                assert_eq!(outcome.bytes, back.frame(), "{frontend} {opener:?}");
                let seen = node.egress::<PodTc>(&outcome.bytes);
                assert_eq!((seen.verdict, &seen.bytes), (Verdict::Pass, &outcome.bytes));
            }
        }
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn a_node_without_an_address_of_the_family_counts_why_a_pod_cant_reach_itself() {
    fn of<F: AnswerFormat>() {
        let mut node = node::<F>();
        node.world.clients.clear();
        let client = at::<F>(Role::LocalPod, port::CLIENT);
        let frontend = at::<F>(Role::ClusterIp, port::LOCAL);
        let sent = Segment::new(client, frontend, Transport::Tcp(SYN));
        assert_eq!(node.ingress::<PodTc>(&sent.frame()).verdict, Verdict::Drop);
        assert_eq!(drops(&node), [(DropReason::NoSourceAddress, 1)]);
    }
    of::<V4>();
    of::<V6>();
}

/// Where the sockets are translated, the packets need not be; SCTP has no socket hook.
#[test]
fn beside_the_socket_hooks_only_sctp_is_translated() {
    fn of<F: AnswerFormat>() {
        let mut node = node::<F>();
        node.pod_packets = false;
        for (transport, verdict) in [
            (Transport::Tcp(SYN), Verdict::Pass),
            (Transport::Udp, Verdict::Pass),
            (Transport::Sctp(1), Verdict::Deliver),
        ] {
            let sent = from_pod::<F>(at::<F>(Role::ClusterIp, port::LOCAL), transport);
            assert_eq!(node.ingress::<PodTc>(&sent.frame()).verdict, verdict, "{transport:?}");
        }
    }
    of::<V4>();
    of::<V6>();
}

/// The endpoint that a datagram's flow remembers has left: the next one goes elsewhere.
#[test]
fn a_datagram_follows_its_endpoints_generation() {
    fn of<F: AnswerFormat>() {
        let mut node = node::<F>();
        let sent = from_pod::<F>(at::<F>(Role::ClusterIp, port::REMOTE), Transport::Udp).frame();
        node.ingress::<PodTc>(&sent);
        let generation = |node: &Node<F>| node.flows.values().map(|flow| flow.generation).max();
        let before = generation(&node);
        node.world.leave(pod::<F>(Role::RemotePod));
        node.ingress::<PodTc>(&sent);
        assert!(generation(&node) > before);
    }
    of::<V4>();
    of::<V6>();
}
