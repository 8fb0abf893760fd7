//! SCTP (RFC 9260): ports are rewritten like those of TCP, and the checksum with them.

use super::{drops, external, from_client, pod};
use lb_common::abi::Traffic;
use lb_common::family::{V4, V6};
use lb_common::lb::answer::AnswerFormat;
use lb_common::lb::{DropReason, Verdict};
use lb_common::model::frame::{Fragment, IcmpError, Problem, Segment, Transport};
use lb_common::model::node::{Node, Tc, TcL3, Xdp};
use lb_common::model::scene::{self, Role, at, ip, port};
use lb_common::wire::ethernet;
use proptest::prelude::*;

/// Chunk types.
const DATA: u8 = 0;
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const ABORT: u8 = 6;
const SHUTDOWN_COMPLETE: u8 = 14;

/// What TRAFFIC has of each endpoint.
fn counted<F: AnswerFormat>(node: &Node<F>) -> Vec<Traffic> {
    node.world.traffic.borrow().values().copied().collect()
}

/// One association of two packets.
fn there_and_back(sent: &Segment, reply: &Segment) -> Traffic {
    let length = |segment: &Segment| (segment.frame().len() - ethernet::HEADER_LEN as usize) as u64;
    Traffic {
        flows: 1,
        packets_to: 1,
        packets_from: 1,
        bytes_to: length(sent),
        bytes_from: length(reply),
        ..Traffic::default()
    }
}

