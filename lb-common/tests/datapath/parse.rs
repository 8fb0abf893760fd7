//! Packets that are cut short, malformed or garbage.

use super::{ACK, OPENERS, external, from_client};
use lb_common::family::{V4, V6};
use lb_common::lb::answer::AnswerFormat;
use lb_common::lb::{DropReason, Verdict};
use lb_common::model::frame::{IcmpError, Problem, Segment, Transport, with_link};
use lb_common::model::node::{Hook, Node, Outcome, Tc, TcL3, Xdp};
use lb_common::model::scene::{self, Role, ip, port};
use proptest::prelude::*;

/// What must hold of every packet whatsoever.
fn is_harmless<F: AnswerFormat>(node: &Node<F>, sent: &[u8], outcome: &Outcome) {
    match outcome.verdict {
        Verdict::Pass | Verdict::HandOver => {
            assert_eq!(outcome.bytes, sent, "what passes is untouched");
        }
        Verdict::Drop => {
            let counted: u64 = node.world.drops.borrow().values().sum();
            assert!(counted > 0, "every drop has a reason");
        }
        Verdict::Deliver | Verdict::Forward | Verdict::Raise => {
            assert_eq!(outcome.bytes.len(), sent.len());
        }
        Verdict::Parked => assert!(!node.parked.is_empty(), "what is parked is kept"),
        Verdict::Answer | Verdict::Reset => {}
    }
}

fn every_length<F: AnswerFormat, H: Hook>(node: &Node<F>, frame: &[u8]) {
    for len in 0..frame.len() {
        let cut = &frame[..len];
        let mut one = node.clone();
        let outcome = one.ingress::<H>(cut);
        is_harmless(&one, cut, &outcome);
        let outcome = one.egress::<H>(cut);
        is_harmless(&one, cut, &outcome);
    }
}

#[test]
fn packets_cut_at_every_length_pass_untouched_or_are_dropped_with_a_reason() {
    fn of<F: AnswerFormat>() {
        for service in [port::LOCAL, port::REMOTE, port::EMPTY] {
            for transport in OPENERS {
                for extras in [0, 2] {
                    let sent =
                        Segment { extras, ..from_client::<F>(external::<F>(service), transport) };
                    let mut node = scene::node::<F>();
                    // New flows, then packets of known ones.
                    for _ in 0..2 {
                        every_length::<F, Tc>(&node, &sent.frame());
                        every_length::<F, TcL3>(&node, &sent.packet());
                        every_length::<F, Xdp>(&node, &sent.frame());
                        node.ingress::<Tc>(&sent.frame());
                    }
                }
            }
        }
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn errors_cut_at_every_length_pass_untouched_or_are_dropped_with_a_reason() {
    fn of<F: AnswerFormat>() {
        for service in [port::LOCAL, port::REMOTE] {
            let mut node = scene::node::<F>();
            let sent = from_client::<F>(external::<F>(service), Transport::Udp);
            node.ingress::<Tc>(&sent.frame());
            let error = IcmpError {
                source: ip::<F>(Role::Router),
                destination: sent.destination.ip(),
                problem: Problem::PortUnreachable,
                quote: sent.reply(ACK).packet(),
                hop_limit: 60,
                own: false,
            };
            every_length::<F, Tc>(&node, &error.frame());
        }
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn a_packet_that_ends_before_its_checksum_is_dropped_with_its_reason() {
    fn of<F: AnswerFormat>() {
        let mut node = scene::node::<F>();
        let sent = from_client::<F>(external::<F>(port::LOCAL), Transport::Udp).frame();
        let outcome = node.ingress::<Tc>(&sent[..14 + F::HEADER_LEN as usize + 5]);
        assert_eq!(outcome.verdict, Verdict::Drop);
        assert_eq!(super::drops(&node), [(DropReason::Rewrite, 1)]);
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn headers_that_lie_about_version_and_length_pass_untouched() {
    for first in (0..=255_u8).filter(|byte| byte >> 4 != 4 || byte & 0xf < 5) {
        let mut packet = from_client::<V4>(external::<V4>(port::LOCAL), Transport::Udp).packet();
        packet[0] = first;
        let frame = with_link(true, &packet);
        let outcome = scene::node::<V4>().ingress::<Tc>(&frame);
        assert_eq!((outcome.verdict, outcome.bytes), (Verdict::Pass, frame), "{first:#x}");
    }
    for first in (0..=255_u8).filter(|byte| byte >> 4 != 6) {
        let mut packet = from_client::<V6>(external::<V6>(port::LOCAL), Transport::Udp).packet();
        packet[0] = first;
        let frame = with_link(false, &packet);
        let outcome = scene::node::<V6>().ingress::<Tc>(&frame);
        assert_eq!((outcome.verdict, outcome.bytes), (Verdict::Pass, frame), "{first:#x}");
    }
}

#[test]
fn a_chain_of_more_extension_headers_than_anyone_needs_passes_untouched() {
    let sent = from_client::<V6>(external::<V6>(port::LOCAL), Transport::Udp);
    let sent = Segment { extras: 7, ..sent };
    let outcome = scene::node::<V6>().ingress::<Tc>(&sent.frame());
    assert_eq!((outcome.verdict, outcome.bytes), (Verdict::Pass, sent.frame()));
}

fn garbage<F: AnswerFormat>(bytes: &[u8]) {
    let mut node = scene::node::<F>();
    for _ in 0..2 {
        let outcome = node.ingress::<Tc>(bytes);
        is_harmless(&node, bytes, &outcome);
        let outcome = node.egress::<Tc>(bytes);
        is_harmless(&node, bytes, &outcome);
        let outcome = node.ingress::<Xdp>(bytes);
        is_harmless(&node, bytes, &outcome);
    }
}

/// A real packet with some bytes overwritten: gets deeper than random bytes do.
fn damaged<F: AnswerFormat>(extras: usize, damage: &[(usize, u8)], service: u16) {
    let sent = Segment { extras, ..from_client::<F>(external::<F>(service), Transport::Tcp(ACK)) };
    let mut frame = sent.frame();
    for (at, byte) in damage {
        let len = frame.len();
        frame[at % len] = *byte;
    }
    garbage::<F>(&frame);
}

proptest! {
    #[test]
    fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..160)) {
        garbage::<V4>(&bytes);
        garbage::<V6>(&bytes);
    }

    #[test]
    fn damaged_packets_are_harmless(
        extras in 0..4_usize,
        damage in prop::collection::vec((0..120_usize, any::<u8>()), 0..6),
        service in 80..91_u16,
    ) {
        damaged::<V4>(extras, &damage, service);
        damaged::<V6>(extras, &damage, service);
    }
}
