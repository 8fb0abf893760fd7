//! Refusals and silences: what a client hears when there is nobody to talk to.

use super::{ACK, FIN, OPENERS, RST, SYN, drops, external, from_client};
use lb_common::family::{V4, V6};
use lb_common::lb::answer::AnswerFormat;
use lb_common::lb::{DropReason, Verdict};
use lb_common::model::frame::{
    Fragment, IcmpError, Problem, Segment, Transport, returned, with_link,
};
use lb_common::model::node::{Tc, TcL3};
use lb_common::model::scene::{self, Role, at, port};

fn refusal<F: AnswerFormat>(sent: &Segment) -> IcmpError {
    IcmpError {
        source: sent.destination.ip(),
        destination: sent.source.ip(),
        problem: Problem::PortUnreachable,
        quote: sent.packet()[..size_of::<F::Quote>()].to_vec(),
        hop_limit: 64,
        own: true,
    }
}

/// What refuses a packet: a reset for TCP, port unreachable for others.
fn refused<F: AnswerFormat>(sent: &Segment) -> (Verdict, Vec<u8>) {
    match sent.transport {
        Transport::Tcp(_) => (Verdict::Reset, sent.reset()),
        Transport::Udp
        | Transport::UdpWithoutChecksum
        | Transport::Sctp(_)
        | Transport::SctpWithoutChecksum(_) => (Verdict::Answer, refusal::<F>(sent).packet()),
    }
}