#[test]
fn an_association_with_a_local_backend_goes_there_and_back() {
    fn of<F: AnswerFormat>() {
        for frontend in [
            at::<F>(Role::ClusterIp, port::LOCAL),
            at::<F>(Role::LoadBalancer, port::LOCAL),
            at::<F>(Role::Node, port::node_port(port::LOCAL)),
        ] {
            let mut node = scene::node::<F>();
            let sent = from_client::<F>(frontend, Transport::Sctp(INIT));
            let arrives = sent.between(sent.source, pod::<F>(Role::LocalPod), 64);
            let outcome = node.ingress::<Tc>(&sent.frame());
            assert_eq!((outcome.verdict, outcome.bytes), (Verdict::Deliver, arrives.frame()));
            let reply = Segment { transport: Transport::Sctp(INIT_ACK), ..arrives.reply(0) };
            let outcome = node.egress::<Tc>(&reply.frame());
            let leaves = reply.between(frontend, sent.source, 64);
            assert_eq!((outcome.verdict, outcome.bytes), (Verdict::Deliver, leaves.frame()));
            assert_eq!(counted(&node), [there_and_back(&sent, &reply)]);
        }
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn an_association_with_a_remote_backend_comes_from_the_node() {
    fn of<F: AnswerFormat>() {
        let mut node = scene::node::<F>();
        let sent = from_client::<F>(external::<F>(port::REMOTE), Transport::Sctp(INIT));
        let outcome = node.ingress::<Tc>(&sent.frame());
        let source = super::source_of::<F>(&outcome);
        let leaves = sent.between(source, pod::<F>(Role::RemotePod), 63);
        assert_eq!(outcome.bytes, leaves.frame());
        let reply = leaves.between(leaves.destination, leaves.source, 64);
        let outcome = node.ingress::<Tc>(&reply.frame());
        let back = reply.between(sent.destination, sent.source, 63);
        assert_eq!((outcome.verdict, outcome.bytes), (Verdict::Forward, back.frame()));
        assert_eq!(counted(&node), [there_and_back(&sent, &reply)]);
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn a_checksum_that_a_device_will_fill_in_stays_empty() {
    fn of<F: AnswerFormat>() {
        let mut node = scene::node::<F>();
        let kind = Transport::SctpWithoutChecksum(INIT);
        let sent = from_client::<F>(external::<F>(port::LOCAL), kind);
        let arrives = sent.between(sent.source, pod::<F>(Role::LocalPod), 64);
        assert_eq!(node.ingress::<Tc>(&sent.frame()).bytes, arrives.frame());
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn whoever_finds_no_endpoint_is_told_that_the_port_is_unreachable() {
    fn of<F: AnswerFormat>() {
        let mut node = scene::node::<F>();
        let sent = from_client::<F>(external::<F>(port::EMPTY), Transport::Sctp(INIT));
        assert_eq!(node.ingress::<Tc>(&sent.frame()).verdict, Verdict::Answer);
        assert_eq!(drops(&node), [(DropReason::NoEndpoints, 1)]);
    }
    of::<V4>();
    of::<V6>();
}

/// XDP has no room for the checksum's tables, and SCTP is rare.
#[test]
fn xdp_leaves_it_to_tc() {
    fn of<F: AnswerFormat>() {
        let mut node = scene::node::<F>();
        let sent = from_client::<F>(external::<F>(port::REMOTE), Transport::Sctp(INIT));
        node.ingress::<Tc>(&sent.frame());
        let outcome = node.ingress::<Xdp>(&sent.frame());
        assert_eq!((outcome.verdict, outcome.bytes), (Verdict::Pass, sent.frame()));
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn only_a_new_association_moves_when_the_endpoints_have_left() {
    fn of<F: AnswerFormat>() {
        let mut node = scene::node::<F>();
        let send = |node: &mut Node<F>, chunk| {
            let sent = from_client::<F>(external::<F>(port::SPREAD), Transport::Sctp(chunk));
            assert_eq!(node.ingress::<Tc>(&sent.frame()).verdict, Verdict::Forward);
            node.flows.values().map(|flow| flow.generation).max()
        };
        let first = send(&mut node, INIT);
        for role in [Role::RemotePod, Role::SecondRemotePod, Role::ThirdRemotePod] {
            node.world.leave(pod::<F>(role));
        }
        for chunk in [DATA, ABORT, SHUTDOWN_COMPLETE, DATA] {
            assert_eq!(send(&mut node, chunk), first, "{chunk}");
        }
        assert!(send(&mut node, INIT) > first);
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn an_icmp_error_about_an_association_reaches_its_client() {
    fn of<F: AnswerFormat>() {
        let mut node = scene::node::<F>();
        let sent = from_client::<F>(external::<F>(port::LOCAL), Transport::Sctp(INIT));
        node.ingress::<Tc>(&sent.frame());
        let arrives = sent.between(sent.source, pod::<F>(Role::LocalPod), 64);
        let error = |source, quote| IcmpError {
            source,
            destination: sent.source.ip(),
            problem: Problem::PortUnreachable,
            quote,
            hop_limit: 64,
            own: false,
        };
        let told = error(ip::<F>(Role::LocalPod), arrives.packet());
        let quote = arrives.quote(sent.source, sent.destination, usize::MAX);
        let outcome = node.egress::<Tc>(&told.frame());
        let leaves = error(sent.destination.ip(), quote);
        assert_eq!((outcome.verdict, outcome.bytes), (Verdict::Deliver, leaves.frame()));
    }
    of::<V4>();
    of::<V6>();
}

/// The checksum is over all of the packet, of which the first fragment has a part.
#[test]
fn a_fragment_whose_checksum_would_have_to_change_is_dropped_and_counted() {
    fn of<F: AnswerFormat>() {
        let mut node = scene::node::<F>();
        let fragment = Some(Fragment { id: 7, offset: 0, more: true });
        let whole = from_client::<F>(external::<F>(port::LOCAL), Transport::Sctp(DATA));
        let sent = Segment { fragment, ..whole };
        assert_eq!(node.ingress::<Tc>(&sent.frame()).verdict, Verdict::Drop);
        assert_eq!(drops(&node), [(DropReason::Rewrite, 1)]);
    }
    of::<V4>();
    of::<V6>();
}

proptest! {
    #[test]
    fn every_length_has_the_right_checksum_afterwards(words in 0_usize..360, port in 1_u16..) {
        fn of<F: AnswerFormat>(words: usize, port: u16) -> Result<(), TestCaseError> {
            let mut node = scene::node::<F>();
            let mut sent = from_client::<F>(external::<F>(port::LOCAL), Transport::Sctp(INIT));
            sent.payload = (0..words * 4).map(|at| at as u8).collect();
            sent.source.set_port(port);
            let arrives = sent.between(sent.source, pod::<F>(Role::LocalPod), 64);
            let outcome = node.ingress::<TcL3>(&sent.packet());
            prop_assert_eq!(outcome.bytes, arrives.packet());
            Ok(())
        }
        of::<V4>(words, port)?;
        of::<V6>(words, port)?;
    }
}