#[test]
fn a_service_without_endpoints_refuses_every_protocol() {
    fn of<F: AnswerFormat>() {
        for opener in OPENERS {
            let mut node = scene::node::<F>();
            let sent = from_client::<F>(external::<F>(port::EMPTY), opener);
            let (verdict, packet) = refused::<F>(&sent);
            let outcome = node.ingress::<Tc>(&sent.frame());
            assert_eq!(outcome.verdict, verdict);
            assert_eq!(outcome.bytes, returned(with_link(F::HAS_HEADER_CHECKSUM, &packet)));
            let outcome = node.ingress::<TcL3>(&sent.packet());
            assert_eq!(outcome.bytes, packet, "{opener:?}");
            assert_eq!(drops(&node), [(DropReason::NoEndpoints, 2)]);
        }
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn a_port_that_a_live_cluster_ip_does_not_have_is_refused() {
    fn of<F: AnswerFormat>() {
        for opener in OPENERS {
            let mut node = scene::node::<F>();
            let sent = from_client::<F>(at::<F>(Role::ClusterIp, 7), opener);
            let (verdict, packet) = refused::<F>(&sent);
            let outcome = node.ingress::<Tc>(&sent.frame());
            assert_eq!(outcome.verdict, verdict);
            assert_eq!(outcome.bytes, returned(with_link(F::HAS_HEADER_CHECKSUM, &packet)));
            assert_eq!(drops(&node), [(DropReason::UnknownPort, 1)]);
            // Other addresses of a Service may be somebody's machine.
            for role in [Role::External, Role::LoadBalancer, Role::Node] {
                let sent = from_client::<F>(at::<F>(role, 7), opener);
                assert_eq!(node.ingress::<Tc>(&sent.frame()).verdict, Verdict::Pass, "{role:?}");
            }
        }
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn a_reset_acknowledges_what_came_takes_up_what_was_acknowledged_and_answers_no_reset() {
    fn of<F: AnswerFormat>() {
        for flags in [SYN, FIN, ACK, SYN | ACK, FIN | ACK, 0] {
            for (extras, payload) in [(0, 0), (2, 1), (1, 700)] {
                let mut node = scene::node::<F>();
                let mut sent = from_client::<F>(external::<F>(port::EMPTY), Transport::Tcp(flags));
                sent.extras = extras;
                sent.payload.resize(payload, 3);
                let outcome = node.ingress::<TcL3>(&sent.packet());
                let expected = (Verdict::Reset, sent.reset());
                assert_eq!((outcome.verdict, outcome.bytes), expected, "{flags:#x} {extras}");
            }
        }
        let mut node = scene::node::<F>();
        for flags in [RST, RST | ACK] {
            let sent = from_client::<F>(external::<F>(port::EMPTY), Transport::Tcp(flags));
            assert_eq!(node.ingress::<Tc>(&sent.frame()).verdict, Verdict::Drop);
        }
        assert_eq!(drops(&node), [(DropReason::NoEndpoints, 2)]);
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn policy_local_without_a_local_endpoint_drops_outside_traffic_in_silence() {
    fn of<F: AnswerFormat>() {
        let cases = [
            (external::<F>(port::ELSEWHERE), true),
            (at::<F>(Role::LoadBalancer, port::ELSEWHERE), true),
            (at::<F>(Role::Node, port::node_port(port::ELSEWHERE)), true),
            (at::<F>(Role::ClusterIp, port::ELSEWHERE), false),
            (external::<F>(port::INTERNAL_ELSEWHERE), false),
            (at::<F>(Role::ClusterIp, port::INTERNAL_ELSEWHERE), true),
        ];
        for (to, dropped) in cases {
            let mut node = scene::node::<F>();
            let outcome = node.ingress::<Tc>(&from_client::<F>(to, Transport::Udp).frame());
            if dropped {
                assert_eq!(outcome.verdict, Verdict::Drop, "{to}");
                assert_eq!(drops(&node), [(DropReason::NoLocalEndpoint, 1)]);
            } else {
                assert_eq!(outcome.verdict, Verdict::Forward, "{to}");
            }
        }
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn a_later_fragment_is_never_answered_because_its_quote_would_have_no_ports() {
    fn of<F: AnswerFormat>() {
        let mut node = scene::node::<F>();
        let whole = from_client::<F>(external::<F>(port::EMPTY), Transport::Udp);
        let piece = |offset, more| Some(Fragment { id: 81, offset, more });
        let first = Segment { fragment: piece(0, true), ..whole.clone() };
        assert_eq!(node.ingress::<Tc>(&first.frame()).verdict, Verdict::Answer);
        let later = Segment { fragment: piece(5, false), ..whole };
        assert_eq!(node.ingress::<Tc>(&later.frame()).verdict, Verdict::Drop);
        assert_eq!(drops(&node), [(DropReason::NoEndpoints, 2)]);

        let mut node = scene::node::<F>();
        let whole = from_client::<F>(external::<F>(port::REMOTE), Transport::Udp);
        let first = Segment { fragment: piece(0, true), ..whole.clone() };
        node.ingress::<Tc>(&first.frame());
        let later = Segment { fragment: piece(5, false), hop_limit: 1, ..whole };
        assert_eq!(node.ingress::<Tc>(&later.frame()).verdict, Verdict::Drop);
        assert_eq!(drops(&node), [(DropReason::HopLimit, 1)]);
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn a_packet_too_short_to_be_quoted_is_dropped_with_its_reason() {
    fn of<F: AnswerFormat>() {
        let mut node = scene::node::<F>();
        let sent = from_client::<F>(external::<F>(port::EMPTY), Transport::Udp).frame();
        let cut = &sent[..14 + F::HEADER_LEN as usize + 7];
        assert_eq!(node.ingress::<Tc>(cut).verdict, Verdict::Drop);
        assert_eq!(drops(&node), [(DropReason::Answer, 1), (DropReason::NoEndpoints, 1)]);
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn established_flows_outlive_the_last_endpoint() {
    fn of<F: AnswerFormat>() {
        let mut node = scene::node::<F>();
        let sent = from_client::<F>(external::<F>(port::LOCAL), Transport::Tcp(SYN));
        node.ingress::<Tc>(&sent.frame());
        for record in node.world.records.values_mut() {
            record.cluster.len = 0;
            record.flags = 0;
        }
        let data = Segment { transport: Transport::Tcp(ACK), ..sent.clone() };
        assert_eq!(node.ingress::<Tc>(&data.frame()).verdict, Verdict::Deliver);
        let mut fresh = sent;
        fresh.source.set_port(1);
        assert_eq!(node.ingress::<Tc>(&fresh.frame()).verdict, Verdict::Reset);
    }
    of::<V4>();
    of::<V6>();
}
